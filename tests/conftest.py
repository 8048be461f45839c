"""What several tests share: one tiny simulated service and what is made from it, each made once per session."""

import fcntl
import logging
import os
import shutil

if "PYTEST_XDIST_WORKER" in os.environ:  # two processes of two threads each would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.serve_load import Served, serving
from datamodules.prepare.prepare import prepare
from datamodules.shards.shard import Shards
from datamodules.simulator.simulate import SimulateConfig, simulate
from export.export import export
from models.history import HistoryConfig
from models.image_encoder import ImageEncoderConfig
from models.linear_title_models import NextItemConfig
from models.two_tower import TwoTowerConfig
from pipeline import embedded_artworks
from serving.bundle.bundle import Bundle
from serving.bundle.metadata import RunOrigin
from serving.bundle.refresh import refresh
from serving.scoring.score import score
from tests.grown_catalogue import NEW_ARTWORKS, NEW_TITLES, grow
from tests.served import IMPATIENT, WITHOUT_TORCH
from train.config import FitConfig
from train.embed import EmbedConfig, embed
from train.fit import fit
from train.next_title import TitlesConfig
from train.optimiser import OptimiserConfig
from train.run import Run

# a sixth of an export's time went into these records, which pytest formats and nobody reads
logging.getLogger("torch.__trace").propagate = False

TINY = SimulateConfig(seed=3, members=300, titles=30, people=10, mean_plays=20, mean_impressions=27)
"""About 8,000 impressions."""
TINY_EMBEDDING = EmbedConfig(views=640, encoder=ImageEncoderConfig(height=48, width=32, stage_width=8))
"""How the fixture `shards` embeds it."""
TINY_FIT = FitConfig(
    epochs=8, validations_per_epoch=1, batch=256, patience=20, optimiser=OptimiserConfig(learning_rate=4e-3)
)
"""How the fixture `run` trains on it."""

LONGEST = ("engines", "locale", "recipes_and_commands", "prepare_faults", "faults", "vectors", "stored", "finetune")
"""Files of a minute or more, the longest first; the first two need no `bundle` for a while, which one process makes for both."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked slow or benchmark unless they are requested. The longest files come first: no process ends alone."""
    if "KEYART_BENCHMARK" not in os.environ:
        for item in items:
            if item.get_closest_marker("benchmark"):
                item.add_marker(pytest.mark.skip(reason="a whole benchmark; KEYART_BENCHMARK=1 runs it"))
    if "KEYART_SLOW" not in os.environ:
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes a minute or more; KEYART_SLOW=1 runs it"))
    order = {f"test_{name}.py": index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


Once = Callable[[str, Callable[[Path], object]], Path]
"""A folder's name and the function that writes it -> the folder, which the first process to need it has written."""


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """What all processes of the tests share. Each folder has a parent of its own, so that nobody's hidden files lie beside it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        parent = root / f"shared-{name}"
        parent.mkdir(exist_ok=True)
        with parent.with_name(f"{parent.name}.lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (complete := parent.with_name(f"{parent.name}.complete")).exists():
                make(parent / name)
                complete.touch()
        return parent / name

    return made


@pytest.fixture(scope="session")
def service(once: Once) -> Path:
    """A dataset by the contract with its truth. Read it, never write into it."""
    return once("service", lambda out: simulate(out, TINY))


@pytest.fixture(scope="session")
def simulated(once: Once) -> Path:
    """A service of a few hundred impressions. Read it, never write into it."""
    config = SimulateConfig(seed=2, members=60, titles=10, people=8, mean_plays=12, mean_impressions=12)
    return once("dataset", lambda out: simulate(out, config))


def _embedded(dataset: Path, out: Path) -> None:
    prepare(dataset, out)
    embed(dataset, out, TINY_EMBEDDING)


@pytest.fixture(scope="session")
def shards(service: Path, once: Once) -> Path:
    """The service prepared and embedded. Read it, never write into it."""
    return once("shards", partial(_embedded, service))


@pytest.fixture(scope="session")
def few_shards(simulated: Path, once: Once) -> Path:
    """The same of `simulated`, a third of the images: for tests that embed again. Read it, never write into it."""
    return once("few_shards", partial(_embedded, simulated))


@pytest.fixture(scope="session")
def run(shards: Path, once: Once) -> Path:
    """A finished run."""
    return once("run", lambda out: fit(shards, out, TINY_FIT))


@pytest.fixture(scope="session")
def bundle(run: Path, shards: Path, once: Once) -> Path:
    """The run's bundle, with the precisions that its gates let ship."""

    def make(out: Path) -> None:
        opened = Run.open(run)
        origin = RunOrigin(
            fingerprint=opened.config["fingerprint"],
            validation_from=opened.config["validation_from"],
            test_from=opened.config["test_from"],
        )
        images, _ = embedded_artworks(run)
        validation = Shards.open(shards)
        export(opened.model, opened.vocabularies, out, origin=origin, images=images, validation=validation)

    return once("bundle", make)


@pytest.fixture(scope="session")
def attending_run(shards: Path, once: Once) -> Path:
    """A run whose ranker attends to the history, and learned titles beside clicks."""
    history = HistoryConfig(encoder="attention", layers=2, span=6)
    rank = NextItemConfig(rank=400)
    model = TwoTowerConfig(width=16, dropout=0.0, id_dropout=0.0, next_item=rank, history=history)
    titles = TitlesConfig(weight=0.05, negatives=10)
    config = FitConfig(epochs=1, validations_per_epoch=1, batch=512, model=model, titles=titles)
    return once("attending_run", lambda out: fit(shards, out, config))


@pytest.fixture(scope="session")
def attending(attending_run: Path, once: Once) -> Path:
    """That run's bundle, without graphs for new artworks and without a reference for drift."""
    opened = Run.open(attending_run)
    assert opened.model.sequence_tower.next_bias.weight.any()
    return once("attending", lambda out: export(opened.model, opened.vocabularies, out, origin={}))


@pytest.fixture(scope="session")
def scores(service: Path, bundle: Path, once: Once) -> Path:
    """The test period scored greedily."""
    opened = Bundle.open(bundle)
    return once("scores", lambda out: score(opened, service, out, since=opened.test_from))


@pytest.fixture(scope="session")
def grown(service: Path, once: Once) -> Path:
    """The service's catalogue, with more titles and artworks. Read it, never write into it."""
    return once("grown", partial(grow, service))


@pytest.fixture(scope="session")
def refreshed(bundle: Path, grown: Path, once: Once) -> Path:
    """The bundle, refreshed with the new titles and artworks."""

    def make(out: Path) -> None:
        result = refresh(shutil.copytree(bundle, out), grown, Console(quiet=True))
        assert (result.titles, result.artworks) == (len(NEW_TITLES), len(NEW_ARTWORKS))

    return once("refreshed", make)


@pytest.fixture(scope="session")
def at(bundle: Path) -> Iterator[Served]:
    """The service, where importing torch fails."""
    with serving([sys.executable, "-c", WITHOUT_TORCH + IMPATIENT.format(folder=str(bundle))]) as served:
        yield served
