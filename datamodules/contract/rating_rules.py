"""Ratings of plays: thumbs or stars, one scale in a dataset, and what of a column of them breaks the contract.

In: the plays as a relation. Out: the rule of a single rating, and `Ratings`, counted over all of them, with its findings. One
rule says which scale it is: a rating below 0 is a thumb down, so that all then lie in -1 .. 1; else they are stars.
"""

from dataclasses import dataclass
from typing import Any

from ibis.expr.types import BooleanValue
from ibis.expr.types import Table as Relation

from datamodules.contract.check_files import Violation, printable
from datamodules.contract.engines import to_arrow
from datamodules.contract.row_rule import Relations, RowRule, labelled, typed_column
from datamodules.contract.tables import PLAYS
from foundation.context import LARGEST_FLOAT

RATING = "rating"
MIXED_REMEDY = "Write all in one scale: thumbs as -1 and 1, stars from 0 up; null where a play is not rated"


def not_finite(rows: Relation, _: Relations) -> BooleanValue:
    """Whether a rating is NaN, infinite or beyond 32 bits."""
    rating = typed_column(rows, RATING).cast("float64")
    return rating.isnan() | (rating.abs() > LARGEST_FLOAT)


RATING_RULES = (
    RowRule(
        name="rating-finite",
        table=PLAYS,
        broken=not_finite,
        what="whose rating is no finite number",
        remedy="Write null where a play is not rated",
        needs=(RATING,),
        offending_value=lambda rows: labelled(RATING, rows[RATING]),
        makes_null=RATING,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Ratings:
    """The ratings of a dataset's plays, those that are no finite numbers left out."""

    plays: int
    rated: int
    """Plays that have a rating, at least one."""
    low: float
    """The least one."""
    high: float
    mean: float
    below: int
    """Ratings below 0."""
    outside: int
    """Ratings outside -1 .. 1."""
    first: tuple[str, ...] = ()
    """Where two scales are mixed, the first member, title and rating below 0, and the first outside -1 .. 1."""

    @property
    def mixed(self) -> bool:
        """Whether there are thumbs down and ratings that are no thumbs."""
        return are_mixed(self.low, self.high)

    def line(self) -> str:
        """The counts in one sentence."""
        kind = "thumbs" if self.low < 0 else "stars"
        return (
            f"{self.rated:,} of {self.plays:,} plays are rated, by {kind} from {self.low:g} to {self.high:g}, "
            f"{self.mean:.3g} on average"
        )


def are_mixed(low: float, high: float) -> bool:
    """Whether ratings from `low` to `high` are of two scales: some below 0, as thumbs are, and some outside -1 .. 1."""
    return low < 0 and (low < -1 or high > 1)


def measure_ratings(tables: Relations) -> Ratings | None:
    """Count them; None where plays cannot be judged, or none is rated."""
    if PLAYS.name not in tables:
        return None
    plays: Any = tables[PLAYS.name]
    broken: Any = not_finite(plays, tables)
    finite = plays.rating.notnull() & ~broken
    rated: Any = plays.filter(finite).mutate(rating=lambda rows: rows.rating.cast("float64"))
    (all_plays,) = to_arrow(plays.aggregate(plays=plays.count())).to_pylist()
    (row,) = to_arrow(
        rated.aggregate(
            rated=rated.count(),
            low=rated.rating.min(),
            high=rated.rating.max(),
            mean=rated.rating.mean(),
            below=rated.count(where=rated.rating < 0),
            outside=rated.count(where=(rated.rating < -1) | (rated.rating > 1)),
        )
    ).to_pylist()
    if not row["rated"]:
        return None
    first: tuple[str, ...] = ()
    if are_mixed(row["low"], row["high"]):
        ends = (rated.rating < 0, (rated.rating < -1) | (rated.rating > 1))
        first = tuple(text for end in ends for text in _first(rated.filter(end)))
    return Ratings(plays=all_plays["plays"], first=tuple(dict.fromkeys(first)), **row)


def rating_findings(ratings: Ratings) -> tuple[list[Violation], list[Violation]]:
    """What of them breaks the contract, and what is a warning."""
    if ratings.mixed:
        mixed = Violation(
            where="plays/",
            rule="mixed-ratings",
            what=(
                f"rating mixes two scales: {ratings.below:,} of {ratings.rated:,} are below 0, as thumbs down are, and "
                f"{ratings.outside:,} lie outside -1 to 1, as no thumb does"
            ),
            count=ratings.below,
            first=ratings.first,
            remedy=MIXED_REMEDY,
        )
        return [mixed], []
    if ratings.low == ratings.high:
        constant = Violation(
            where="plays/",
            rule="constant-rating",
            what=f"all {ratings.rated:,} ratings are {ratings.low:g}, which tell that a play was rated and not how",
            count=ratings.rated,
            remedy="Export the other ratings too, or leave the column out; null where a play is not rated",
        )
        return [], [constant]
    return [], []


def _first(rated: Relation) -> list[str]:
    ordered = rated.order_by("member_id", "played_at", "title_id", RATING).limit(1)
    rows = to_arrow(ordered.select("member_id", "title_id", RATING)).to_pylist()
    return [f"{printable(r['member_id'])}, {printable(r['title_id'])}, rating {r[RATING]:g}" for r in rows]
