"""Several logging policies in one log: which propensity a weight divides by.

Per-policy weights divide by the propensity of the policy that logged the impression: always known, always unbiased.
Balanced weights divide by the mixture of all policies that logged this choice (the balance heuristic of Veach and Guibas,
1995; Agarwal et al., 2017, Effective evaluation using logged bandit feedback from multiple loggers), which
lowers the weights of artworks that one policy rarely showed and another often did. They need each policy's propensities on the
others' impressions. Nobody logs those; they are known where no policy is personalised, that is, where each policy gives
one list of candidates the same propensities every time. Then, and only then, weights are balanced. They also assume
that impressions of such a list were assigned to policies at random: not by member, nor by day.

Legend: N impressions, K candidates (padded), C candidates of all impressions, G lists of candidates x policies, E their
candidates, L lists of candidates, J their candidates.
"""

import numpy as np
from numpy.typing import NDArray

from foundation.choice import equal_within_rounding
from foundation.lists import Lists


def mixture_propensities(
    propensity_NK: Lists, artwork_NK: Lists, logging_policy_N: NDArray[np.integer]
) -> Lists | None:
    """Propensities of the mixture, (N, K), or None where weights must be per policy.

    Within one list of candidates, the mixture is sum_l n_l / n propensity_l, over the policies that logged it. None where
    one policy logged all, where whole propensities were not logged (NaN), or where a policy is personalised.
    """
    if (
        len(logging_policy_N) == 0
        or (logging_policy_N == logging_policy_N[0]).all()
        or np.isnan(propensity_NK.values_C).any()
    ):
        return None
    list_N = _lists(artwork_NK)
    _, index_N, list_of_G = _pairs(list_N, logging_policy_N)
    width_N = artwork_NK.width_N
    width_L = np.zeros(int(list_N.max()) + 1, np.int64)
    width_L[list_N] = width_N
    start_G, start_L = (np.cumsum(width) - width for width in (width_L[list_of_G], width_L))
    item_C = np.repeat(start_G[index_N], width_N) + artwork_NK.index_C
    min_E, max_E = np.full((2, int(width_L[list_of_G].sum())), np.nan)
    for bound_E, function in ((min_E, np.fmin), (max_E, np.fmax)):
        function.at(bound_E, item_C, propensity_NK.values_C.astype(np.float64))
    if not equal_within_rounding(min_E, max_E).all():
        return None
    count_G = np.bincount(index_N, minlength=len(list_of_G))
    width_G = width_L[list_of_G]
    item_of_E = np.repeat(start_L[list_of_G] - start_G, width_G) + np.arange(len(min_E))
    mixed_J = np.zeros(int(width_L.sum()))
    np.add.at(mixed_J, item_of_E, min_E * np.repeat(count_G, width_G))
    mixed_J /= np.repeat(np.bincount(list_of_G, count_G, len(width_L)), width_L)
    return artwork_NK.like(mixed_J.astype(np.float32)[np.repeat(start_L[list_N], width_N) + artwork_NK.index_C])


def _lists(artwork_NK: Lists) -> NDArray[np.int64]:
    """Lists of candidates as integers, by a 64-bit hash of each."""
    longest = int(artwork_NK.width_N.max(initial=0))
    factor_K = np.random.default_rng(0).integers(1, 2**63, longest + 1, np.uint64) | np.uint64(1)
    product_C = (artwork_NK.values_C.astype(np.int64) + 2).astype(np.uint64) * factor_K[artwork_NK.index_C]
    hash_N = artwork_NK.like(product_C).reduce(np.add) + artwork_NK.width_N.astype(np.uint64) * factor_K[-1]
    return np.unique(hash_N, return_inverse=True)[1].reshape(-1)


def _pairs(list_N: NDArray, logging_policy_N: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Distinct pairs of list and policy as integers, each impression's index among them, (N,), and each pair's list, (G,)."""
    policy_count = int(logging_policy_N.max()) + 1
    distinct, index_N = np.unique(list_N * policy_count + logging_policy_N, return_inverse=True)
    return distinct, index_N.reshape(-1), distinct // policy_count
