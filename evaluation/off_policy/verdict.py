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
"""Effective number of members, (sum_m w_m)^2 / sum_m w_m^2 of their summed weights, and likewise of their weighted rewards."""
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

    @property
    def weights_are_explained(self) -> bool:
        """Whether the mean weight is 1, or falls short of 1 by no more than the probability that has no support.

        Such a gap belongs to the impressions without support; any other one means wrong propensities, and may be anywhere.
        """
        expected = 1 - (self.unsupported if np.isfinite(self.unsupported) else 0.0)
        return abs(self.mean_weight - expected) <= WEIGHT_ERRORS * self.mean_weight_error + PROBABILITY_ROUNDING


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


@dataclass(frozen=True, kw_only=True)
class Rewarded:
    """How many rewarded impressions, and members with them, a weighted mean of rewards rests on."""

    impressions: float
    """(sum w r)^2 / sum (w r)^2 over impressions."""
    members: float
    """The same over members' sums: a few members who earn most of it count as few."""

    @classmethod
    def of(cls, earned_N: NDArray, members: Members) -> "Rewarded":
        """Count from weighted rewards (N,), at least 0, ordered by member."""
        return cls(impressions=kish_sample_size(earned_N), members=kish_sample_size(members.total(earned_N)))


def _said(reward: str) -> str:
    """A rewarded impression's attribute, in words."""
    return {"minutes": "watched"}.get(reward, reward)


def assess(
    overlap: Overlap,
    *,
    value: float,
    influence_M: NDArray,
    rewarded: Rewarded,
    reward: str,
    doubts: Sequence[str] = (),
    whole: Overlap | None = None,
) -> tuple[Verdict, str]:
    """The verdict on one estimate by its own sample, and its reasons.

    `rewarded`: its effective rewarded impressions and members. `reward`: its name. `doubts`: defects of the log itself, or
    of the estimator on it; with a `GrossDoubt` nothing is answered. `whole`: for a part of a log, the policy's overlap on the
    whole: where the whole's mean weight is off by more than missing support, the part's is taken to be off as well unless it is
    clearly another, since a small part cannot show it.
    """
    members = len(influence_M)
    effective_members = min(overlap.effective_members, rewarded.members)
    weight_fault, weight_reason = _mean_weight_fault(overlap)
    if whole is not None and weight_fault != "unanswerable" and not whole.weights_are_explained:
        inherited, reason = _mean_weight_fault(whole)
        apart = abs(overlap.mean_weight - whole.mean_weight) > WEIGHT_ERRORS * overlap.mean_weight_error
        if inherited != "reliable" and not apart:
            weight_fault, weight_reason = inherited, f"on the whole log {reason}"
    unsupported_share = overlap.unsupported if np.isfinite(overlap.unsupported) else 0.0
    none: list[str] = [doubt for doubt in doubts if isinstance(doubt, GrossDoubt)]
    if members < 2:
        none.append("a single member does not allow an interval")
    if unsupported_share > UNSUPPORTED_NONE:
        none.append(f"{unsupported_share:.0%} of the policy's probability is on artworks the log never shows")
    if weight_fault == "unanswerable":
        none.append(weight_reason)
    if overlap.effective_sample_size < SAMPLE_NONE:
        none.append(f"the effective sample size is only {overlap.effective_sample_size:.0f} impressions")
    elif overlap.effective_members < MEMBERS_NONE:
        none.append(f"the effective number of members is only {overlap.effective_members:.0f}")
    if rewarded.impressions < REWARDED_NONE:
        none.append(
            f"almost none of the impressions in the effective sample was {_said(reward)}"
            if rewarded.impressions
            else f"none was {_said(reward)}"
        )
    if not np.isfinite(value):
        none.append("the effective sample is empty")
    if none:
        return "unanswerable", "; ".join(none)
    weak = list(doubts)
    if unsupported_share > UNSUPPORTED_WEAK:
        weak.append(f"{unsupported_share:.1%} of the policy's probability is on artworks the log never shows")
    if weight_fault == "weak":
        weak.append(weight_reason)
    if overlap.effective_sample_size < SAMPLE_WEAK:
        weak.append(f"the effective sample size is only {overlap.effective_sample_size:.0f} impressions")
    if rewarded.impressions < REWARDED_WEAK:
        weak.append(f"only about {rewarded.impressions:.0f} impressions of the effective sample were {_said(reward)}")
    if effective_members < MEMBERS_WEAK:
        weak.append(f"the interval rests on about {effective_members:.0f} members")
    if weak:
        return "weak", "; ".join(weak)
    return "reliable", f"the effective sample size is {overlap.effective_sample_size:,.0f} impressions"


