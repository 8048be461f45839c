"""Estimates and their differences as rows of JSON: numbers, intervals, diagnostics, verdicts and their reasons.

Legend: D bootstrap draws, E estimates, M members.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from evaluation.off_policy.intervals import (
    Interval,
    Members,
    Sums,
    normal_interval,
    percentile_interval,
    ratio_interval,
    standard_error,
)
from evaluation.off_policy.verdict import (
    DifferenceSample,
    Overlap,
    Rewarded,
    UnbiasedReference,
    assess,
    doubts_of_bias,
)
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
    rewarded: Rewarded
    """Effective rewarded impressions and members."""
    weight_N: NDArray[np.floating]
    """Weights (N,), 0 on impressions that do not enter."""
    reward_N: NDArray[np.floating]
    rows: Members
    """The members of the rows of both arrays."""
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


def estimate_rows(
    estimates: Sequence[PointEstimate],
    bootstrap_DE: NDArray,
    alike: Callable[[str, str], bool],
    doubts: tuple[str, ...],
) -> Estimates:
    """Estimates and differences as rows, with intervals, verdicts and parameters; the caller fills `overlap` and `left_out`.

    `alike`: whether two policies, by name, have the same probabilities on every impression.
    """
    rows = Estimates(estimates=[], differences=[], intervals=[], verdicts=[], parameters=[], overlap=[], left_out=[])
    judged: list[tuple[Verdict, str]] = []
    for index, estimate in enumerate(estimates):
        influence_M = estimate.sums.influence_M
        verdict, reason = assess(
            estimate.overlap,
            value=estimate.sums.value,
            influence_M=influence_M,
            rewarded=estimate.rewarded,
            reward=estimate.reward,
            doubts=[*doubts, *estimate.doubts, *_bias_doubts(estimate)],
        )
        judged.append((verdict, reason))
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
    samples: dict[tuple[str, str, str, bool], DifferenceSample] = {}
    for (a, estimate), (b, base) in combinations(enumerate(estimates), 2):
        if (estimate.reward, estimate.estimator) != (base.reward, base.estimator):
            continue
        # estimators on the same impressions have the same weights
        key = estimate.policy, base.policy, estimate.reward, estimate.estimator == "replay"
        if key not in samples:
            samples[key] = DifferenceSample.of(
                estimate.weight_N,
                base.weight_N,
                estimate.reward_N,
                estimate.rows,
                alike=alike(estimate.policy, base.policy),
            )
        rows["differences"].append(_difference(estimate, base, samples[key], (judged[a], judged[b])))
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
    estimate: PointEstimate,
    base: PointEstimate,
    sample: DifferenceSample,
    sides: tuple[tuple[Verdict, str], tuple[Verdict, str]],
) -> DifferenceRow:
    """A policy's value minus that of `base`, on the same members, with a verdict of its own; and the relative difference."""
    value, below = estimate.sums.value, base.sums.value
    influence_M = estimate.sums.influence_M - base.sums.influence_M
    verdict, reason = sample.judge(sides, standard_error(influence_M), estimate.reward)
    if verdict == "reliable" and (doubts := _bias_doubts(estimate, base)):
        # a bias that is small against each value's error may be large against that of their difference
        verdict, reason = "weak", "; ".join(doubts)
    interval = normal_interval(value - below, influence_M)
    change, lift = (0.0, Interval(0.0, 0.0)) if sample.alike else ratio_interval(estimate.sums, base.sums)
    relative = _interval_columns(change, lift.low, lift.high, verdict)
    weaker = min(estimate, base, key=lambda side: side.overlap.effective_sample_size)
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
        "differing": sample.effective_sample_size,
        "differing_rewarded": sample.rewarded.impressions,
        "verdict": verdict,
        "reason": reason,
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
