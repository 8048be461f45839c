"""Quantiles of Student's distribution, and of the largest of several correlated statistics.

Legend: S statistics, M members or sums of them, D draws.
"""

from math import atan, exp, lgamma, pi, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

LARGEST_DRAWS = 50_000
"""Draws of the largest statistic: its 95 % point is known to about 1 %."""
NODES = 401
"""Points of Simpson's rule; an odd number."""
NORMAL_FROM = 1e5
"""Degrees of freedom from which the normal distribution is used."""


def student_quantile(upper: float, freedom: float) -> float:
    """The point that a Student variable exceeds with probability `upper`, to about 1e-6 of itself; NaN below one degree of freedom.

    `upper`: in 0 .. .5, ends left out.
    """
    if not freedom >= 1:
        return float("nan")
    if freedom >= NORMAL_FROM:
        return -NormalDist().inv_cdf(upper)
    low, high = 0.0, pi / 2
    for _ in range(48):  # the angle atan(t / sqrt(freedom)) has a bounded range
        angle = (low + high) / 2
        low, high = (angle, high) if _mass(angle, freedom) < 0.5 - upper else (low, angle)
    return sqrt(freedom) * float(np.tan((low + high) / 2))


def exceedance(point: float, freedom: float) -> float:
    """The probability that a Student variable exceeds a point of at least 0."""
    return 0.5 - _mass(atan(point / sqrt(freedom)), freedom)


def _mass(angle: float, freedom: float) -> float:
    """Probability of 0 .. t: the integral of the density's c cos(angle)^(freedom - 1), t = sqrt(freedom) tan(angle)."""
    nodes = np.linspace(0.0, angle, NODES)
    density = np.cos(nodes) ** (freedom - 1)
    simpson = density[0] + density[-1] + 4 * density[1:-1:2].sum() + 2 * density[2:-1:2].sum()
    scale = exp(lgamma((freedom + 1) / 2) - lgamma(freedom / 2)) / sqrt(pi)
    return scale * float(simpson) * angle / (NODES - 1) / 3


def largest_quantile(influence_SM: NDArray[np.floating], seed: int = 0, level: float = 0.95) -> float:
    """The `level` quantile of the largest |t| of jointly normal statistics, in standard errors; that of one where there is one.

    `influence_SM`: influences of the members, or sums of influences over groups of them, which are independent as well; a
    statistic that is not finite or has no spread does not count. Draws have the statistics' correlation over members (Hothorn,
    Bretz and Westfall, 2008, Simultaneous inference in general parametric models).
    """
    centred_SM = influence_SM - influence_SM.mean(1, keepdims=True)
    length_S = np.linalg.norm(centred_SM, axis=1)
    kept_S = np.isfinite(length_S) & (length_S > 0)
    alone = -NormalDist().inv_cdf((1 - level) / 2)
    if kept_S.sum() < 2:
        return alone
    unit_SM = centred_SM[kept_S] / length_S[kept_S, None]
    variance_S, direction_SS = np.linalg.eigh(unit_SM @ unit_SM.T)
    root_SS = direction_SS * np.sqrt(np.maximum(variance_S, 0.0))
    normal_DS = np.random.default_rng(seed).standard_normal((LARGEST_DRAWS, len(variance_S)))
    return max(alone, float(np.quantile(np.abs(normal_DS @ root_SS.T).max(1), level)))