def _mean_weight_fault(overlap: Overlap) -> tuple[Verdict, str]:
    """What a mean weight that is not 1 allows at most, and why; reliable where it is 1 within its error."""
    off = abs(overlap.mean_weight - 1)
    if np.isfinite(off) and not off > WEIGHT_ERRORS * overlap.mean_weight_error + PROBABILITY_ROUNDING:
        return "reliable", ""
    if not np.isfinite(off) or off > WEIGHT_NONE:
        return "unanswerable", (
            f"weights are {overlap.mean_weight:.2f} on average and should be 1: the log hardly shows what the policy would, "
            "or its propensities are wrong"
        )
    return "weak", f"weights are {overlap.mean_weight:.3f} on average and should be 1"


@dataclass(frozen=True, kw_only=True)
class DifferenceSample:
    """What a difference of two policies rests on: the impressions on which their weights differ."""

    effective_sample_size: float
    """(sum |d|)^2 / sum d^2 of the differences d of the weights."""
    rewarded: Rewarded
    """The same counts of |d| times the reward."""
    alike: bool
    """Whether the policies' probabilities are the same on every impression, so that they differ by 0 for certain."""

    @classmethod
    def of(
        cls, weight_N: NDArray, base_N: NDArray, reward_N: NDArray, members: Members, *, alike: bool = False
    ) -> "DifferenceSample":
        """Count from both policies' weights (N,) and the rewards (N,), ordered by member."""
        apart_N = np.abs(weight_N - base_N)
        return cls(
            effective_sample_size=kish_sample_size(apart_N),
            rewarded=Rewarded.of(apart_N * reward_N, members),
            alike=alike,
        )

    def judge(
        self, sides: tuple[tuple[Verdict, str], tuple[Verdict, str]], error: float, reward: str
    ) -> tuple[Verdict, str]:
        """The verdict on a difference and its reasons, never stronger than those of both values (`sides`).

        `error`: the difference's standard error. Two policies that are nearly equal differ on few impressions: the numbers of
        those decide, by the thresholds of a value's. A standard error of 0 measures nothing.
        """
        verdict = weaker_verdict(sides[0][0], sides[1][0])
        reasons = list(dict.fromkeys(reason for side_verdict, reason in sides if side_verdict == verdict))
        if self.alike:
            return verdict, "the two policies choose alike on every impression"
        size, count, members = self.effective_sample_size, self.rewarded.impressions, self.rewarded.members
        few = f"the two policies differ on too few impressions: about {size:.0f}, of which {count:.0f} were {_said(reward)}"
        if size < SAMPLE_NONE or count < REWARDED_NONE or members < MEMBERS_NONE or not error > 0:
            return "unanswerable", "; ".join([few, *(reasons if verdict == "unanswerable" else [])])
        if verdict == "unanswerable":
            return verdict, "; ".join(reasons)
        if size < SAMPLE_WEAK or count < REWARDED_WEAK or members < MEMBERS_WEAK:
            return "weak", "; ".join([few, *(reasons if verdict == "weak" else [])])
        return verdict, "; ".join(reasons)


def assess_members(count_M: NDArray) -> Verdict:
    """The verdict on a mean that depends on no weights, by the effective number of its members, of counts (M,) of rows."""
    members = kish_sample_size(np.asarray(count_M, np.float64))
    return "unanswerable" if members < MEMBERS_NONE else "weak" if members < MEMBERS_WEAK else "reliable"


def assess_groups(rewarded_A: NDArray, members_A: NDArray, doubts: Sequence[str] = ()) -> list[Verdict]:
    """The verdicts on differences of groups of impressions from others, each by its own sample.

    `rewarded_A`: effective rewarded impressions, expected where nothing differs; `members_A`: effective members; `doubts`: defects
    of the log, with a `GrossDoubt` nothing is answered.
    """
    at_most = verdict_of_log(doubts)
    none_A = (rewarded_A < REWARDED_NONE) | (members_A < MEMBERS_NONE) | (at_most == "unanswerable")
    weak_A = (rewarded_A < REWARDED_WEAK) | (members_A < MEMBERS_WEAK) | (at_most == "weak")
    return [
        "unanswerable" if none else "weak" if weak else "reliable"
        for none, weak in zip(none_A.tolist(), weak_A.tolist(), strict=True)
    ]


def verdict_of_log(doubts: Sequence[str]) -> Verdict:
    """The verdict that a log's defects allow at most."""
    gross = any(isinstance(doubt, GrossDoubt) for doubt in doubts)
    return "unanswerable" if gross else "weak" if doubts else "reliable"


def weaker_verdict(one: Verdict, other: Verdict) -> Verdict:
    """The weaker of two verdicts: that of a comparison."""
    order: list[Verdict] = ["reliable", "weak", "unanswerable"]
    return order[max(order.index(one), order.index(other))]
