"""Scores of honest models and of models that have seen the clicks they are valued on, on simulated logs.

Every model is trained on one log and scores it (it has seen it) or another log of the same members and artworks (it is honest).
`trees`: boosted trees over members' features, title and artwork, grown until they fit single impressions. `memory of an artwork`:
what this member clicked on, and did not, moves the artwork's score. `memory of a title`: the scores of all of the title's artworks.
`linear`: a ridge regression, which has too few weights to remember.

Legend: N impressions, K candidates, M members, F features, L leaves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.verdict_logs import WIDTH, draw_index, softmax
from evaluation.logs.scored_log import ScoredLog
from evaluation.logs.seen_scores import DrawTest, draw_test
from foundation.lists import Lists

MODELS = ("trees", "memory of an artwork", "memory of a title", "linear")
HARMLESS = ("linear",)
"""Models whose weights are so few that training on the log moves no value: doubt is not wanted."""
MEMBERS, TITLES, STYLES = 1000, 40, 4
TREES, DEPTH, RATE, BINS = 300, 6, 0.1, 32


@dataclass(frozen=True, kw_only=True)
class Impressions:
    """A log with its truth."""

    member_N: NDArray[np.int64]
    title_N: NDArray[np.int64]
    truth_NK: NDArray[np.float64]
    propensity_NK: NDArray[np.float64]
    shown_N: NDArray[np.int64]
    clicked_N: NDArray[np.float64]
    traits_MF: NDArray[np.float64]
    """What a model knows of the members."""

    def features(self, shown_N: NDArray[np.integer]) -> NDArray[np.float64]:
        """The features of these candidates, (N, F): the member's traits, title and artwork."""
        codes = self.title_N.astype(float), (self.title_N * WIDTH + shown_N).astype(float)
        return np.column_stack([self.traits_MF[self.member_N], *codes])


def two_logs(seed: int, impressions: int = 15_000) -> tuple[Impressions, Impressions]:
    """Two independent logs of the same members and titles."""
    rng = np.random.default_rng(seed)
    added_TK, title_T = rng.normal(0, 0.3, (TITLES, WIDTH)), rng.normal(0, 0.4, TITLES)
    style_TKS = rng.normal(0, 0.6, (TITLES, WIDTH, STYLES))
    taste_MS, level_M = rng.normal(0, 0.6, (MEMBERS, STYLES)), rng.normal(0, 0.5, MEMBERS)
    traits_MF = taste_MS + rng.normal(0, 0.3, taste_MS.shape)
    logs = []
    for _ in range(2):
        member_N, title_N = np.sort(rng.integers(0, MEMBERS, impressions)), rng.integers(0, TITLES, impressions)
        appeal_NK = added_TK[title_N] + np.einsum("nks,ns->nk", style_TKS[title_N], taste_MS[member_N])
        truth_NK = 1 / (1 + np.exp(2 - (level_M[member_N] + title_T[title_N])[:, None] - appeal_NK))
        propensity_NK = 0.5 * softmax(2 * added_TK[title_N]) + 0.5 / WIDTH
        shown_N = draw_index(propensity_NK, rng)
        clicked_N = (rng.random(impressions) < truth_NK[np.arange(impressions), shown_N]).astype(float)
        logs.append(
            Impressions(
                member_N=member_N,
                title_N=title_N,
                truth_NK=truth_NK,
                propensity_NK=propensity_NK,
                shown_N=shown_N,
                clicked_N=clicked_N,
                traits_MF=traits_MF,
            )
        )
    return logs[0], logs[1]


def scores_of(
    model: str, trained: Impressions, others: Sequence[Impressions], rng: np.random.Generator
) -> list[NDArray[np.float64]]:
    """Click probabilities (N, K) for each of several logs, by a model that was trained on one."""
    if model.startswith("memory"):
        return [_memory(trained, log, rng, per_artwork="artwork" in model) for log in others]
    candidates = [log.features(np.full(len(log.title_N), k)) for log in others for k in range(WIDTH)]
    own_NF = trained.features(trained.shown_N)
    predict = _ridge if model == "linear" else _boosted
    columns = predict(own_NF, trained.clicked_N, candidates)
    return [np.column_stack(columns[first : first + WIDTH]) for first in range(0, len(columns), WIDTH)]


