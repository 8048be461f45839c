"""What a policy would have earned, from a log of another policy that recorded its propensities.

Arrays in, `Estimate`s out. Intervals are by member: a member's impressions share tastes, so that members, not
impressions, are the independent observations.

Legend: N impressions, M members.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054
"""97.5 % point of the normal distribution."""


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
    """Inverse propensity scoring: 1/N sum_n w_n r_n, where w_n = target / logging probability of what was shown.

    Estimand: expected reward per impression under the target policy, on impressions like these. Unbiased where every
    artwork that the target may show had a propensity above 0, the propensities are right, and no impression's artwork
    changes another's reward. Fails by variance where weights are large. Horvitz and Thompson (1952).

    Interval: normal, 95 %, from the sums of (w_n r_n - value) / N within members (Liang and Zeger, 1986); it needs
    some dozens of members, and gives none for one.

    `reward_N`, `weight_N` and `member_N`, integer ids, of shape (N,). ValueError: other shapes, a reward that is not
    finite, a weight that is negative or not finite. N = 0 gives NaN.
    """
    reward_N, weight_N, member_M = _checked(reward_N, weight_N, member_N)
    n = len(reward_N)
    value = float((weight_N * reward_N).mean()) if n else float("nan")
    return _estimate("ips", value, (weight_N * reward_N - value) / max(n, 1), weight_N, member_M)


def snips(reward_N: NDArray, weight_N: NDArray, member_N: NDArray) -> Estimate:
    """Self-normalised IPS: sum_n w_n r_n / sum_n w_n.

    Estimand, assumptions and arguments as `ips`. Biased by O(1/N), of much less variance: it cannot leave the range of
    the rewards, and shifting all rewards shifts it as much. Of a deterministic policy on a uniform log it is replay (Li
    et al., 2011) where all impressions have as many candidates. Swaminathan and Joachims (2015).

    Interval: as `ips`, by the delta method: a ratio moves by w_n (r_n - value) / sum of w. NaN where no weight is above 0.
    """
    reward_N, weight_N, member_M = _checked(reward_N, weight_N, member_N)
    total = weight_N.sum()
    if total <= 0:
        return _estimate("snips", float("nan"), np.full(len(weight_N), np.nan), weight_N, member_M)
    value = float((weight_N * reward_N).sum() / total)
    return _estimate("snips", value, weight_N * (reward_N - value) / total, weight_N, member_M)


def snips_lift(reward_N: NDArray, weight_N: NDArray, base_N: NDArray, member_N: NDArray) -> Estimate:
    """SNIPS value of a policy over that of a base policy on the same log, minus 1.

    Estimand: value(policy) / value(base) - 1; assumptions as `ips`. `weight_N` and `base_N` are the two policies'
    weights, (N,). Interval: by member, by the delta method on both ratios at once: being of one log, much of their
    noise cancels. NaN where the base's value is 0. Weights and sample sizes reported are the policy's.
    """
    reward_N, weight_N, member_M = _checked(reward_N, weight_N, member_N)
    base_N = _checked(reward_N, base_N, member_N)[1]
    if weight_N.sum() <= 0 or (base_N * reward_N).sum() <= 0:
        return _estimate("snips_lift", float("nan"), np.full(len(weight_N), np.nan), weight_N, member_M)
    value, base = (w * reward_N for w in (weight_N / weight_N.sum(), base_N / base_N.sum()))
    value, base = value.sum(), base.sum()
    influence = weight_N * (reward_N - value) / weight_N.sum() / base
    influence = influence - value / base**2 * base_N * (reward_N - base) / base_N.sum()
    return _estimate("snips_lift", float(value / base - 1), influence, weight_N, member_M)


def on_policy(reward_N: NDArray, member_N: NDArray) -> Estimate:
    """Mean reward of the impressions that the policy itself showed: all weights 1; interval and arguments as `ips`."""
    return replace(ips(reward_N, np.ones(len(reward_N)), member_N), estimator="on_policy")


def _checked(reward_N: NDArray, weight_N: NDArray, member_N: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Arrays as float64, and members as 0 .. M - 1."""
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
    return reward_N, weight_N, np.unique(member_N, return_inverse=True)[1].reshape(-1)


def _estimate(name: str, value: float, influence_N: NDArray, weight_N: NDArray, member_N: NDArray) -> Estimate:
    """The interval from what each impression moves the value by, summed within members (Liang and Zeger, 1986)."""
    members = int(member_N.max()) + 1 if len(member_N) else 0
    by_member = np.bincount(member_N, influence_N, members) if members else np.zeros(0)
    # one member alone says nothing about others: no interval rather than a narrow one
    error = float(np.sqrt((by_member**2).sum() * members / (members - 1))) if members > 1 else float("nan")
    squares = float((weight_N**2).sum())
    return Estimate(
        estimator=name,
        value=value,
        low=value - Z * error,
        high=value + Z * error,
        effective_sample_size=float(weight_N.sum()) ** 2 / squares if squares else 0.0,
        mean_weight=float(weight_N.mean()) if len(weight_N) else float("nan"),
        largest_weight=float(weight_N.max(initial=0.0)),
        impressions=len(weight_N),
        members=members,
    )
