"""A reward model of cheap features, cross-fitted by member: what `dm`, `dr` and their kin expect of each candidate.

In: a log's shown artworks and rewards. Out: for any of its rows, every candidate's expected reward, by a model that has
seen no impression of the row's member; and, likewise, clusters of artworks that earn alike.

The model is a ridge regression of the reward on the rate of the title, what the artwork's rate adds to it (both shrunk by
empirical Bayes: Efron and Morris, 1973), and the scores' own click probability, as it is and against the candidates'
mean. Members are dealt into three folds. A fold's rates come of the two others; the regression for it is fitted in each
of those two on rates of the other, so that no row meets its own reward on the way.

Legend: N impressions, K candidates (padded), A artworks, F features.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FOLDS = 3
CLUSTERS = 3
FEATURES = 5
RIDGE = 1e-4
"""Added to the diagonal of the mean normal equations, in units of each feature's mean square: for columns all alike."""
STRONGEST = 1000.0
"""Impressions that a prior is worth at most: where no spread is seen, differences stay small, yet are there to be weighed."""
AT_ONCE = 200_000
"""Impressions held at a time where every candidate counts."""


def deal_folds(members: int, seed: int) -> NDArray[np.int8]:
    """A fold of each member, (M,), all folds alike large."""
    return np.random.default_rng(seed).permutation(np.arange(members) % FOLDS).astype(np.int8)


def shrunk_rates(count: NDArray, earned: NDArray, prior: NDArray, prior_count: NDArray | float) -> NDArray[np.float64]:
    """Rates pulled to their priors as far as their spread is sampling noise; the prior itself where nothing was seen.

    `count` impressions earned `earned`, (A,), and are among the `prior_count` that the prior was computed of. The strength
    is the moment estimate noise / (spread - noise), at most `STRONGEST`.
    """
    seen = count > 0
    rate = np.divide(earned, count, out=np.asarray(prior, np.float64).copy(), where=seen)
    if not seen.any():
        return rate
    noise = prior * (1 - prior)
    by_chance = noise * (1 / np.maximum(count, 1e-12) - 1 / np.maximum(prior_count, 1.0))
    spread = np.average((rate - prior)[seen] ** 2 - by_chance[seen], weights=count[seen])
    strength = np.minimum(noise / max(float(spread), 1e-12), STRONGEST)
    return (count * rate + strength * prior) / np.maximum(count + strength, 1e-12)


@dataclass(frozen=True, kw_only=True)
class LoggedChoices:
    """What a reward model is fitted on; rows are impressions."""

    artwork_NK: NDArray[np.integer]
    """Candidates as integers, -1 in padding."""
    score_NK: NDArray[np.floating]
    """A score of each candidate, such as its predicted click probability; 0 in padding."""
    shown_N: NDArray[np.integer]
    """Place of the shown artwork."""
    title_N: NDArray[np.integer]
    fold_N: NDArray[np.integer]
    """Fold of the impression's member."""


@dataclass(frozen=True)
class RewardModel:
    """By fold: rates of titles' artworks, weights of the features, clusters of artworks."""

    level_fA: NDArray[np.float64]
    """Shrunk rate of each artwork's title, by the other folds."""
    added_fA: NDArray[np.float64]
    """What the artwork's shrunk rate adds to it."""
    weight_fF: NDArray[np.float64]
    cluster_fA: NDArray[np.int8]
    """0 for the third of the artworks that add least .. 2 for the third that add most."""

    def predict(self, log: LoggedChoices, rows: slice) -> NDArray[np.float64]:
        """Expected reward of every candidate, (n, K), in 0 .. 1; 0 in padding."""
        artwork_NK, fold_N1 = log.artwork_NK[rows], log.fold_N[rows, None]
        there_NK = artwork_NK >= 0
        features_FNK = _features(
            self.level_fA[fold_N1, artwork_NK], self.added_fA[fold_N1, artwork_NK], log.score_NK[rows], there_NK
        )
        weight_FN = self.weight_fF[log.fold_N[rows]].T
        predicted_NK = sum(weight_FN[f][:, None] * features_FNK[f] for f in range(FEATURES))
        return np.where(there_NK, np.clip(predicted_NK, 0.0, 1.0), 0.0)

    def cluster(self, log: LoggedChoices, rows: slice) -> NDArray[np.int8]:
        """Cluster of every candidate, (n, K); -1 in padding."""
        artwork_NK = log.artwork_NK[rows]
        return np.where(artwork_NK >= 0, self.cluster_fA[log.fold_N[rows, None], artwork_NK], -1).astype(np.int8)


