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
from foundation.lists import Lists


def uniform(log: ScoredLog) -> Lists:
    """Equal probability for every candidate, (N, K)."""
    return log.artwork_NK.like(np.repeat(1 / log.width, log.width))


def greedy(score_NK: Lists) -> Lists:
    """Probability 1 for the candidate of highest score, the first of equals, (N, K)."""
    return score_NK.one_hot(score_NK.best())


def best_fixed(log: ScoredLog, past: Outcomes) -> Lists:
    """Probability 1 for `best_fixed_choice`, (N, K)."""
    return log.artwork_NK.one_hot(best_fixed_choice(log, past))


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
    rate_C = known[log.artwork_NK.values_C]
    seen_C = ~np.isnan(rate_C)
    seen_N = log.artwork_NK.like(seen_C.astype(np.int64)).reduce(np.add)
    mean_N = log.artwork_NK.like(np.where(seen_C, rate_C, 0.0)).reduce(np.add) / np.maximum(seen_N, 1)
    return log.artwork_NK.like(np.where(seen_C, rate_C, np.repeat(mean_N, log.width))).best()


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
