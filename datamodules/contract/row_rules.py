"""The row rules of the dataset contract, as Ibis expressions.

In: the tables as relations. Out: for each rule a boolean expression that is true where a row breaks it, with a description
and a remedy. `datamodules.contract.check` counts these expressions, and dropping invalid rows filters by the same ones.
Nothing here is particular to one engine.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import ibis
from ibis.expr.types import BooleanValue, Value
from ibis.expr.types import Table as Relation

from datamodules.contract.embedding_rules import EMBEDDING_RULES
from datamodules.contract.propensity_rules import PROPENSITY_RULES, outside_unit
from datamodules.contract.rating_rules import RATING_RULES
from datamodules.contract.row_rule import Relations, RowRule, id_value, labelled, typed_column
from datamodules.contract.stored_types import ID_COLUMNS, PLACEHOLDERS
from datamodules.contract.tables import ARTWORKS, IMPRESSIONS, MEMBERS, PLAYS, TABLES, TITLES, Column, Table
from foundation.context import LARGEST_FLOAT, LARGEST_POSITION

EARLIEST = datetime(1971, 1, 1, tzinfo=UTC)
"""A time of today written in one unit and read in the next (seconds as milliseconds) falls into January 1970."""
EARLIEST_YEAR, YEARS_AHEAD = 1870, 11
"""A release year is a calendar year since there are films, or of one announced: no date, and no number that stands for unknown."""
CLOCK_TOLERANCE = timedelta(days=1)
"""How far past this machine's clock a time may lie: clocks and time zones are off by hours, never by days."""
MAX_CANDIDATES = 2**15 - 1
"""Indices of candidates are stored in 16 bits."""
MAX_MINUTES = 10_000
"""A week: more is another unit."""
PLACEHOLDER_COLUMNS = {
    TITLES.name: ("title_id",),
    ARTWORKS.name: ("artwork_id",),
    PLAYS.name: ("member_id",),
    IMPRESSIONS.name: ("member_id",),
    MEMBERS.name: ("member_id",),
}
"""By table, the ids that no other table lists: anywhere else such a text is an unknown id."""
FOREIGN_CANDIDATE = "keyart_stranger"
"""Column that `with_foreign_candidate` adds: the first candidate that is not an artwork of the row's title, null if all are."""


def with_foreign_candidate(impressions: Relation, artworks: Relation) -> Relation:
    """Impressions with the column `FOREIGN_CANDIDATE`.

    Candidates are compared with their title's own artworks row by row: a log of N impressions with K candidates is
    never blown up to N x K rows.
    """
    own = artworks.group_by("title_id").agg(keyart_own=artworks.artwork_id.collect())
    joined = impressions.left_join(own, "title_id")
    candidates, own_artworks = typed_column(joined, "candidates"), typed_column(joined, "keyart_own")
    # a title without artworks has no list, so that every candidate is foreign
    foreign_candidates = candidates.filter(lambda candidate: ~own_artworks.contains(candidate).fill_null(False))
    return joined.select(*impressions.columns, foreign_candidates[0].name(FOREIGN_CANDIDATE))


def row_rules(table: Table) -> tuple[RowRule, ...]:
    """The rules for one table: what must not be null first."""
    nulls = [_not_null(table, column.name) for column in table.columns if not column.nullable]
    nulls += [
        _no_placeholder(table, column.name)
        for column in table.columns
        if column.name in PLACEHOLDER_COLUMNS[table.name]
    ]
    holes = [_no_null_items(table, column.name) for column in table.columns if column.kind == "strings"]
    own = [rule for rule in RULES if rule.table.name == table.name]
    names = {column.name for column in IMPRESSIONS.columns}
    more = [column for column in table.columns if column.in_some_files and column.name not in names]
    return (*nulls, *holes, *own, *(_context_column(table, column) for column in more if column.kind != "category"))