def _memory(trained: Impressions, scored: Impressions, rng: np.random.Generator, *, per_artwork: bool) -> NDArray:
    """A noisy score, moved by what the member did with the title, or with its artwork, before."""
    truth_NK = scored.truth_NK
    logit_NK = np.log(truth_NK / (1 - truth_NK)) + rng.normal(0, 0.5, truth_NK.shape)
    size = WIDTH if per_artwork else 1

    def key(log: Impressions, index: NDArray) -> NDArray[np.int64]:
        pair_N = (log.member_N * TITLES + log.title_N).reshape(-1, *[1] * (index.ndim - 1))
        return pair_N * size + (index if per_artwork else 0 * index)

    cells, rate = MEMBERS * TITLES * size, trained.clicked_N.mean()
    own_N = key(trained, trained.shown_N)
    count, clicks = np.bincount(own_N, minlength=cells), np.bincount(own_N, trained.clicked_N, cells)
    moved = 2 * (clicks - rate * count) / (1 + count)
    index_NK = np.broadcast_to(np.arange(WIDTH), truth_NK.shape)
    return 1 / (1 + np.exp(-logit_NK - moved[key(scored, index_NK)]))


def _ridge(own_NF: NDArray, clicked_N: NDArray, candidates: list[NDArray]) -> list[NDArray]:
    """Ridge regression of clicks on traits, artworks and their products with the first trait."""
    artworks = TITLES * WIDTH

    def design(features_NF: NDArray) -> NDArray:
        artwork_NA = np.eye(artworks)[features_NF[:, -1].astype(int)]
        return np.column_stack([features_NF[:, :STYLES], artwork_NA])

    x_NF = design(own_NF)
    square = x_NF.T @ x_NF + 50 * np.eye(x_NF.shape[1])
    weight_F = np.linalg.solve(square, x_NF.T @ (clicked_N - clicked_N.mean()))
    return [np.clip(clicked_N.mean() + design(features_NF) @ weight_F, 0.001, 0.999) for features_NF in candidates]


def _boosted(own_NF: NDArray, clicked_N: NDArray, candidates: list[NDArray]) -> list[NDArray]:
    """Gradient boosting of log loss by trees of `DEPTH` whose splits at one level share nothing; leaves of any size."""
    edges = [np.unique(np.quantile(column, np.linspace(0, 1, BINS + 1)[1:-1])) for column in own_NF.T]
    own_NB, *others = (
        np.column_stack([np.searchsorted(edge, column) for edge, column in zip(edges, features.T, strict=True)])
        for features in (own_NF, *candidates)
    )
    start = float(np.log(clicked_N.mean() / (1 - clicked_N.mean())))
    logit_N, logits = np.full(len(clicked_N), start), [np.full(len(other), start) for other in others]
    for _ in range(TREES):
        p_N = 1 / (1 + np.exp(-logit_N))
        gradient_N, hessian_N = clicked_N - p_N, p_N * (1 - p_N)
        leaf_N, leaves = np.zeros(len(p_N), int), [np.zeros(len(other), int) for other in others]
        for depth in range(DEPTH):
            feature_L, bin_L = _best_splits(own_NB, leaf_N, gradient_N, hessian_N, 1 << depth)
            leaf_N = _descend(own_NB, leaf_N, feature_L, bin_L)
            leaves = [_descend(other, leaf, feature_L, bin_L) for other, leaf in zip(others, leaves, strict=True)]
        value_L = RATE * np.bincount(leaf_N, gradient_N, 1 << DEPTH)
        value_L /= np.bincount(leaf_N, hessian_N, 1 << DEPTH) + 1
        logit_N = logit_N + value_L[leaf_N]
        logits = [logit + value_L[leaf] for logit, leaf in zip(logits, leaves, strict=True)]
    return [1 / (1 + np.exp(-logit)) for logit in logits]


