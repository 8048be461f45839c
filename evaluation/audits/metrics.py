"""Metrics of predicted probabilities against outcomes: AUC, log loss, calibration. Arrays in, numbers out.

Legend: N impressions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Predictions in bins of equal count, lowest first; arrays of shape (bins,)."""

    predicted: Floats
    """Mean probability."""
    observed: Floats
    """Share of labels that are 1."""
    count: NDArray[np.integer]
    """Rows."""


def _checked(p_N: Floats, y_N: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p_N, y_N = np.asarray(p_N, np.float64), np.asarray(y_N, np.float64)
    if p_N.ndim != 1 or p_N.shape != y_N.shape or not len(p_N):
        raise ValueError(
            f"probabilities of shape {p_N.shape} and labels of shape {y_N.shape}: must be (N,) both, N > 0."
        )
    if not ((p_N >= 0) & (p_N <= 1)).all():
        raise ValueError("probabilities: must lie in 0 .. 1, without NaN.")
    if not np.isin(y_N, (0.0, 1.0)).all():
        raise ValueError("labels: must be 0 or 1.")
    return p_N, y_N


def auc(p_N: Floats, y_N: NDArray) -> float:
    """Probability that a random positive outranks a random negative, ties counting half; NaN for a single class.

    (sum of the positives' ranks - n1 (n1 + 1) / 2) / (n1 n0), ties sharing their mean rank (Hanley and McNeil, 1982).
    `p_N`: probabilities, `y_N`: labels 0 or 1, both of shape (N,). ValueError: other shapes, no rows, values
    outside 0 .. 1, labels other than 0 and 1.
    """
    p_N, y_N = _checked(p_N, y_N)
    _, inverse, count = np.unique(p_N, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[inverse]
    ones = y_N.sum()
    zeros = len(y_N) - ones
    if not ones or not zeros:
        return float("nan")
    return float((rank[y_N == 1].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def log_loss(p_N: Floats, y_N: NDArray) -> float:
    """-1/N sum_n y_n log p_n + (1 - y_n) log(1 - p_n), in nats.

    Probabilities are kept 1e-12 from 0 and 1: one wrong certainty costs 28 nats, not infinity. Arguments and errors as
    `auc`. Good (1952), Rational Decisions.
    """
    p_N, y_N = _checked(p_N, y_N)
    p_N = np.clip(p_N, 1e-12, 1 - 1e-12)
    return float(-(y_N * np.log(p_N) + (1 - y_N) * np.log1p(-p_N)).mean())


def reliability(p_N: Floats, y_N: NDArray, bins: int = 20) -> Reliability:
    """Predicted against observed rates in `bins` bins of equal count (fewer where there are fewer rows).

    Arguments and errors as `auc`, and ValueError for fewer than one bin. Equal probabilities may fall into two bins:
    they stay in the order of the rows, which must not depend on the labels.
    """
    p_N, y_N = _checked(p_N, y_N)
    if bins < 1:
        raise ValueError(f"bins={bins}: must be at least 1.")
    order = np.argsort(p_N, kind="stable")
    edges = np.unique(np.linspace(0, len(p_N), bins + 1).astype(int))
    count = np.diff(edges)
    predicted, observed = (np.add.reduceat(v[order], edges[:-1]) / count for v in (p_N, y_N))
    return Reliability(predicted=predicted, observed=observed, count=count)


def expected_calibration_error(p_N: Floats, y_N: NDArray, bins: int = 20) -> float:
    """sum_b n_b / N |observed_b - predicted_b| over the bins of `reliability` (Naeini et al., 2015, equal count here).

    Its expectation is above 0 even for right probabilities, about sqrt(2 bins p (1 - p) / (pi N)): compare models on the same
    rows.
    """
    points = reliability(p_N, y_N, bins)
    return float((points.count * np.abs(points.observed - points.predicted)).sum() / points.count.sum())


def null_calibration_error(
    p_N: Floats,
    bins: int = 20,
    draws: int = 1000,
    seed: int = 0,
    *,
    y_N: NDArray | None = None,
    member_N: NDArray[np.integer] | None = None,
) -> tuple[float, float]:
    """The expected calibration error of right probabilities: 2.5 and 97.5 percentiles of `draws` simulations.

    In each bin of `reliability` the number of positives is drawn from a binomial distribution, so that the interval holds where
    positives are rare. With labels and members (integers from 0, (N,)), the bins' rates vary as members do: with the covariance
    rho sum_m s_mb s_mb' of members' sums s of standard deviations sqrt(p (1 - p)), rho the correlation of two labels of a member
    (`label_correlation`). An error inside the interval cannot be distinguished from 0 with this many rows. Arguments and errors
    as `auc`.
    """
    p_N, checked_N = _checked(p_N, np.zeros(np.shape(p_N)) if y_N is None else y_N)
    order = np.argsort(p_N, kind="stable")
    edges = np.unique(np.linspace(0, len(p_N), bins + 1).astype(int))
    count_B = np.diff(edges)
    mean_B = np.add.reduceat(p_N[order], edges[:-1])
    rng = np.random.default_rng(seed)
    expected_DB = np.broadcast_to(mean_B, (draws, len(mean_B)))
    if y_N is not None and member_N is not None:
        bin_N = np.empty(len(p_N), np.int64)
        bin_N[order] = np.repeat(np.arange(len(count_B)), count_B)
        members, code_N = int(member_N.max()) + 1, member_N
        if members > len(p_N):
            names, inverse = np.unique(member_N, return_inverse=True)
            members, code_N = len(names), inverse.reshape(-1)
        rho = label_correlation(p_N, checked_N, code_N, bin_N)
        if rho > 0:
            spread_MB = np.bincount(code_N * len(count_B) + bin_N, np.sqrt(p_N * (1 - p_N)), members * len(count_B))
            spread_MB = spread_MB.reshape(members, -1)
            expected_DB = _varied(mean_B, count_B, rho * spread_MB.T @ spread_MB, draws, rng)
    positives_DB = rng.binomial(count_B, np.clip(expected_DB / count_B, 0.0, 1.0))
    off_D = np.abs(positives_DB - mean_B).sum(1) / len(p_N)
    # the distribution is discrete where positives are few: the ends are among its values, and rounding must not exclude them
    low, high = np.quantile(off_D, [0.025, 0.975], method="inverted_cdf")
    return float(low) * (1 - 1e-9), float(high) * (1 + 1e-9)


def label_correlation(p_N: Floats, y_N: NDArray, member_N: NDArray[np.integer], bin_N: NDArray[np.integer]) -> float:
    """The correlation of two labels of a member beyond what their probabilities explain, 0 .. 1, by moments.

    sum_m ((sum_i r_i)^2 - sum_i r_i^2) / sum_m ((sum_i s_i)^2 - sum_i s_i^2), s_i = sqrt(p_i (1 - p_i)), r_i = y_i - p_i less its
    mean in the bin, so that miscalibration is no correlation. 0 where no member has two labels.
    """
    residual_N = y_N - p_N
    count_B = np.bincount(bin_N)
    residual_N = residual_N - (np.bincount(bin_N, residual_N) / np.maximum(count_B, 1))[bin_N]
    spread_N = np.sqrt(p_N * (1 - p_N))
    together, alone = (float((np.bincount(member_N, v) ** 2).sum() - (v**2).sum()) for v in (residual_N, spread_N))
    return float(np.clip(together / alone, 0.0, 1.0)) if alone > 1e-12 * float((spread_N**2).sum()) else 0.0


def _varied(
    mean_B: Floats, count_B: NDArray[np.integer], covariance_BB: Floats, draws: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Expected positives of bins that vary by a covariance, (D, B): lognormal in the rarer of the two labels, so that they stay in
    0 .. count."""
    rare_B = mean_B <= count_B / 2
    sign_B, rarer_B = np.where(rare_B, 1.0, -1.0), np.maximum(np.where(rare_B, mean_B, count_B - mean_B), 1e-12)
    relative_BB = covariance_BB * np.outer(sign_B, sign_B) / np.outer(rarer_B, rarer_B)
    log_BB = np.log1p(np.maximum(relative_BB, -0.99))
    value_B, vector_BB = np.linalg.eigh(log_BB)
    root_BB = vector_BB * np.sqrt(np.maximum(value_B, 0.0))
    log_DB = rng.normal(size=(draws, len(mean_B))) @ root_BB.T - (root_BB**2).sum(1) / 2
    varied_DB = np.minimum(rarer_B * np.exp(log_DB), count_B)
    return np.where(rare_B, varied_DB, count_B - varied_DB)
