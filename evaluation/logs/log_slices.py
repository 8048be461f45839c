"""Slices of a log: by the member's history, the title, the context, the candidates, and segments of members.

In: a scored log and its dataset. Out: `LogSlice`s, each an attribute's name, a level and its impressions. Attributes whose
table the dataset lacks (plays, titles, segments) make no slices, and a note says so.

Legend: N impressions.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datamodules.contract.stored_types import with_text_ids
from datamodules.contract.tables import IMPRESSIONS, MEMBERS, PLAYS, TITLES, Column
from evaluation.logs.columns import integer_codes, read_columns, to_array
from evaluation.logs.logged_impressions import Outcomes
from evaluation.logs.scored_log import ScoredLog
from foundation.context import BUILT_IN, ContextFeature
from foundation.shell import shell_word

MAX_LEVELS = 12
"""Levels per attribute; rarer ones are put together into one more."""
HISTORY = ((0, "no play before"), (1, "1 to 5 plays"), (6, "6 to 20"), (21, "21 to 100"), (101, "more than 100"))
ROWS = ((0, "first row"), (1, "second and third row"), (3, "fourth to sixth"), (6, "further down"))
POSITIONS = ((0, "first"), (1, "second and third"), (3, "fourth to sixth"), (6, "further on"))
NOT_LOGGED = "not logged"


@dataclass(frozen=True, kw_only=True)
class LogSlice:
    """The impressions that share a level of an attribute."""

    name: str
    """The attribute, such as device."""
    level: str
    rows: NDArray[np.integer]
    """Indices of the impressions in the log, ascending."""


@dataclass(frozen=True, kw_only=True)
class ImpressionAttributes:
    """Ids and context of the log's impressions, (N,) each, in the log's order."""

    member: pa.Array
    title: pa.Array
    """string both."""
    columns: dict[str, pa.Array]
    """By context feature, where it was logged; nulls stay nulls."""
    features: tuple[ContextFeature, ...]
    """All context features, those without a column included."""

    def take(self, rows: NDArray[np.integer]) -> "ImpressionAttributes":
        """The attributes of some impressions, in that order."""
        at = pa.array(rows)
        columns = {name: column.take(at) for name, column in self.columns.items()}
        return replace(self, member=self.member.take(at), title=self.title.take(at), columns=columns)


def read_impression_attributes(
    dataset: Path,
    log: ScoredLog,
    since: datetime | None = None,
    before: datetime | None = None,
    features: tuple[ContextFeature, ...] = BUILT_IN,
) -> ImpressionAttributes:
    """Read ids and the context of the log's impressions; `since` .. `before` is the log's period."""
    by_name = {c.name: c for c in IMPRESSIONS.columns}
    columns = [by_name["impression_id"], by_name["member_id"], by_name["title_id"]]
    stored = {feature.name: feature for feature in features if not feature.from_time}
    columns += [
        Column(
            name=feature.source,
            kind="category" if feature.kind == "category" else "number",
            required=False,
            nullable=True,
            in_some_files=feature not in BUILT_IN,
        )
        for feature in stored.values()
    ]
    table = read_columns(
        dataset / IMPRESSIONS.name,
        IMPRESSIONS.files(dataset),
        columns,
        remedy=f"Run keyart check {shell_word(dataset)}{'' if features == BUILT_IN else ' --like SCORES'}.",
        since=since,
        before=before,
    )
    table = table.take(pc.index_in(log.impression_id, value_set=to_array(table["impression_id"]))).combine_chunks()
    present = {name: to_array(table[f.source]) for name, f in stored.items() if f.source in table.column_names}
    return ImpressionAttributes(
        member=to_array(table["member_id"]), title=to_array(table["title_id"]), columns=present, features=features
    )


def build_slices(
    dataset: Path, log: ScoredLog, attributes: ImpressionAttributes, past: Outcomes | None
) -> tuple[list[LogSlice], list[str]]:
    """Every slice the dataset allows, and notes on missing ones. `past`: outcomes of the impressions before the period."""
    slices: list[LogSlice] = []
    notes: list[str] = []
    if PLAYS.files(dataset):
        slices += _banded("history", plays_before(dataset, log.shown_at, attributes.member), HISTORY)
    else:
        notes.append("The dataset has no plays: no slices by the length of the history.")
    slices += _popularity(log.title)
    if TITLES.files(dataset):
        slices += _genres(dataset, attributes.title)
    else:
        notes.append("The dataset has no titles.parquet: no slices by genre.")
    for feature in attributes.features:
        if feature.name in attributes.columns and feature.name != "column":  # slices by row are enough
            slices += _context_slices(feature, attributes.columns[feature.name])
    count_N = log.width
    max_candidates = int(min(count_N.max(initial=2), MAX_LEVELS))
    bands = [(k, f"{k} candidates") for k in range(2, max_candidates)] + [
        (max_candidates, f"{max_candidates} candidates or more")
    ]
    slices += _banded("candidates", count_N, bands)
    if past is not None:
        shown_before = pc.is_in(log.artworks, value_set=past.artworks.take(pa.array(np.unique(past.artwork))))
        new_NK = log.artwork_NK.like(~np.asarray(shown_before)[log.artwork_NK.values_C])
        slices += _banded(
            "new artworks",
            new_NK.reduce(np.logical_or),
            ((0, "all shown before"), (1, "some never shown before this period")),
        )
    segments, segment_notes = read_segments(dataset, attributes.member)
    for name, codes in segments.items():
        slices += _categories(name, codes)
    return slices, [*notes, *segment_notes]


def _context_slices(feature: ContextFeature, column: pa.Array) -> Iterator[LogSlice]:
    """A category by its values, a position by bands, an hour by quarters of the day, a number by quarters of the log."""
    if feature.kind == "category":
        return _categories(feature.name, column)
    numbers = column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column
    value_N = pc.fill_null(numbers.cast(pa.float64(), safe=False), np.nan).to_numpy(zero_copy_only=False)
    if feature.kind == "position":
        return _banded(feature.name, value_N, ROWS if feature.name == "row" else POSITIONS)
    if feature.kind == "hour":
        return _banded(feature.name, value_N, [(hour, f"{hour} to {hour + 5} h") for hour in range(0, 24, 6)])
    known_N = value_N[np.isfinite(value_N)]
    if not len(known_N):
        return _banded(feature.name, value_N, [])
    edges = np.unique(np.quantile(known_N, (0.0, 0.25, 0.5, 0.75)))
    ends = [*(f"below {edge:.4g}" for edge in edges[1:]), "or more"]
    return _banded(feature.name, value_N, [(edge, f"{edge:.4g} {end}") for edge, end in zip(edges, ends, strict=True)])


def plays_before(dataset: Path, shown_at_N: NDArray[np.int64], member: pa.Array) -> NDArray[np.int64]:
    """How many plays each impression's member had strictly before it, (N,)."""
    columns = [column for column in PLAYS.columns if column.name in ("member_id", "played_at")]
    table = read_columns(
        dataset / PLAYS.name, PLAYS.files(dataset), columns, remedy=f"Run keyart check {shell_word(dataset)}."
    )
    names = pc.unique(member)
    player = integer_codes(table["member_id"], names)
    known = player >= 0
    played_at = np.asarray(to_array(table["played_at"].cast(pa.timestamp("us", "UTC"), safe=False)).cast(pa.int64()))
    count = len(shown_at_N)
    member_J = np.concatenate([integer_codes(member, names), player[known]])
    time_J = np.concatenate([shown_at_N, played_at[known]])
    is_play_J = np.arange(len(member_J)) >= count
    # at equal times the impression sorts before the play, because plays are counted strictly before
    order = np.lexsort((is_play_J, time_J, member_J))
    seen = np.cumsum(is_play_J[order])
    first = np.flatnonzero(np.diff(member_J[order], prepend=-1))
    before = (seen - is_play_J[order])[first]
    within = seen - np.repeat(before, np.diff(np.append(first, len(order))))
    plays = np.empty(len(order), np.int64)
    plays[order] = within
    return plays[:count]


