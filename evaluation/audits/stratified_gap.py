"""Rates of groups of impressions against the other impressions of the same title at the same time.

In: outcomes, weights and strata of impressions, and which impressions a group has: those of one artwork, or those of all artworks
that depict somebody, to one level of a segment. Out: a `Gap` for every group, with P values that hold in small groups.

Legend: N impressions, S strata, A groups (an artwork each, or a tag and a level of a segment), E members of groups (an impression
counts once for each of its groups), P pairs of group and stratum, T titles, B blocks of time.
"""

from dataclasses import dataclass
from math import erfc, sqrt

import numpy as np
from numpy.typing import NDArray

DRIFT_BLOCKS, DRIFT_BLOCK_SIZE = 20, 150
"""Drift is measured in so many parts of the period at most, of so many impressions at least."""
SHRINK = 2.0
"""Impressions at the mean of all, added to a title's own, for the rate that the variance is taken at: never exactly 0 or 1."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Each group's rate against that of its titles' other impressions; arrays (A,), NaN where either has none."""

    rate_A: NDArray[np.float64]
    gap_A: NDArray[np.float64]
    """Mean difference within strata, sum_s w_s (rate_s - rate of others_s) / sum_s w_s with w_s = v_s (1 - v_s / total_s), v_s
    the group's weight in a stratum (Mantel and Haenszel, 1959, as a difference of rates)."""
    error_A: NDArray[np.float64]
    """Standard error of the difference."""
    skew_A: NDArray[np.float64]
    """Skewness of the difference under the null hypothesis."""
    step_A: NDArray[np.float64]
    """The least by which the difference can change: one outcome's part."""
    expected_rewarded_A: NDArray[np.float64]
    """Effective number of rewarded impressions that a group would have at its titles' rates, (sum v p)^2 / sum v^2 p."""
    members_A: NDArray[np.float64]
    """Effective number of members of the group, (sum_m v_m)^2 / sum_m v_m^2 of their summed weights."""

    @property
    def expected_A(self) -> NDArray[np.float64]:
        """The group's rate if it were that of its titles' other impressions."""
        return self.rate_A - self.gap_A

    def shrunk_A(self, tested_A: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The difference times t^2 / (t^2 + error^2), t^2 the spread of differences beyond noise (Efron and Morris, 1973)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            if not tested_A.any():
                return np.full(len(self.rate_A), np.nan)
            noise_A = self.error_A**2
            weight_A = 1 / np.maximum(noise_A[tested_A], 1e-12)
            spread = max(0.0, float(np.average(self.gap_A[tested_A] ** 2 - noise_A[tested_A], weights=weight_A)))
            return self.gap_A * spread / (spread + noise_A)

    def p_value_A(self, above: bool) -> NDArray[np.float64]:
        """P value of the difference being above (or below) 0: one-sided, with half a step of continuity, and by Pearson's third
        curve where the distribution's tail on that side is the longer one (`tail`)."""
        sign = 1 if above else -1
        with np.errstate(invalid="ignore", divide="ignore"):
            z_A = (sign * self.gap_A - self.step_A / 2) / self.error_A
            skew_A = np.maximum(np.nan_to_num(sign * self.skew_A), 0.0)
        return tail(z_A, skew_A)


def tail(z_A: NDArray[np.float64], skew_A: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(Z >= z) for a standardised variable of skewness `skew_A` >= 0, by Pearson's third curve; NaN where z is not finite.

    The curve is made normal by its cube root (Wilson and Hilferty, 1931).
    """
    skew_A = np.where(skew_A < 1e-3, 1e-3, skew_A)
    root_A = np.cbrt(np.maximum(skew_A * z_A / 2 + 1, 0.0))
    normal_A = 6 / skew_A * (root_A - 1) + skew_A / 6
    return np.array([0.5 * erfc(z / sqrt(2)) if np.isfinite(z) else np.nan for z in normal_A.tolist()])


def stratified_gap(
    outcome_N: NDArray,
    weight_N: NDArray,
    member_N: NDArray[np.integer],
    stratum_N: NDArray[np.integer],
    title_N: NDArray[np.integer],
    row_E: NDArray[np.integer],
    group_E: NDArray[np.integer],
    groups: int,
    drift_N: NDArray | None = None,
) -> Gap:
    """Compare groups of impressions with the others of their strata.

    `outcome_N`: 1 or 0; `stratum_N`: what is compared with one another, parts of `title_N`, whose rates the variance is taken at;
    `row_E` and `group_E`: the impressions of every group, each once; `drift_N`: what time alone adds to an outcome.

    Variance by member, around the rate of the whole title, which both sides have under the null hypothesis, and never less
    than the binomial variance at that rate: few outcomes that are all alike have no spread of their own. A member's
    impressions inside and outside a group count as independent.
    """
    adjusted_N = outcome_N if drift_N is None else outcome_N - drift_N
    titles, strata = (int(code_N.max(initial=-1)) + 1 for code_N in (title_N, stratum_N))
    title_weight_T, title_earned_T = (np.bincount(title_N, v, titles) for v in (weight_N, weight_N * adjusted_N))
    square_T = np.bincount(title_N, weight_N**2, titles)
    mean = float((weight_N * outcome_N).sum() / max(weight_N.sum(), 1e-300))
    with np.errstate(invalid="ignore", divide="ignore"):
        size_T = title_weight_T**2 / square_T  # as so many impressions of equal weight
        rate_T = title_earned_T / title_weight_T
        shrunk_T = np.clip((rate_T * size_T + SHRINK * mean) / (size_T + SHRINK), 0.0, 1.0)
        bernoulli_T = shrunk_T * (1 - shrunk_T) * (size_T + SHRINK) / (size_T + SHRINK - 1)
    title_S = np.zeros(strata, np.int64)
    title_S[stratum_N] = title_N

    # everything below is by pair of group and stratum
    pair_E, pair_index_E = np.unique(group_E.astype(np.int64) * max(strata, 1) + stratum_N[row_E], return_inverse=True)
    group_P, stratum_P = pair_E // max(strata, 1), pair_E % max(strata, 1)
    weight_E, member_E = weight_N[row_E], member_N[row_E]
    residual_N = weight_N * (adjusted_N - rate_T[title_N])

    def of_pair(values_E: NDArray) -> NDArray:
        return np.bincount(pair_index_E, values_E, len(pair_E))

    def of_group(values_P: NDArray) -> NDArray:
        return np.bincount(group_P, values_P, groups)

    def of_others(power: int, values_P: NDArray) -> NDArray:
        return np.bincount(stratum_N, weight_N**power, strata)[stratum_P] - values_P

    own_P, own_square_P, own_cube_P = (of_pair(weight_E**power) for power in (1, 2, 3))
    total_S, earned_S = (np.bincount(stratum_N, v, strata) for v in (weight_N, weight_N * adjusted_N))
    share_P = own_P / total_S[stratum_P]
    alone_P = of_others(1, own_P) <= 1e-9 * own_P  # a stratum without others has no comparison
    share_P = np.where(alone_P, 1.0, share_P)
    above_P = of_pair(weight_E * adjusted_N[row_E]) - share_P * earned_S[stratum_P]
    compared_A = of_group(own_P * (1 - share_P))
    rest_P, kept_P = np.where(alone_P, 0.0, share_P), 1 - share_P

    bernoulli_P, third_P = bernoulli_T[title_S[stratum_P]], (1 - 2 * shrunk_T)[title_S[stratum_P]]
    binomial_A = of_group(bernoulli_P * kept_P**2 * own_square_P)
    binomial_others_A = of_group(bernoulli_P * rest_P**2 * of_others(2, own_square_P))
    third_A = of_group(
        bernoulli_P * third_P * (kept_P**3 * own_cube_P - rest_P**3 * of_others(3, own_cube_P))
    )  # the third central moment of a sum of independent outcomes
    residual_E = residual_N[row_E]
    clustered_A = _squares(residual_E * kept_P[pair_index_E], group_E, member_E, groups)
    squares_S = _squares(residual_N, stratum_N, member_N, strata)
    own_squares_P = _squares(residual_E, pair_index_E.reshape(-1), member_E, len(pair_E))
    clustered_others_A = of_group(rest_P**2 * np.maximum(squares_S[stratum_P] - own_squares_P, 0.0))
    variance_A = np.maximum(clustered_A, binomial_A) + np.maximum(clustered_others_A, binomial_others_A)

    own_A, square_A = of_group(own_P), of_group(own_square_P)
    rate_E = shrunk_T[title_N[row_E]]
    expected_A, expected_square_A = (np.bincount(group_E, weight_E**power * rate_E, groups) for power in (1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return Gap(
            rate_A=np.bincount(group_E, weight_E * outcome_N[row_E], groups) / own_A,
            gap_A=np.where(compared_A > 0, of_group(np.where(alone_P, 0.0, above_P)) / compared_A, np.nan),
            error_A=np.where(compared_A > 0, np.sqrt(variance_A) / compared_A, np.nan),
            skew_A=third_A / (binomial_A + binomial_others_A) ** 1.5,
            step_A=square_A / own_A / compared_A,
            expected_rewarded_A=np.nan_to_num(expected_A**2 / expected_square_A),
            members_A=np.nan_to_num(own_A**2 / _squares(weight_E, group_E, member_E, groups)),
        )


def _squares(
    values_E: NDArray, group_E: NDArray[np.integer], member_E: NDArray[np.integer], groups: int
) -> NDArray[np.float64]:
    """Per group, the sum over members of (the sum of a member's values)^2."""
    members = int(member_E.max(initial=0)) + 1
    pairs, index_E = np.unique(group_E.astype(np.int64) * members + member_E, return_inverse=True)
    sums = np.bincount(index_E.reshape(-1), values_E, len(pairs))
    return np.bincount(pairs // members, sums**2, groups).astype(np.float64)


def time_strata(title_N: NDArray[np.integer], time_N: NDArray[np.integer], size: int) -> NDArray[np.int64]:
    """Cut each title's impressions into consecutive parts of about `size` by time, none smaller; strata as integers (N,)."""
    order = np.lexsort((time_N, title_N))
    sorted_n = title_N[order]
    first_n = np.flatnonzero(np.diff(sorted_n, prepend=-1)) if len(order) else np.zeros(0, np.int64)
    count_T = np.diff(np.append(first_n, len(order)))
    index_n = np.arange(len(order)) - np.repeat(first_n, count_T)
    parts_T = np.maximum(count_T // size, 1)
    part_n = index_n * np.repeat(parts_T, count_T) // np.repeat(np.maximum(count_T, 1), count_T)
    stratum_N = np.empty(len(order), np.int64)
    stratum_N[order] = np.repeat(np.cumsum(parts_T) - parts_T, count_T) + part_n
    return stratum_N


def drift_by_time(
    outcome_N: NDArray, weight_N: NDArray, title_N: NDArray[np.integer], time_N: NDArray[np.integer]
) -> NDArray[np.float64]:
    """What time adds to an outcome of any title, (N,), 0 on average: least squares on titles and blocks of time of equal count.

    Titles are eliminated, so that one that arrives late, or is shown less and less, is no drift.
    """
    blocks = int(np.clip(len(outcome_N) // DRIFT_BLOCK_SIZE, 1, DRIFT_BLOCKS))
    if blocks == 1:
        return np.zeros(len(outcome_N))
    block_N = np.empty(len(outcome_N), np.int64)
    block_N[np.argsort(time_N, kind="stable")] = np.arange(len(outcome_N)) * blocks // len(outcome_N)
    _, code_N = np.unique(title_N, return_inverse=True)
    code_N = code_N.reshape(-1)
    titles = int(code_N.max()) + 1
    weight_TB, earned_TB = (
        np.bincount(code_N * blocks + block_N, v, titles * blocks).reshape(titles, blocks)
        for v in (weight_N, weight_N * outcome_N)
    )
    total_T = np.maximum(weight_TB.sum(1, keepdims=True), 1e-300)
    normal_BB = np.diag(weight_TB.sum(0)) - weight_TB.T @ (weight_TB / total_T)
    right_B = earned_TB.sum(0) - (weight_TB * (earned_TB.sum(1, keepdims=True) / total_T)).sum(0)
    drift_B = np.linalg.lstsq(normal_BB, right_B, rcond=1e-10)[0]
    drift_N = drift_B[block_N]
    return drift_N - float((weight_N * drift_N).sum() / weight_N.sum())
