"""`keyart embed` with vectors of the user's own: what is chosen, cast, kept and refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import keyart
from datamodules.prepare.prepare import prepare
from datamodules.shards.shard import EMBEDDING
from foundation.errors import UserError
from tests.conftest import TINY_EMBEDDING
from tests.dataset_edits import cast_column, put
from tests.given_vectors import LENGTH, give_vectors, names_of, no_column, standardised, vector_of, without_images
from train.embed import embed, encoder_fingerprint, load_embedding
from train.embed_config import EmbedConfig


@pytest.fixture
def own(service: Path, shards: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A dataset with vectors beside its images, and shards of images, to write into."""
    dataset = give_vectors(shutil.copytree(service, tmp_path / "service"))
    return dataset, shutil.copytree(shards, tmp_path / "shards")


def write_vectors(dataset: Path, vector: Callable[[str], np.ndarray]) -> None:
    """Write other vectors into a dataset's artworks."""
    table = pq.read_table(dataset / "artworks.parquet").drop_columns("embedding")
    rows = [vector(artwork).tolist() for artwork in table["artwork_id"].to_pylist()]
    table = table.append_column("embedding", pa.array(rows, pa.list_(pa.float32())))
    pq.write_table(table, dataset / "artworks.parquet")


def test_the_default_says_which_is_used_and_how_to_choose(
    own: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    dataset, shards = own
    assert keyart.main(["embed", str(dataset), str(shards)]) == 0
    printed = " ".join(capfd.readouterr().err.split())
    assert (
        "has image and embedding, and embedding is used: --sources image and --sources both choose otherwise" in printed
    )
    assert "20 features each. Encoder: none, vectors of 20 numbers given in artworks.parquet" in printed
    assert embed(dataset, shards, EmbedConfig()) == load_embedding(shards)[1], "a second call has nothing to do"


@pytest.mark.parametrize("type_", [pa.list_(pa.float64()), pa.list_(pa.float32(), LENGTH)], ids=str)
def test_other_lists_are_cast_and_said(
    own: tuple[Path, Path], type_: pa.DataType, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset, shards = own
    embed(dataset, shards, EmbedConfig(sources="embedding"))
    first, _ = load_embedding(shards)
    give_vectors(dataset, type_)
    shutil.rmtree(shards / EMBEDDING)
    capfd.readouterr()
    embed(dataset, shards, EmbedConfig(sources="embedding"))
    assert torch.equal(load_embedding(shards)[0], first)
    printed = " ".join(capfd.readouterr().err.split())
    assert ("are read as float of 32 bits" in printed) == (type_.value_type == pa.float64())


def test_long_vectors_keep_their_leading_components(own: tuple[Path, Path]) -> None:
    dataset, shards = own
    embed(dataset, shards, EmbedConfig(sources="embedding", vector_width=4))
    given = standardised(np.stack([vector_of(name) for name in names_of(shards)]).astype(np.float64))
    left, sizes, _ = np.linalg.svd(given, full_matrices=False)
    expected = left[:, :4] * sizes[:4]
    expected /= np.sqrt(expected.var(0).mean())
    np.testing.assert_allclose(load_embedding(shards)[0][1:].abs().numpy(), np.abs(expected), atol=1e-4)


@pytest.mark.parametrize("unit", [1e-30, 1e-7, 1e30])
def test_vectors_of_any_unit_are_standardised(own: tuple[Path, Path], unit: float) -> None:
    dataset, shards = own
    write_vectors(dataset, lambda name: vector_of(name) * np.float32(unit))
    embed(dataset, shards, EmbedConfig(sources="embedding"))
    expected = standardised(np.stack([vector_of(name) for name in names_of(shards)]).astype(np.float64))
    np.testing.assert_allclose(load_embedding(shards)[0][1:].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("value", [1.0, 0.1, 1e30])
def test_vectors_that_do_not_vary_are_refused(own: tuple[Path, Path], value: float) -> None:
    """What rounding leaves of one value's deviation is not blown up; one number that varies is enough."""
    dataset, shards = own
    write_vectors(dataset, lambda _: np.full(LENGTH, value, np.float32))
    with pytest.raises(UserError, match=r"embedding is the same for all \d+ artworks, and says nothing of them"):
        embed(dataset, shards, EmbedConfig(sources="embedding"))
    write_vectors(dataset, lambda name: np.append(np.full(LENGTH - 1, value, np.float32), vector_of(name)[-1]))
    embed(dataset, shards, EmbedConfig(sources="embedding"))
    assert load_embedding(shards)[0].any(0).tolist() == [False] * (LENGTH - 1) + [True]


def test_images_that_do_not_vary_are_refused(own: tuple[Path, Path]) -> None:
    """A placeholder in place of every image."""
    dataset, shards = own
    table = pq.read_table(dataset / "artworks.parquet")
    one = pa.array([table["image"][0].as_py()] * len(table))
    pq.write_table(table.set_column(table.column_names.index("image"), "image", one), dataset / "artworks.parquet")
    shutil.rmtree(shards / EMBEDDING)
    with pytest.raises(UserError, match=r"image is the same for all \d+ artworks"):
        embed(dataset, shards, replace(TINY_EMBEDDING, sources="image"))


def test_what_the_catalogue_gained_moves_no_vector(own: tuple[Path, Path], tmp_path: Path) -> None:
    """A day's shards made like the old ones: the old rows to the bit, and so the same projection; another model is another."""
    dataset, shards = own
    config = replace(TINY_EMBEDDING, sources="both")
    record = embed(dataset, shards, config)
    assert record["encoded"] == 0, "images were embedded before"
    before, name = load_embedding(shards)[0], encoder_fingerprint(shards)
    table = pq.read_table(dataset / "artworks.parquet")
    new = pa.Table.from_pylist([table.to_pylist()[0] | {"artwork_id": "a new one"}], table.schema)
    pq.write_table(pa.concat_tables([table, new]), dataset / "artworks.parquet")
    give_vectors(dataset)
    prepare(dataset, tmp_path / "next", like=shards)
    embed(dataset, tmp_path / "next", config)
    after = load_embedding(tmp_path / "next")[0]
    assert torch.equal(after[:-1], before)
    assert encoder_fingerprint(tmp_path / "next") == name
    give_vectors(dataset, seed=1)
    embed(dataset, tmp_path / "next", config)
    moved = load_embedding(tmp_path / "next")[0]
    assert torch.equal(moved[:, :-LENGTH], after[:, :-LENGTH])
    given = standardised(np.stack([vector_of(name, 1) for name in names_of(tmp_path / "next")]).astype(np.float64))
    np.testing.assert_allclose(moved[1:, -LENGTH:], given, atol=1e-5)


def break_row(**values: Any) -> Callable[[Path], None]:
    return lambda dataset: put(dataset / "artworks.parquet", 2, **values)


def integers(dataset: Path) -> None:
    cast_column(dataset / "artworks.parquet", "embedding", pa.list_(pa.int64()))


UNUSABLE: list[tuple[Callable[[Path], object], str, str]] = [
    (no_column, "embedding", "the column embedding, which sources=embedding embeds, is missing. Add the column, or"),
    (no_column, "both", "the column embedding, which sources=both embeds, is missing"),
    (without_images, "image", "the column image, which sources=image embeds, is missing. Add the column, or"),
    (break_row(image=None), "both", "1 artworks have no image (first: "),
    (break_row(embedding=[1.0] * 3), "embedding", "1 row whose embedding has another length than most (first: a"),
    (break_row(embedding=[]), "embedding", "1 row without an embedding, which other rows have (first: a"),
    (break_row(embedding=[float("inf")] * LENGTH), "both", ", value inf). Embed these images again"),
    (break_row(embedding=[None] * LENGTH), "auto", ", value nan). Embed these images again"),
    (break_row(embedding=[0.0] * LENGTH), "auto", "1 row whose embedding is zero throughout (first: a"),
    (
        lambda dataset: cast_column(dataset / "artworks.parquet", "embedding", pa.list_(pa.int64())),
        "auto",
        "has type list of int64. Write embedding as",
    ),
]


@pytest.mark.parametrize(("spoil", "sources", "message"), UNUSABLE)
def test_what_cannot_be_embedded_is_named_and_loses_nothing(
    own: tuple[Path, Path],
    spoil: Callable[[Path], object],
    sources: str,
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    dataset, shards = own
    record = load_embedding(shards)[1]
    spoil(dataset)
    assert keyart.main(["embed", str(dataset), str(shards), "--sources", sources]) == 1
    printed = " ".join(capfd.readouterr().err.split())
    assert message in printed
    assert "artworks.parquet" in printed
    assert "Traceback" not in printed
    assert load_embedding(shards)[1] == record


def test_pixels_are_of_images(own: tuple[Path, Path]) -> None:
    dataset, shards = own
    with pytest.raises(UserError, match="pixels=true: no images are read where vectors are used"):
        embed(dataset, shards, EmbedConfig(pixels=True))
    with pytest.raises(UserError, match="pixels=true: sources=embedding reads no images"):
        EmbedConfig(pixels=True, sources="embedding")
    with pytest.raises(UserError, match=r"vector_width=0: must lie in 1 \.\. 4096"):
        EmbedConfig(vector_width=0)
