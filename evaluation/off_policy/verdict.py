"""What an estimate can be trusted with: reliable, weak or unanswerable, and why, in words.

`reliable` is a claim that is tested: on simulated logs, 95 % intervals of reliable estimates hold the truth in 92 to 98 %
of replications. `unanswerable` means that the log holds no answer, and then no number is given. The thresholds stand here.
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
"""Bound of a bias, in standard errors: at half of one, a 95 % interval holds the truth in 92 %."""
MODEL_SHARE = 0.01
"""Of the unbiased estimate's standard error, how far an estimate that leans on the reward model may move apart from it."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How much a log has to say of a policy, by the weights an estimator uses."""

    mean_weight: float
    """Should be 1: else propensities are wrong or the policy chooses what the log never shows."""
    mean_weight_interval: Interval
    mean_weight_error: float
    effective_sample_size: float
    """(sum w)^2 / sum w^2 (Kish, 1965)."""
    largest_weight: float
    unsupported: float
    """Mean share of the policy's probability that lies where the log has none; NaN where that was not logged."""

    effective_members: float
    """(sum_m w_m)^2 / sum_m w_m^2 of members' summed weights: how many the interval rests on."""

    @classmethod
    def of(cls, weight_N: NDArray, members: Members, unsupported: float) -> "Overlap":
        """Of weights ordered by member."""
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
    """(sum v)^2 / sum v^2 (Kish, 1965): how many equal ones would count as much."""
    squares = float((values**2).sum())
    return float(values.sum()) ** 2 / squares if squares else 0.0


@dataclass(frozen=True, kw_only=True)
class UnbiasedReference:
    """The unbiased estimate of the same thing on the same log, which an estimator that can be biased is held against."""

    value: float
    influence_M: NDArray
    bias_source: str
    """What the estimator's bias would be of, in words."""
    uses_reward_model: bool
    """It leans on the reward model, whose own noise is in no standard error."""

    def bias(self, value: float, influence_M: NDArray) -> float:
        """A bound: |difference| + 1.645 standard errors of the difference."""
        return abs(value - self.value) + 1.645 * standard_error(influence_M - self.influence_M)

    def doubts(self, value: float, influence_M: NDArray) -> list[str]:
        """Why the estimator cannot be called reliable; empty where it can."""
        reasons = doubts_of_bias(self.bias(value, influence_M), standard_error(influence_M), self.bias_source)
        if self.uses_reward_model and standard_error(influence_M - self.influence_M) > MODEL_SHARE * standard_error(
            self.influence_M
        ):
            reasons.append("it leans on the reward model, whose own noise is in no standard error")
        return reasons


def doubts_of_bias(bias: float, error: float, bias_source: str) -> list[str]:
    """A bound of a bias against the standard error."""
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

    `rewarded`: effective number of rewarded impressions. `doubts`: what is wrong with the log itself, or with leaning on
    the estimator.
    """
    members = len(influence_M)
    off = abs(overlap.mean_weight - 1)
    apart = off > WEIGHT_ERRORS * overlap.mean_weight_error + PROBABILITY_ROUNDING
    unsupported_share = overlap.unsupported if np.isfinite(overlap.unsupported) else 0.0
    none = []
    if members < 2:
        none.append("one member alone says nothing of others")
    if unsupported_share > UNSUPPORTED_NONE:
        none.append(f"{unsupported_share:.0%} of the policy's probability lies where the log has none")
    if not np.isfinite(overlap.mean_weight) or (apart and off > WEIGHT_NONE):
        none.append(
            f"weights are {overlap.mean_weight:.2f} on average and should be 1: the log hardly shows what the policy would, "
            "or its propensities are wrong"
        )
    if overlap.effective_sample_size < SAMPLE_NONE:
        none.append(f"only {overlap.effective_sample_size:.0f} impressions' worth of the policy is in the log")
    elif overlap.effective_members < MEMBERS_NONE:
        none.append(f"what speaks for the policy is of {overlap.effective_members:.0f} members' impressions")
    if effective_rewarded < REWARDED_NONE:
        none.append(
            f"hardly an impression that speaks for the policy was {reward}"
            if effective_rewarded
            else f"none was {reward}"
        )
    if not np.isfinite(value):
        none.append("nothing in the log speaks for the policy")
    if none:
        return "unanswerable", "; ".join(none)
    weak = list(doubts)
    if unsupported_share > UNSUPPORTED_WEAK:
        weak.append(f"{unsupported_share:.1%} of the policy's probability lies where the log has none")
    if apart:
        weak.append(f"weights are {overlap.mean_weight:.3f} on average and should be 1")
    if overlap.effective_sample_size < SAMPLE_WEAK:
        weak.append(f"only {overlap.effective_sample_size:.0f} impressions' worth of the policy is in the log")
    if effective_rewarded < REWARDED_WEAK:
        weak.append(f"only about {effective_rewarded:.0f} impressions that speak for the policy were {reward}")
    if overlap.effective_members < MEMBERS_WEAK:
        weak.append(f"the interval rests on about {overlap.effective_members:.0f} members")
    if weak:
        return "weak", "; ".join(weak)
    return "reliable", f"{overlap.effective_sample_size:,.0f} impressions' worth of the policy is in the log"


def weaker_verdict(one: Verdict, other: Verdict) -> Verdict:
    """Of a comparison, the verdict is that of its weaker side."""
    order: list[Verdict] = ["reliable", "weak", "unanswerable"]
    return order[max(order.index(one), order.index(other))]
