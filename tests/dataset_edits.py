"""Edits of a small dataset's files, and what a case of a broken dataset consists of."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

EMBEDDING = pa.list_(pa.float32())
PART_0, PART_1 = "impressions/part-0.parquet", "impressions/part-1.parquet"


def cast_column(path: Path, column: str, type_: pa.DataType) -> None:
    """Write one column in another type."""
    table = pq.read_table(path)
    index = table.schema.get_field_index(column)
    pq.write_table(table.set_column(index, column, table[column].cast(type_, safe=False)), path)


def drop(path: Path, column: str) -> None:
    """Leave a column out."""
    pq.write_table(pq.read_table(path).drop_columns(column), path)


def rename(path: Path, column: str, name: str) -> None:
    """Call a column otherwise."""
    table = pq.read_table(path)
    pq.write_table(table.rename_columns([name if old == column else old for old in table.column_names]), path)


def put(path: Path, row: int, /, **values: Any) -> None:
    """Write other values into one row, keeping the columns' types."""
    table = pq.read_table(path)
    for name, value in values.items():
        cells = table[name].to_pylist()
        cells[row] = value
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, pa.array(cells, table.schema.field(name).type))
    pq.write_table(table, path)


def add(path: Path, column: str, values: pa.Array) -> None:
    """Write one more column."""
    pq.write_table(pq.read_table(path).append_column(column, values), path)


def cut(path: Path, keep: float = 0.6) -> None:
    """Keep the first part of a file's bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def scribble(path: Path) -> None:
    """Damage the pages of a Parquet file and leave its footer whole."""
    data = bytearray(path.read_bytes())
    footer = int.from_bytes(data[-8:-4], "little") + 8
    data[4 : len(data) - footer] = b"\xff" * (len(data) - footer - 4)
    path.write_bytes(data)


@dataclass(frozen=True, kw_only=True)
class Break:
    """One way to break a dataset, and what must be said of it."""

    rule: str
    """The one rule that is broken."""
    where: str
    """As the violation names it."""
    by: Callable[[Path], object]
    """Breaks the dataset in this folder."""
    count: int = 1
    """Number of rows, images or files."""
    first: tuple[str, ...] = ()
    """The first offenders; empty: any."""
    says: str = ""
    """Part of the message."""


def shown(**values: Any) -> Callable[[Path], None]:
    """Other values in the second file's third row, impression i6 of title t0."""
    return lambda d: put(d / PART_1, 2, **values)


def with_embeddings(*rows: list[float | None] | None, type_: pa.DataType = EMBEDDING) -> Callable[[Path], None]:
    """The five artworks with sound embeddings, but for the last ones, which are given."""
    sound: list[list[float | None] | None] = [[1.0 + i, 0.0, -0.5] for i in range(5 - len(rows))]
    return lambda d: add(d / "artworks.parquet", "embedding", pa.array([*sound, *rows], type_))
