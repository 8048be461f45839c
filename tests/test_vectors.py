"""Vectors of the user's own: alone or beside images, from the dataset to a refreshed bundle; and what cannot be used is named."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

import keyart
from datamodules.shards.artwork_images import load_images
from datamodules.shards.artwork_vectors import vector_hashes
from datamodules.shards.shard import EMBEDDING
from evaluation.record.records import read_report
from export.parity import compare
from foundation.errors import UserError
from models.content_towers import ARTWORK_OUTPUTS, artwork_vectors
from pipeline import embedded_artworks, export_run
from serving.bundle.bundle import ARTWORK_GRAPH, CARD, IMAGE_HASHES, VECTOR_HASHES, Bundle
from serving.bundle.refresh import refresh
from serving.bundle.verify import verify
from serving.scoring.preferences import OF_VECTORS
from serving.scoring.score import score
from tests.conftest import TINY_EMBEDDING
from tests.dataset_edits import put
from tests.given_vectors import LENGTH, give_vectors, names_of, no_column, standardised, vector_of, without_images
from tests.grown_catalogue import NEW_ARTWORKS, NEW_TITLES
from train.config import FitConfig
from train.embed import embed, load_embedding, load_encoder
from train.embed_config import EMBEDDING_RECORD
from train.finetune import FineTuneConfig, ImageTower
from train.fit import fit
from train.run import Run

QUIET = Console(quiet=True)


@dataclass(frozen=True)
class TrainedOn:
    """A dataset whose embeddings are of `sources`, and the shards, run and bundle made from it."""

    sources: str
    dataset: Path
    grown: Path
    """The dataset's catalogue with more titles and artworks."""
    shards: Path
    run: Path
    bundle: Path


