"""The best of many policies: intervals and lower bounds that hold for all of them at once, so that the best is not the luckiest.

In: a weighted log with the compared policies, and their verdicts. Out: `Selection`, a row per policy.

Legend: M members, S statistics, D draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from evaluation.off_policy import estimators as by
from evaluation.off_policy.intervals import NONE, Interval, Sums, degrees_of_freedom, standard_error
from evaluation.off_policy.lower_bound import guaranteed_value
from evaluation.off_policy.student import largest_quantile, student_quantile
from evaluation.off_policy.valuation import FALLBACK_ESTIMATOR, HEADLINE_ESTIMATOR, WeightedLog
from evaluation.record.rows import Estimates, Verdict, finite_or_none
from evaluation.record.selection_rows import Selection, SelectionRow

LEVEL = 0.95
ROUNDING = 1e-6
"""Two policies whose members' influences differ by no more than that share are the same, written in single precision."""

Difference = tuple[float, Interval]
"""A difference of two values with its simultaneous interval."""


def select(
    weighted_log: WeightedLog, estimates: Estimates, compared: Mapping[str, str], base: str, *, seed: int = 0
) -> list[Selection]:
    """Compare policies by every reward: simultaneous 95 % intervals, guaranteed values, and the policy that guarantees most.

    `compared`: by policy, the name of its scores table; `base`: the policy that each is compared with; both must be in
    `weighted_log`, and the compared ones in `estimates`, whose verdicts are kept. Values, differences from the base and
    differences of all pairs are three families; in each, all intervals hold at once in 95 % of logs.
    """
    verdicts: dict[tuple[str, str, str], Verdict] = {
        (row["policy"], row["reward"], row["estimator"]): row["verdict"] for row in estimates["verdicts"]
    }
    known = all(weighted_log.policy_weights[name].expected is not None for name in (*compared, base))
    estimator = HEADLINE_ESTIMATOR if known else FALLBACK_ESTIMATOR
    return [
        _compare(weighted_log, reward, estimator, compared, base, verdicts, seed) for reward in weighted_log.log.reward
    ]


@dataclass(frozen=True)
class _Values:
    """Values by one estimator and members' influences on them, by policy."""

    value: Mapping[str, float]
    influence: Mapping[str, NDArray[np.float64]]

    @classmethod
    def of(cls, weighted_log: WeightedLog, names: Sequence[str], reward: str, estimator: str) -> "_Values":
        """Estimate each policy."""
        sums = {name: policy_sums(weighted_log, name, reward, estimator) for name in names}
        return cls({name: of.value for name, of in sums.items()}, {name: of.influence_M for name, of in sums.items()})

    def intervals(self, names: Sequence[str], seed: int) -> dict[str, Interval]:
        """The intervals of some policies, all at once."""
        influences = [self.influence[name] for name in names]
        drawn = simultaneous_intervals([self.value[name] for name in names], influences, seed=seed)
        return dict(zip(names, drawn, strict=True))

    def differences(self, pairs: Sequence[tuple[str, str]], seed: int) -> dict[tuple[str, str], Difference]:
        """Differences of pairs, their intervals all at once; each pair also the other way round."""
        value = [self.value[one] - self.value[other] for one, other in pairs]
        influence = [self.influence[one] - self.influence[other] for one, other in pairs]
        for index, (one, _) in enumerate(pairs):
            if np.abs(influence[index]).max() <= ROUNDING * np.abs(self.influence[one]).max():
                value[index], influence[index] = 0.0, np.zeros_like(influence[index])
        by_pair: dict[tuple[str, str], Difference] = {}
        drawn = simultaneous_intervals(value, influence, seed=seed)
        for (one, other), difference, interval in zip(pairs, value, drawn, strict=True):
            by_pair[one, other] = difference, interval
            by_pair[other, one] = -difference, Interval(-interval.high, -interval.low)
        return by_pair


