"""The stream's figures for policies whose results are known."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.bandits import Laplace, LinUCB, Thompson, epsilon_greedy, uniform
from benchmarks.explore import Config, bench
from benchmarks.stream import BanditPolicy, Stream
from foundation.errors import UserError
from tests.small_recipe import small_recipe

N, K, F, A = 3000, 4, 3, 8


def stream_of(seed: int = 0, *, misled: float = 1.5) -> Stream:
    """Artworks of a stream whose biases the ranker does not know, and whose features it weighs wrongly."""
    rng = np.random.default_rng(seed)
    features = rng.normal(0, 0.4, (N, K, F))
    artwork = np.argsort(rng.random((N, A)), axis=1)[:, :K]
    own = rng.normal(0, misled / 2, A)
    known = -1.5 + features.sum(-1)
    truth = known + features @ rng.normal(0, misled, F) + own[artwork]
    return Stream(
        features_NKF=features,
        probability_NK=1 / (1 + np.exp(-known)),
        mask_NK=np.arange(K) < rng.integers(2, K + 1, N)[:, None],
        artwork_NK=artwork,
        truth_NK=1 / (1 + np.exp(-truth)),
        new_A=np.arange(A) < 1,
        root_covariance_FF=misled * np.eye(F),
        bias_std_A=np.full(A, misled / 2),
    )


class Oracle:
    """Knows the truth."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def choose(self, rows, offered_NK):
        return np.where(offered_NK, self.stream.truth_NK[rows], -1).argmax(1)

    def learn(self, rows, chosen, clicked) -> None:
        """Nothing to learn."""


def regret_of(stream: Stream, policy: BanditPolicy) -> float:
    offered = stream.arriving(20, 0)
    return stream.run_policy(policy, offered, 20, 0, lambda: None)[1]


def test_those_who_learn_do_better_and_nobody_better_than_the_best() -> None:
    stream = stream_of()
    assert regret_of(stream, Oracle(stream)) == 0
    uniform_regret = regret_of(stream, uniform(stream, 0))
    for policy in (
        Thompson(stream, 0),
        epsilon_greedy(stream, 0.1, 0),
        epsilon_greedy(stream, 0.0, 0),
        LinUCB(stream, 0.5),
    ):
        assert 0 < regret_of(stream, policy) < 0.5 * uniform_regret
    late = stream.run_policy(Thompson(stream, 0), stream.arriving(20, 0), 20, 0, lambda: None)
    assert late[2] < late[1], "in the last quarter it regrets less"


def test_new_artworks_are_offered_when_they_have_come() -> None:
    stream = stream_of()
    offered = stream.arriving(20, 0)
    new = stream.new_A[stream.artwork_NK]
    assert (offered == stream.mask_NK)[~new].all(), "old ones always"
    assert (offered == stream.mask_NK)[N // 2 :].all(), "all of them from the middle on"
    assert not offered[: N // 20][new[: N // 20]].all()
    assert not (offered & ~stream.mask_NK).any()
    for rows in np.array_split(np.arange(N), 5):
        assert offered[rows, Thompson(stream, 0).choose(rows, offered[rows])].all()


def test_laplace_is_the_mode_and_its_curvature() -> None:
    """Against gradient ascent on the log posterior, written out."""
    stream = stream_of(1)
    laplace, rows = Laplace(stream), np.arange(400)
    chosen = np.zeros(400, int)
    clicked = np.random.default_rng(0).random(400) < stream.truth_NK[rows, 0]
    prior = laplace.precision_PP
    laplace.learn(rows, chosen, clicked)
    x = np.hstack([stream.features_NKF[rows, 0], np.eye(A)[stream.artwork_NK[rows, 0]]])
    theta = np.zeros(F + A)
    logit = np.log(stream.probability_NK[rows, 0] / (1 - stream.probability_NK[rows, 0]))
    for _ in range(4000):
        p = 1 / (1 + np.exp(-(logit + x @ theta)))
        theta += 0.005 * (x.T @ (clicked - p) - prior @ theta)
    np.testing.assert_allclose(laplace.mean_P, theta, atol=1e-3)
    p = 1 / (1 + np.exp(-(logit + x @ theta)))
    np.testing.assert_allclose(laplace.precision_PP, prior + (x.T * (p * (1 - p))) @ x, atol=1e-2)


def test_bad_words() -> None:
    with pytest.raises(UserError, match="rounds=0"):
        Config(rounds=0)
    with pytest.raises(UserError, match=r"held_out=0\.0"):
        Config(held_out=0.0)
    with pytest.raises(UserError, match=r"epsilon=1\.5"):
        Config(epsilon=1.5)


@pytest.mark.benchmark
def test_a_whole_run(tmp_path: Path) -> None:
    from rich.console import Console

    rows = bench(Config(members=600, recipe=small_recipe(tmp_path)), Console(quiet=True))
    regret = {row.subject: row.value for row in rows if row.figure == "regret"}
    assert regret["best possible"] == 0 < regret["keyart Thompson"] < regret["uniform"]
