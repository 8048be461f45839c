"""`plan.json` as a typed record: how much exploration, for how many days, until a log can answer.

Shares, lifts and powers are shares, not percentages; costs are expected rewards. None: not within the longest plan.
"""

import json
from pathlib import Path
from typing import TypedDict, cast

from foundation.records import read_versioned

PLAN_FILE, PLAN_VERSION = "plan.json", 1


class PlanRow(TypedDict):
    """A share explored: the fewest days that answer, and their cost; ends of 95 % intervals in `low` and `high`."""

    share: float
    days: int | None
    days_low: int | None
    days_high: int | None
    explored: int | None
    """Explored impressions."""
    members: int | None
    """Members with an impression in these days, explored or not."""
    cost: float | None
    cost_low: float | None
    cost_high: float | None
    detectable: float | None
    """The lift that these days detect with the asked power."""
    power: float | None


class CurveRow(TypedDict):
    """What a share gives after so many days."""

    share: float
    days: int
    cost: float
    detectable: float
    power: float


class EstimatorRow(TypedDict):
    """The noise of one estimator, and the days that it needs at the recommended share."""

    estimator: str
    variance: float
    """Variance of one explored impression's influence on the difference."""
    covariance: float
    """Covariance of two of one member."""
    days: int | None


class FirstLogRow(TypedDict):
    """The log that the plan is made from; impressions are those with at least two candidates."""

    impressions: int
    explored: int
    rewarded: int
    """Rewarded ones of the explored impressions."""
    members: int
    days: float
    impressions_a_day: float
    base_value: float
    cost_of_one: float
    """Rewards that one explored impression costs."""
    cost_of_one_low: float | None
    cost_of_one_high: float | None
    without_scores: int


class PlanRecord(TypedDict):
    """`plan.json`."""

    schema_version: int
    lift: float
    power: float
    alpha: float
    reward: str
    policy: str
    """What is planned for, in words."""
    base: str
    served: str
    """What is served where nothing is explored, against which exploring costs, in words."""
    within: int
    recommended: float | None
    """The smallest share that answers within so many days."""
    first_log: FirstLogRow
    plans: list[PlanRow]
    curve: list[CurveRow]
    estimators: list[EstimatorRow]


def write_plan(folder: Path, record: PlanRecord) -> None:
    """Write `plan.json`; ValueError where a number is not finite."""
    (folder / PLAN_FILE).write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")


def read_plan(folder: Path) -> PlanRecord:
    """Read `plan.json` of a folder; UserError as `foundation.records.read_versioned`."""
    return cast("PlanRecord", read_versioned(folder / PLAN_FILE, PLAN_VERSION, "Run keyart plan again."))
