"""Ids as strings <-> rows of the model's tables.

Row 0 of every vocabulary is the unknown row, for nulls and values the vocabulary lacks. Titles and artworks hold the
whole catalogue, those of the training period first: a row past `trained` has content (genres, people, image) but never
had a gradient of its own, so the towers send its id to the unknown row and keep its content.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.contract.stored_types import is_blank
from foundation.stored import read_json, reading

VOCABULARY_NAMES = ("titles", "artworks", "people", "genres", "policies")
"""Vocabularies beside those of context features, which have the features' names."""


@dataclass(frozen=True)
class Vocabulary:
    """Values of one kind; the value at position i has row i + 1."""

    values: list[str]
    trained: int
    """Number of values that occur in the training period; they are the first ones."""

    @classmethod
    def of(cls, trained: Iterable[str | None], untrained: Iterable[str | None] = ()) -> "Vocabulary":
        """The training period's values, sorted, then the others, sorted. Nulls and blank strings, of which the empty
        one pads lists of ids, are left to the unknown row."""
        first = sorted({value for value in trained if value and not is_blank(value)})
        present = set(first)
        rest = sorted({value for value in untrained if value and not is_blank(value) and value not in present})
        return cls(first + rest, len(first))

    def extended(self, values: Iterable[str | None]) -> "Vocabulary":
        """The vocabulary with values it lacks appended, sorted, as untrained ones: no former row moves."""
        present = set(self.values)
        more = sorted({value for value in values if value and not is_blank(value) and value not in present})
        return Vocabulary(self.values + more, self.trained) if more else self

    def __len__(self) -> int:
        """Rows of a table for this vocabulary, the unknown row included."""
        return len(self.values) + 1

    @property
    def trained_rows(self) -> int:
        """Rows of a table with only the unknown row and the trained values."""
        return self.trained + 1

    @cached_property
    def _lookup(self) -> pa.Array:
        return pa.array(self.values, pa.string())

    def rows(self, values: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Rows of an Arrow array of strings, int32 of shape (len(values),); 0 where unknown or null."""
        if not pa.types.is_string(values.type):
            values = pc.cast(values, pa.string())
        indices = pc.fill_null(pc.index_in(values, value_set=self._lookup), -1)
        if isinstance(indices, pa.ChunkedArray):
            indices = indices.combine_chunks()
        return np.asarray(indices).astype(np.int32) + 1

    def row(self, value: str) -> int:
        """Row of one value, 0 where unknown."""
        return int(self.rows(pa.array([value], pa.string()))[0])


Vocabularies = dict[str, Vocabulary]


def save_vocabularies(vocabularies: Vocabularies, path: Path) -> None:
    """Write all vocabularies as one JSON file."""
    table = {name: {"trained": v.trained, "values": v.values} for name, v in vocabularies.items()}
    path.write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")


def load_vocabularies(path: Path, remedy: str) -> Vocabularies:
    """Read the file of `save_vocabularies`; UserError with `remedy` where it is missing or damaged."""
    table = read_json(path, remedy, ("titles", "artworks", "people", "genres"))
    with reading(path, remedy):
        return {name: Vocabulary(entry["values"], entry["trained"]) for name, entry in table.items()}
