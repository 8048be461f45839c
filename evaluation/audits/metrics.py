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


def null_calibration_error(p_N: Floats, bins: int = 20, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The expected calibration error of right probabilities: 2.5 and 97.5 percentiles of `draws` simulations.

    In each bin of `reliability` the number of positives is drawn from a normal distribution of variance sum p (1 - p).
    An error inside the interval cannot be distinguished from 0 with this many rows. Arguments and errors as `auc`.
    """
    p_N = np.sort(_checked(p_N, np.zeros(len(p_N)))[0])
    edges = np.unique(np.linspace(0, len(p_N), bins + 1).astype(int))
    spread = np.sqrt(np.add.reduceat(p_N * (1 - p_N), edges[:-1]))
    off = np.abs(np.random.default_rng(seed).normal(size=(draws, len(spread))) * spread).sum(1) / len(p_N)
    low, high = np.quantile(off, [0.025, 0.975])
    return float(low), float(high)
