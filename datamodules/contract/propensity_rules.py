"""Row rules of the columns `propensities` and `propensity`: probabilities, one per candidate, that agree with each other."""

from collections.abc import Callable
from typing import Any

import ibis
from ibis.expr.types import BooleanValue, Value
from ibis.expr.types import Table as Relation

from datamodules.contract.row_rule import Relations, RowRule, labelled, typed_column
from datamodules.contract.tables import IMPRESSIONS
from foundation.choice import PROBABILITY_ROUNDING


def _not_probabilities(rows: Relation) -> BooleanValue:
    def strange(p: Any) -> BooleanValue:
        return p.isnull() | p.isnan() | (p < 0) | (p > 1 + PROBABILITY_ROUNDING)

    return typed_column(rows, "propensities").filter(strange).length() > 0


def _sum_is_not_one(rows: Relation, _: Relations) -> Value:
    total = typed_column(rows, "propensities").sums()
    # NaN is named by its own rule, and an empty list by its length
    return ~_not_probabilities(rows) & ((total - 1).abs() > PROBABILITY_ROUNDING)


def _of_shown(rows: Relation) -> Any:
    """The shown artwork's propensity in `propensities`; null where it is no candidate, or the list is too short."""
    candidates = typed_column(rows, "candidates")
    shown = typed_column(rows, "propensities")[candidates.index(rows["artwork_id"]).cast("int32")]
    return ibis.ifelse(candidates.contains(rows["artwork_id"]), shown, None)


def _shown_has_zero_propensity(rows: Relation, _: Relations) -> Value:
    return _of_shown(rows) == 0


def _lengths(rows: Relation) -> Value:
    counts = [typed_column(rows, name).length().cast("string") for name in ("propensities", "candidates")]
    return counts[0] + " for " + counts[1] + " candidates"


def _disagrees(rows: Relation, _: Relations) -> Value:
    alone = typed_column(rows, "propensity")
    in_range = ~alone.isnan() & (alone > 0) & (alone <= 1)
    # a list that its own rules name is compared with nothing
    total = typed_column(rows, "propensities").sums()
    sound = ~_not_probabilities(rows) & ((total - 1).abs() <= PROBABILITY_ROUNDING)
    return in_range & sound & ((alone - _of_shown(rows)).abs() > PROBABILITY_ROUNDING)


def outside_unit(column: str, *, zero: bool) -> Callable[[Relation, Relations], Value]:
    """True where a fraction is NaN, above 1, or below 0, or 0 where `zero` is not allowed."""

    def broken(rows: Relation, _: Relations) -> Value:
        value = typed_column(rows, column)
        return value.isnan() | (value > 1) | (value < 0 if zero else value <= 0)

    return broken


PROPENSITY_RULES = (
    RowRule(
        name="no-propensity",
        table=IMPRESSIONS,
        broken=lambda rows, _: rows["propensities"].isnull() & rows["propensity"].isnull(),
        what="with neither propensities nor propensity",
        remedy="Log the probability the artwork was shown with; without it no policy can be valued",
    ),
    RowRule(
        name="propensities-length",
        table=IMPRESSIONS,
        needs=("propensities",),
        broken=lambda rows, _: typed_column(rows, "propensities").length() != typed_column(rows, "candidates").length(),
        what="whose propensities are not one per candidate",
        remedy="Write propensities aligned with candidates",
        offending_value=_lengths,
    ),
    RowRule(
        name="propensities-range",
        table=IMPRESSIONS,
        needs=("propensities",),
        broken=lambda rows, _: _not_probabilities(rows),
        what="with a propensity that is null, NaN or outside 0 .. 1",
        remedy="Fix the export",
        offending_value=lambda rows: typed_column(rows, "propensities").cast("string"),
    ),
    RowRule(
        name="propensities-sum",
        table=IMPRESSIONS,
        needs=("propensities",),
        broken=_sum_is_not_one,
        what="whose propensities do not sum to 1",
        remedy="Fix the export: every candidate's probability belongs in the list",
        offending_value=lambda rows: labelled("sum", typed_column(rows, "propensities").sums().round(4)),
    ),
    RowRule(
        name="shown-propensity-zero",
        table=IMPRESSIONS,
        needs=("propensities",),
        broken=_shown_has_zero_propensity,
        what="whose shown artwork has propensity 0",
        remedy="Log the probabilities that were drawn from: the shown artwork's cannot be 0",
        offending_value=lambda rows: labelled("artwork", rows["artwork_id"]),
    ),
    RowRule(
        name="propensity-range",
        table=IMPRESSIONS,
        needs=("propensity",),
        broken=outside_unit("propensity", zero=False),
        what="whose propensity is not above 0 and at most 1",
        remedy="Log the probability the artwork was shown with",
        offending_value=lambda rows: labelled("propensity", rows["propensity"]),
    ),
    RowRule(
        name="propensities-disagree",
        table=IMPRESSIONS,
        needs=("propensities", "propensity"),
        broken=_disagrees,
        what="whose propensity is not the one that propensities have for the shown artwork",
        remedy="Log both by one policy, in the order of candidates, or leave one of the columns out",
        offending_value=lambda rows: labelled("propensities have", _of_shown(rows)),
    ),
)
"""Rules of both columns; where a row has both, `propensities` are read."""
