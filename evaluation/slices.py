"""What impressions can be told apart by: the member's history, the title, the place, the page, and segments of members.

In: a scored log and the dataset it is of. Out: `Slice`s, each a name, a level and the impressions of it. What the dataset
does not hold (plays, titles, segments) cannot be told apart by, and that is said.

Legend: N impressions.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datamodules.contract import IMPRESSIONS, MEMBERS, PLAYS, TITLES, Column
from evaluation.columns import index, plain, read_columns
from evaluation.logged import Outcomes
from evaluation.scored_log import ScoredLog

MOST_LEVELS = 12
"""Levels of one name that are told apart; what is rarer is one level more."""
HISTORY = ((0, "no play before"), (1, "1 to 5 plays"), (6, "6 to 20"), (21, "21 to 100"), (101, "more than 100"))
ROWS = ((0, "first row"), (1, "second and third row"), (3, "fourth to sixth"), (6, "further down"))
NOT_LOGGED = "not logged"


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Some impressions that have something in common."""

    name: str
    """What they are told apart by, such as device."""
    level: str
    rows: NDArray[np.integer]
    """Their places in the log, ascending."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the log's impressions have around them; all of N, in the log's order."""

    member: pa.Array
    title: pa.Array
    """string both."""
    columns: dict[str, pa.Array]
    """country, device and row, where they were logged; nulls stand for themselves."""


def read_surroundings(
    dataset: Path, log: ScoredLog, since: datetime | None = None, before: datetime | None = None
) -> Surroundings:
    """Ids and the page of the log's impressions; `since` .. `before` is the log's period."""
    told = {c.name: c for c in IMPRESSIONS.columns}
    columns = [told["impression_id"], told["member_id"], told["title_id"]]
    columns += [Column(name=name, kind="string", required=False, nullable=True) for name in ("country", "device")]
    columns.append(Column(name="row", kind="float", required=False, nullable=True))
    table = read_columns(
        dataset / IMPRESSIONS.name,
        IMPRESSIONS.files(dataset),
        columns,
        remedy=f"Run keyart check {dataset}.",
        since=since,
        before=before,
    )
    table = table.take(pc.index_in(log.impression_id, value_set=plain(table["impression_id"]))).combine_chunks()
    there = {name: plain(table[name]) for name in ("country", "device", "row") if name in table.column_names}
    return Surroundings(member=plain(table["member_id"]), title=plain(table["title_id"]), columns=there)


def slices_of(
    dataset: Path, log: ScoredLog, around: Surroundings, past: Outcomes | None
) -> tuple[list[Slice], list[str]]:
    """Every slice the dataset allows, and what could not be told apart, in words. `past` is what was shown before."""
    found: list[Slice] = []
    notes: list[str] = []
    if PLAYS.files(dataset):
        found += _banded("history", plays_before(dataset, log.shown_at, around.member), HISTORY)
    else:
        notes.append("The dataset has no plays: new and known members are not told apart.")
    found += _popularity(log.title)
    if TITLES.files(dataset):
        found += _genres(dataset, around.title)
    else:
        notes.append("The dataset has no titles.parquet: genres are not told apart.")
    for name in ("device", "country"):
        if name in around.columns:
            found += _categories(name, around.columns[name])
    if "row" in around.columns:
        row = pc.fill_null(around.columns["row"].cast(pa.float64()), np.nan).to_numpy(zero_copy_only=False)
        found += _banded("row", row, ROWS)
    count_N = log.there_NK.sum(1)
    most = int(min(count_N.max(initial=2), MOST_LEVELS))
    bands = [(k, f"{k} candidates") for k in range(2, most)] + [(most, f"{most} candidates or more")]
    found += _banded("candidates", count_N, bands)
    if past is not None:
        shown_before = pc.is_in(log.artworks, value_set=past.artworks.take(pa.array(np.unique(past.artwork))))
        new_NK = ~np.append(np.asarray(shown_before), True)[log.artwork_NK]
        found += _banded(
            "new artworks",
            np.asarray(new_NK.any(1)),
            ((0, "all shown before"), (1, "some never shown before this period")),
        )
    segments, told = read_segments(dataset, around.member)
    for name, codes in segments.items():
        found += _categories(name, codes)
    return found, [*notes, *told]


def plays_before(dataset: Path, shown_at_N: NDArray[np.int64], member: pa.Array) -> NDArray[np.int64]:
    """How many plays each impression's member had strictly before it, (N,)."""
    told = [column for column in PLAYS.columns if column.name in ("member_id", "played_at")]
    table = read_columns(dataset / PLAYS.name, PLAYS.files(dataset), told, remedy=f"Run keyart check {dataset}.")
    names = pc.unique(member)
    player = index(table["member_id"], names)
    known = player >= 0
    played_at = np.asarray(plain(table["played_at"].cast(pa.timestamp("us", "UTC"), safe=False)).cast(pa.int64()))
    count = len(shown_at_N)
    member_J = np.concatenate([index(member, names), player[known]])
    time_J = np.concatenate([shown_at_N, played_at[known]])
    is_play_J = np.arange(len(member_J)) >= count
    # of one moment, the impression comes before the play: what is counted is strictly before
    order = np.lexsort((is_play_J, time_J, member_J))
    seen = np.cumsum(is_play_J[order])
    first = np.flatnonzero(np.diff(member_J[order], prepend=-1))
    before = (seen - is_play_J[order])[first]
    within = seen - np.repeat(before, np.diff(np.append(first, len(order))))
    plays = np.empty(len(order), np.int64)
    plays[order] = within
    return plays[:count]


