"""How far an estimate can be trusted: reliable, weak or unanswerable, with reasons in words.

`reliable` is a tested claim: on simulated logs, 95 % intervals of reliable estimates contain the truth in 92 to 98 %
of replications. `unanswerable` means that the log does not support an estimate, and then no number is given. The thresholds
are the constants of this module.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.off_policy.estimators import ips
from evaluation.off_policy.intervals import Interval, Members, normal_interval, standard_error
from evaluation.record.rows import Verdict
from foundation.choice import PROBABILITY_ROUNDING

UNSUPPORTED_NONE, UNSUPPORTED_WEAK = 0.1, 0.01
"""Share of the policy's probability on artworks the log never shows."""
SAMPLE_NONE, SAMPLE_WEAK = 10.0, 100.0
"""Effective sample size."""
REWARDED_NONE, REWARDED_WEAK = 3.0, 30.0
"""Effective number of rewarded impressions, (sum w r)^2 / sum (w r)^2."""
MEMBERS_NONE, MEMBERS_WEAK = 3.0, 30.0
"""Effective number of members, (sum_m w_m)^2 / sum_m w_m^2 of their summed weights."""
WEIGHT_ERRORS, WEIGHT_NONE = 3.0, 0.1
"""Standard errors by which the mean weight may differ from 1; beyond them by more than that share, nothing is answered."""
BIAS = 0.5
"""Largest bias, in standard errors: with half of one, a 95 % interval contains the truth in 92 %."""
MODEL_SHARE = 0.01
"""Largest difference of an estimate that depends on the reward model from the unbiased one, in its standard errors."""


class GrossDoubt(str):
    """A defect of the log, in words, so large that no estimate is given: among `doubts`, it makes a verdict unanswerable."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How well a log supports a policy, by the weights that an estimator uses."""

    mean_weight: float
    """Mean weight; should be 1, else propensities are wrong or the policy chooses artworks that the log never shows."""
    mean_weight_interval: Interval
    mean_weight_error: float
    effective_sample_size: float
    """(sum w)^2 / sum w^2 (Kish, 1965)."""
    largest_weight: float
    unsupported: float
    """Mean share of the policy's probability on artworks with propensity 0; NaN where propensities were not logged."""

    effective_members: float
    """(sum_m w_m)^2 / sum_m w_m^2 of members' summed weights: the effective number of members behind the interval."""

    @classmethod
    def of(cls, weight_N: NDArray, members: Members, unsupported: float) -> "Overlap":
        """Compute the diagnostics from weights (N,) ordered by member."""
        sums = members.sums(ips(np.ones(len(weight_N)), weight_N))
        influence_M = sums.influence_M
        return cls(
            mean_weight=sums.value,
            mean_weight_interval=normal_interval(sums.value, influence_M),
            mean_weight_error=standard_error(influence_M),
            effective_sample_size=kish_sample_size(weight_N),
            largest_weight=float(weight_N.max(initial=0.0)),
            unsupported=unsupported,
            effective_members=kish_sample_size(sums.numerator_TM[0]),
        )


def kish_sample_size(values: NDArray) -> float:
    """(sum v)^2 / sum v^2 (Kish, 1965): the number of equal values that would count as much."""
    squares = float((values**2).sum())
    return float(values.sum()) ** 2 / squares if squares else 0.0


@dataclass(frozen=True, kw_only=True)
class UnbiasedReference:
    """An unbiased estimate of the same value on the same log, to compare with an estimator that can be biased."""

    value: float
    influence_M: NDArray
    bias_source: str
    """The source of the estimator's possible bias, in words."""
    uses_reward_model: bool
    """Whether the estimator depends on the reward model, whose own noise is in no standard error."""

    def bias(self, value: float, influence_M: NDArray) -> float:
        """Upper bound of the bias: |difference| + 1.645 standard errors of the difference."""
        return abs(value - self.value) + 1.645 * standard_error(influence_M - self.influence_M)

    def doubts(self, value: float, influence_M: NDArray) -> list[str]:
        """Reasons why the estimate is not reliable; empty where it is."""
        reasons = doubts_of_bias(self.bias(value, influence_M), standard_error(influence_M), self.bias_source)
        if self.uses_reward_model and standard_error(influence_M - self.influence_M) > MODEL_SHARE * standard_error(
            self.influence_M
        ):
            reasons.append("it depends on the reward model, whose own noise is in no standard error")
        return reasons


