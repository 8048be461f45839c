"""How many days of how much exploration detect a lift: variance by member, power, detectable lift, cost.

In: what the explored impressions of a first log say of two policies. Out: for any share and number of days, the standard error of
their difference, and the fewest days that suffice.

The difference of two values is a mean over explored impressions, so that of n of them, with P ordered pairs of one member's
impressions, its variance is (n variance + P covariance) / n^2: `variance` of one impression's influence, `covariance` of
two of one member. Both are taken from the first log; n and P grow with the share and the days (`Traffic`).

Legend: N explored impressions, M members.
"""

from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from evaluation.off_policy.intervals import Members
from evaluation.off_policy.verdict import MEMBERS_WEAK, REWARDED_WEAK, SAMPLE_WEAK, kish_sample_size
from evaluation.planning.traffic import Traffic

MOST_DAYS = 730
"""Days beyond which no plan is made."""
NORMAL = NormalDist()


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What one explored impression says of the difference of two policies."""

    base_value: float
    """The base's reward per impression."""
    variance: float
    """Variance of an impression's influence on the difference."""
    covariance: float
    """Covariance of the influences of two impressions of one member, as far as the log shows one: at least 0."""
    covariance_high: float
    """The largest covariance that the log does not exclude."""
    weight_square: float
    """Mean square of the policy's weights, whose mean is 1: impressions for one effective impression."""
    rewarded: float
    """Effective rewarded impressions of the policy for each explored impression."""

    def standard_error(self, impressions: float, pairs: float) -> float:
        """Standard error of the difference from so many explored impressions and ordered pairs of one member's."""
        return float(np.sqrt((impressions * self.variance + pairs * self.covariance) / impressions**2))


def noise_of(
    influence_N: NDArray[np.floating],
    weight_N: NDArray[np.floating],
    base_weight_N: NDArray[np.floating],
    reward_N: NDArray[np.floating],
    members: Members,
    *,
    lift: float,
) -> Noise:
    """Noise by member of the difference of two policies, were the policy better than the base by `lift`.

    `influence_N`: each explored impression's influence on the difference, about 0 in the mean; `weight_N`, `base_weight_N`: the
    policies' weights. The first log's own lift is noise, or another: the part of the variance that the policy's rewards cause is
    scaled to the lift that is planned for. A covariance is small and hard to measure, and counts with the number of impressions of
    a member: used are the ends of its one-sided 95 % intervals, so that noise alone does not lengthen a plan.
    """
    base_value = float((base_weight_N * reward_N).sum() / base_weight_N.sum())
    value = float((weight_N * reward_N).sum() / max(float(weight_N.sum()), 1e-300))
    scale = (1 + lift) * base_value / value if value > 0 else 1.0
    # rewards of artworks that the policy shows more often than the base are the policy's
    own_N = weight_N / np.maximum(weight_N + base_weight_N, 1e-300)
    square_N = influence_N**2
    variance = float((square_N * (1 + (scale - 1) * own_N)).mean())
    total_M, square_M = members.total(influence_N), members.total(square_N)
    count_M = np.diff(np.append(members.start_M, members.rows))
    pairs = float((count_M * (count_M - 1.0)).sum())
    cross_M = total_M**2 - square_M
    mean, half = 0.0, 0.0
    if pairs:
        mean = float(cross_M.sum()) / pairs
        half = NORMAL.inv_cdf(0.95) * float(np.sqrt((cross_M**2).sum())) / pairs
    return Noise(
        base_value=base_value,
        variance=variance,
        covariance=max(mean - half, 0.0),
        covariance_high=max(mean + half, 0.0),
        weight_square=float((weight_N**2).mean()) / max(float(weight_N.mean()) ** 2, 1e-300),
        rewarded=kish_sample_size(weight_N * reward_N) / len(weight_N),
    )


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the log shall answer."""

    lift: float
    """Relative lift over the base, above 0."""
    power: float
    """Probability to detect it, above alpha."""
    alpha: float = 0.05
    """Two-sided."""

    @property
    def threshold(self) -> float:
        """Standard errors by which the interval must stay away from 0."""
        return NORMAL.inv_cdf(1 - self.alpha / 2)


@dataclass(frozen=True)
class Design:
    """A share of the traffic explored, and what it gives by days."""

    share: float
    noise: Noise
    traffic: Traffic

    def explored(self, days: float) -> float:
        """Expected explored impressions."""
        return self.share * self.traffic.impressions(days)

    def standard_error(self, days: int) -> float:
        """Standard error of the difference after so many days."""
        return self.noise.standard_error(self.explored(days), self.share**2 * self.traffic.pairs(days))

    def power(self, days: int, question: Question) -> float:
        """Probability that the interval of the difference lies above 0, were the lift as asked."""
        apart = question.lift * self.noise.base_value / self.standard_error(days)
        return NORMAL.cdf(apart - question.threshold)

    def detectable(self, days: int, question: Question) -> float:
        """The relative lift that is detected with the asked power."""
        return (question.threshold + NORMAL.inv_cdf(question.power)) * self.standard_error(days) / self.noise.base_value

    def reliable(self, days: int) -> bool:
        """Whether the effective sample is large enough for a reliable verdict (`evaluation.off_policy.verdict`)."""
        explored, pairs = self.explored(days), self.share**2 * self.traffic.pairs(days)
        square = self.noise.weight_square
        return (
            explored / square >= SAMPLE_WEAK
            and explored * self.noise.rewarded >= REWARDED_WEAK
            and explored**2 / (explored * square + pairs) >= MEMBERS_WEAK
        )

    def days(self, question: Question) -> int | None:
        """The fewest days with the asked power and a reliable verdict; None beyond `MOST_DAYS`."""
        low, high = 0, 1
        while not self._enough(high, question):
            low, high = high, 2 * high
            if low >= MOST_DAYS:
                return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._enough(middle, question) else (middle, high)
        return high if high <= MOST_DAYS else None

    def _enough(self, days: int, question: Question) -> bool:
        return self.power(days, question) >= question.power and self.reliable(days)


def variance_range(
    influence_N: NDArray[np.floating], base_reward_N: NDArray[np.floating], members: Members
) -> tuple[float, float]:
    """Ends of a 95 % interval by member of variance / base value^2, as multiples of the estimate: the plan's own uncertainty.

    Days are proportional to it where members come back seldom. `base_reward_N`: the base's weighted rewards. By the delta method
    for the logarithm.
    """
    square_M, earned_M = members.total(influence_N**2), members.total(base_reward_N)
    count_M = np.diff(np.append(members.start_M, members.rows))
    change_M = square_M / square_M.sum() + count_M / count_M.sum() - 2 * earned_M / earned_M.sum()
    half = NORMAL.inv_cdf(0.975) * float(np.sqrt((change_M**2).sum()))
    return float(np.exp(-half)), float(np.exp(half))


def noisier(design: Design, factor: float) -> Design:
    """The same design, were the variance so many times as large, and the covariance as large as it may be."""
    noise = replace(
        design.noise, variance=design.noise.variance * factor, covariance=design.noise.covariance_high * factor
    )
    return replace(design, noise=noise)


def quieter(design: Design, factor: float) -> Design:
    """The same design, were the variance so many times as large, and members' impressions independent."""
    return replace(design, noise=replace(design.noise, variance=design.noise.variance * factor, covariance=0.0))
