"""What exploring costs: the lift of the scores' best artwork, the more often others are shown, in two ways.

`epsilon` shows the best one and, in a share of impressions, any artwork alike; `softmax` shows artworks the more often the
better they are scored, the more evenly the higher its temperature. Both begin at the greedy policy and end at the uniform.

Legend: N impressions, K candidates (padded), M members.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.choice import greedy_NK, softmax_NK
from evaluation.attribution import lift_row
from evaluation.intervals import Sums
from evaluation.valuation import Weighing, parts

EPSILONS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
TEMPERATURES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Of click logits."""

Choice = Callable[[NDArray, NDArray], NDArray]
"""Scores (n, K) and which candidates are there -> probabilities (n, K)."""


def lift_by_exploration(weighing: Weighing, reward: str = "clicked") -> list[dict[str, Any]]:
    """Rows of family, strength, explored (mean probability of any but the best), lift over uniform, by `dr`."""
    log, members = weighing.log, weighing.members
    choices: dict[tuple[str, float], Choice] = {("epsilon", e): _epsilon(e) for e in EPSILONS}
    choices |= {("softmax", t): _softmax(t) for t in TEMPERATURES}
    place_N = np.repeat(np.arange(len(members)), np.diff(np.append(members.start_M, len(log))))
    model, reward_N = weighing.models[reward], log.reward[reward]
    total = {key: np.zeros(len(members)) for key in choices}
    explored = dict.fromkeys(choices, 0.0)
    for rows in parts(len(log)):
        at = np.arange(rows.stop - rows.start), log.shown_N[rows]
        there_nk, score_nk = log.artwork_NK[rows] >= 0, log.score_NK[rows].astype(np.float64)
        expected_nk = model.predict(weighing.choices, rows)
        gap_n = reward_N[rows] - expected_nk[at]
        best_n = np.where(there_nk, score_nk, -np.inf).argmax(1)
        for key, choose in choices.items():
            policy_nk = choose(score_nk, there_nk)
            robust_n = (policy_nk * expected_nk).sum(1) + policy_nk[at] / log.propensity_N[rows] * gap_n
            total[key] += np.bincount(place_N[rows], robust_n, len(members))
            explored[key] += float((1 - policy_nk[at[0], best_n]).sum())
    count_M = members.total(np.ones(len(log)))
    of = {key: Sums(sum_M[None], count_M[None]) for key, sum_M in total.items()}
    uniform = of["epsilon", 1.0]
    return [
        {"family": family, "strength": strength, "explored": explored[family, strength] / len(log), "reward": reward}
        | lift_row(of[family, strength], uniform)
        for family, strength in choices
    ]


def _epsilon(share: float) -> Choice:
    def choose(score_nk: NDArray, there_nk: NDArray) -> NDArray:
        return (1 - share) * greedy_NK(score_nk, there_nk) + share * there_nk / there_nk.sum(1, keepdims=True)

    return choose


def _softmax(temperature: float) -> Choice:
    return lambda score_nk, there_nk: softmax_NK(score_nk, there_nk, temperature)