def read_segments(dataset: Path, member: pa.Array) -> tuple[dict[str, pa.Array], list[str]]:
    """Segment columns of members.parquet, gathered for the impressions' members (N,); and notes on what is left out."""
    files = MEMBERS.files(dataset)
    if not files:
        return {}, ["The dataset has no members.parquet: no slices by segment."]
    table = with_text_ids(pa.concat_tables(pq.read_table(path) for path in files))
    position = pc.index_in(member, value_set=to_array(table["member_id"]))
    segments, notes = {}, []
    for field in table.schema:
        if field.name == "member_id":
            continue
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if not any(
            f(kind) for f in (pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean, pa.types.is_integer)
        ):
            notes.append(f"members.parquet: {field.name} is {field.type}, not text, truth or a whole number: left out.")
            continue
        segments[field.name] = to_array(table[field.name]).cast(pa.string()).take(position)
    return segments, notes


def top_levels(values: pa.Array) -> tuple[NDArray[np.int64], list[str]]:
    """Level of each value, (N,), the most frequent first, those beyond `MAX_LEVELS` together in one; and the levels' names."""
    encoded = pc.fill_null(values.cast(pa.string()), NOT_LOGGED).dictionary_encode()
    names, code_N = encoded.dictionary.to_pylist(), np.asarray(encoded.indices, np.int64)
    order = np.argsort(-np.bincount(code_N, minlength=len(names)), kind="stable")
    top = order if len(order) <= MAX_LEVELS else order[:MAX_LEVELS]
    level = np.full(len(names), len(top), np.int64)
    level[top] = np.arange(len(top))
    others = [f"{len(order) - len(top)} others"] if len(top) < len(order) else []
    return level[code_N], [*(names[position] for position in top), *others]


