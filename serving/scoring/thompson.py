"""Thompson sampling over a bundle, without torch: artworks are shown as often as they are best under the posterior.

A draw is one ranker from the posterior: weights of appeal's features and a bias of every artwork. The policy takes one of
a fixed number of draws at random and shows the artwork that is best by it, so that the probability of an artwork is exactly
the share of the draws that it wins: the logged propensities are exact. Most candidates win none; a floor, the share of
requests that are drawn uniformly, keeps every propensity above 0, so that the log can evaluate other policies later. As an
estimate of Thompson sampling with unlimited draws (Thompson, 1933; Chapelle and Li, 2011) a share of draws has the standard
error sqrt(p (1 - p) / draws). The posterior may be drawn narrower than it is, which explores less: Chapelle and Li found a
quarter to a half best, and so does `keyart bench explore`.

Legend: N requests, K candidates, D width, F = D + P + 3 features, P own preferences, S draws.
"""

import numpy as np

from serving.bundle.bundle import POSTERIOR, Bundle
from serving.scoring.explain import sum_by_part
from serving.scoring.policies import DEFAULT_DRAWS, mixed_with_uniform

GOLDEN_RATIO, MIX_STEPS = 0x9E3779B97F4A7C15, ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 0))
"""Constants of splitmix64: its step, and the shifts and factors of its mixing."""
BLOCK_APPEALS, BLOCK_DRAWS = 2**16, 16
"""Appeals that are drawn at a time, so that they stay in a core's cache, and the least number of draws of a block."""


class PosteriorDraws:
    """Weights drawn from a bundle's posterior, of its own width, the same for every request, determined by the seed.

    The first S of many draws are what S draws alone would be, so that they are made once for all policies.
    """

    def __init__(self, bundle: Bundle, draws: int = DEFAULT_DRAWS, seed: int = 0) -> None:
        """`draws`: made at once; more are made when they are read."""
        posterior, tables = bundle.load_tables(POSTERIOR), bundle.tables
        self.vector, self.content = tables["artwork_vector"], tables["artwork_content"]
        self.spread, self.own, self.seed = posterior["spread"], posterior["own"], seed
        self.part_width = tables["play_mean_image"].shape[1]
        self.weight_FS = self._drawn(draws)

    def weights(self, draws: int) -> np.ndarray:
        """The first draws, float32 (F, S)."""
        if draws > self.weight_FS.shape[1]:
            self.weight_FS = self._drawn(draws)
        return self.weight_FS[:, :draws]

    def _drawn(self, draws: int) -> np.ndarray:
        weights = np.random.default_rng(self.seed).standard_normal((draws, len(self.spread)), np.float32)
        # vectors end with own preferences, whose uncertainty is part of that of an artwork's bias
        preferences = np.zeros((self.vector.shape[1] - self.part_width, draws), np.float32)
        learned, parts = np.split((weights @ self.spread.T).T, [self.part_width])
        return np.concatenate([learned, preferences, parts])


