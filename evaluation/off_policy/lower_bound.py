"""A pessimistic lower bound of a policy's value, by logarithmic smoothing of members' totals: "guaranteed at least".

In: members' totals of weighted rewards and their numbers of impressions. Out: a value that the true one is below in at most a
given share of logs, whatever the weights' distribution: no variance is estimated and no normal limit used.

Legend: M members, J strengths of smoothing.
"""

import numpy as np
from numpy.typing import NDArray

STRENGTHS_J = np.array([0.8, 0.2, 0.05, 0.0125])
"""Strengths of smoothing, as shares of the largest one that the member with most impressions allows; all below 1. None of them
looks at rewards, and the bound uses their mixture, so that none has to be chosen on the data."""
BISECTIONS = 40


def guaranteed_value(total_M: NDArray[np.floating], count_M: NDArray[np.integer], risk: float) -> float:
    """The lower bound of the value per impression that holds with probability at least 1 - `risk`; 0 where nothing is guaranteed.

    `total_M`: sums of weight x reward within members, at least 0; `count_M`: members' impressions, at least 1. ValueError
    for others, and for a risk outside 0 .. 1.

    With theta the value on these impressions and Y_m = total_m - theta count_m, sum_m E Y_m = 0. Members are independent, so
    that for every strength s, E prod_m (1 + s Y_m) <= exp(s sum_m E Y_m) = 1, where s theta max count < 1 keeps the factors
    positive. By Markov's inequality, the mean of the products over the strengths is below 1 / risk with probability at least 1 -
    risk: the bound is the least theta of which that is true. log(1 + s Y) is the logarithmic smoothing of Sakhi, Aouali,
    Alquier and Chopin (2024), Logarithmic smoothing for pessimistic off-policy evaluation, selection and learning, which needs
    rewards of one sign and grows with their second moment; centred as here (Waudby-Smith and Ramdas, 2024, Estimating means
    of bounded random variables by betting) it grows with members' variance alone.

    Propensities must be right. Probability that the policy has on artworks that the log never shows counts as earning nothing.
    """
    if not 0 < risk < 1:
        raise ValueError(f"risk={risk}: must lie in 0 .. 1.")
    if len(total_M) != len(count_M) or (np.asarray(total_M) < 0).any() or (np.asarray(count_M) < 1).any():
        raise ValueError("members' totals must be at least 0, and their impressions at least 1.")
    earning_M = np.asarray(total_M) > 0
    if not earning_M.any():
        return 0.0
    most = float(np.max(count_M))
    total_E, count_E = np.asarray(total_M, np.float64)[earning_M], np.asarray(count_M, np.float64)[earning_M]
    # members without a reward differ in their number of impressions alone
    idle_U, members_U = np.unique(np.asarray(count_M)[~earning_M], return_counts=True)
    idle_J = np.array([(members_U * np.log1p(-strength * idle_U / most)).sum() for strength in STRENGTHS_J])

    def evidence(theta: float) -> float:
        """Logarithm of the mean product; it falls as theta grows."""
        excess_E = (total_E / theta - count_E) / most
        product_J = idle_J + np.array([np.log1p(strength * excess_E).sum() for strength in STRENGTHS_J])
        largest = product_J.max()
        return float(largest + np.log(np.exp(product_J - largest).mean()))

    low, high = 0.0, float(total_E.sum() / np.sum(count_M))  # there, every product is at most 1
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if evidence(middle) > np.log(1 / risk) else (low, middle)
    return low
