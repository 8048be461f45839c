"""Types of the rows of `value.json` where several scores tables were named: the best of many.

Values are rewards per impression; None is a number that the log does not support.
"""

from typing import TypedDict

from evaluation.record.rows import IntervalColumns, Verdict


class SelectionRow(IntervalColumns):
    """One of several compared policies. `low` and `high`, and those of the differences, hold for all compared policies at once."""

    policy: str
    scores: str
    """The scores table as it was named."""
    at_least: float | None
    """The guaranteed value: a lower bound for all compared policies at once, whatever the weights' distribution."""
    above_base: float | None
    above_base_low: float | None
    above_base_high: float | None
    above_chosen: float | None
    """The value minus that of the chosen policy; None for that one."""
    above_chosen_low: float | None
    above_chosen_high: float | None
    verdict: Verdict


class Selection(TypedDict):
    """Several policies compared by one reward; `chosen` has the largest guaranteed value, `largest_estimate` the largest value."""

    reward: str
    estimator: str
    base: str
    level: float
    chosen: str | None
    """None where every verdict is unanswerable."""
    largest_estimate: str | None
    rows: list[SelectionRow]