def _context_column(table: Table, column: Column) -> RowRule:
    """The rule of a declared context feature's column that holds numbers; NaN counts as unknown."""
    if column.maximum is not None:
        return _small_number(column.name, column.maximum)

    def broken(rows: Relation, _: Relations) -> BooleanValue:
        number = typed_column(rows, column.name).cast("float64")
        return (number.abs() > LARGEST_FLOAT) & ~number.isnan()  # engines order NaN above every number

    return RowRule(
        name=f"{column.name}-finite",
        table=table,
        broken=broken,
        what=f"whose {column.name} is infinite or beyond 32 bits",
        remedy="Write null where it is not known",
        offending_value=lambda rows: labelled(column.name, rows[column.name]),
    )


def _not_null(table: Table, column: str) -> RowRule:
    return RowRule(
        name=f"null-{column.replace('_', '-')}",
        table=table,
        broken=lambda rows, _: rows[column].isnull(),
        what=f"where {column} is null{' or blank' if column in ID_COLUMNS else ''}",
        remedy="Leave such rows out of the export, or fill them in",
    )


def _no_placeholder(table: Table, column: str) -> RowRule:
    return RowRule(
        name=f"placeholder-{column.replace('_', '-')}",
        table=table,
        broken=lambda rows, _: typed_column(rows, column).isin(PLACEHOLDERS),
        what=f"whose {column} is what a tool writes for a missing value",
        remedy="Write null where it is not known, and leave such rows out",
        offending_value=lambda rows: labelled(column, rows[column]),
    )


def _no_null_items(table: Table, column: str) -> RowRule:
    ids = column in ID_COLUMNS
    return RowRule(
        name=f"null-in-{column}",
        table=table,
        broken=lambda rows, _: (
            _has_null(typed_column(rows, column)) | (_first_foreign_is_blank(rows) if ids else False)
        ),
        what=f"with a null {'or blank ' if ids else ''}inside {column}",
        remedy="Write the list without its nulls",
    )


def _is_listed(rows: Relation, column: str, value: Any) -> Any:
    """Whether a table lists an id; null where the id is null.

    Nulls are taken out on both sides, and visibly: one among those listed would make `not in` null for every other id,
    and where one might be, Spark compares every row with every row.
    """
    listed = rows.filter(rows[column].notnull())
    return ibis.ifelse(value.isnull(), None, value.coalesce("").isin(typed_column(listed, column).coalesce("")))


def _has_null(array: Any) -> BooleanValue:
    return array.filter(lambda x: x.isnull()).length() > 0


def _first_foreign_is_blank(rows: Relation) -> Any:
    """Whether the first candidate that is no artwork of the title is blank: no artwork is, so that a blank one is foreign."""
    if FOREIGN_CANDIDATE not in rows.columns:
        return False
    first = typed_column(rows, FOREIGN_CANDIDATE)
    return (first.notnull() & id_value(first).isnull()).fill_null(False)


def _unique(table: Table) -> RowRule:
    key = table.columns[0].name

    def several(rows: Relation) -> Relation:
        counted = rows.group_by(key).agg(copies=rows.count())
        return counted.filter((typed_column(counted, "copies") > 1) & counted[key].notnull())

    def broken(rows: Relation, tables: Relations) -> Value:
        return _is_listed(several(tables[table.name]), key, rows[key])

    return RowRule(
        name=f"duplicate-{key.replace('_', '-')}",
        table=table,
        broken=broken,
        what=f"that share their {key} with another row",
        remedy=f"Export every {key} once",
        suspects=several if table in (PLAYS, IMPRESSIONS) else None,
    )


def _known_title(table: Table) -> RowRule:
    return RowRule(
        name="unknown-title",
        table=table,
        broken=lambda rows, tables: ~_is_listed(tables["titles"], "title_id", rows["title_id"]),
        what="of a title that titles.parquet does not list",
        remedy="Add the title to titles.parquet, or leave these rows out of the export",
        depends_on=(TITLES,),
        offending_value=lambda rows: labelled("title", rows["title_id"]),
        reference=(TITLES, "title_id", lambda rows: rows["title_id"]),
    )


