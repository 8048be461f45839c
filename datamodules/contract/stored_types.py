"""Where what a file stores is not yet what the contract reads: ids as whole numbers, blank ids, timestamps as INT96, part files.

In: paths, Arrow tables or relations of any engine. Out: the same in the contract's types. Every reader of a dataset goes through
here, so that check, prepare, serving and evaluation agree.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ID_COLUMNS = frozenset({"impression_id", "member_id", "title_id", "artwork_id", "candidates"})
"""Columns of ids: whole numbers are read as their digits, and a blank id is null."""
BLANK = " \t\n\r\v\f"
"""What an id may consist of and still be none: what Ibis strips on every engine."""


def is_blank(text: str) -> bool:
    """Whether an id is none."""
    return not text.strip(BLANK)


def with_text_ids(table: pa.Table) -> pa.Table:
    """A table whose columns of ids are text, null where blank; ids inside lists are text and stay where they are."""
    for index, field in enumerate(table.schema):
        if field.name not in ID_COLUMNS:
            continue
        column = table[field.name]
        if field.name == "candidates":
            column = column.cast(pa.list_(pa.string()))
        else:
            column = column.cast(pa.string())
            blank = pc.equal(pc.utf8_trim(column, characters=BLANK), "")
            if pc.any(blank).as_py():
                column = pc.if_else(blank, pa.scalar(None, pa.string()), column)
        table = table.set_column(index, field.name, column)
    return table


def int96_columns(footer: pq.FileMetaData) -> set[str]:
    """Columns that a file stores in 96 bits, as Spark does by default: instants, which carry no zone and are in UTC."""
    schema = footer.schema
    columns = (schema.column(index) for index in range(len(schema)))
    return {column.path for column in columns if column.physical_type == "INT96"}


def parquet_files(source: Path) -> list[Path]:
    """A Parquet file, or those of a folder and its folders, sorted by path, but what Spark and Hive hide (`_SUCCESS`, `.crc`)."""
    if source.is_file():
        return [source]
    return [path for path in visible_files(source) if path.name.lower().endswith(".parquet")]


def visible_files(source: Path) -> list[Path]:
    """The files of a folder and its folders, sorted by path, but what Spark and Hive hide."""
    paths, seen = [], set()
    for folder, folders, files in os.walk(source, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not _hidden(name)]
        paths += [Path(folder, name) for name in files if not _hidden(name)]
    return sorted(paths)


def _hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def partition_columns(source: Path, path: Path) -> dict[str, str]:
    """Columns that the folders above a file name, as in `date=2026-01-01/`: by column, the folder's name."""
    folders = (part.partition("=") for part in path.relative_to(source).parts[:-1])
    return {column: f"{column}={value}" for column, equals, value in folders if equals}


def folded_name(name: str) -> str:
    """A column's name without case, spaces and marks: `Release Year` and `releaseYear` are `release_year`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
