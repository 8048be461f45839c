"""How an estimator's one parameter (clip, tau, shrinkage) is chosen on the data: SLOPE.

SLOPE (Su, Srinath and Krishnamurthy, 2020, Adaptive estimator selection for off-policy evaluation): order the choices by
the width of their intervals, widest (least biased) first, and go on to narrower ones as long as each one's interval meets
all before it; the last that does is taken. Its error is within a constant of the best choice's, without knowing biases.
Widths are by member, 1.96 cluster-robust standard errors.

Legend: L choices.
"""

from collections.abc import Sequence

import numpy as np

GRID = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, float("inf"))
"""Weights at which to clip (clipped_ips) or to switch (switch_dr); squared, strengths of shrinkage (dr_os)."""
MEETS = np.sqrt(6) - 1
"""The constant of the paper's rule for a monotone family: |v_i - v_j| <= width_i + (sqrt 6 - 1) width_j."""


def slope(values_L: Sequence[float], widths_L: Sequence[float]) -> int:
    """Place of the chosen one; among choices of one width the last. Choices whose width is not known are passed over.

    ValueError where no width is known.
    """
    value, width = np.asarray(values_L, np.float64), np.asarray(widths_L, np.float64)
    known = np.flatnonzero(np.isfinite(width) & np.isfinite(value))
    if not len(known):
        raise ValueError("widths: none is known.")
    # of choices that are alike, the least interfering (last in the grid) comes first and is kept
    order = known[np.lexsort((-known, -width[known]))]
    chosen = [int(order[0])]
    for place in order[1:]:
        before = np.array(chosen)
        if (np.abs(value[before] - value[place]) > width[place] + MEETS * width[before]).any():
            break
        if width[place] < width[chosen[-1]]:
            chosen.append(int(place))
    return chosen[-1]