def _plausible_time(table: Table, column: str) -> tuple[RowRule, RowRule]:
    def too_late(rows: Relation, _: Relations) -> Value:
        return typed_column(rows, column) > ibis.timestamp(datetime.now(UTC) + CLOCK_TOLERANCE)

    def too_early(rows: Relation, _: Relations) -> Value:
        return typed_column(rows, column) < ibis.timestamp(EARLIEST)

    return (
        RowRule(
            name="future-time",
            table=table,
            broken=too_late,
            what=f"whose {column} lies more than a day in the future",
            remedy="Check the unit and the zone the export writes",
            offending_value=lambda rows: typed_column(rows, column).cast("string"),
        ),
        RowRule(
            name="ancient-time",
            table=table,
            broken=too_early,
            what=f"whose {column} lies before {EARLIEST.year}",
            remedy="Check the unit the export writes: seconds read as milliseconds fall into January 1970",
            offending_value=lambda rows: typed_column(rows, column).cast("string"),
        ),
    )


def _has_duplicates(rows: Relation, _: Relations) -> Value:
    candidates = typed_column(rows, "candidates")
    # a candidate whose first index is not its own; cheaper than the list's distinct values
    return ~_has_null(candidates) & (candidates.filter(lambda x, i: candidates.index(x) != i).length() > 0)


def _small_number(column: str, maximum: int) -> RowRule:
    return RowRule(
        name=f"{column}-range",
        table=IMPRESSIONS,
        broken=lambda rows, _: (typed_column(rows, column) < 0) | (typed_column(rows, column) > maximum),
        what=f"whose {column} is not 0 to {maximum:,}",
        remedy=f"Write a whole number from 0 to {maximum:,}, and null where it is not known",
        offending_value=lambda rows: labelled(column, rows[column]),
    )


def _known(rows: Relation, column: str, broken: Callable[[Any], BooleanValue]) -> BooleanValue:
    """`broken` of a number that is known: NaN, which engines order above every number, is as good as null."""
    number = typed_column(rows, column).cast("float64")
    return broken(number) & ~number.isnan()


