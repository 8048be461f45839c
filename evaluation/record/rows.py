"""Types of the rows of `value.json` and `report.json`.

Values are rewards per impression; `low` and `high` are the ends of a 95 % interval by member. None is a number that the log
does not support. Probabilities, rates and relative differences are shares, not percentages.
"""

import math
from typing import Literal, NotRequired, TypedDict

Verdict = Literal["reliable", "weak", "unanswerable"]


def finite_or_none(number: float) -> float | None:
    """The number as a JSON value: None where it is infinite or NaN."""
    return float(number) if math.isfinite(number) else None


class IntervalColumns(TypedDict):
    """A value with its interval."""

    value: float | None
    low: float | None
    high: float | None


class RelativeColumns(TypedDict):
    """A relative difference with its interval."""

    relative: float | None
    relative_low: float | None
    relative_high: float | None


class WeightColumns(TypedDict):
    """How well a log supports a policy, by its importance weights."""

    effective_sample_size: float
    mean_weight: float | None
    largest_weight: float


class EstimateKey(TypedDict):
    """Identifies the estimate of a row."""

    policy: str
    reward: str
    estimator: str


class EstimateRow(EstimateKey, IntervalColumns, WeightColumns):
    """A policy's value by one estimator."""

    impressions: int
    members: int
    verdict: Verdict


class DifferenceRow(EstimateRow, RelativeColumns):
    """A policy's value minus a base's, on the same members.

    `differing`: effective number of impressions on which their weights differ; `differing_rewarded`: of rewarded ones.
    """

    base: str
    differing: float
    differing_rewarded: float
    reason: str


class IntervalRow(EstimateKey):
    """Both kinds of interval of an estimate."""

    normal_low: float | None
    normal_high: float | None
    bootstrap_low: float | None
    bootstrap_high: float | None


class VerdictRow(EstimateKey):
    """The verdict on an estimate, with reasons in words."""

    verdict: Verdict
    reason: str


class Parameter(TypedDict):
    """A parameter of an estimator that was chosen on the data; None: no bound."""

    parameter: str
    chosen: float | None
    rule: str
    of: list[float | None]


class ParameterRow(EstimateKey, Parameter):
    """The chosen parameter of one estimate."""


class OverlapRow(WeightColumns):
    """A policy's weights on the whole log."""

    policy: str
    mean_weight_low: float | None
    mean_weight_high: float | None
    unsupported: float | None


class LeftOutRow(EstimateKey):
    """An estimate that could not be computed, and why."""

    reason: str


class Estimates(TypedDict):
    """Estimates of every policy by every estimator, with all that belongs to them."""

    estimates: list[EstimateRow]
    differences: list[DifferenceRow]
    intervals: list[IntervalRow]
    verdicts: list[VerdictRow]
    parameters: list[ParameterRow]
    overlap: list[OverlapRow]
    left_out: list[LeftOutRow]


class LiftColumns(IntervalColumns, RelativeColumns):
    """A policy's value and a base's, and the lift with its interval in `low` and `high`."""

    base_value: float | None
    lift: float | None


class SliceRow(LiftColumns, EstimateKey):
    """The scored policy above a base on the impressions of a slice; intervals are simultaneous over all slices of the record."""

    slice: str
    level: str
    base: str
    impressions: int
    members: int
    effective_sample_size: float
    share_of_impressions: float
    verdict: Verdict
    reason: str


class ContributionRow(IntervalColumns, EstimateKey):
    """A policy's value minus a base's with the title held fixed, and the cause of the difference; base None: the value."""

    base: str | None
    due_to: str
    verdict: Verdict


class ExplorationRow(LiftColumns):
    """The lift of the scores' best artwork where a share of impressions explores."""

    family: str
    strength: float
    explored: float
    reward: str
    verdict: Verdict
    reason: str


class WeightRow(TypedDict):
    """Impressions whose weights lie in low .. high; None: no bound."""

    policy: str
    low: float
    high: float | None
    impressions: int
    share_of_weight: float


class CalibrationError(TypedDict):
    """Expected calibration error, and in `by_chance` the 2.5 and 97.5 percentiles of that of right probabilities, members' labels
    being as correlated as they are."""

    expected_calibration_error: float
    by_chance: list[float]


class Metrics(CalibrationError):
    """Metrics of probabilities against outcomes; AUC is None for a single class."""

    auc: float | None
    log_loss: float
    log_loss_of_a_constant: float


