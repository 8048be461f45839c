"""Vectors of the user's own for artworks: the column `embedding` of artworks.parquet -> one float32 array.

In: a dataset and artwork ids. Out: the vectors in the artworks' order, checked by the contract's rules, and the hashes of their
bytes, by which a change is detected.

Legend: A artworks, V numbers of a vector.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datamodules.contract.check_files import TableFiles
from datamodules.contract.row_rules import EMBEDDING_RULES
from datamodules.contract.tables import ARTWORKS
from foundation.errors import UserError

IMAGE, COLUMN = "image", "embedding"
"""The columns of artworks.parquet that can be embedded."""


def filled_columns(dataset: Path) -> set[str]:
    """The columns among `image` and `embedding` that have a value in some row of artworks.parquet; UserError for a broken
    table."""
    files = TableFiles.read(dataset, ARTWORKS)
    if files.violations:
        raise UserError(f"{dataset}: {files.violations[0].line()}")
    present = [name for name in (IMAGE, COLUMN) if name in files.columns]
    table = pa.concat_tables(pq.read_table(path, columns=present) for path in files.paths)
    filled = {name: pc.is_valid(table[name]) for name in present}
    if COLUMN in filled:
        filled[COLUMN] = pc.greater(pc.list_value_length(table[COLUMN]), 0)
    return {name for name, mask in filled.items() if pc.any(mask).as_py()}


def read_vectors(dataset: Path, artworks: Sequence[str]) -> tuple[np.ndarray, str]:
    """The vectors of artworks by id, float32 (A, V), and the type of the column; a UserError where one cannot be used."""
    files = ARTWORKS.files(dataset)
    table = pa.concat_tables(pq.read_table(path, columns=["artwork_id", COLUMN]) for path in files)
    rows = pc.index_in(
        pa.array(artworks, pa.string()), value_set=table["artwork_id"].cast(pa.string()).combine_chunks()
    )
    if rows.null_count:
        first = artworks[pc.index(pc.is_null(rows), True).as_py()]
        raise UserError(
            f"{files[0]}: lacks {rows.null_count} artworks of the shards (first: {first}). "
            "Give the dataset the shards were prepared from, or prepare it."
        )
    return require_vectors(table[COLUMN].take(rows), artworks, files[0]), str(table.schema.field(COLUMN).type)


def require_vectors(column: pa.ChunkedArray, artworks: Sequence[str], path: Path) -> np.ndarray:
    """Lists of numbers as one array, float32 (A, V); a UserError that names the first of the artworks that break a rule.

    All must have one length, be finite and not all zero, as in `keyart check`.
    """
    if not len(column):
        return np.zeros((0, 0), np.float32)
    lists = column.cast(pa.list_(pa.float32())).combine_chunks()
    length_A = np.asarray(pc.list_value_length(lists).fill_null(0))
    usual = int(np.bincount(length_A[length_A > 0], minlength=1).argmax())
    _require("missing-embedding", length_A == 0, artworks, path, [""] * len(length_A))
    _require("embedding-length", length_A != usual, artworks, path, [f", length {length}" for length in length_A])
    vectors_AV = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(artworks), usual)
    unusable_AV = ~np.isfinite(vectors_AV)
    index_A = unusable_AV.argmax(1)
    values = [f", value {vectors_AV[a, index]}" for a, index in enumerate(index_A)]
    _require("embedding-values", unusable_AV.any(1), artworks, path, values)
    _require("embedding-zero", ~vectors_AV.any(1), artworks, path, [""] * len(length_A))
    return vectors_AV.copy()  # Arrow's memory is read-only for torch


def vector_hashes(vectors_AV: np.ndarray) -> list[str]:
    """16 hexadecimal digits of every vector's bytes."""
    return [hashlib.sha256(vector.tobytes()).hexdigest()[:16] for vector in np.ascontiguousarray(vectors_AV)]


def _require(name: str, broken_A: np.ndarray, artworks: Sequence[str], path: Path, values: Sequence[str]) -> None:
    """Raise a UserError in the words of the contract's rule where some artworks break it."""
    count = int(broken_A.sum())
    if not count:
        return
    (rule,) = (rule for rule in EMBEDDING_RULES if rule.name == name)
    first = int(broken_A.argmax())
    raise UserError(
        f"{path}: {count:,} {'row' if count == 1 else 'rows'} {rule.what} (first: {artworks[first]}{values[first]}). "
        f"{rule.remedy}."
    )