@pytest.fixture(scope="module", params=["embedding", "both"])
def trained_on(
    request: pytest.FixtureRequest, service: Path, grown: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainedOn:
    """From the command line: check, prepare, embed; then fit and export. Vectors alone have no image anywhere."""
    folder = tmp_path_factory.mktemp(request.param)
    dataset, more = (give_vectors(shutil.copytree(source, folder / source.name)) for source in (service, grown))
    if request.param == "embedding":
        without_images(dataset)
        without_images(more)
    one = TrainedOn(request.param, dataset, more, *(folder / name for name in ("shards", "run", "bundle")))
    assert keyart.main(["check", str(dataset)]) == 0
    assert keyart.main(["prepare", str(dataset), str(one.shards)]) == 0
    encoder = TINY_EMBEDDING.encoder
    options = [f"--encoder.{name}={getattr(encoder, name)}" for name in ("height", "width", "stage_width")]
    words = ["embed", str(dataset), str(one.shards), "--sources", one.sources, "--views", str(TINY_EMBEDDING.views)]
    assert keyart.main([*words, *options]) == 0
    fit(one.shards, one.run, FitConfig(epochs=1, validations_per_epoch=1, batch=512), console=QUIET)
    export_run(one.run, one.bundle, QUIET)
    return one


def test_each_source_is_standardised_by_itself(trained_on: TrainedOn, shards: Path) -> None:
    embedding, record = load_embedding(trained_on.shards)
    given = standardised(np.stack([vector_of(name) for name in names_of(trained_on.shards)]).astype(np.float64))
    np.testing.assert_allclose(embedding[1:, -LENGTH:], given, atol=1e-5)
    assert not embedding[0].any()
    of_images, image_record = load_embedding(shards)
    assert record["width"] == embedding.shape[1] == LENGTH + (trained_on.sources == "both") * of_images.shape[1]
    assert record["vectors"] == vector_hashes(np.stack([vector_of(name) for name in names_of(trained_on.shards)]))
    if trained_on.sources == "both":
        assert torch.equal(embedding[:, :-LENGTH], of_images), "the very numbers that images alone give"
        assert record["weights"] == image_record["weights"]
    else:
        assert record["weights"] is None


def test_a_bundle_says_what_it_came_from(trained_on: TrainedOn) -> None:
    metadata: dict[str, Any] = {**Bundle.open(trained_on.bundle).metadata}
    card = (trained_on.bundle / CARD).read_text("utf-8")
    assert metadata["embedding"]["vector_length"] == LENGTH
    assert f"checksum {metadata['embedding']['vectors']}" in card
    assert "vectors from outside, the column `embedding` of artworks.parquet (20 numbers" in card
    assert "vectors of 20 numbers given in artworks.parquet" in metadata["image_encoder"]
    licence = metadata["licences"]["image_encoder"]
    assert "under the terms of the model that made them outside of keyart" in licence
    inputs = [row["name"] for row in metadata["graphs"][ARTWORK_GRAPH]["inputs"]]
    digests = vector_hashes(np.stack([vector_of(name) for name in names_of(trained_on.shards)]))
    assert json.loads((trained_on.bundle / VECTOR_HASHES).read_text(encoding="utf-8")) == digests
    if trained_on.sources == "both":
        assert metadata["embedding"]["sources"] == ["image", "embedding"]
        assert inputs == ["image", "embedding", "depicts"]
        assert "yours, as far as its images" in licence
        assert "their images and vectors from outside" in card
    else:
        assert metadata["embedding"]["sources"] == ["embedding"]
        assert inputs == ["embedding", "depicts"]
        assert metadata["image_encoder"].startswith("none, ")
        assert not (trained_on.bundle / IMAGE_HASHES).exists()
    assert metadata["embedding"]["width"] == load_embedding(trained_on.shards)[0].shape[1]


def test_scores_and_the_report_need_no_images(trained_on: TrainedOn, tmp_path: Path) -> None:
    opened = Bundle.open(trained_on.bundle)
    score(opened, trained_on.dataset, tmp_path / "scores", since=opened.test_from, console=QUIET)
    assert compare(Run.open(trained_on.run).model, trained_on.shards, tmp_path / "scores") < 1e-4
    assert (
        keyart.main(["evaluate", str(trained_on.bundle), str(trained_on.dataset), str(tmp_path / "report"), "--record"])
        == 0
    )
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert len(page) > 10_000
    looks = read_report(tmp_path / "report").get("preferences")
    assert looks is not None
    assert (looks["occluded"], looks["unreadable"], looks["left_out"]) == ([], 0, OF_VECTORS)
    assert looks["groups"][0]["most"]
    assert OF_VECTORS in page
    assert "encoded anew" not in page
    verify(trained_on.bundle)


def test_refresh_takes_new_vectors_as_training_would(trained_on: TrainedOn, tmp_path: Path) -> None:
    folder = shutil.copytree(trained_on.bundle, tmp_path / "bundle")
    result = refresh(folder, trained_on.grown, QUIET)
    assert (result.titles, result.artworks) == (len(NEW_TITLES), len(NEW_ARTWORKS))
    before, after = Bundle.open(trained_on.bundle), Bundle.open(folder)
    artworks = {row["artwork_id"]: row for row in pq.read_table(trained_on.grown / "artworks.parquet").to_pylist()}
    new = [artworks[name] for name in after.vocabularies["artworks"].values[-len(NEW_ARTWORKS) :]]
    run = Run.open(trained_on.run)
    tower = artwork_vectors(run.model, embedded_artworks(trained_on.run)[0].embedding, (144, 96), (8, 6))
    given = [torch.from_numpy(np.stack([vector_of(row["artwork_id"]) for row in new]))]
    if trained_on.sources == "both":
        pixels = load_images([trained_on.grown / row["image"] for row in new])  # of training's own reader
        given.insert(0, torch.from_numpy(pixels.transpose(0, 2, 3, 1).copy()))
    first_words = [(row["depicts"] or [""])[:1] for row in new]
    words = [
        torch.tensor([[after.vocabularies[name].row(word) for word in list_] for list_ in first_words])
        for name in ("people", "genres")
    ]
    with torch.no_grad():
        outputs = tower(*given, *words)
    expected = dict(zip(ARTWORK_OUTPUTS, outputs, strict=True))
    single = [index for index, row in enumerate(new) if len(row["depicts"] or []) <= 1]
    assert single, "the rest have several words, and would need as many columns here"
    for name in ("artwork_vector", "artwork_content", "artwork_bias"):
        rows = after.tables[name][-len(new) :]
        np.testing.assert_allclose(rows[single], expected[name][single], atol=2e-3, err_msg=name)
        np.testing.assert_array_equal(after.tables[name][: -len(new)], before.tables[name], err_msg=name)
    assert json.loads((folder / VECTOR_HASHES).read_text(encoding="utf-8"))[-3:] == vector_hashes(given[-1].numpy())
    assert after.metadata.get("embedding") == before.metadata.get("embedding") is not None
    verify(folder)
    session = ort.InferenceSession(folder / ARTWORK_GRAPH)
    assert {part.name for part in session.get_inputs()} >= {"embedding", "depicts"}


def other_length(dataset: Path) -> None:
    give_vectors(dataset, length=LENGTH + 1)


def another_model(dataset: Path) -> None:
    give_vectors(dataset, seed=1)


def not_a_number(dataset: Path) -> None:
    put(dataset / "artworks.parquet", 0, embedding=[float("nan"), *[1.0] * (LENGTH - 1)])


def one_without(dataset: Path) -> None:
    put(dataset / "artworks.parquet", 0, embedding=None)


REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (no_column, "have no embedding (first: aa face), and"),
    (other_length, "artworks have another embedding than"),
    (another_model, "artworks have another embedding than"),
    (not_a_number, "artworks.parquet: 1 row whose embedding holds a null, NaN, an infinity"),
    (one_without, "artworks.parquet: 1 row without an embedding, which other rows have (first: aa face)"),
]


