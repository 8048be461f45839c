"""A stream of impressions with known truth, on which bandit policies run round by round.

Legend: N impressions in order of time, K candidates (padded), F features, A artworks of the stream.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class BanditPolicy(Protocol):
    """A policy that can be run on a stream."""

    def choose(self, rows: NDArray[np.integer], offered_NK: NDArray[np.bool_]) -> NDArray[np.integer]:
        """Indices (N,) of the candidates to show for some impressions of the stream, each one that is offered."""
        ...

    def learn(self, rows: NDArray[np.integer], chosen: NDArray[np.integer], clicked: NDArray[np.bool_]) -> None:
        """Learn from the clicks on a round's choices."""
        ...


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Features and scores, which a policy may read, and the truth, which it may not."""

    features_NKF: NDArray[np.floating]
    """Appeal's features by the trained ranker."""
    probability_NK: NDArray[np.floating]
    """Probability of a click by the trained ranker."""
    mask_NK: NDArray[np.bool_]
    """True for candidates, those that arrive later included."""
    artwork_NK: NDArray[np.integer]
    """Indices of the artworks in `new_A` and `bias_std_A`."""
    truth_NK: NDArray[np.floating]
    """True click probabilities."""
    new_A: NDArray[np.bool_]
    """Artworks that arrive during the stream."""
    root_covariance_FF: NDArray[np.floating]
    """A root of the covariance of the features' weights."""
    bias_std_A: NDArray[np.floating]
    """Standard deviation of the artworks' biases."""

    def rounds(self, count: int) -> list[slice]:
        """The stream as slices of equal length."""
        edges = np.linspace(0, len(self.mask_NK), count + 1).astype(int)
        return [slice(begin, end) for begin, end in itertools.pairwise(edges)]

    def arriving(self, count: int, seed: int) -> NDArray[np.bool_]:
        """Mask (N, K) of the offered candidates: each new artwork is offered from a random round of the first half on."""
        rng = np.random.default_rng((seed, 1))
        since_A = np.where(self.new_A, rng.integers(0, max(1, count // 2), len(self.new_A)), 0)
        round_N = np.concatenate([np.full(part.stop - part.start, r) for r, part in enumerate(self.rounds(count))])
        return self.mask_NK & (since_A[self.artwork_NK] <= round_N[:, None])

    def run_policy(
        self, policy: "BanditPolicy", offered_NK: NDArray[np.bool_], count: int, seed: int, advance: Callable[[], None]
    ) -> tuple[float, float, float]:
        """Expected clicks, regret, and regret of the last quarter of the rounds, per 1,000 impressions."""
        uniform_N = np.random.default_rng((seed, 2)).random(len(self.mask_NK))
        best_N = np.where(offered_NK, self.truth_NK, 0).max(1)
        reward_N = np.zeros(len(best_N))
        for part in self.rounds(count):
            rows = np.arange(part.start, part.stop)
            chosen = policy.choose(rows, offered_NK[part])
            reward_N[part] = self.truth_NK[rows, chosen]
            policy.learn(rows, chosen, uniform_N[part] < reward_N[part])
            advance()
        late = slice(self.rounds(count)[-max(1, count // 4)].start, None)
        regret_N = best_N - reward_N
        return 1000 * float(reward_N.mean()), 1000 * float(regret_N.mean()), 1000 * float(regret_N[late].mean())
