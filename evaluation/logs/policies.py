"""The policies every report compares: uniform, logged, best artwork per title, the scored one, the best possible.

In: a scored log. Out: each policy's probabilities over the candidates, of shape (N, K), rows summing to 1.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from evaluation.logs.logged_impressions import Outcomes
from evaluation.logs.scored_log import ScoredLog
from foundation.choice import greedy_NK


def uniform(log: ScoredLog) -> NDArray:
    """Equal probability for every candidate, (N, K)."""
    return log.mask_NK / log.mask_NK.sum(1, keepdims=True)


def greedy(score_NK: NDArray, log: ScoredLog) -> NDArray:
    """Probability 1 for the candidate of highest score, (N, K), over a log's candidates."""
    return greedy_NK(score_NK, log.mask_NK)


def _highest(score_NK: NDArray, log: ScoredLog) -> NDArray[np.integer]:
    """Index of the candidate of highest score, (N,), the first of equals."""
    return np.where(log.mask_NK, score_NK, -np.inf).argmax(1)


def _certain(chosen_N: NDArray[np.integer], log: ScoredLog) -> NDArray:
    policy_NK = np.zeros(log.mask_NK.shape)
    policy_NK[np.arange(len(chosen_N)), chosen_N] = 1.0
    return policy_NK


def best_fixed(log: ScoredLog, past: Outcomes) -> NDArray:
    """Probability 1 for `best_fixed_choice`, (N, K)."""
    return _certain(best_fixed_choice(log, past), log)


def best_fixed_choice(log: ScoredLog, past: Outcomes) -> NDArray[np.integer]:
    """Index among the candidates of each title's best artwork for everybody, (N,), by click rates before the period.

    Rates are self-normalised by inverse propensity, so that an older policy's targeting does not count as quality, and shrunk
    to their title's rate by empirical Bayes (Efron and Morris, 1973), against winners with few impressions. The amount of
    shrinkage follows from the spread between artworks beyond sampling noise, so that no validation is needed and nothing of
    the period is used. An artwork that was never shown has the mean rate of its title's others.
    """
    rate_A = _shrunk_rates(past)
    index = pc.fill_null(pc.index_in(log.artworks, value_set=past.artworks), -1).to_numpy(zero_copy_only=False)
    known = np.where(index >= 0, rate_A[index], np.nan)
    rate_NK = np.where(log.mask_NK, known[log.artwork_NK], np.nan)
    mean_N = np.nanmean(np.where(np.isnan(rate_NK).all(1, keepdims=True), 0.0, rate_NK), axis=1)
    return _highest(np.where(np.isnan(rate_NK), mean_N[:, None], rate_NK), log)


def _shrunk_rates(past: Outcomes) -> NDArray:
    """Click rate of each past artwork, shrunk to its title's; NaN for a candidate never shown."""
    count = len(past.artworks)
    weight = 1 / past.propensity
    total, clicks = (np.bincount(past.artwork, v, count) for v in (weight, weight * past.clicked))
    squares = np.bincount(past.artwork, weight**2, count)
    seen = total > 0
    title_of = np.zeros(count, np.int64)
    title_of[past.artwork] = past.title
    title_total, title_clicks = (np.bincount(title_of, v) for v in (total, clicks))
    prior = (title_clicks / np.maximum(title_total, 1e-12))[title_of]
    rate = clicks / np.maximum(total, 1e-12)
    size = total**2 / np.maximum(squares, 1e-12)
    noise = prior * (1 - prior)
    # between-artwork variance: the spread of rates beyond their sampling noise
    between = np.average((rate - prior)[seen] ** 2 - noise[seen] / size[seen], weights=size[seen])
    strength = noise / max(between, 1e-9)
    return np.where(seen, (size * rate + strength * prior) / (size + strength), np.nan)