def _best_splits(
    bin_NF: NDArray, leaf_N: NDArray, gradient_N: NDArray, hessian_N: NDArray, leaves: int
) -> tuple[NDArray, NDArray]:
    """The feature and the bin of the best split of each leaf, (L,) both; feature -1 where none gains."""
    best_L, feature_L, bin_L = np.full(leaves, 1e-9), np.full(leaves, -1), np.zeros(leaves, int)
    total = [np.bincount(leaf_N, v, leaves)[:, None] for v in (gradient_N, hessian_N)]
    for feature in range(bin_NF.shape[1]):
        bins = int(bin_NF[:, feature].max()) + 1
        index_N = leaf_N * bins + bin_NF[:, feature]
        left = [np.bincount(index_N, v, leaves * bins).reshape(leaves, bins).cumsum(1) for v in (gradient_N, hessian_N)]
        gain = left[0] ** 2 / (left[1] + 1) + (total[0] - left[0]) ** 2 / (total[1] - left[1] + 1)
        gain -= total[0] ** 2 / (total[1] + 1)
        at_L = gain.argmax(1)
        better = gain[np.arange(leaves), at_L] > best_L
        best_L = np.where(better, gain[np.arange(leaves), at_L], best_L)
        feature_L, bin_L = np.where(better, feature, feature_L), np.where(better, at_L, bin_L)
    return feature_L, bin_L


def _descend(bin_NF: NDArray, leaf_N: NDArray, feature_L: NDArray, bin_L: NDArray) -> NDArray:
    feature_N = feature_L[leaf_N]
    right_N = bin_NF[np.arange(len(leaf_N)), np.maximum(feature_N, 0)] > bin_L[leaf_N]
    return 2 * leaf_N + (right_N & (feature_N >= 0))


def scored_log(log: Impressions, score_NK: NDArray[np.float64]) -> ScoredLog:
    """The log with its scores as `keyart value` reads them."""
    count = len(log.title_N)
    mask_NK = np.ones(score_NK.shape, bool)
    artwork_NK = log.title_N[:, None] * WIDTH + np.arange(WIDTH)
    rows = np.arange(count)
    return ScoredLog(
        impression_id=pa.array([str(row) for row in rows]),
        member=log.member_N,
        title=log.title_N,
        artworks=pa.array([str(artwork) for artwork in range(TITLES * WIDTH)]),
        artwork_NK=Lists.of_padded(artwork_NK, mask_NK, padding=-1),
        shown=log.shown_N,
        propensity=log.propensity_NK[rows, log.shown_N],
        propensity_NK=Lists.of_padded(log.propensity_NK, mask_NK),
        shown_at=rows.astype(np.int64),
        logging_policy=np.zeros(count, int),
        logging_policies=("explore",),
        missing=0,
        unknown=0,
        randomised=np.zeros(count, bool),
        clicked=log.clicked_N,
        engaged=None,
        click_probability_NK=Lists.of_padded(score_NK, mask_NK),
        policy_NK=Lists.of_padded((score_NK == score_NK.max(1, keepdims=True)).astype(float), mask_NK),
        engaged_probability=None,
        true_click_NK=None,
        true_engaged_NK=None,
    )


def tested(log: Impressions, score_NK: NDArray[np.float64]) -> DrawTest:
    """The test of scores on a log, with the artworks' effects by members of the other half."""
    artwork_N = log.title_N * WIDTH + log.shown_N
    half_N, size = log.member_N % 2, TITLES * WIDTH
    effect_hA = []
    for half in (0, 1):
        at = half_N != half
        count_A, click_A = (
            np.bincount(artwork_N[at], minlength=size),
            np.bincount(artwork_N[at], log.clicked_N[at], size),
        )
        rate_T = click_A.reshape(TITLES, WIDTH).sum(1) / np.maximum(count_A.reshape(TITLES, WIDTH).sum(1), 1)
        rate_A = np.repeat(rate_T, WIDTH)
        effect_hA.append((click_A + 50 * rate_A) / (count_A + 50) - rate_A)
    all_NK = log.title_N[:, None] * WIDTH + np.arange(WIDTH)
    result = draw_test(scored_log(log, score_NK), np.stack(effect_hA)[half_N[:, None], all_NK].reshape(-1))
    assert result is not None, "all propensities are known"
    return result


def doubted_tables(model: str, replications: int) -> tuple[list[bool], list[bool]]:
    """Whether each of many tables is doubted: scores of another log than the model was trained on, and of the same."""
    honest, seen = [], []
    for seed in range(replications):
        trained, other = two_logs(seed)
        own_NK, other_NK = scores_of(model, trained, (trained, other), np.random.default_rng(seed))
        seen.append(bool(tested(trained, own_NK).doubt))
        honest.append(bool(tested(other, other_NK).doubt))
    return honest, seen