def doubts_of_bias(bias: float, error: float, bias_source: str) -> list[str]:
    """A reason where the bound of a bias exceeds half a standard error; else empty."""
    return (
        [f"{bias_source} may be off by {bias:.2g}, beyond half a standard error ({error:.2g})"]
        if bias > BIAS * error
        else []
    )


def assess(
    overlap: Overlap,
    *,
    value: float,
    influence_M: NDArray,
    effective_rewarded: float,
    reward: str,
    doubts: Sequence[str] = (),
) -> tuple[Verdict, str]:
    """The verdict on one estimate, and its reasons.

    `effective_rewarded`: effective number of rewarded impressions. `reward`: its name. `doubts`: defects of the log itself, or
    of the estimator on it; with a `GrossDoubt` nothing is answered.
    """
    members = len(influence_M)
    off = abs(overlap.mean_weight - 1)
    apart = off > WEIGHT_ERRORS * overlap.mean_weight_error + PROBABILITY_ROUNDING
    unsupported_share = overlap.unsupported if np.isfinite(overlap.unsupported) else 0.0
    none: list[str] = [doubt for doubt in doubts if isinstance(doubt, GrossDoubt)]
    if members < 2:
        none.append("a single member does not allow an interval")
    if unsupported_share > UNSUPPORTED_NONE:
        none.append(f"{unsupported_share:.0%} of the policy's probability is on artworks the log never shows")
    if not np.isfinite(overlap.mean_weight) or (apart and off > WEIGHT_NONE):
        none.append(
            f"weights are {overlap.mean_weight:.2f} on average and should be 1: the log hardly shows what the policy would, "
            "or its propensities are wrong"
        )
    if overlap.effective_sample_size < SAMPLE_NONE:
        none.append(f"the effective sample size is only {overlap.effective_sample_size:.0f} impressions")
    elif overlap.effective_members < MEMBERS_NONE:
        none.append(f"the effective number of members is only {overlap.effective_members:.0f}")
    if effective_rewarded < REWARDED_NONE:
        none.append(
            f"almost none of the impressions in the effective sample was {reward}"
            if effective_rewarded
            else f"none was {reward}"
        )
    if not np.isfinite(value):
        none.append("the effective sample is empty")
    if none:
        return "unanswerable", "; ".join(none)
    weak = list(doubts)
    if unsupported_share > UNSUPPORTED_WEAK:
        weak.append(f"{unsupported_share:.1%} of the policy's probability is on artworks the log never shows")
    if apart:
        weak.append(f"weights are {overlap.mean_weight:.3f} on average and should be 1")
    if overlap.effective_sample_size < SAMPLE_WEAK:
        weak.append(f"the effective sample size is only {overlap.effective_sample_size:.0f} impressions")
    if effective_rewarded < REWARDED_WEAK:
        weak.append(f"only about {effective_rewarded:.0f} impressions of the effective sample were {reward}")
    if overlap.effective_members < MEMBERS_WEAK:
        weak.append(f"the interval rests on about {overlap.effective_members:.0f} members")
    if weak:
        return "weak", "; ".join(weak)
    return "reliable", f"the effective sample size is {overlap.effective_sample_size:,.0f} impressions"


def weaker_verdict(one: Verdict, other: Verdict) -> Verdict:
    """The weaker of two verdicts: that of a comparison."""
    order: list[Verdict] = ["reliable", "weak", "unanswerable"]
    return order[max(order.index(one), order.index(other))]
