"""Datasets whose artworks have vectors of the user's own, as tests of `keyart embed` and `keyart refresh` want them."""

import shutil
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.shards.shard import Shards
from tests.dataset_edits import drop

LENGTH = 20


def vector_of(artwork: str, seed: int = 0, length: int = LENGTH) -> np.ndarray:
    """An artwork's vector, by a model of this seed."""
    return np.random.default_rng([seed, zlib.crc32(artwork.encode())]).normal(3, 2, length).astype(np.float32)


def give_vectors(dataset: Path, type_: pa.DataType | None = None, seed: int = 0, length: int = LENGTH) -> Path:
    """Write the column `embedding` into a dataset's artworks."""
    path = dataset / "artworks.parquet"
    table = pq.read_table(path)
    table = table.drop_columns("embedding") if "embedding" in table.column_names else table
    rows = [vector_of(artwork, seed, length).tolist() for artwork in table["artwork_id"].to_pylist()]
    pq.write_table(table.append_column("embedding", pa.array(rows, type_ or pa.list_(pa.float32()))), path)
    return dataset


def without_images(dataset: Path) -> Path:
    """Take the images away, and the column that names them."""
    drop(dataset / "artworks.parquet", "image")
    shutil.rmtree(dataset / "images")
    return dataset


def names_of(shards: Path) -> list[str]:
    """Artworks in the order of their rows."""
    return Shards.open(shards).vocabularies["artworks"].values


def standardised(vectors: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance by column, over the catalogue."""
    return (vectors - vectors.mean(0)) / vectors.std(0)


def no_column(dataset: Path) -> None:
    """Take the vectors away."""
    drop(dataset / "artworks.parquet", "embedding")
