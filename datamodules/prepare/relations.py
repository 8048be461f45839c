"""The queries of `keyart prepare` as Ibis expressions, the same for every engine.

In: the tables of a dataset. Out: relations in the contract's types, without invalid rows, and results over them: the split
times, and the vocabularies of the training period.
"""

# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false
# Ibis columns get the methods of their type, and pyarrow its compute functions, at run time: no checker sees them.

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.datatypes as dt
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ibis.expr.types import Table as Relation
from rich.console import Console

from datamodules.contract.engines import Engine, to_arrow
from datamodules.contract.rating_rules import MIXED_REMEDY, are_mixed
from datamodules.contract.repeated_rows import REPEATED_PLAY
from datamodules.contract.row_rule import id_value
from datamodules.contract.row_rules import row_rules, with_foreign_candidate
from datamodules.contract.tables import ARTWORKS, ENGINE_TYPES, IMPRESSIONS, PLAYS, TITLES, Table, impressions_table
from datamodules.prepare.shard_spill import SHARD, SHOWN, require_few_values
from datamodules.shards.ratings import RatingScale
from datamodules.shards.vocabulary import VOCABULARY_NAMES, Vocabularies, Vocabulary
from foundation.context import BUILT_IN, SMALLEST_FLOAT, ContextFeature, with_statistics
from foundation.errors import UserError
from foundation.shell import shell_word

HEX = "0123456789abcdef"
MAX_SHARDS = 16**3
MICROSECONDS_AN_HOUR = 3_600_000_000
ROUNDED_SHARE = 1e-5
"""The least standard deviation of a number, as a share of its mean, whose hundredth part 32 bits can still represent."""
PREPARED_TABLES = (TITLES, ARTWORKS, IMPRESSIONS, PLAYS)
"""The tables that are read. Rows may refer to earlier tables, and are dropped where the row they refer to was; and an
engine that is narrowed to some impressions reads only their members' plays."""

EARLIER = ("member_id", "artwork_id", "shown_at", "clicked")
"""Columns that are read of impressions that are history alone."""

Dropped = dict[str, dict[str, int]]
"""By table, by reason: rows that were left out."""


@dataclass(frozen=True, kw_only=True)
class DatasetTables:
    """The tables of a dataset in the contract's types; absent optional columns are null."""

    titles: Relation
    artworks: Relation
    plays: Relation
    impressions: Relation
    rows: dict[str, int]
    """By table: rows in the files."""
    dropped: Dropped
    nulled: Dropped
    """By table, by rule: values that were made null."""

    @classmethod
    def read(
        cls, engine: Engine, dataset: Path, *, drop_invalid: bool, features: tuple[ContextFeature, ...] = BUILT_IN
    ) -> "DatasetTables":
        """Open a dataset; with `drop_invalid`, rows that break a rule are left out and counted by the first rule they break.

        Rows that share an id are all left out, because it is not known which of them is right.
        """
        tables: dict[str, Relation] = {}
        rows: dict[str, int] = {}
        dropped: Dropped = {}
        nulled: Dropped = {}
        for contract in PREPARED_TABLES:
            table = impressions_table(features) if contract is IMPRESSIONS else contract
            files = table.files(dataset)
            if not files:
                raise UserError(f"{dataset}: has no table {table.name}. Run keyart check {shell_word(dataset)}.")
            rows[table.name] = sum(pq.read_metadata(path).num_rows for path in files)
            tables[table.name] = typed(engine, files, table)
            if drop_invalid:
                tables[table.name], nulled[table.name] = _without_bad_values(table, tables)
                tables[table.name], dropped[table.name] = _valid(engine, table, tables)
        # checked above where rows are dropped; large, and read only by `keyart embed`
        tables[ARTWORKS.name] = tables[ARTWORKS.name].drop("embedding")
        return cls(**tables, rows=rows, dropped=dropped, nulled=nulled)


def typed(engine: Engine, files: list[Path], table: Table) -> Relation:
    """A table in the contract's types; absent optional columns are null.

    UserError where a file of a merged table has a column in another case: one engine reads it, the other does not.
    """
    raw = engine.read(files, table.name, merged=table.merged)
    if table.merged:
        name_of = {column.name.lower(): column.name for column in table.columns}
        for path in files:
            for name in pq.read_schema(path).names:
                if name_of.get(name.lower(), name) != name:
                    raise UserError(f"{path}: column {name}: rename it to {name_of[name.lower()]}.")
    columns = {}
    for column in table.columns:
        type_ = dt.dtype(ENGINE_TYPES[column.kind])
        if column.name not in raw.columns:
            columns[column.name] = ibis.null(type_)
        elif column.of_ids and column.kind == "string":
            columns[column.name] = id_value(raw[column.name])
        else:
            columns[column.name] = raw[column.name].cast(type_)
    # as keyword arguments, a column called `self` could not be
    return raw.select(*(value.name(name) for name, value in columns.items()))