def _compare(
    weighted_log: WeightedLog,
    reward: str,
    estimator: str,
    compared: Mapping[str, str],
    base: str,
    verdicts: Mapping[tuple[str, str, str], Verdict],
    seed: int,
) -> Selection:
    judged: dict[str, Verdict] = {name: verdicts[name, reward, estimator] for name in (*compared, base)}
    answered = [name for name in compared if judged[name] != "unanswerable"]
    estimated = _Values.of(weighted_log, list(dict.fromkeys((*answered, base))), reward, estimator)
    members, reward_N = weighted_log.members, weighted_log.log.reward[reward]
    count_M = np.diff(np.append(members.start_M, members.rows))
    risk = (1 - LEVEL) / max(len(compared), 1)
    at_least = {
        name: guaranteed_value(members.total(weighted_log.policy_weights[name].weight_N * reward_N), count_M, risk)
        for name in answered
    }
    chosen = max(answered, key=lambda name: (at_least[name], estimated.value[name]), default=None)
    intervals = estimated.intervals(answered, seed)
    with_base = [] if judged[base] == "unanswerable" else [(name, base) for name in answered if name != base]
    above_base = estimated.differences(with_base, seed)
    pairs = estimated.differences(list(combinations(answered, 2)), seed)
    rows: list[SelectionRow] = []
    for name, scores in compared.items():
        own = (estimated.value[name], intervals[name]) if name in intervals else None
        value, low, high = _columns(own)
        base_value, base_low, base_high = _columns(above_base.get((name, base)))
        chosen_value, chosen_low, chosen_high = _columns(None if chosen is None else pairs.get((name, chosen)))
        rows.append(
            {
                "policy": name,
                "scores": scores,
                "value": value,
                "low": low,
                "high": high,
                "at_least": at_least.get(name),
                "above_base": base_value,
                "above_base_low": base_low,
                "above_base_high": base_high,
                "above_chosen": chosen_value,
                "above_chosen_low": chosen_low,
                "above_chosen_high": chosen_high,
                "verdict": judged[name],
            }
        )
    return {
        "reward": reward,
        "estimator": estimator,
        "base": base,
        "level": LEVEL,
        "chosen": chosen,
        "largest_estimate": max(answered, key=lambda name: estimated.value[name], default=None),
        "rows": rows,
    }


def _columns(difference: Difference | None) -> tuple[float | None, float | None, float | None]:
    """A value and the ends of its interval as JSON values."""
    if difference is None:
        return None, None, None
    value, interval = difference
    return finite_or_none(value), finite_or_none(interval.low), finite_or_none(interval.high)


def policy_sums(weighted_log: WeightedLog, policy: str, reward: str, estimator: str) -> Sums:
    """A policy's estimate, summed within members."""
    arrays, reward_N = weighted_log.policy_weights[policy], weighted_log.log.reward[reward]
    if estimator == FALLBACK_ESTIMATOR or arrays.expected is None:
        return weighted_log.members.sums(by.snips(reward_N, arrays.weight_N))
    expected_N, predicted_N = arrays.expected[reward], weighted_log.predicted[reward]
    return weighted_log.members.sums(by.dr(reward_N, arrays.weight_N, expected_N, predicted_N))


def simultaneous_intervals(
    value_S: Sequence[float], influence_SM: Sequence[NDArray[np.floating]], *, seed: int = 0, level: float = LEVEL
) -> list[Interval]:
    """Intervals of several statistics that contain all true values at once with probability `level`.

    `influence_SM`: members' jackknife influences on each statistic, arrays (M,). Max-|t|: the largest of the standardised
    statistics is drawn with their correlation over members, which is the multiplier bootstrap with normal multipliers
    (Chernozhukov, Chetverikov and Kato, 2013, Gaussian approximations and multiplier bootstrap for maxima); correlated policies
    need hardly wider intervals than one alone. Its `level` quantile, as a probability of one statistic, becomes a quantile of
    Student's distribution with that statistic's own degrees of freedom, so that heavy members widen what rests on them alone.
    A statistic without noise, such as the difference of two equal policies, has an interval of width 0. NaN for fewer than two
    members.
    """
    if not len(value_S):
        return []
    members = len(influence_SM[0])
    if members < 2:
        return [NONE] * len(value_S)
    error_S = np.array([standard_error(influence_M) for influence_M in influence_SM])
    moving = [index for index, error in enumerate(error_S) if error > 0]
    one_alone = (1 - level) / 2
    upper = one_alone
    if len(moving) > 1:
        largest = largest_quantile(np.stack([influence_SM[index] for index in moving]), seed, level)
        upper = min(one_alone, NormalDist().cdf(-largest))
    intervals = []
    for value, error, influence_M in zip(value_S, error_S, influence_SM, strict=True):
        half = student_quantile(upper, degrees_of_freedom(influence_M)) * error if error > 0 else 0.0 * error
        intervals.append(Interval(value - half, value + half) if np.isfinite(value + half) else NONE)
    return intervals
