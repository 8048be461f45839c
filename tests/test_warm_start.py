"""A training that begins from a finished run: its weights, the new shards' content; and inputs that are refused."""

import json
import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import TINY_EMBEDDING

import keyart
from configs.arguments import parse
from datamodules.prepare.prepare import prepare
from foundation.errors import UserError
from models.two_tower import Content, TwoTowerConfig
from train.config import FitConfig
from train.embed import embed
from train.fit import fit
from train.run import Run

SHORT = FitConfig(epochs=1, validations_per_epoch=2, batch=256)


@pytest.fixture(scope="module")
def new_day(service: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the newest impressions, of a catalogue that gained a title and its artwork."""
    folder = tmp_path_factory.mktemp("warm")
    dataset = folder / "service"
    shutil.copytree(service, dataset)
    for name, new in (
        ("titles", {"title_id": "zz-new"}),
        ("artworks", {"artwork_id": "zz-new-art", "title_id": "zz-new"}),
    ):
        path = dataset / f"{name}.parquet"
        table = pq.read_table(path)
        row = table.slice(0, 1).to_pylist()[0] | new
        pq.write_table(pa.concat_tables([table, pa.Table.from_pylist([row], table.schema)]), path)
    out = folder / "shards"
    since = datetime.fromisoformat(
        json.loads((shards / "manifest.json").read_text(encoding="utf-8"))["validation_from"]
    )
    prepare(dataset, out, like=shards, since=since)
    embed(dataset, out, TINY_EMBEDDING)
    return out


@pytest.fixture(scope="module")
def warm(new_day: Path, run: Path) -> Path:
    out = new_day.parent / "run"
    fit(new_day, out, SHORT, from_run=run)
    return out


def test_the_catalogue_grew_and_the_tables_did_not(new_day: Path, warm: Path, run: Path) -> None:
    before, after = Run.open(run), Run.open(warm)
    assert after.model.sizes == before.model.sizes
    assert len(after.vocabularies["titles"]) == len(before.vocabularies["titles"]) + 1
    assert after.vocabularies["artworks"].values[-1] == "zz-new-art"
    assert len(after.model.artwork_image_AE) == len(before.model.artwork_image_AE) + 1
    old = before.model.state_dict()
    for name, value in after.model.state_dict().items():
        assert value.shape == old[name].shape or name in Content._fields, name


def test_a_step_of_no_size_leaves_the_weights_of_before(new_day: Path, run: Path, tmp_path: Path) -> None:
    """The weights it begins with are the run's, and calibration is fitted anew."""
    still = replace(SHORT, optimiser=replace(SHORT.optimiser, learning_rate=0.0))
    fit(new_day, tmp_path / "run", still, from_run=run)
    before, after = Run.open(run).model, Run.open(tmp_path / "run").model
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(new, old, msg=name, rtol=1e-5, atol=1e-7)
    assert not torch.equal(before.calibration, after.calibration)
    assert Run.open(tmp_path / "run").metrics["best_validation"] == 0, "what it began with is judged too"


def test_a_warm_start_is_better_than_a_cold_one(new_day: Path, warm: Path, tmp_path: Path) -> None:
    cold = fit(new_day, tmp_path / "run", SHORT)
    assert Run.open(warm).metrics["validation_log_loss"] < cold["validation_log_loss"]


def test_the_run_names_what_it_began_from(new_day: Path, warm: Path, run: Path) -> None:
    config = yaml.safe_load((warm / "config.yaml").read_text(encoding="utf-8"))
    assert config["from"] == yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["fingerprint"]
    assert fit(new_day, warm, SHORT, from_run=run) == Run.open(warm).metrics
    with pytest.raises(UserError, match="other shards, another config or another --from"):
        fit(new_day, warm, SHORT)


def test_what_does_not_fit_is_refused(new_day: Path, shards: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"width=32.*was requested"):
        fit(new_day, tmp_path / "run", replace(SHORT, model=TwoTowerConfig(width=32)), from_run=run)
    unfinished = tmp_path / "unfinished"
    fit(shards, unfinished, replace(SHORT, seed=5), stop_after=1)
    with pytest.raises(UserError, match=f"{unfinished}: the run is not finished"):
        fit(new_day, tmp_path / "run", SHORT, from_run=unfinished)

    alone = tmp_path / "alone"
    shutil.copytree(new_day, alone)
    vocabularies = json.loads((alone / "vocabularies.json").read_text(encoding="utf-8"))
    vocabularies["titles"]["values"][0] = "another"
    (alone / "vocabularies.json").write_text(json.dumps(vocabularies), encoding="utf-8")
    manifest = json.loads((alone / "manifest.json").read_text(encoding="utf-8"))
    (alone / "manifest.json").write_text(json.dumps(manifest | {"files": {}}), encoding="utf-8")
    with pytest.raises(UserError, match=rf"{alone}: its titles are not those .*{run.name} was trained with.*--like"):
        fit(alone, tmp_path / "run", SHORT, from_run=run)

    other = tmp_path / "other"
    shutil.copytree(new_day, other)
    with (other / "embedding" / "encoder.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"else")
    record = json.loads((other / "embedding" / "embedding.json").read_text(encoding="utf-8"))
    (other / "embedding" / "embedding.json").write_text(json.dumps(record | {"files": {}}), encoding="utf-8")
    with pytest.raises(UserError, match=rf"{other}: its images are embedded by another encoder .*{run.name}"):
        fit(other, tmp_path / "run", SHORT, from_run=run)
    assert not (tmp_path / "run").exists()


def test_the_command_line_calls_it_from() -> None:
    words = ["shards", "run", "--from", "before", "--epochs", "1"]
    assert parse("fit", keyart.fit, "fit", words, None)["from_run"] == Path("before")