def _without_bad_values(table: Table, tables: dict[str, Relation]) -> tuple[Relation, dict[str, int]]:
    """A table whose rows are kept without the values that break a rule which names a column, and how many broke which."""
    rows, counts = tables[table.name], {}
    for rule in row_rules(table):
        if rule.makes_null is not None:
            flag = rule.flags(rows, tables)
            (counted,) = to_arrow(rows.aggregate(rows=rows.count(where=flag))).to_pylist()
            if counted["rows"]:
                counts[rule.name] = counted["rows"]
                column = rows[rule.makes_null]
                rows = rows.mutate(ibis.ifelse(flag, ibis.null(column.type()), column).name(rule.makes_null))
    return rows, counts


def _valid(engine: Engine, table: Table, tables: dict[str, Relation]) -> tuple[Relation, dict[str, int]]:
    """A table's valid rows, and the number of invalid ones by the first rule they break; earlier tables hold only valid rows."""
    rows = tables[table.name]
    with_rules = with_foreign_candidate(rows, tables[ARTWORKS.name]) if table.name == IMPRESSIONS.name else rows
    rules = row_rules(table)
    flags = {
        f"keyart_{index}": rule.flags(with_rules, {**tables, table.name: with_rules})
        for index, rule in enumerate(rules)
    }
    flagged = with_rules.select(*rows.columns, **flags)
    reason = ibis.cases(*((flagged[flag], rule.name) for flag, rule in zip(flags, rules, strict=True)), else_="")
    reasoned = flagged.select(*rows.columns, keyart_reason=reason)
    reason_counts = to_arrow(reasoned.group_by("keyart_reason").agg(rows=reasoned.count())).to_pylist()
    dropped = {row["keyart_reason"]: row["rows"] for row in reason_counts if row["keyart_reason"]}
    kept = rows
    if dropped:
        judged = engine.materialise(reasoned, f"{table.name}_judged")  # once, not for every query that follows
        kept = judged.filter(judged.keyart_reason == "").select(*rows.columns)
    if table.name == PLAYS.name:
        single = kept.distinct()
        before, after = (to_arrow(r.aggregate(rows=r.count()))["rows"][0].as_py() for r in (kept, single))
        if before > after:
            kept = engine.materialise(single, f"{table.name}_single")
            dropped[REPEATED_PLAY] = before - after
    return kept, dict(sorted(dropped.items()))


@dataclass(frozen=True, kw_only=True)
class LogSize:
    """Sizes of the tables to prepare."""

    impressions: int
    candidates: int
    plays: int
    hours: pa.Table
    """Columns hour (since 1970) and rows: impressions by hour, in order."""