def _categories(name: str, values: pa.Array) -> Iterator[LogSlice]:
    code_N, levels = top_levels(values)
    return _levels(name, code_N, levels)


def _levels(name: str, code_N: NDArray, levels: Sequence[str]) -> Iterator[LogSlice]:
    for code, level in enumerate(levels):
        rows = np.flatnonzero(code_N == code)
        if len(rows):
            yield LogSlice(name=name, level=level, rows=rows)


def _banded(name: str, value_N: NDArray, bands: Sequence[tuple[float, str]]) -> Iterator[LogSlice]:
    """Slices by the highest band that begins at or below a value; NaN: not logged."""
    code_N = np.searchsorted([begin for begin, _ in bands], np.nan_to_num(value_N, nan=np.inf), side="right") - 1
    code_N = np.where(np.isnan(value_N), len(bands), code_N)
    return _levels(name, code_N, [*(level for _, level in bands), NOT_LOGGED])


def _popularity(title_N: NDArray[np.integer]) -> Iterator[LogSlice]:
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


def _genres(dataset: Path, title: pa.Array) -> Iterator[LogSlice]:
    """A title counts for each of its genres."""
    columns = [
        Column(name="title_id", kind="string", nullable=True),
        Column(name="genres", kind="strings", nullable=True),
    ]
    table = read_columns(
        dataset / "titles.parquet", TITLES.files(dataset), columns, remedy=f"Run keyart check {shell_word(dataset)}."
    )
    names = pc.unique(title)
    title_N = integer_codes(title, names)
    position = pc.index_in(names, value_set=to_array(table["title_id"]))
    genres = to_array(table["genres"]).take(position).to_pylist()
    shown_T = np.bincount(title_N, minlength=len(names))
    impressions: dict[str, int] = {}
    for count, of_title in zip(shown_T.tolist(), genres, strict=True):
        for genre in set(of_title or [NOT_LOGGED]):
            impressions[genre] = impressions.get(genre, 0) + count
    for genre in sorted(impressions, key=lambda g: (-impressions[g], g))[:MAX_LEVELS]:
        has_T = np.array([genre in (of_title or [NOT_LOGGED]) for of_title in genres])
        yield LogSlice(name="genre", level=genre, rows=np.flatnonzero(has_T[title_N]))