def read_segments(dataset: Path, member: pa.Array) -> tuple[dict[str, pa.Array], list[str]]:
    """Columns of members.parquet that tell segments apart, each of the impressions' members; and what is left out, in words."""
    (path, *_) = MEMBERS.files(dataset) or [None]
    if path is None:
        return {}, ["The dataset has no members.parquet: no segments are told apart."]
    table = pq.read_table(path)
    place = pc.index_in(member, value_set=plain(table["member_id"]).cast(pa.string()))
    found, notes = {}, []
    for field in table.schema:
        if field.name == "member_id":
            continue
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if not any(
            f(kind) for f in (pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean, pa.types.is_integer)
        ):
            notes.append(f"members.parquet: {field.name} is {field.type}, not text, truth or a whole number: left out.")
            continue
        found[field.name] = plain(table[field.name]).cast(pa.string()).take(place)
    return found, notes


def top_levels(values: pa.Array) -> tuple[NDArray[np.int64], list[str]]:
    """Level of each value, (N,), most frequent first, what is rarer than `MOST_LEVELS` in one; and their names."""
    encoded = pc.fill_null(values.cast(pa.string()), NOT_LOGGED).dictionary_encode()
    names, code_N = encoded.dictionary.to_pylist(), np.asarray(encoded.indices, np.int64)
    order = np.argsort(-np.bincount(code_N, minlength=len(names)), kind="stable")
    kept = order if len(order) <= MOST_LEVELS else order[:MOST_LEVELS]
    level = np.full(len(names), len(kept), np.int64)
    level[kept] = np.arange(len(kept))
    others = [f"{len(order) - len(kept)} others"] if len(kept) < len(order) else []
    return level[code_N], [*(names[place] for place in kept), *others]


def _categories(name: str, values: pa.Array) -> Iterator[Slice]:
    code_N, levels = top_levels(values)
    return _levels(name, code_N, levels)


def _levels(name: str, code_N: NDArray, levels: Sequence[str]) -> Iterator[Slice]:
    for code, level in enumerate(levels):
        rows = np.flatnonzero(code_N == code)
        if len(rows):
            yield Slice(name=name, level=level, rows=rows)


def _banded(name: str, value_N: NDArray, bands: Sequence[tuple[int, str]]) -> Iterator[Slice]:
    """By the highest band that begins at or below a value; NaN is not logged."""
    code_N = np.searchsorted([begin for begin, _ in bands], np.nan_to_num(value_N, nan=np.inf), side="right") - 1
    code_N = np.where(np.isnan(value_N), len(bands), code_N)
    return _levels(name, code_N, [*(level for _, level in bands), NOT_LOGGED])


def _popularity(title_N: NDArray[np.integer]) -> Iterator[Slice]:
    """Titles by how often they were shown: three groups of about as many impressions."""
    count_T = np.bincount(title_N)
    order = np.argsort(-count_T, kind="stable")
    order = order[count_T[order] > 0]
    before = np.cumsum(count_T[order]) - count_T[order]
    third = np.minimum(before * 3 // max(int(count_T.sum()), 1), 2)
    group_T = np.zeros(len(count_T), np.int64)
    group_T[order] = third
    titles = np.bincount(third, minlength=3)
    levels = [f"{titles[0]:,} most shown titles", f"{titles[1]:,} in between", f"{titles[2]:,} least shown titles"]
    return _levels("title popularity", group_T[title_N], levels)


def _genres(dataset: Path, title: pa.Array) -> Iterator[Slice]:
    """A title counts for each of its genres."""
    told = [Column(name="title_id", kind="string", nullable=True), Column(name="genres", kind="strings", nullable=True)]
    table = read_columns(dataset / "titles.parquet", TITLES.files(dataset), told, remedy=f"Run keyart check {dataset}.")
    names = pc.unique(title)
    title_N = index(title, names)
    place = pc.index_in(names, value_set=plain(table["title_id"]))
    genres = plain(table["genres"]).take(place).to_pylist()
    shown_T = np.bincount(title_N, minlength=len(names))
    impressions: dict[str, int] = {}
    for count, of_title in zip(shown_T.tolist(), genres, strict=True):
        for genre in set(of_title or [NOT_LOGGED]):
            impressions[genre] = impressions.get(genre, 0) + count
    for genre in sorted(impressions, key=lambda g: (-impressions[g], g))[:MOST_LEVELS]:
        has_T = np.array([genre in (of_title or [NOT_LOGGED]) for of_title in genres])
        yield Slice(name="genre", level=genre, rows=np.flatnonzero(has_T[title_N]))
