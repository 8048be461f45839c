"""What a policy would have earned, from a log of another policy that recorded its propensities.

Arrays in, `Estimate`s out. Intervals are by member: a member's impressions share tastes, so that members, not
impressions, are the independent observations.

Legend: N impressions, M members.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evaluation.off_policy import estimators
from evaluation.off_policy.intervals import Members, Sums, normal_interval
from evaluation.off_policy.verdict import kish_sample_size


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimated value (reward per impression) and how much the log has to say about it."""

    estimator: str
    """Name of the function that made it."""
    value: float
    """NaN where the log has nothing to say."""
    low: float
    """Lower end of the 95 % interval, by member."""
    high: float
    """Upper end."""
    effective_sample_size: float
    """(sum w)^2 / sum w^2: impressions of the target policy that the weighted log is worth (Kish, 1965)."""
    mean_weight: float
    """Should be 1: else propensities are wrong or the policies do not overlap."""
    largest_weight: float
    """The most that one impression counts for."""
    impressions: int
    """N."""
    members: int
    """M, the independent observations."""

    def record(self) -> dict[str, float | int | str | None]:
        """As JSON: NaN is null."""
        return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(self).items()}


def ips(reward_N: NDArray, weight_N: NDArray, member_N: NDArray) -> Estimate:
    """`estimators.ips` with its interval: normal, 95 %, cluster-robust by member, of which it needs some dozens.

    Where w_n = target / logging probability of what was shown. `reward_N`, `weight_N` and `member_N`, integer ids, of
    shape (N,). ValueError: other shapes, a reward that is not finite, a weight that is negative or not finite. N = 0 gives
    NaN, one member no interval.
    """
    reward_N, weight_N, members = _checked(reward_N, weight_N, member_N)
    return _estimate("ips", members.sums(estimators.ips(reward_N, weight_N)), weight_N)


def snips(reward_N: NDArray, weight_N: NDArray, member_N: NDArray) -> Estimate:
    """`estimators.snips` with its interval; arguments as `ips`. NaN where no weight is above 0."""
    reward_N, weight_N, members = _checked(reward_N, weight_N, member_N)
    return _estimate("snips", members.sums(estimators.snips(reward_N, weight_N)), weight_N)


def snips_lift(reward_N: NDArray, weight_N: NDArray, base_N: NDArray, member_N: NDArray) -> Estimate:
    """SNIPS value of a policy over that of a base policy on the same log, minus 1.

    Estimand: value(policy) / value(base) - 1; assumptions as `ips`. `weight_N` and `base_N` are the two policies'
    weights, (N,). Interval: by member, by the delta method on both ratios at once: being of one log, much of their
    noise cancels. NaN where the base's value is 0. Weights and sample sizes reported are the policy's.
    """
    base_N = _checked(reward_N, base_N, member_N)[1]
    reward_N, weight_N, members = _checked(reward_N, weight_N, member_N)
    over, under = (members.sums(estimators.snips(reward_N, w)) for w in (weight_N, base_N))
    snips_estimate = _estimate("snips_lift", over, weight_N)
    base = under.value if under.value > 0 else float("nan")
    influence_M = over.influence_M / base - over.value / base**2 * under.influence_M
    value = over.value / base - 1
    interval = normal_interval(value, influence_M)
    return replace(snips_estimate, value=value, low=interval.low, high=interval.high)


def on_policy(reward_N: NDArray, member_N: NDArray) -> Estimate:
    """Mean reward of the impressions that the policy itself showed: all weights 1; interval and arguments as `ips`."""
    return replace(ips(reward_N, np.ones(len(reward_N)), member_N), estimator="on_policy")


def _checked(reward_N: NDArray, weight_N: NDArray, member_N: NDArray) -> tuple[NDArray, NDArray, Members]:
    """Arrays as float64, ordered by member."""
    reward_N, weight_N = np.asarray(reward_N, np.float64), np.asarray(weight_N, np.float64)
    member_N = np.asarray(member_N)
    if reward_N.ndim != 1 or not reward_N.shape == weight_N.shape == member_N.shape:
        raise ValueError(
            f"rewards {reward_N.shape}, weights {weight_N.shape} and members {member_N.shape}: must be (N,) all three."
        )
    if not np.isfinite(reward_N).all() or not np.isfinite(weight_N).all() or (weight_N < 0).any():
        raise ValueError(
            "rewards and weights: must be finite, and weights not negative (is a propensity 0 or missing?)."
        )
    order = np.argsort(member_N, kind="stable")
    return reward_N[order], weight_N[order], Members.of(member_N[order])


def _estimate(name: str, sums: Sums, weight_N: NDArray) -> Estimate:
    """An estimate with its interval and what its weights say."""
    interval = normal_interval(sums.value, sums.influence_M)
    return Estimate(
        estimator=name,
        value=sums.value,
        low=interval.low,
        high=interval.high,
        effective_sample_size=kish_sample_size(weight_N),
        mean_weight=float(weight_N.mean()) if len(weight_N) else float("nan"),
        largest_weight=float(weight_N.max(initial=0.0)),
        impressions=len(weight_N),
        members=len(sums.influence_M),
    )
