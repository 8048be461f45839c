"""The dataset contract, version 1: which tables a dataset has, which columns they have, of which kind.

In: a dataset folder of Parquet. Out: the tables' files and declared columns, which `simulate` writes by, `check` judges
by and `prepare` reads by. Nothing here reads a row.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foundation.fingerprint import files_fingerprint

CONTRACT_VERSION = 1

Kind = Literal["string", "strings", "float", "floats", "vector", "integer", "timestamp", "boolean"]
"""What a column holds: `strings`, `floats` and `vector` are lists; integers and floats may be of any width. A `vector` is cast to
32 bits by who reads it, after a number that has no place there was named."""

ENGINE_TYPES: dict[Kind, str] = {
    "string": "string",
    "strings": "array<string>",
    "float": "float32",
    "floats": "array<float32>",
    "vector": "array<float64>",
    "integer": "int64",
    "timestamp": "timestamp('UTC', 6)",
    "boolean": "boolean",
}
"""What each kind is to Ibis: columns are read as these, and absent optional ones as nulls of them."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table by the contract."""

    name: str
    kind: Kind
    required: bool = True
    """The column must exist."""
    nullable: bool = False
    """Single values may be null."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table by the contract: a file `name.parquet`, or a folder `name/` of Parquet files that share a schema."""

    name: str
    columns: tuple[Column, ...]
    folder: bool = False
    required: bool = True

    def files(self, dataset: Path) -> list[Path]:
        """The table's Parquet files, sorted by name; empty where the table is absent."""
        if self.folder:
            return sorted((dataset / self.name).glob("*.parquet"))
        path = dataset / f"{self.name}.parquet"
        return [path] if path.is_file() else []


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
        # one of the two must be there: `check` says so where neither is
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
        # one of the two must be there: `check` says so where neither is
        Column(name="propensities", kind="floats", required=False, nullable=True),
        Column(name="propensity", kind="float", required=False, nullable=True),
        Column(name="policy", kind="string", nullable=True),
        Column(name="country", kind="string", nullable=True),
        Column(name="device", kind="string", nullable=True),
        Column(name="row", kind="integer", nullable=True),
        Column(name="column", kind="integer", nullable=True),
        Column(name="clicked", kind="boolean"),
        Column(name="engaged", kind="boolean", required=False, nullable=True),
    ),
)
MEMBERS = Table(name="members", columns=(Column(name="member_id", kind="string"),), required=False)

TABLES = (TITLES, ARTWORKS, PLAYS, IMPRESSIONS, MEMBERS)


def dataset_fingerprint(dataset: Path) -> str:
    """Of the four tables a dataset must have: titles, artworks, plays, impressions. Images have their own."""
    return files_fingerprint(
        (f for table in (TITLES, ARTWORKS, PLAYS, IMPRESSIONS) for f in table.files(dataset)), dataset
    )
