"""Who and what artworks depict: every person and tag, and the people whom their title's cast does not have, or has far down.

In: artworks.parquet and titles.parquet of a dataset. Out: for each artwork of a log the tags it carries, as integers.

Legend: A artworks of a log, G tags: names that artworks depict, and after them groups of people.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamodules.contract.tables import ARTWORKS, TITLES, Column
from evaluation.logs.columns import integer_codes, read_columns, to_array
from foundation.lists import Lists
from foundation.shell import shell_word

LEADS = 3
"""How many of a title's cast, which is in the order of the bill, are its leads."""
UNCREDITED_ARTWORKS = 10
"""A name that no title's cast has, and no genre, is taken for a person where so many artworks depict it at most: other tags, such
as `night`, are on many."""
ABSENT = "people absent from their title's cast"
LOW = "people low in their title's cast"
ABSENT_OR_LOW = "people absent from or low in their title's cast"
GROUPS = (ABSENT, LOW, ABSENT_OR_LOW)
"""Groups of people, each of whom is too rare to be tested alone."""
NO_CAST = "No title has a cast: whether artworks show people who barely appear cannot be measured."


@dataclass(frozen=True, kw_only=True)
class Depicted:
    """Tags by artwork."""

    names: list[str]
    """(G,): each tag's name; the last ones are of `GROUPS`."""
    groups: int
    """How many of them are groups of people."""
    tags_AG: Lists
    """By artwork of the log, the tags it carries, each once."""
    catalogue_G: NDArray[np.float64]
    """Share of the catalogue's artworks that carry each."""
    artworks_G: NDArray[np.int64]
    """Artworks of the log that carry each."""


def read_depicted(dataset: Path, artworks: pa.Array) -> tuple[Depicted | None, list[str]]:
    """Tags of a log's artworks; None where the dataset lacks them; and notes on what is missing.

    UserError as `read_columns`.
    """
    files, remedy = ARTWORKS.files(dataset), f"Run keyart check {shell_word(dataset)}."
    if not files:
        return None, []
    columns = [
        Column(name="artwork_id", kind="string", nullable=True),
        Column(name="title_id", kind="string", required=False, nullable=True),
        Column(name="depicts", kind="strings", required=False, nullable=True),
    ]
    table = read_columns(files[0], files, columns, remedy=remedy)
    if "depicts" not in table.column_names:
        return None, []
    depicts = [list(dict.fromkeys(word for word in words or [] if word)) for words in table["depicts"].to_pylist()]
    title_ids: list[str | None] = [None] * len(depicts)
    if "title_id" in table.column_names:
        title_ids = table["title_id"].to_pylist()
    casts, genres = _casts(dataset, remedy)
    groups = _groups(depicts, title_ids, casts, genres) if casts else [[] for _ in depicts]
    present = [group for group in GROUPS if any(group in words for words in groups)]
    if ABSENT not in present or LOW not in present:
        present = [group for group in present if group != ABSENT_OR_LOW]  # the same as the one that is not empty
    names = [*dict.fromkeys(chain.from_iterable(depicts)), *present]
    code = {name: index for index, name in enumerate(names)}
    kept = [
        [code[word] for word in (*own, *(g for g in of_cast if g in code))]
        for own, of_cast in zip(depicts, groups, strict=True)
    ]
    carried = Lists.of(
        np.array(list(chain.from_iterable(kept)), np.int64), np.array([len(tags) for tags in kept], np.int64)
    )
    index_A = integer_codes(artworks, to_array(table["artwork_id"]))
    # one list more, without tags, for artworks that the catalogue lacks
    with_none = Lists.of(carried.values_C, np.append(carried.width_N, 0))
    tags_AG = with_none.take(np.where(index_A < 0, len(kept), index_A))
    return (
        Depicted(
            names=names,
            groups=len(present),
            tags_AG=tags_AG,
            catalogue_G=np.bincount(carried.values_C, minlength=len(names)) / max(len(kept), 1),
            artworks_G=np.bincount(tags_AG.values_C, minlength=len(names)),
        ),
        [] if casts else [NO_CAST],
    )


def _casts(dataset: Path, remedy: str) -> tuple[dict[str, list[str]], set[str]]:
    """The cast of each title that has one, in order; and all genres."""
    files = TITLES.files(dataset)
    if not files:
        return {}, set()
    columns = [Column(name="title_id", kind="string", nullable=True)]
    columns += [Column(name=name, kind="strings", required=False, nullable=True) for name in ("genres", "cast")]
    table = read_columns(files[0], files, columns, remedy=remedy)
    words = {name: table[name].to_pylist() if name in table.column_names else [] for name in ("genres", "cast")}
    casts = {
        title: list(dict.fromkeys(people))
        for title, people in zip(table["title_id"].to_pylist(), words["cast"] or [None] * len(table), strict=True)
        if people
    }
    return casts, set(chain.from_iterable(genres or [] for genres in words["genres"]))


def _groups(
    depicts: list[list[str]], title_ids: list[str | None], casts: dict[str, list[str]], genres: set[str]
) -> list[list[str]]:
    """The groups of people of each artwork; none where its title has no cast."""
    credited = set(chain.from_iterable(casts.values()))
    artworks = Counter(chain.from_iterable(depicts))
    order_in_cast = {title: {person: position for position, person in enumerate(cast)} for title, cast in casts.items()}
    groups = []
    for words, title in zip(depicts, title_ids, strict=True):
        own: set[str] = set()
        if title in order_in_cast:
            for word in words:
                position = order_in_cast[title].get(word)
                if position is not None and position >= LEADS:
                    own |= {LOW, ABSENT_OR_LOW}
                elif position is None and _is_person(word, credited, genres, artworks):
                    own |= {ABSENT, ABSENT_OR_LOW}
        groups.append([group for group in GROUPS if group in own])
    return groups


def _is_person(word: str, credited: set[str], genres: set[str], artworks: Mapping[str, int]) -> bool:
    """Whether a name that the title's own cast lacks is taken for a person's."""
    return word in credited or (word not in genres and artworks[word] <= UNCREDITED_ARTWORKS)
