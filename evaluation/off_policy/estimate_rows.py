"""Estimates and their differences as rows of JSON: numbers, intervals, diagnostics, verdicts and their reasons.

Legend: D bootstrap draws, E estimates, M members.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from evaluation.off_policy.intervals import Sums, normal_interval, percentile_interval, standard_error
from evaluation.off_policy.verdict import Overlap, UnbiasedReference, assess, doubts_of_bias, weaker_verdict
from evaluation.record.rows import (
    DifferenceRow,
    EstimateKey,
    Estimates,
    IntervalColumns,
    OverlapRow,
    Parameter,
    Verdict,
    WeightColumns,
    finite_or_none,
)


@dataclass(frozen=True, kw_only=True)
class PointEstimate:
    """One estimate before its interval."""

    policy: str
    reward: str
    estimator: str
    sums: Sums
    overlap: Overlap
    effective_rewarded: float
    """Effective number of rewarded impressions."""
    impressions: int
    members: int
    unbiased: Sums | None = None
    """For an estimator that can be biased: the unbiased estimate to compare it with."""
    bias_source: str = ""
    """The source of a possible bias, in words."""
    uses_reward_model: bool = False
    """Whether it depends on the reward model."""
    bias: float = 0.0
    """For an estimator that can be biased and has no unbiased reference: its approximate bias."""
    doubts: tuple[str, ...] = ()
    """Reasons to doubt this estimate alone."""
    parameter: Parameter | None = None
    """Its parameter that was chosen on the data."""


def estimate_rows(estimates: Sequence[PointEstimate], bootstrap_DE: NDArray, doubts: tuple[str, ...]) -> Estimates:
    """Estimates and differences as rows, with intervals, verdicts and parameters; the caller fills `overlap` and `left_out`."""
    rows = Estimates(estimates=[], differences=[], intervals=[], verdicts=[], parameters=[], overlap=[], left_out=[])
    judged: list[Verdict] = []
    for index, estimate in enumerate(estimates):
        influence_M = estimate.sums.influence_M
        verdict, reason = assess(
            estimate.overlap,
            value=estimate.sums.value,
            influence_M=influence_M,
            effective_rewarded=estimate.effective_rewarded,
            reward=estimate.reward,
            doubts=[*doubts, *estimate.doubts, *_bias_doubts(estimate)],
        )
        judged.append(verdict)
        key = EstimateKey(policy=estimate.policy, reward=estimate.reward, estimator=estimate.estimator)
        normal = normal_interval(estimate.sums.value, influence_M)
        drawn = percentile_interval(bootstrap_DE[:, index])
        rows["estimates"].append(
            {
                **key,
                **_interval_columns(estimate.sums.value, normal.low, normal.high, verdict),
                **_weight_columns(estimate.overlap),
                "impressions": estimate.impressions,
                "members": estimate.members,
                "verdict": verdict,
            }
        )
        rows["verdicts"].append({**key, "verdict": verdict, "reason": reason})
        if verdict != "unanswerable":
            rows["intervals"].append(
                {
                    **key,
                    "normal_low": finite_or_none(normal.low),
                    "normal_high": finite_or_none(normal.high),
                    "bootstrap_low": finite_or_none(drawn.low),
                    "bootstrap_high": finite_or_none(drawn.high),
                }
            )
        if estimate.parameter:
            rows["parameters"].append({**key, **estimate.parameter})
    for (a, estimate), (b, other) in combinations(enumerate(estimates), 2):
        if (estimate.reward, estimate.estimator) == (other.reward, other.estimator):
            verdict = weaker_verdict(judged[a], judged[b])
            if verdict == "reliable" and _bias_doubts(estimate, other):
                # a bias that is small against each value's error may be large against that of their difference
                verdict = "weak"
            rows["differences"].append(_difference(estimate, other, bootstrap_DE[:, a], bootstrap_DE[:, b], verdict))
    return rows


def _bias_doubts(estimate: PointEstimate, base: PointEstimate | None = None) -> list[str]:
    """Doubts about an estimator that can be biased: about a value, or about its difference from the base's."""
    value, influence_M = estimate.sums.value, estimate.sums.influence_M
    if base is not None:
        value, influence_M = value - base.sums.value, influence_M - base.sums.influence_M
    if estimate.unbiased is None:
        bias = estimate.bias + (base.bias if base is not None else 0.0)
        return doubts_of_bias(bias, standard_error(influence_M), estimate.bias_source) if bias else []
    sides = [estimate.unbiased, *([] if base is None or base.unbiased is None else [base.unbiased])]
    reference = UnbiasedReference(
        value=sides[0].value - sum(side.value for side in sides[1:]),
        influence_M=sides[0].influence_M - sum(side.influence_M for side in sides[1:]),
        bias_source=estimate.bias_source,
        uses_reward_model=estimate.uses_reward_model,
    )
    return reference.doubts(value, influence_M)


def _difference(
    estimate: PointEstimate, base: PointEstimate, estimate_D: NDArray, base_D: NDArray, verdict: Verdict
) -> DifferenceRow:
    """A policy's value minus that of `base`, on the same members; the relative difference by bootstrap, for a ratio is not
    normal."""
    value, below = estimate.sums.value, base.sums.value
    influence_M = estimate.sums.influence_M - base.sums.influence_M
    interval = normal_interval(value - below, influence_M)
    weaker = min(estimate, base, key=lambda side: side.overlap.effective_sample_size)
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = percentile_interval(estimate_D / base_D - 1)
    relative = _interval_columns(value / below - 1 if below > 0 else float("nan"), lift.low, lift.high, verdict)
    return {
        "policy": estimate.policy,
        "base": base.policy,
        "reward": estimate.reward,
        "estimator": estimate.estimator,
        **_interval_columns(value - below, interval.low, interval.high, verdict),
        "relative": relative["value"],
        "relative_low": relative["low"],
        "relative_high": relative["high"],
        **_weight_columns(weaker.overlap),
        "impressions": estimate.impressions,
        "members": estimate.members,
        "verdict": verdict,
    }


def _interval_columns(value: float, low: float, high: float, verdict: Verdict) -> IntervalColumns:
    """Value and interval; all None where the verdict is unanswerable."""
    if verdict == "unanswerable":
        return {"value": None, "low": None, "high": None}
    return {"value": finite_or_none(value), "low": finite_or_none(low), "high": finite_or_none(high)}


def _weight_columns(overlap: Overlap) -> WeightColumns:
    return {
        "effective_sample_size": overlap.effective_sample_size,
        "mean_weight": finite_or_none(overlap.mean_weight),
        "largest_weight": overlap.largest_weight,
    }


def overlap_row(policy: str, overlap: Overlap) -> OverlapRow:
    """The row of a policy's weight diagnostics."""
    return {
        "policy": policy,
        **_weight_columns(overlap),
        "mean_weight_low": finite_or_none(overlap.mean_weight_interval.low),
        "mean_weight_high": finite_or_none(overlap.mean_weight_interval.high),
        "unsupported": finite_or_none(overlap.unsupported),
    }