@pytest.mark.parametrize(("spoil", "message"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_refresh_refuses_by_name_and_loses_nothing(
    trained_on: TrainedOn,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, dataset = (
        shutil.copytree(trained_on.bundle, tmp_path / "bundle"),
        shutil.copytree(trained_on.grown, tmp_path / "dataset"),
    )
    if spoil is no_column and trained_on.sources == "embedding":  # a catalogue of images, for a bundle of vectors
        table = pq.read_table(dataset / "artworks.parquet")
        pq.write_table(
            table.append_column("image", pa.array(["images/x.jpg"] * len(table))), dataset / "artworks.parquet"
        )
    spoil(dataset)
    assert keyart.main(["refresh", str(folder), str(dataset)]) == 1
    printed = " ".join(capfd.readouterr().err.split())
    assert message in printed
    assert "Traceback" not in printed
    assert verify(folder) == verify(trained_on.bundle)


def test_refresh_refuses_new_vectors_of_another_length(trained_on: TrainedOn, tmp_path: Path) -> None:
    """The dataset lists only new artworks, so that no old vector reveals another model."""
    dataset = shutil.copytree(trained_on.grown, tmp_path / "dataset")
    table = pq.read_table(dataset / "artworks.parquet")
    new = pa.array([name in NEW_ARTWORKS for name in table["artwork_id"].to_pylist()])
    pq.write_table(table.filter(new), dataset / "artworks.parquet")
    give_vectors(dataset, length=7)
    folder = shutil.copytree(trained_on.bundle, tmp_path / "bundle")
    with pytest.raises(
        UserError, match=r"embedding of 3 new artworks has 7 numbers \(first: aa face\).* of 20 numbers"
    ):
        refresh(folder, dataset, QUIET)


def test_one_changed_vector_is_reported_and_its_row_stays(
    trained_on: TrainedOn, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, dataset = (
        shutil.copytree(trained_on.bundle, tmp_path / "bundle"),
        shutil.copytree(trained_on.dataset, tmp_path / "dataset"),
    )
    put(dataset / "artworks.parquet", 4, embedding=[1.0] * LENGTH)
    assert keyart.main(["refresh", str(folder), str(dataset)]) == 0
    printed = " ".join(capfd.readouterr().err.split())
    assert "1 artworks have another embedding than they were embedded from" in printed
    assert verify(folder) == verify(trained_on.bundle)


def test_an_image_encoder_is_neither_trained_nor_handed_on_with_vectors(
    trained_on: TrainedOn, service: Path, shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=r"vectors given in artworks\.parquet, which finetune\.learning_rate=0\.001 cannot"
    ):
        ImageTower(trained_on.shards, FineTuneConfig(learning_rate=1e-3), 0.9)
    if trained_on.sources == "embedding":
        with pytest.raises(UserError, match="holds no image encoder: artworks were embedded by vectors"):
            load_encoder(trained_on.run, TINY_EMBEDDING.encoder)
        return
    other = shutil.copytree(shards, tmp_path / "shards")
    shutil.rmtree(other / EMBEDDING)
    handed = embed(service, other, replace(TINY_EMBEDDING, sources="image", weights=str(trained_on.run)))
    assert "drawn here with" in handed["weights"]
    assert "vectors of" not in handed["weights"]


def test_a_run_of_an_older_keyart_is_of_images(run: Path, tmp_path: Path) -> None:
    """Its record of the embedding knows no sources; what is exported of it is the same."""
    old = shutil.copytree(run, tmp_path / "run")
    record = json.loads((old / EMBEDDING_RECORD).read_text(encoding="utf-8"))
    for name in ("vectors", "vector_width", "vector_length", "image_width"):
        del record[name]
    (old / EMBEDDING_RECORD).write_text(json.dumps(record), encoding="utf-8")
    now, before = embedded_artworks(run), embedded_artworks(old)
    assert before[1] == now[1] == {"sources": ["image"], "width": record["width"]}
    assert before[0].embedding.vectors is None
    assert before[0].image_hashes == now[0].image_hashes
    (old / EMBEDDING_RECORD).unlink()
    with pytest.raises(UserError, match=r"embedding\.json: is missing: made by an older keyart"):
        embedded_artworks(old)