def _features(
    level: NDArray, added: NDArray, score_NK: NDArray, there_NK: NDArray
) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray]:
    """One array (N, K) each."""
    mean_N1 = score_NK.sum(1, keepdims=True) / np.maximum(there_NK.sum(1, keepdims=True), 1)
    return np.ones_like(level), level, added, score_NK, score_NK - mean_N1


def fit_reward_model(log: LoggedChoices, reward_N: NDArray[np.floating], artworks: int) -> RewardModel:
    """Fit on what was shown; `artworks` is A. A fold without rows leaves the others' rates alone."""
    rows = np.arange(len(reward_N))
    seen_N = log.artwork_NK[rows, log.shown_N].astype(np.int64)
    title_A = np.zeros(artworks, np.int64)
    for first in range(0, len(rows), AT_ONCE):
        part_NK = log.artwork_NK[first : first + AT_ONCE]
        there_NK = part_NK >= 0
        title_A[part_NK[there_NK]] = np.broadcast_to(log.title_N[first : first + AT_ONCE, None], part_NK.shape)[
            there_NK
        ]
    place_N = log.fold_N.astype(np.int64) * artworks + seen_N
    size = FOLDS * artworks
    count_fA = np.bincount(place_N, minlength=size).reshape(FOLDS, artworks).astype(float)
    earned_fA = np.bincount(place_N, reward_N, size).reshape(FOLDS, artworks)

    centred_N = np.empty(len(rows))
    score_N = np.empty(len(rows))
    for first in range(0, len(rows), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        score_NK, there_NK = log.score_NK[part], log.artwork_NK[part] >= 0
        score_N[part] = score_NK[np.arange(len(score_NK)), log.shown_N[part]]
        centred_N[part] = score_N[part] - score_NK.sum(1) / np.maximum(there_NK.sum(1), 1)

    normal: dict[tuple[int, int], tuple[NDArray, NDArray]] = {}
    for other in range(FOLDS):
        level_A, added_A = _rates(count_fA[other], earned_fA[other], title_A)
        for own in range(FOLDS):
            if own != other:
                at = log.fold_N == own
                columns = (np.ones(at.sum()), level_A[seen_N[at]], added_A[seen_N[at]], score_N[at], centred_N[at])
                features_FN = np.stack(columns)
                normal[own, other] = features_FN @ features_FN.T, features_FN @ reward_N[at]
    levels, addeds, weights, clusters = [], [], [], []
    for fold in range(FOLDS):
        one, two = (f for f in range(FOLDS) if f != fold)
        level_A, added_A = _rates(count_fA[[one, two]].sum(0), earned_fA[[one, two]].sum(0), title_A)
        square = normal[one, two][0] + normal[two, one][0]
        moment = normal[one, two][1] + normal[two, one][1]
        scale = np.diag(square).copy()
        scale[scale == 0] = 1.0
        weights.append(np.linalg.solve(square + np.diag(RIDGE * scale), moment))
        levels.append(level_A)
        addeds.append(added_A)
        clusters.append(np.digitize(added_A, np.quantile(added_A, [1 / 3, 2 / 3])))
    return RewardModel(np.stack(levels), np.stack(addeds), np.stack(weights), np.stack(clusters).astype(np.int8))


def _rates(count_A: NDArray, earned_A: NDArray, title_A: NDArray) -> tuple[NDArray, NDArray]:
    """Shrunk rate of each artwork's title, and what the artwork's own adds to it, (A,) both."""
    count_T, earned_T = np.bincount(title_A, count_A), np.bincount(title_A, earned_A)
    overall = earned_T.sum() / max(count_T.sum(), 1.0)
    level_A = shrunk_rates(count_T, earned_T, np.full(len(count_T), overall), count_T.sum())[title_A]
    return level_A, shrunk_rates(count_A, earned_A, level_A, count_T[title_A]) - level_A
