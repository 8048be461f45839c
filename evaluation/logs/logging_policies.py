"""Several logging policies in one log: which propensity a weight divides by.

Per-policy weights divide by the propensity of the policy that logged the impression: always known, always unbiased.
Balanced weights divide by the mixture of all policies that logged this choice (the balance heuristic of Veach and Guibas,
1995; Agarwal et al., 2017, Effective evaluation using logged bandit feedback from multiple loggers), which
lowers the weights of artworks that one policy rarely showed and another often did. They need each policy's propensities on the
others' impressions. Nobody logs those; they are known where no policy is personalised, that is, where each policy gives
one list of candidates the same propensities every time. Then, and only then, weights are balanced. They also assume
that impressions of such a list were assigned to policies at random: not by member, nor by day.

Legend: N impressions, K candidates (padded), G lists of candidates x policies.
"""

import numpy as np
from numpy.typing import NDArray

from foundation.choice import equal_within_rounding


def mixture_propensities(
    propensity_NK: NDArray, artwork_NK: NDArray, logging_policy_N: NDArray[np.integer]
) -> NDArray | None:
    """Propensities of the mixture, (N, K), or None where weights must be per policy.

    Within one list of candidates, the mixture is sum_l n_l / n propensity_l, over the policies that logged it. None where
    one policy logged all, where whole propensities were not logged (NaN), or where a policy is personalised.
    """
    if len(logging_policy_N) == 0 or (logging_policy_N == logging_policy_N[0]).all() or np.isnan(propensity_NK).any():
        return None
    list_N = _lists(artwork_NK)
    _, index_N, list_of_G = _pairs(list_N, logging_policy_N)
    order = np.argsort(index_N, kind="stable")
    starts = np.flatnonzero(np.diff(index_N[order], prepend=-1))
    ordered_NK = propensity_NK[order]
    min_GK, max_GK = (f.reduceat(ordered_NK, starts, axis=0) for f in (np.minimum, np.maximum))
    if not equal_within_rounding(min_GK, max_GK).all():
        return None
    count_G = np.diff(np.append(starts, len(order)))
    lists = int(list_N.max()) + 1
    mixed_LK = np.zeros((lists, propensity_NK.shape[1]))
    np.add.at(mixed_LK, list_of_G, min_GK * count_G[:, None])
    return (mixed_LK / np.bincount(list_of_G, count_G, lists)[:, None]).astype(np.float32)[list_N]


def _lists(artwork_NK: NDArray) -> NDArray[np.int64]:
    """Lists of candidates as integers, by a 64-bit hash of each."""
    factor_K = np.random.default_rng(0).integers(1, 2**63, artwork_NK.shape[1], np.uint64) | np.uint64(1)
    hash_N = np.zeros(len(artwork_NK), np.uint64)
    for k, factor in enumerate(factor_K):
        hash_N += (artwork_NK[:, k].astype(np.int64) + 2).astype(np.uint64) * factor
    return np.unique(hash_N, return_inverse=True)[1].reshape(-1)


def _pairs(list_N: NDArray, logging_policy_N: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Distinct pairs of list and policy as integers, each impression's index among them, (N,), and each pair's list, (G,)."""
    policy_count = int(logging_policy_N.max()) + 1
    distinct, index_N = np.unique(list_N * policy_count + logging_policy_N, return_inverse=True)
    return distinct, index_N.reshape(-1), distinct // policy_count
