"""Tests that hold at any sample size: bounds on the tails of sums of centred draws, and one error rate over many of them."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def bennett_tail(sum_T: ArrayLike, variance_T: ArrayLike, largest_T: ArrayLike) -> NDArray[np.float64]:
    """Bound on the probability that |sum| is as large, two-sided, (T,): 2 exp(-v / b^2 h(b s / v)), h(u) = (1 + u) log(1 + u) - u.

    `sum_T`: sums of draws, each centred given all before it. `variance_T`: sums of their conditional variances. `largest_T`: the
    largest absolute draw. No approximation: it holds for few draws, for rare events, and where a draw's distribution
    depends on those before it. Bennett (1962), Probability inequalities for the sum of independent random variables; Freedman
    (1975), On tail probabilities for martingales.
    """
    size_T = np.abs(np.asarray(sum_T, np.float64))
    variance_T, largest_T = np.broadcast_arrays(np.asarray(variance_T, np.float64), np.asarray(largest_T, np.float64))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio_T = largest_T * size_T / variance_T
        exponent_T = variance_T / largest_T**2 * ((1 + ratio_T) * np.log1p(ratio_T) - ratio_T)
    # without any variance a sum other than 0 is impossible; rounding is not
    exponent_T = np.where(variance_T > 0, exponent_T, np.where(size_T > 1e-6, np.inf, 0.0))
    return np.minimum(1.0, 2 * np.exp(-np.where(size_T > 0, exponent_T, 0.0)))


def holm(p_T: NDArray) -> NDArray[np.float64]:
    """p values adjusted for their number by Holm (1979), (T,): those up to a rate are rejected with that familywise error rate."""
    count = len(p_T)
    order = np.argsort(p_T, kind="stable")
    stepped_T = np.maximum.accumulate(np.minimum(1.0, p_T[order] * (count - np.arange(count))))
    adjusted_T = np.empty(count)
    adjusted_T[order] = stepped_T
    return adjusted_T