class ReliabilityPoints(TypedDict):
    """Predicted and observed rates in bins of equal count, lowest first."""

    predicted: list[float]
    observed: list[float]
    count: list[int]


class FitMetrics(TypedDict):
    """Metrics of predicted clicks, and of viewings after a click where scores and log have them."""

    metrics: Metrics
    reliability: ReliabilityPoints
    engaged_metrics: NotRequired[Metrics]
    engaged_reliability: NotRequired[ReliabilityPoints]


class CalibrationSliceRow(CalibrationError):
    """Predicted and observed rates of a slice, with the calibration error."""

    slice: str
    level: str
    reward: str
    rows: int
    predicted: float
    observed: float


class ClickbaitRow(TypedDict):
    """An artwork against the other artworks of its title."""

    artwork: str
    name: str
    flag: str
    impressions: int
    clicks: int
    click_rate: float
    click_rate_of_others: float
    click_gap: float
    engaged_after_click: float
    engaged_after_click_of_others: float
    engaged_gap: float
    chance: float
    chance_of_engaged_gap: float
    verdict: Verdict


class Clickbait(TypedDict):
    """Artworks that are clicked more and watched less, worst first, with the counts and thresholds of the test."""

    tested: int
    clickbait: int
    misleading: int
    false_discoveries: float
    least_clicks: int
    impressions: int
    verdict: Verdict
    """On the counts: weak where the log has defects, unanswerable, and then nothing was tested, where they are gross."""
    artworks: list[ClickbaitRow]


class ExposureRow(TypedDict):
    """How often a segment is shown a depicted person or tag, and its engagement after clicks on it against that after clicks on
    the same titles' other artworks; None where that was not tested."""

    segment: str
    level: str
    depicts: str
    scored: float
    low: float | None
    high: float | None
    uniform: float
    logged: float
    catalogue: float
    above_uniform: float
    above_low: float | None
    above_high: float | None
    verdict: Verdict
    """On the shares of impressions and their difference."""
    engaged_after_click: float | None
    of_others: float | None
    engaged_gap: float | None
    engaged_low: float | None
    engaged_high: float | None
    chance: float | None
    engaged_verdict: Verdict
    """On the gap of engagement; unanswerable where it was not tested."""
    members: int
    artworks: int
    clicks: int
    share_of_clicks: float | None
    flag: str


class EngagementRow(IntervalColumns):
    """The share of a policy's clicks in a segment that leads to a viewing; the interval is that of the gap."""

    segment: str
    level: str
    policy: str
    uniform: float | None
    gap: float | None
    members: int
    verdict: Verdict


class StabilityRow(IntervalColumns):
    """Probability that a title's artwork for a member differs from the last time."""

    policy: str
    days: str
    pairs: int
    members: int
    verdict: Verdict


class ReasonPlay(TypedDict):
    """The contribution of one play to the logit of a click, by part."""

    title: str
    place: int
    learned: float
    image: float
    people: float
    genres: float
    name: NotRequired[str]


class Likeness(TypedDict):
    """A person shown by the artwork, and how similar the member's plays are to it."""

    name: str
    likeness: float


class Reason(TypedDict):
    """The chosen artwork's logit minus the mean of the others', split into contributions."""

    impression_id: str
    artwork: str
    appeal: float
    itself: float
    context: float
    state: float
    own_clicks: NotRequired[float]
    """What the member's own clicks add, and below fatigue: where the bundle reads past impressions."""
    fatigue: NotRequired[float]
    plays: list[ReasonPlay]
    people: list[Likeness]


class ExampleCandidate(TypedDict):
    """A candidate of an example."""

    artwork: str
    click_probability: float
    policy: float
    best_fixed: bool
    logged: bool


class ExampleImpression(TypedDict):
    """An impression of an example member, candidates best first; `shown_at` in microseconds since 1970, UTC."""

    title: str
    name: str
    genres: list[str]
    shown_at: int
    clicked: bool
    candidates: list[ExampleCandidate]
    why: Reason | None


class ExamplePlay(TypedDict):
    """A play of an example member."""

    title: str
    name: str
    artwork: str | None


class ExampleMember(TypedDict):
    """A random member: its plays, newest first, and impressions with the policy's ranking."""

    member: str
    plays_before: int
    plays: list[ExamplePlay]
    shown: list[ExampleImpression]