def measure_log(log: DatasetTables) -> LogSize:
    """Count impressions by hour, candidates and plays."""
    shown = log.impressions
    hours = shown.group_by(hour=(shown.shown_at.epoch_seconds() // 3600).cast("int64"))
    counted = hours.agg(rows=shown.count(), candidates=shown.candidates.length().cast("float64").sum())
    table = to_arrow(counted).sort_by("hour")
    return LogSize(
        impressions=pc.sum(table["rows"]).as_py() or 0,
        candidates=int(pc.sum(table["candidates"]).as_py() or 0),
        plays=to_arrow(log.plays.aggregate(plays=log.plays.count()))["plays"][0].as_py(),
        hours=table,
    )


def times_at_ranks(log: DatasetTables, size: LogSize, ranks: tuple[int, ...]) -> tuple[int, ...]:
    """`shown_at` in microseconds at some ranks of the impressions in order of time.

    An order statistic without a sort: only the hours that contain a rank are read, and counted by instant.
    """
    hours, ends = size.hours["hour"].to_numpy(), np.cumsum(size.hours["rows"].to_numpy())
    at = np.searchsorted(ends, ranks, side="right")
    shown_at = log.impressions.shown_at
    within = log.impressions.filter(
        ibis.or_(
            *(
                (shown_at >= ibis.timestamp(begin)) & (shown_at < ibis.timestamp(begin + timedelta(hours=1)))
                for begin in (datetime.fromtimestamp(3600 * int(hour), UTC) for hour in np.unique(hours[at]))
            )
        )
    )
    counted = to_arrow(within.group_by("shown_at").agg(rows=within.count())).sort_by("shown_at")
    moments = np.asarray(counted["shown_at"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()))
    rows, hour_of = counted["rows"].to_numpy(), moments // MICROSECONDS_AN_HOUR
    result = []
    for index, hour in zip(ranks, at, strict=True):
        inside = hour_of == hours[hour]
        before = int(ends[hour - 1]) if hour else 0
        first = np.searchsorted(before + np.cumsum(rows[inside]), index, side="right")
        result.append(int(moments[inside][first]))
    return tuple(result)


def period_counts(log: DatasetTables, split_times: tuple[int, int]) -> tuple[list[int], int, int]:
    """Impressions of training, validation and test, the last `shown_at` in microseconds, and how many different ones there are."""
    shown_at = log.impressions.shown_at
    moments = [ibis.timestamp(datetime.fromtimestamp(time / 1e6, UTC)) for time in split_times]
    counted = log.impressions.aggregate(
        rows=log.impressions.count(),
        late=log.impressions.count(where=shown_at >= moments[0]),
        test=log.impressions.count(where=shown_at >= moments[1]),
        last=shown_at.max(),
        times=shown_at.nunique(),
    )
    table = to_arrow(counted)
    (row,) = table.drop_columns("last").to_pylist()
    last = table["last"].cast(pa.timestamp("us", "UTC")).cast(pa.int64())[0].as_py()
    return [row["rows"] - row["late"], row["late"] - row["test"], row["test"]], last, row["times"]


def with_number_statistics(
    log: DatasetTables, training_ends: int, features: tuple[ContextFeature, ...]
) -> tuple[ContextFeature, ...]:
    """The features, numbers with their mean and standard deviation over the impressions of the training period."""
    numbers = [feature for feature in features if feature.kind == "number" and None in (feature.mean, feature.std)]
    if not numbers:
        return features
    end = ibis.timestamp(datetime.fromtimestamp(training_ends / 1e6, UTC))
    impressions = log.impressions.filter(log.impressions.shown_at < end)
    sums = {}
    for feature in numbers:
        value: Any = impressions[feature.source].cast("float64")
        value = ibis.ifelse(value.isnan(), ibis.null("float64"), value)
        sums |= {f"mean_{feature.name}": value.mean(), f"std_{feature.name}": value.std(how="pop")}
    (row,) = to_arrow(impressions.aggregate(**sums)).to_pylist()
    of_number = {
        feature.name: with_statistics(feature, *_statistics(row[f"mean_{feature.name}"], row[f"std_{feature.name}"]))
        for feature in numbers
    }
    return tuple(of_number.get(feature.name, feature) for feature in features)


def warn_of_rounding(features: Iterable[ContextFeature], console: Console) -> None:
    """Print which numbers lie so far from zero, for how far apart they are, that 32 bits keep little of their differences."""
    for feature in features:
        if feature.kind == "number" and (feature.std or 1.0) < ROUNDED_SHARE * abs(feature.mean or 0.0):
            console.print(
                f"prepare: the context feature {feature.name} is {feature.mean:g} on average and varies by {feature.std:g}: "
                "numbers are kept in 32 bits, which round such differences away. Subtract an offset from the column.",
                soft_wrap=True,
            )


def _statistics(mean: float | None, std: float | None) -> tuple[float, float]:
    """Mean and standard deviation, the latter 1 of nothing but nulls and of one value: nothing is known of how far others lie
    apart. What is left of one value's deviation is rounding."""
    mean, std = mean or 0.0, std or 0.0
    return mean, std if std >= max(SMALLEST_FLOAT, 1e-12 * abs(mean)) else 1.0


def vocabularies_of(
    log: DatasetTables, training_ends: int, features: tuple[ContextFeature, ...] = BUILT_IN
) -> Vocabularies:
    """Vocabularies of the training period; titles and artworks hold the rest of the catalogue behind it.

    `training_ends`: microseconds since 1970; rows from then on are ignored.
    """
    end = ibis.timestamp(datetime.fromtimestamp(training_ends / 1e6, UTC))
    plays = log.plays.filter(log.plays.played_at < end)
    impressions = log.impressions.filter(log.impressions.shown_at < end)
    titles, artworks = to_arrow(log.titles), to_arrow(log.artworks)

    def distinct(relation: Relation, column: Any) -> pa.Array:
        return to_arrow(relation.select(value=column).distinct())["value"].combine_chunks()

    candidates = distinct(impressions, impressions.candidates.unnest())
    seen = pa.chunked_array([distinct(plays, plays.title_id), distinct(impressions, impressions.title_id)], pa.string())
    known_titles = titles.filter(pc.is_in(titles["title_id"], value_set=seen.combine_chunks()))
    known_artworks = artworks.filter(pc.is_in(artworks["artwork_id"], value_set=candidates))
    genres = Vocabulary.of(pc.list_flatten(known_titles["genres"]).to_pylist())
    people = pa.chunked_array(
        [*pc.list_flatten(known_titles["cast"]).chunks, *pc.list_flatten(known_artworks["depicts"]).chunks], pa.string()
    )
    moods = set(genres.values)
    vocabularies = {
        "titles": Vocabulary.of(known_titles["title_id"].to_pylist(), titles["title_id"].to_pylist()),
        "artworks": Vocabulary.of(known_artworks["artwork_id"].to_pylist(), artworks["artwork_id"].to_pylist()),
        "people": Vocabulary.of(name for name in pc.unique(people).to_pylist() if name not in moods),
        "genres": genres,
        "policies": Vocabulary.of(distinct(impressions, impressions.policy).to_pylist()),
    }
    assert tuple(vocabularies) == VOCABULARY_NAMES
    for name, source in ((feature.name, feature.source) for feature in features if feature.kind == "category"):
        column = impressions[source]
        # counted first, so that ten million values are never loaded
        require_few_values(name, to_arrow(impressions.aggregate(values=column.nunique()))["values"][0].as_py())
        vocabularies[name] = Vocabulary.of(distinct(impressions, column).to_pylist())
    return vocabularies


def rating_scale_of(log: DatasetTables, training_ends: int) -> RatingScale | None:
    """The scale of the ratings of the training period; None where it has none. UserError where they are of two scales.

    A rating below 0 is a thumb down: the scale is then -1 .. 1. Else it reaches from the least to the greatest.
    """
    end = ibis.timestamp(datetime.fromtimestamp(training_ends / 1e6, UTC))
    known = log.plays.filter((log.plays.played_at < end) & log.plays.rating.notnull())
    rated: Any = known.select(rating=known.rating.cast("float32").cast("float64"))  # as they are stored
    rated = rated.filter(~rated.rating.isnan())
    sums = rated.aggregate(rated=rated.count(), low=rated.rating.min(), high=rated.rating.max())
    (row,) = to_arrow(sums).to_pylist()
    low, high = row["low"], row["high"]
    if not row["rated"]:
        return None
    if are_mixed(low, high):
        raise UserError(f"plays: ratings from {low:g} to {high:g} are of two scales. {MIXED_REMEDY}.")
    # whole numbers of a power of two, whose sum is exact in any order and thus the same for every engine
    unit = 2.0 ** (20 - int(np.frexp(max(abs(low), abs(high)))[1]))
    units = (rated.rating * unit + 0.5).floor().cast("float64")
    (total,) = to_arrow(rated.aggregate(total=units.sum()))["total"].to_pylist()
    return RatingScale(low=-1.0 if low < 0 else low, high=1.0 if low < 0 else high, mean=total / row["rated"] / unit)


def _shard(member_id: Any, shards: int) -> Any:
    """The shard of a member: the first three digits of the id's MD5, so the same on any engine and any machine."""
    digest = member_id.hexdigest("md5")
    bucket = ibis.literal(0)
    for index in range(3):
        bucket = bucket * 16 + ibis.literal(HEX).find(digest.substr(index, 1))
    return (bucket % shards).cast("int32")


def play_rows(log: DatasetTables, shards: int) -> Relation:
    """Plays with the shard of their member."""
    return log.plays.mutate(**{SHARD: _shard(log.plays.member_id, shards)})


def impression_rows(log: DatasetTables, shards: int) -> Relation:
    """Impressions with the shard of their member and the index of the shown artwork among the candidates."""
    shown = log.impressions
    index = shown.candidates.index(shown.artwork_id).cast("int32")
    return shown.mutate(**{SHARD: _shard(shown.member_id, shards), SHOWN: index}).drop("artwork_id")


def earlier_rows(engine: Engine, dataset: Path, since: datetime, log: DatasetTables, shards: int) -> Relation:
    """The impressions before `since` of the members who have later ones, with the shard of their member: history alone, of
    which member, artwork, time and click are read; rows that lack one of them are left out."""
    columns = tuple(column for column in IMPRESSIONS.columns if column.name in EARLIER)
    table = replace(IMPRESSIONS, columns=columns)
    rows = typed(engine, table.files(dataset), table)
    members = log.impressions.select(keyart_member=log.impressions.member_id).distinct()
    rows = rows.filter(rows.shown_at < ibis.timestamp(since)).drop_null()
    rows = rows.semi_join(members, rows.member_id == members.keyart_member)
    return rows.mutate(**{SHARD: _shard(rows.member_id, shards)})
