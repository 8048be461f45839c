"""How an estimator's one parameter (clip, tau, shrinkage) is chosen on the data: by estimated squared error.

Squared error = bias^2 + variance, by member; the bias is taken at its upper bound, the difference from the unbiased estimate
of the same family (no clip, no switch, no shrinkage) and 1.645 standard errors of that difference (Su, Dimakopoulou,
Krishnamurthy and Dudik, 2020, Doubly robust off-policy evaluation with shrinkage). At its mean, not its bound,
the rule took to the reward model, whose own noise is in no standard error. SLOPE (Su, Srinath and Krishnamurthy, 2020) was
tried and left: it compares estimates by the widths of their intervals, which on one log share most of their noise, members'
tastes; it took clips that were 24 % off (docs/experiments.md).

Legend: L choices.
"""

from collections.abc import Sequence

import numpy as np

RULE = "least estimated squared error, bias at its 95 % bound"
GRID = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, float("inf"))
"""Weights at which to clip (clipped_ips) or to switch (switch_dr); squared, strengths of shrinkage (dr_os)."""


def least_error(biases_L: Sequence[float], errors_L: Sequence[float]) -> int:
    """Place of the least bias^2 + error^2; of equals the last, which interferes least, and where none is known (one member)."""
    squared = np.asarray(biases_L, np.float64) ** 2 + np.asarray(errors_L, np.float64) ** 2
    squared = np.where(np.isfinite(squared), squared, np.inf)
    return int(np.flatnonzero(squared <= squared.min())[-1])
