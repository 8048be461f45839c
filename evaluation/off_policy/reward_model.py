"""A cross-fitted reward model of cheap features: the expected reward of each candidate, for `dm`, `dr` and the like.

In: a log's shown artworks and rewards. Out: for any of its rows, every candidate's expected reward, by a model fitted
without impressions of the row's member.

The model is a ridge regression of the reward on the rate of the title, what the artwork's rate adds to it (both shrunk by
empirical Bayes: Efron and Morris, 1973), and the scores' own click probability, as it is and minus the candidates'
mean. Members are assigned to three folds. A fold's rates are computed from the two others; its regression is fitted on each
of those two with rates of the other, so that no row's own reward enters its features.

Legend: N impressions, K candidates (padded), A artworks, F features.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.lists import Table, blocks

FOLDS = 3
FEATURES = 5
RIDGE = 1e-4
"""Ridge on the diagonal of the mean normal equations, relative to each feature's mean square: for constant columns."""
MAX_PRIOR_STRENGTH = 1000.0
"""Impressions that a prior is worth at most: where rates show no spread, differences stay small but not zero."""


def assign_folds(members: int, seed: int) -> NDArray[np.int8]:
    """The fold of each member, (M,), in random order, folds of equal size."""
    return np.random.default_rng(seed).permutation(np.arange(members) % FOLDS).astype(np.int8)


def shrunk_rates(count: NDArray, earned: NDArray, prior: NDArray, prior_count: NDArray | float) -> NDArray[np.float64]:
    """Rates shrunk to their priors as far as their spread is sampling noise, (A,); the prior itself without impressions.

    `count`: impressions, `earned`: their summed reward, (A,) both; `prior_count`: the impressions that the prior was computed
    from. The strength is the moment estimate noise / (spread - noise), at most `MAX_PRIOR_STRENGTH`.
    """
    seen = count > 0
    rate = np.divide(earned, count, out=np.asarray(prior, np.float64).copy(), where=seen)
    if not seen.any():
        return rate
    noise = prior * (1 - prior)
    sampling_variance = noise * (1 / np.maximum(count, 1e-12) - 1 / np.maximum(prior_count, 1.0))
    spread = np.average((rate - prior)[seen] ** 2 - sampling_variance[seen], weights=count[seen])
    strength = np.minimum(noise / max(float(spread), 1e-12), MAX_PRIOR_STRENGTH)
    return (count * rate + strength * prior) / np.maximum(count + strength, 1e-12)


@dataclass(frozen=True, kw_only=True)
class LoggedChoices:
    """Input of a reward model; rows are impressions."""

    artwork_NK: Table
    """Candidates as integers, -1 in padding."""
    score_NK: Table
    """A score of each candidate, such as its predicted click probability; 0 in padding."""
    shown_N: NDArray[np.integer]
    """Index of the shown artwork among the candidates."""
    title_N: NDArray[np.integer]
    fold_N: NDArray[np.integer]
    """Fold of the impression's member."""


@dataclass(frozen=True)
class RewardModel:
    """A fitted model by fold: rates of titles and artworks, weights of the features."""

    title_rate_fA: NDArray[np.float64]
    """Shrunk rate of each artwork's title, from the other folds."""
    artwork_effect_fA: NDArray[np.float64]
    """The artwork's shrunk rate minus that of its title."""
    weight_fF: NDArray[np.float64]
    largest: float = 1.0
    """The largest reward, in units of which rates and effects are; at least 1."""

    def predict(self, log: LoggedChoices, rows: slice) -> NDArray[np.float64]:
        """Expected reward of every candidate, (n, K), in 0 .. `largest`; 0 in padding."""
        artwork_NK, fold_N1 = log.artwork_NK[rows], log.fold_N[rows, None]
        mask_NK = artwork_NK >= 0
        features_FNK = _features(
            self.title_rate_fA[fold_N1, artwork_NK],
            self.artwork_effect_fA[fold_N1, artwork_NK],
            log.score_NK[rows],
            mask_NK,
        )
        weight_FN = self.weight_fF[log.fold_N[rows]].T
        predicted_NK = sum(weight_FN[f][:, None] * features_FNK[f] for f in range(FEATURES))
        return np.where(mask_NK, self.largest * np.clip(predicted_NK, 0.0, 1.0), 0.0)