class Thompson:
    """A policy that takes one of a number of draws from a bundle's posterior at random."""

    def __init__(
        self, posterior: Bundle | PosteriorDraws, draws: int, width: float = 1.0, floor: float = 0.0, seed: int = 0
    ) -> None:
        """`width`: factor of the posterior's standard deviations; `floor`: the share of requests drawn uniformly; `seed`: of the
        draws of a bundle."""
        drawn = posterior if isinstance(posterior, PosteriorDraws) else PosteriorDraws(posterior, draws, seed)
        self.vector, self.content, self.part_width = drawn.vector, drawn.content, drawn.part_width
        self.draws, self.width, self.floor, self.seed = draws, np.float32(width), floor, drawn.seed
        self.own = drawn.own * self.width
        self.weight_FS = drawn.weights(draws) * self.width

    def probabilities(
        self, request: dict[str, np.ndarray], outputs: dict[str, np.ndarray], mask_NK: np.ndarray
    ) -> np.ndarray:
        """Shares of the draws won, mixed with the uniform policy by the floor, float32 (N, K), from a request and the graph's
        outputs for it; 0 in padding."""
        n, k = mask_NK.shape
        rows = max(1, BLOCK_APPEALS // (k * BLOCK_DRAWS))
        parts = [
            self._shares(
                *(
                    part[begin : begin + rows]
                    for part in (
                        request["artworks"],
                        outputs["artwork_query"],
                        outputs["content_query"],
                        outputs["appeal"],
                        mask_NK,
                    )
                )
            )
            for begin in range(0, n, rows)
        ]
        shares = np.concatenate(parts) if parts else np.zeros((0, k), np.float32)
        return mixed_with_uniform(shares, mask_NK, self.floor).astype(np.float32)

    def _shares(
        self,
        artworks_NK: np.ndarray,
        artwork_query_ND: np.ndarray,
        content_query_NC: np.ndarray,
        appeal_NK: np.ndarray,
        mask_NK: np.ndarray,
    ) -> np.ndarray:
        n, k = mask_NK.shape
        features_NKF = self._features(artworks_NK, artwork_query_ND, content_query_NC)
        padded_NK = np.where(mask_NK, appeal_NK, -np.inf)
        first_N = np.arange(n)[:, None] * k
        won = np.zeros(n * k, np.int64)
        block = max(BLOCK_DRAWS, BLOCK_APPEALS // (n * k))
        for begin in range(0, self.draws, block):
            drawn_NKS = self._drawn(artworks_NK, features_NKF, padded_NK, begin, min(begin + block, self.draws))
            won += np.bincount((drawn_NKS.argmax(1) + first_N).ravel(), minlength=n * k)
        return (won.reshape(n, k) / self.draws).astype(np.float32)

    def sampled_appeals(
        self, artworks_NK: np.ndarray, artwork_query_ND: np.ndarray, content_query_NC: np.ndarray, appeal_NK: np.ndarray
    ) -> np.ndarray:
        """Appeal by every draw, float32 (N, K, S)."""
        features_NKF = self._features(artworks_NK, artwork_query_ND, content_query_NC)
        return self._drawn(artworks_NK, features_NKF, appeal_NK, 0, self.draws)

    def _features(
        self, artworks_NK: np.ndarray, artwork_query_ND: np.ndarray, content_query_NC: np.ndarray
    ) -> np.ndarray:
        likeness = self.content[artworks_NK] * content_query_NC[:, None]
        part_sums = sum_by_part(likeness, self.part_width)
        return np.concatenate([self.vector[artworks_NK] * artwork_query_ND[:, None], part_sums], axis=-1)

    def _drawn(
        self, artworks_NK: np.ndarray, features_NKF: np.ndarray, appeal_NK: np.ndarray, begin: int, end: int
    ) -> np.ndarray:
        """Appeal by the draws from `begin` to before `end`."""
        own_NKS = self.own[artworks_NK][..., None] * normals(artworks_NK, self.draws, self.seed, begin, end)
        return appeal_NK[..., None] + features_NKF @ self.weight_FS[:, begin:end] + own_NKS


def normals(rows: np.ndarray, draws: int, seed: int, begin: int = 0, end: int | None = None) -> np.ndarray:
    """A standard normal for every (row, draw), float32 (..., S): a function of both and of the seed, so that no table of
    them is stored; of all draws those from `begin` to before `end` alone. splitmix64 (Steele and others, 2014) and Box and
    Muller's transform (1958)."""
    counter = rows.astype(np.uint64)[..., None] * np.uint64(draws) + np.arange(begin, end or draws, dtype=np.uint64)
    with np.errstate(over="ignore"):
        first = mix64(counter * np.uint64(2) + np.uint64((1 + seed * GOLDEN_RATIO) % 2**64))
        second = mix64(first + np.uint64(GOLDEN_RATIO))
    u = (first >> np.uint64(40)).astype(np.float32) * np.float32(2**-24) + np.float32(2**-25)
    v = (second >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    return np.sqrt(-2 * np.log(u)) * np.cos(np.float32(2 * np.pi) * v)


def mix64(x: np.ndarray) -> np.ndarray:
    """splitmix64's mixing of uint64 (any shape)."""
    with np.errstate(over="ignore"):
        for shift, factor in MIX_STEPS:
            x = x ^ (x >> np.uint64(shift))
            x = x * np.uint64(factor) if factor else x
    return x
