"""Rows that a dataset holds more than once, though no id says so: copies of plays, of impressions under new ids, and near copies.

In: the sound tables as relations. Out: `RepeatedRows`, and a warning for each kind that no honest export makes so often.
"""

from dataclasses import dataclass
from typing import Any

from ibis.expr.types import Table as Relation

from datamodules.contract.check_files import Violation, printable
from datamodules.contract.engines import FILE, to_arrow
from datamodules.contract.row_rule import typed_column
from datamodules.contract.tables import IMPRESSIONS

REPEATED = 0.001
"""From this share of plays that are copies, or near copies, of another: a warning."""
REPEATED_IMPRESSIONS = 0.01
"""From this share of impressions that are like another in all but their id: a warning. A page may show a title twice."""
TO_THE_SECOND = 0.5
"""A log's times tell plays of one title apart where at least this share of them are no whole minutes."""
REPEATED_PLAY = "repeated-play"
"""What `--drop-invalid` drops but for one of each, counted by this name."""


@dataclass(frozen=True, kw_only=True)
class RepeatedRows:
    """How many rows are like one before them."""

    plays: int
    """Rows of plays that are like one before them in every column of the contract."""
    near_plays: int
    """Further plays of the same member, title and second as another; 0 where the log's times are coarser than seconds."""
    impressions: int
    """Impressions that are like one before them in every column but `impression_id`."""


def measure_repeats(plays: Relation, impressions: Relation, *, rows: int, shown_rows: int) -> RepeatedRows:
    """Count them among `rows` plays and `shown_rows` impressions.

    Few columns first, and all of them only where those few are equal in too many rows.
    """
    to_second = plays.select("member_id", "title_id", second=_second(plays))
    alike = rows - _count(to_second.distinct())
    copies = rows - _count(plays.drop(FILE).distinct()) if alike else 0
    near = alike - copies
    if near > REPEATED * rows:
        of_minutes: Any = _second(plays).second() != 0
        (sums,) = to_arrow(plays.aggregate(fine=plays.count(where=of_minutes))).to_pylist()
        near = near if sums["fine"] >= TO_THE_SECOND * rows else 0
    shown = impressions.select("member_id", "title_id", "artwork_id", "shown_at")
    repeated = shown_rows - _count(shown.distinct())
    if repeated > REPEATED_IMPRESSIONS * shown_rows:
        repeated = shown_rows - _count(_without_id(impressions).distinct())
    return RepeatedRows(plays=copies, near_plays=near, impressions=repeated)


def repeat_findings(
    repeated: RepeatedRows, plays: Relation, impressions: Relation, *, rows: int, shown_rows: int
) -> list[Violation]:
    """A warning for each kind of which there are more than an honest export has."""
    findings = []
    if repeated.plays > REPEATED * rows:
        findings.append(
            _warning(
                REPEATED_PLAY,
                plays.mutate(at=plays.played_at),
                count=repeated.plays,
                rows=rows,
                are="copies of another, alike in every column, as where a file was copied twice",
                remedy="Export every play once, or prepare with --drop-invalid, which keeps one of each",
            )
        )
    if repeated.near_plays > REPEATED * rows:
        findings.append(
            _warning(
                "near-copies-of-plays",
                plays.mutate(at=_second(plays)),
                count=repeated.near_plays,
                rows=rows,
                are="of the same member, title and second as another, and differ in another column or in parts of that second",
                remedy="Export every play once, with the largest share watched: a history holds a play for every row",
            )
        )
    if repeated.impressions > REPEATED_IMPRESSIONS * shown_rows:
        findings.append(
            _warning(
                "repeated-impression",
                impressions.mutate(at=impressions.shown_at),
                count=repeated.impressions,
                rows=shown_rows,
                are="copies of another, alike in every column but impression_id",
                remedy="Export every impression once, under the id that the log gave it: copies make intervals too narrow",
            )
        )
    return findings


def _warning(rule: str, table: Relation, *, count: int, rows: int, are: str, remedy: str) -> Violation:
    """The warning that `count` of the `rows` of a table are repeated; times to name the first ones by are its column `at`."""
    return Violation(
        where="impressions/" if "impression_id" in table.columns else "plays/",
        rule=rule,
        what=f"{count:,} of {rows:,} rows are {are}",
        count=count,
        first=_first(table),
        remedy=remedy,
        rows=rule == REPEATED_PLAY,
    )


def _count(rows: Relation) -> int:
    (counted,) = to_arrow(rows.aggregate(rows=rows.count())).to_pylist()
    return int(counted["rows"])


def _second(plays: Relation) -> Any:
    return typed_column(plays, "played_at").truncate("s")


def _without_id(impressions: Relation) -> Relation:
    return impressions.select(*(column.name for column in IMPRESSIONS.columns if column.name != "impression_id"))


def _first(rows: Relation) -> tuple[str, ...]:
    """The first three members, titles and times `at` that more than one row has."""
    counted: Any = rows.group_by("member_id", "title_id", "at").agg(copies=rows.count())
    ordered = counted.filter(counted.copies > 1).order_by("member_id", "at", "title_id").limit(3)
    offenders = to_arrow(ordered.mutate(time=ordered["at"].cast("string")).drop("at")).to_pylist()
    return tuple(f"{printable(r['member_id'])}, {printable(r['title_id'])} at {r['time']}" for r in offenders)
