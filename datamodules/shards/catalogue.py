"""The catalogue as arrays: the content of every title and artwork, by vocabulary row.

In: the tables `titles` and `artworks` and the vocabularies. Out: small integer arrays that the towers gather from.
Lists are padded with 0, the unknown row. Names in `depicts` are people or, where the genre vocabulary knows them, genres:
so that an artwork's mood and a title's genre share one table, and so do depicted people and the cast.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.shards.vocabulary import Vocabularies, Vocabulary
from foundation.stored import reading

MAX_PEOPLE = 8
MAX_GENRES = 6
"""Lengths at which lists are cut: the first names of a cast are the billed ones."""
YEARS = 1870, 2100
"""Release years are clipped to this range; `check` refuses years outside of its own."""


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Content by row. `A` artworks and `I` titles, both with their unknown row 0."""

    title_genres: np.ndarray
    """int32 (I, up to 6): genre rows."""
    title_people: np.ndarray
    """int32 (I, up to 8): people rows of the cast."""
    title_year: np.ndarray
    """float32 (I,): decades since 2000, 0 where unknown."""
    title_artworks: np.ndarray
    """int32 (I, most artworks of a title): artwork rows."""
    artwork_title: np.ndarray
    """int32 (A,): the title's row."""
    artwork_people: np.ndarray
    """int32 (A, up to 8): people rows of the people it depicts."""
    artwork_genres: np.ndarray
    """int32 (A, up to 6): genre rows of the moods it depicts."""

    def save(self, folder: Path) -> None:
        """Write each array as `folder/NAME.npy`."""
        folder.mkdir(parents=True, exist_ok=True)
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def load(cls, folder: Path, remedy: str) -> "Catalogue":
        """Read the arrays of `save`; UserError with `remedy` where one is missing or damaged."""
        arrays = {}
        for field in fields(cls):
            path = folder / f"{field.name}.npy"
            with reading(path, remedy):
                arrays[field.name] = np.load(path)
        return cls(**arrays)


def build_catalogue(titles: pa.Table, artworks: pa.Table, vocabularies: Vocabularies) -> Catalogue:
    """Arrays for every row of the vocabularies `titles` and `artworks`; rows the tables lack stay empty.

    `titles` has title_id, genres, cast and release_year, `artworks` has artwork_id, title_id and depicts, as the
    contract has them, absent optional columns filled with nulls.
    """
    genre, people = vocabularies["genres"], vocabularies["people"]
    title_rows = vocabularies["titles"].rows(titles["title_id"])
    artwork_rows = vocabularies["artworks"].rows(artworks["artwork_id"])
    title_count, artwork_count = len(vocabularies["titles"]), len(vocabularies["artworks"])

    title_year = np.zeros(title_count, np.float32)
    year = np.asarray(pc.fill_null(pc.cast(titles["release_year"], pa.int64()), 2000))
    title_year[title_rows] = (np.clip(year, *YEARS) - 2000.0) / 10.0
    artwork_title = np.zeros(artwork_count, np.int32)
    artwork_title[artwork_rows] = vocabularies["titles"].rows(artworks["title_id"])
    artwork_title[0] = title_year[0] = 0

    owner, owned = artwork_title[1:], np.arange(1, artwork_count, dtype=np.int32)
    order = np.argsort(owner, kind="stable")
    return Catalogue(
        title_genres=_padded(title_rows, titles["genres"], genre, title_count, MAX_GENRES),
        title_people=_padded(title_rows, titles["cast"], people, title_count, MAX_PEOPLE),
        title_year=title_year,
        title_artworks=_grouped(owner[order], owned[order], title_count, None),
        artwork_title=artwork_title,
        artwork_people=_padded(artwork_rows, artworks["depicts"], people, artwork_count, MAX_PEOPLE),
        artwork_genres=_padded(artwork_rows, artworks["depicts"], genre, artwork_count, MAX_GENRES),
    )


def _padded(rows: np.ndarray, lists: pa.ChunkedArray, words: Vocabulary, count: int, max_width: int) -> np.ndarray:
    """Lists of words as word rows of shape (count, width), the words a vocabulary lacks left out."""
    column = lists.combine_chunks()
    owner = rows[np.asarray(pc.list_parent_indices(column), np.int64)]
    values = words.rows(pc.list_flatten(column))
    keep = (values > 0) & (owner > 0)
    owner, values = owner[keep], values[keep]
    order = np.argsort(owner, kind="stable")
    return _grouped(owner[order], values[order], count, max_width)


def _grouped(owner: np.ndarray, values: np.ndarray, count: int, max_width: int | None) -> np.ndarray:
    """Values sorted by owner -> (count, width): each owner's values from the left, 0 where there are no more."""
    start = np.searchsorted(owner, np.arange(count))
    index = np.arange(len(owner)) - start[owner] if len(owner) else np.zeros(0, np.int64)
    width = max(1, int(index.max(initial=0)) + 1)
    if max_width is not None and width > max_width:
        owner, values, index, width = (
            owner[index < max_width],
            values[index < max_width],
            index[index < max_width],
            max_width,
        )
    grouped = np.zeros((count, width), np.int32)
    grouped[owner, index] = values
    return grouped
