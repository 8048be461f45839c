"""Where what a file stores is not yet what the contract reads: ids as whole numbers, blank ids, timestamps as INT96, part files.

In: paths, Arrow tables or relations of any engine. Out: the same in the contract's types. Every reader of a dataset goes through
here, so that check, prepare, serving and evaluation agree.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

import os
import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SIMILAR = 0.85
"""Share of letters that two columns' names have in common from which one may be meant by the other."""
ID_COLUMNS = frozenset({"impression_id", "member_id", "title_id", "artwork_id", "candidates"})
"""Columns of ids: whole numbers are read as their digits, and a blank id is null."""
BLANK_RANGES = (
    r"\x00-\x20\x7f-\xa0\xad"
    "\u115f\u1160\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u2800\u3000\u3164\ufeff\uffa0"
)
"""What an id may consist of and still be none, as ranges of a regular expression: white space, and what cannot be seen."""
BLANK = f"^[{BLANK_RANGES}]*$"
"""Matches a blank id by Python, by RE2 (DuckDB, Arrow) and by Java (Spark)."""
BLANK_PATTERN = re.compile(BLANK)
COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"PK\x03\x04", b"\xfd7zXZ", b"\x04\x22\x4d\x18")
"""First bytes of compressed files: gzip, zstd, bzip2, zip, xz, lz4."""
DATA_ENDING = re.compile(
    r"\.(pq|parq|csv|tsv|json|jsonl|ndjson|orc|avro|arrow|feather)(\.(gz|zst|bz2|zip|xz|lz4|snappy))?$"
)
"""How names of files end that hold rows in other formats than Parquet, or should hold Parquet and do not."""
FILE = "keyart_file"
"""The column that engines add: a row's file."""
PLACEHOLDERS = ("nan", "NaN", "None", "null", "NULL", "<NA>", "NaT", "\\N", "(null)", "undefined", "N/A", "n/a")
"""Texts that tools write for a missing value, and that are no id."""


def is_blank(text: str) -> bool:
    """Whether an id is none."""
    # an id that begins with a visible ASCII character is not blank: requests hold thousands of ids
    return not "!" <= text[:1] <= "~" and BLANK_PATTERN.match(text) is not None


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
            blank = pc.match_substring_regex(column, BLANK)
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
    if source.exists() and not source.is_dir():  # a pipe too, so that it is named and not taken for an absent table
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


def unread_files(source: Path) -> tuple[list[Path], list[Path]]:
    """What `parquet_files` leaves out of a table's folder and may hold rows, each sorted by path: Parquet whose name does not end
    so, and data by its ending that is no Parquet."""
    others = [path for path in visible_files(source) if not path.name.lower().endswith(".parquet")]
    parquet = [path for path in others if _is_parquet(path)]
    return parquet, [path for path in others if path not in parquet and DATA_ENDING.search(path.name.lower())]


def holds_parquet(path: Path) -> bool:
    """Whether a path is a Parquet file, by its first bytes, or a folder with files that are called so."""
    return _is_parquet(path) if path.is_file() else bool(parquet_files(path))


def _is_parquet(path: Path) -> bool:
    """Whether a file begins as Parquet does, or is called so and compressed as a whole."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        first = file.read(6)
    return first.startswith(b"PAR1") or (".parquet." in path.name.lower() and first.startswith(COMPRESSED))


def similar_names(dataset: Path, name: str) -> list[Path]:
    """What a dataset has beside a table's file or folder of that name under a similar one: in another case, with another ending."""
    stem = name.removesuffix(".parquet")
    return sorted(
        path
        for path in dataset.iterdir()
        if path.name != name and not _hidden(path.name) and folded_name(path.name.partition(".")[0]) == stem
    )


def similar_columns(column: str, names: Iterable[str]) -> list[str]:
    """Names of columns that may mean another: nearly the same letters, or one has all the words of the other."""
    words = _words(column)
    return [
        name
        for name in names
        if SequenceMatcher(None, folded_name(column), folded_name(name)).ratio() > SIMILAR
        or words <= _words(name)
        or _words(name) <= words
    ]


def _words(name: str) -> set[str]:
    """The words of a column's name; `id` alone says nothing."""
    return set(re.findall(r"[a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())) - {"id"} or {"id"}


def _hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def partition_columns(source: Path, path: Path) -> dict[str, str]:
    """Columns that the folders above a file name, as in `date=2026-01-01/`: by column, the folder's name."""
    folders = (part.partition("=") for part in path.relative_to(source).parts[:-1])
    return {column: f"{column}={value}" for column, equals, value in folders if equals}


def folded_name(name: str) -> str:
    """A column's name without case, spaces and marks: `Release Year` and `releaseYear` are `release_year`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
