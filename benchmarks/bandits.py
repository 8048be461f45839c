"""Bandit policies, which choose, observe clicks and learn, for `keyart bench explore`.

A candidate is x = (its features, its artwork as one-hot), and the policies learn changes theta of the weights of x, whose
prior is normal around 0 with the covariance of the trained ranker's posterior.

Legend: N impressions of a round, K candidates, F features, A artworks, P = F + A weights.
"""

import numpy as np
from numpy.typing import NDArray

from benchmarks.stream import Stream

NEWTON_STEPS = 5


class Laplace:
    """Logistic regression on x, offset by the ranker's logit; each round's posterior is the next one's prior."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.logit_NK = _logit(stream.probability_NK)
        features, artworks = stream.features_NKF.shape[-1], len(stream.bias_std_A)
        covariance = stream.root_covariance_FF @ stream.root_covariance_FF.T
        self.precision_PP = np.zeros((features + artworks, features + artworks))
        self.precision_PP[:features, :features] = np.linalg.inv(covariance)
        self.precision_PP[range(features, features + artworks), range(features, features + artworks)] = (
            1 / stream.bias_std_A**2
        )
        self.mean_P = np.zeros(features + artworks)

    def score(self, rows: NDArray[np.integer], theta_NP: NDArray[np.floating]) -> NDArray[np.floating]:
        """Click logits (N, K) of the candidates at `rows`, by weights per impression (N, P) or shared ones (1, P)."""
        features = self.stream.features_NKF.shape[-1]
        theta_NP = np.broadcast_to(theta_NP, (len(rows), theta_NP.shape[-1]))
        by_features = np.einsum("nkf,nf->nk", self.stream.features_NKF[rows], theta_NP[:, :features])
        by_artwork = np.take_along_axis(theta_NP[:, features:], self.stream.artwork_NK[rows], 1)
        return self.logit_NK[rows] + by_features + by_artwork

    def learn(self, rows: NDArray[np.integer], chosen: NDArray[np.integer], clicked: NDArray[np.bool_]) -> None:
        """Newton's steps to the mode given the round, and the curvature there."""
        x_NP, logit_N = design_matrix(self.stream, rows, chosen), self.logit_NK[rows, chosen]
        theta_P, precision_PP = self.mean_P.copy(), self.precision_PP
        for _ in range(NEWTON_STEPS):
            p_N = 1 / (1 + np.exp(-(logit_N + x_NP @ theta_P)))
            precision_PP = self.precision_PP + (x_NP * (p_N * (1 - p_N))[:, None]).T @ x_NP
            slope_P = x_NP.T @ (clicked - p_N) - self.precision_PP @ (theta_P - self.mean_P)
            theta_P = theta_P + np.linalg.solve(precision_PP, slope_P)
        self.mean_P, self.precision_PP = theta_P, precision_PP


class Thompson(Laplace):
    """The best by a draw from the posterior, its width scaled by `width`, with a new draw for each impression."""

    def __init__(self, stream: Stream, seed: int, width: float = 1.0) -> None:
        super().__init__(stream)
        self.width, self.rng = width, np.random.default_rng((seed, 3))

    def choose(self, rows: NDArray[np.integer], offered_NK: NDArray[np.bool_]) -> NDArray[np.integer]:
        """See `BanditPolicy`."""
        root_PP = np.linalg.cholesky(self.precision_PP)
        drawn_PN = np.linalg.solve(root_PP.T, self.rng.standard_normal((len(self.mean_P), len(rows))))
        return _best(self.score(rows, self.mean_P + self.width * drawn_PN.T), offered_NK)


class EpsilonGreedy(Laplace):
    """The best by the posterior's mean, or, for a share of the impressions, a random candidate."""

    def __init__(self, stream: Stream, share: float, seed: int) -> None:
        super().__init__(stream)
        self.share, self.rng = share, np.random.default_rng((seed, 3))

    def choose(self, rows: NDArray[np.integer], offered_NK: NDArray[np.bool_]) -> NDArray[np.integer]:
        """See `BanditPolicy`."""
        greedy = _best(self.score(rows, self.mean_P[None]), offered_NK)
        random_choice = _best(self.rng.random(offered_NK.shape), offered_NK)
        return np.where(self.rng.random(len(rows)) < self.share, random_choice, greedy)


def epsilon_greedy(stream: Stream, share: float, seed: int) -> EpsilonGreedy:
    """An epsilon-greedy policy; greedy with a share of 0."""
    return EpsilonGreedy(stream, share, seed)


def uniform(stream: Stream, seed: int) -> EpsilonGreedy:
    """The uniform policy: every candidate equally likely."""
    return EpsilonGreedy(stream, 1.0, seed)


class LinUCB:
    """Ridge regression of the ranker's residual on clicks, on x times the slope of its probability."""

    def __init__(self, stream: Stream, alpha: float) -> None:
        self.stream, self.alpha = stream, alpha
        p_NK = stream.probability_NK
        self.slope_NK = p_NK * (1 - p_NK)
        self.noise = float(self.slope_NK[stream.mask_NK].mean())
        """Variance of a click, by the ranker's probabilities."""
        start = Laplace(stream)
        self.precision_PP, self.moment_P = start.precision_PP, np.zeros(len(start.mean_P))

    def choose(self, rows: NDArray[np.integer], offered_NK: NDArray[np.bool_]) -> NDArray[np.integer]:
        """The candidate with the highest upper confidence bound."""
        covariance_PP = np.linalg.inv(self.precision_PP)
        theta_P = covariance_PP @ self.moment_P
        bound_NK = np.empty(offered_NK.shape)
        for k in range(offered_NK.shape[1]):
            x_NP = design_matrix(self.stream, rows, np.full(len(rows), k)) * self.slope_NK[rows, k, None]
            width_N = np.sqrt(np.maximum(0, np.einsum("np,pq,nq->n", x_NP, covariance_PP, x_NP, optimize=True)))
            bound_NK[:, k] = self.stream.probability_NK[rows, k] + x_NP @ theta_P + self.alpha * width_N
        return _best(bound_NK, offered_NK)

    def learn(self, rows: NDArray[np.integer], chosen: NDArray[np.integer], clicked: NDArray[np.bool_]) -> None:
        """See `BanditPolicy`."""
        x_NP = design_matrix(self.stream, rows, chosen) * self.slope_NK[rows, chosen, None]
        self.precision_PP = self.precision_PP + x_NP.T @ x_NP / self.noise
        self.moment_P = self.moment_P + x_NP.T @ (clicked - self.stream.probability_NK[rows, chosen]) / self.noise


def design_matrix(stream: Stream, rows: NDArray[np.integer], chosen: NDArray[np.integer]) -> NDArray[np.floating]:
    """x of one candidate of each impression, (N, P)."""
    features = stream.features_NKF.shape[-1]
    x_NP = np.zeros((len(rows), features + len(stream.bias_std_A)))
    x_NP[:, :features] = stream.features_NKF[rows, chosen]
    x_NP[np.arange(len(rows)), features + stream.artwork_NK[rows, chosen]] = 1
    return x_NP


def _best(score_NK: NDArray[np.floating], offered_NK: NDArray[np.bool_]) -> NDArray[np.integer]:
    return np.where(offered_NK, score_NK, -np.inf).argmax(1)


def _logit(p: NDArray[np.floating]) -> NDArray[np.floating]:
    sure = np.clip(p, 1e-9, 1 - 1e-9)
    return np.log(sure / (1 - sure))