def _features(
    level: NDArray, added: NDArray, score_NK: NDArray, mask_NK: NDArray
) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray]:
    """The model's features, arrays (N, K): rate of the title, difference of the artwork, score, score minus the mean score."""
    mean_N1 = score_NK.sum(1, keepdims=True) / np.maximum(mask_NK.sum(1, keepdims=True), 1)
    return np.ones_like(level), level, added, score_NK, score_NK - mean_N1


def fit_reward_model(log: LoggedChoices, reward_N: NDArray[np.floating], artworks: int) -> RewardModel:
    """Fit on the shown artworks' rewards (N,); `artworks` is A. A fold without rows adds nothing to the others' rates."""
    largest = max(1.0, float(reward_N.max(initial=0.0)))
    if largest > 1:
        reward_N = reward_N / largest
    rows = np.arange(len(reward_N))
    seen_N = log.artwork_NK[rows, log.shown_N].astype(np.int64)
    title_A = np.zeros(artworks, np.int64)
    for part in blocks(log.artwork_NK):
        part_NK = log.artwork_NK[part]
        mask_NK = part_NK >= 0
        title_A[part_NK[mask_NK]] = np.broadcast_to(log.title_N[part, None], part_NK.shape)[mask_NK]
    index_N = log.fold_N.astype(np.int64) * artworks + seen_N
    size = FOLDS * artworks
    count_fA = np.bincount(index_N, minlength=size).reshape(FOLDS, artworks).astype(float)
    earned_fA = np.bincount(index_N, reward_N, size).reshape(FOLDS, artworks)

    centred_N = np.empty(len(rows))
    score_N = np.empty(len(rows))
    for part in blocks(log.artwork_NK):
        score_NK, mask_NK = log.score_NK[part], log.artwork_NK[part] >= 0
        score_N[part] = score_NK[np.arange(len(score_NK)), log.shown_N[part]]
        centred_N[part] = score_N[part] - score_NK.sum(1) / np.maximum(mask_NK.sum(1), 1)

    normal: dict[tuple[int, int], tuple[NDArray, NDArray]] = {}
    for other in range(FOLDS):
        title_rate_A, artwork_effect_A = _rates(count_fA[other], earned_fA[other], title_A)
        for own in range(FOLDS):
            if own != other:
                at = log.fold_N == own
                columns = (
                    np.ones(at.sum()),
                    title_rate_A[seen_N[at]],
                    artwork_effect_A[seen_N[at]],
                    score_N[at],
                    centred_N[at],
                )
                features_FN = np.stack(columns)
                normal[own, other] = features_FN @ features_FN.T, features_FN @ reward_N[at]
    title_rates, artwork_effects, weights = [], [], []
    for fold in range(FOLDS):
        first_fold, second_fold = (f for f in range(FOLDS) if f != fold)
        title_rate_A, artwork_effect_A = _rates(
            count_fA[[first_fold, second_fold]].sum(0), earned_fA[[first_fold, second_fold]].sum(0), title_A
        )
        square = normal[first_fold, second_fold][0] + normal[second_fold, first_fold][0]
        moment = normal[first_fold, second_fold][1] + normal[second_fold, first_fold][1]
        scale = np.diag(square).copy()
        scale[scale == 0] = 1.0
        weights.append(np.linalg.solve(square + np.diag(RIDGE * scale), moment))
        title_rates.append(title_rate_A)
        artwork_effects.append(artwork_effect_A)
    return RewardModel(np.stack(title_rates), np.stack(artwork_effects), np.stack(weights), largest)


def _rates(count_A: NDArray, earned_A: NDArray, title_A: NDArray) -> tuple[NDArray, NDArray]:
    """Shrunk rate of each artwork's title, and the artwork's shrunk rate minus it, (A,) both."""
    count_T, earned_T = np.bincount(title_A, count_A), np.bincount(title_A, earned_A)
    overall = earned_T.sum() / max(count_T.sum(), 1.0)
    title_rate_A = shrunk_rates(count_T, earned_T, np.full(len(count_T), overall), count_T.sum())[title_A]
    return title_rate_A, shrunk_rates(count_A, earned_A, title_rate_A, count_T[title_A]) - title_rate_A
