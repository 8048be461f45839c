"""Quantiles of Student's distribution at any level and with any degrees of freedom, fractions included."""

from math import atan, exp, lgamma, pi, sqrt
from statistics import NormalDist

import numpy as np

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
