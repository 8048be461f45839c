"""The dataset contract, version 1: the tables of a dataset, their columns and the columns' kinds.

In: a dataset folder of Parquet. Out: the tables' files and declared columns, by which datasets are simulated, checked and
read. Nothing here reads a row.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from datamodules.contract.stored_types import ID_COLUMNS, parquet_files
from foundation.context import BUILT_IN, ContextFeature
from foundation.errors import UserError
from foundation.fingerprint import files_fingerprint

CONTRACT_VERSION = 1

Kind = Literal[
    "string", "strings", "float", "floats", "vector", "integer", "timestamp", "boolean", "category", "number"
]
"""What a column holds: `strings`, `floats` and `vector` are lists; integers and floats may be of any width; a category is a
text, a whole number or a truth value, a number any of these but text, decimals included. A `vector` is cast to 32 bits when
it is read, after numbers too large for them were reported."""

ENGINE_TYPES: dict[Kind, str] = {
    "string": "string",
    "strings": "array<string>",
    "float": "float32",
    "floats": "array<float32>",
    "vector": "array<float64>",
    "integer": "int64",
    "timestamp": "timestamp('UTC', 6)",
    "boolean": "boolean",
    "category": "string",
    "number": "float64",
}
"""The Ibis type of each kind: columns are read as it, and absent optional ones as nulls of it."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table by the contract."""

    name: str
    kind: Kind
    required: bool = True
    """Whether the column must exist."""
    nullable: bool = False
    """Whether single values may be null."""
    in_some_files: bool = False
    """Whether one file of the table with the column is enough: in the others it counts as null."""
    maximum: int | None = None
    """The largest value of a column of integers from 0; None: its rules state one, or none is stated."""

    @property
    def of_ids(self) -> bool:
        """It holds ids, alone or in lists: whole numbers are read as their digits, and a blank id is null."""
        return self.name in ID_COLUMNS


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table by the contract: `name.parquet`, a file or a folder of them, or a folder `name/`; all files share a schema."""

    name: str
    columns: tuple[Column, ...]
    folder: bool = False
    required: bool = True

    @property
    def merged(self) -> bool:
        """Whether its files may differ in which columns they have."""
        return any(column.in_some_files for column in self.columns)

    def source(self, dataset: Path) -> Path:
        """The table's file or folder."""
        return dataset / (self.name if self.folder else f"{self.name}.parquet")

    def files(self, dataset: Path) -> list[Path]:
        """The table's Parquet files, sorted by path; empty where the table is absent."""
        return parquet_files(self.source(dataset))


TITLES = Table(
    name="titles",
    columns=(
        Column(name="title_id", kind="string"),
        Column(name="name", kind="string", nullable=True),
        Column(name="genres", kind="strings", nullable=True),
        Column(name="release_year", kind="integer", required=False, nullable=True),
        Column(name="cast", kind="strings", required=False, nullable=True),
    ),
)
ARTWORKS = Table(
    name="artworks",
    columns=(
        Column(name="artwork_id", kind="string"),
        Column(name="title_id", kind="string"),
        # one of the two must exist: a row rule reports where neither does
        Column(name="image", kind="string", required=False, nullable=True),
        Column(name="embedding", kind="vector", required=False, nullable=True),
        Column(name="depicts", kind="strings", required=False, nullable=True),
    ),
)
PLAYS = Table(
    name="plays",
    folder=True,
    columns=(
        Column(name="member_id", kind="string"),
        Column(name="title_id", kind="string"),
        Column(name="played_at", kind="timestamp"),
        Column(name="watched", kind="float", required=False, nullable=True),
        Column(name="rating", kind="number", required=False, nullable=True),
        Column(name="artwork_id", kind="string", required=False, nullable=True),
    ),
)
IMPRESSIONS = Table(
    name="impressions",
    folder=True,
    columns=(
        Column(name="impression_id", kind="string"),
        Column(name="member_id", kind="string"),
        Column(name="title_id", kind="string"),
        Column(name="artwork_id", kind="string"),
        Column(name="shown_at", kind="timestamp"),
        Column(name="candidates", kind="strings"),
        # one of the two must exist: a row rule reports where neither does
        Column(name="propensities", kind="floats", required=False, nullable=True),
        Column(name="propensity", kind="float", required=False, nullable=True),
        Column(name="policy", kind="string", nullable=True),
        Column(name="country", kind="string", nullable=True),
        Column(name="device", kind="string", nullable=True),
        Column(name="row", kind="integer", nullable=True),
        Column(name="column", kind="integer", nullable=True),
        Column(name="clicked", kind="boolean"),
        Column(name="engaged", kind="boolean", required=False, nullable=True),
        Column(name="minutes", kind="float", required=False, nullable=True),
    ),
)
CONTEXT_COLUMN_KINDS: dict[str, Kind] = {
    "category": "category",
    "number": "number",
    "hour": "integer",
    "position": "integer",
}
"""Kind of a context feature's column by the feature's kind."""
MEMBERS = Table(name="members", columns=(Column(name="member_id", kind="string"),), required=False)

TABLES = (TITLES, ARTWORKS, PLAYS, IMPRESSIONS, MEMBERS)


def impressions_table(features: Iterable[ContextFeature]) -> Table:
    """The impressions with the columns of declared context features beside the contract's own.

    UserError where a feature's column is one of the contract's, which are built-in features or cannot be features.
    """
    more = [feature for feature in features if feature not in BUILT_IN and not feature.from_time]
    names = {column.name for column in IMPRESSIONS.columns}
    for feature in more:
        if feature.source.lower() in names:  # engines ignore case in column names
            raise UserError(
                f"context feature {feature.name!r}: column {feature.source} is the contract's own. Name another column."
            )
    columns = {
        feature.source: Column(
            name=feature.source,
            kind=CONTEXT_COLUMN_KINDS[feature.kind],
            required=False,
            nullable=True,
            in_some_files=True,
            maximum=feature.maximum if feature.kind in ("hour", "position") else None,
        )
        for feature in more
    }
    return replace(IMPRESSIONS, columns=(*IMPRESSIONS.columns, *columns.values())) if columns else IMPRESSIONS


def tables_with(features: Iterable[ContextFeature]) -> tuple[Table, ...]:
    """Every table of the contract, the impressions with the columns of declared features."""
    return tuple(impressions_table(features) if table is IMPRESSIONS else table for table in TABLES)


def dataset_fingerprint(dataset: Path) -> str:
    """Fingerprint of the four required tables: titles, artworks, plays, impressions. Images have their own."""
    return files_fingerprint(
        (f for table in (TITLES, ARTWORKS, PLAYS, IMPRESSIONS) for f in table.files(dataset)), dataset
    )