RULES: tuple[RowRule, ...] = (
    _unique(TITLES),
    RowRule(
        name="release-year-range",
        table=TITLES,
        broken=lambda rows, _: (
            (typed_column(rows, "release_year") < EARLIEST_YEAR)
            | (typed_column(rows, "release_year") > datetime.now(UTC).year + YEARS_AHEAD)
        ),
        what=f"whose release_year is no year from {EARLIEST_YEAR} to {YEARS_AHEAD} years ahead",
        remedy="Write the calendar year alone, as 1999, or null where it is not known",
        offending_value=lambda rows: labelled("release_year", rows["release_year"]),
        makes_null="release_year",
    ),
    _unique(ARTWORKS),
    _known_title(ARTWORKS),
    *EMBEDDING_RULES,
    _known_title(PLAYS),
    *_plausible_time(PLAYS, "played_at"),
    RowRule(
        name="watched-range",
        table=PLAYS,
        broken=outside_unit("watched", zero=True),
        what="whose watched is not a fraction between 0 and 1",
        remedy="Divide by the title's running time and clip, or write null where it is not known",
        offending_value=lambda rows: labelled("watched", rows["watched"]),
    ),
    *RATING_RULES,
    _unique(IMPRESSIONS),
    _known_title(IMPRESSIONS),
    RowRule(
        name="unknown-artwork",
        table=IMPRESSIONS,
        broken=lambda rows, tables: ~_is_listed(tables["artworks"], "artwork_id", rows["artwork_id"]),
        what="whose shown artwork artworks.parquet does not list",
        remedy="Add the artwork to artworks.parquet, or leave these rows out of the export",
        depends_on=(ARTWORKS,),
        offending_value=lambda rows: labelled("artwork", rows["artwork_id"]),
        reference=(ARTWORKS, "artwork_id", lambda rows: rows["artwork_id"]),
    ),
    *_plausible_time(IMPRESSIONS, "shown_at"),
    RowRule(
        name="no-candidates",
        table=IMPRESSIONS,
        broken=lambda rows, _: typed_column(rows, "candidates").length() == 0,
        what="with an empty list of candidates",
        remedy="Log every artwork that could have been shown, the shown one among them",
    ),
    RowRule(
        name="duplicate-candidates",
        table=IMPRESSIONS,
        broken=_has_duplicates,
        what="with a duplicate candidate",
        remedy="List every candidate once, with the sum of its propensities",
        offending_value=lambda rows: labelled("candidates", typed_column(rows, "candidates").join(", ")),
    ),
    RowRule(
        name="unknown-candidate",
        table=IMPRESSIONS,
        broken=lambda rows, tables: ~_is_listed(tables["artworks"], "artwork_id", id_value(rows[FOREIGN_CANDIDATE])),
        what="with a candidate that artworks.parquet does not list",
        remedy="Add the artwork to artworks.parquet, or leave these rows out of the export",
        depends_on=(ARTWORKS,),
        offending_value=lambda rows: labelled("candidate", rows[FOREIGN_CANDIDATE]),
        reference=(ARTWORKS, "artwork_id", lambda rows: id_value(rows[FOREIGN_CANDIDATE])),
    ),
    RowRule(
        name="foreign-candidate",
        table=IMPRESSIONS,
        broken=lambda rows, tables: (
            _is_listed(tables["artworks"], "artwork_id", id_value(rows[FOREIGN_CANDIDATE]))
            & _is_listed(tables["titles"], "title_id", rows["title_id"])  # else it is the title that is at fault
        ),
        what="with a candidate that belongs to another title",
        remedy="Correct the row's title_id or candidates, or the artwork's title_id in artworks.parquet",
        depends_on=(ARTWORKS, TITLES),
        offending_value=lambda rows: labelled("candidate", rows[FOREIGN_CANDIDATE]),
    ),
    RowRule(
        name="shown-not-candidate",
        table=IMPRESSIONS,
        broken=lambda rows, _: (
            (typed_column(rows, "candidates").length() > 0)
            & ~typed_column(rows, "candidates").contains(rows["artwork_id"])
        ),
        what="whose shown artwork is not among the candidates",
        remedy="Log the candidates the policy chose from",
        offending_value=lambda rows: labelled("artwork", rows["artwork_id"]),
    ),
    RowRule(
        name="too-many-candidates",
        table=IMPRESSIONS,
        broken=lambda rows, _: typed_column(rows, "candidates").length() > MAX_CANDIDATES,
        what=f"with more than {MAX_CANDIDATES:,} candidates",
        remedy="Log only those that could have been shown",
    ),
    _small_number("row", LARGEST_POSITION),
    _small_number("column", LARGEST_POSITION),
    *PROPENSITY_RULES,
    RowRule(
        name="engaged-without-click",
        table=IMPRESSIONS,
        broken=lambda rows, _: typed_column(rows, "engaged") & ~typed_column(rows, "clicked"),
        what="engaged without a click",
        remedy="Write engaged as false or null where clicked is false",
    ),
    RowRule(
        name="minutes-range",
        table=IMPRESSIONS,
        broken=lambda rows, _: _known(rows, "minutes", lambda value: (value < 0) | (value > MAX_MINUTES)),
        what=f"whose minutes are not 0 to {MAX_MINUTES:,}",
        remedy="Write minutes, not seconds or milliseconds, and null where they are not known",
        offending_value=lambda rows: labelled("minutes", rows["minutes"]),
    ),
    RowRule(
        name="minutes-without-click",
        table=IMPRESSIONS,
        broken=lambda rows, _: _known(rows, "minutes", lambda value: value > 0) & ~typed_column(rows, "clicked"),
        what="with minutes played without a click",
        remedy="Write the minutes that followed from this impression's click: 0 or null where clicked is false",
        offending_value=lambda rows: labelled("minutes", rows["minutes"]),
    ),
    _unique(MEMBERS),
)

assert {rule.table for rule in RULES} <= set(TABLES), "a rule of a table outside the contract would never be checked"
