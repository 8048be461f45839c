"""The cost of exploring: the lift of the scores' policy by how often it shows other artworks than the best, in two families.

`epsilon` shows the best artwork and, in a share of impressions, a uniformly random one; `softmax` shows artworks more often
the better they are scored, more evenly at a higher temperature. Both range from the greedy policy to the uniform one.

Legend: N impressions, K candidates (padded), M members.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from evaluation.audits.attribution import lift_row
from evaluation.off_policy.intervals import Sums
from evaluation.off_policy.valuation import WeightedLog
from evaluation.record.rows import ExplorationRow
from foundation.choice import greedy_NK, softmax_NK
from foundation.lists import blocks

EPSILONS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
TEMPERATURES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Temperatures of the softmax over click logits."""

ChoiceRule = Callable[[NDArray, NDArray], NDArray]
"""Scores (n, K) and the candidates' mask (n, K) -> probabilities (n, K)."""


def lift_by_exploration(weighted_log: WeightedLog, reward: str = "clicked") -> list[ExplorationRow]:
    """Rows of family, strength, explored (mean probability of any but the best), lift over uniform, by `dr`."""
    log, members = weighted_log.log, weighted_log.members
    choices: dict[tuple[str, float], ChoiceRule] = {("epsilon", e): _epsilon(e) for e in EPSILONS}
    choices |= {("softmax", t): _softmax(t) for t in TEMPERATURES}
    index_N = np.repeat(np.arange(len(members)), np.diff(np.append(members.start_M, len(log))))
    model, reward_N = weighted_log.models[reward], log.reward[reward]
    total = {key: np.zeros(len(members)) for key in choices}
    explored = dict.fromkeys(choices, 0.0)
    for rows in blocks(log.artwork_NK):
        at = np.arange(rows.stop - rows.start), log.shown_N[rows]
        mask_nk, score_nk = log.artwork_NK[rows] >= 0, log.score_NK[rows].astype(np.float64)
        expected_nk = model.predict(weighted_log.choices, rows)
        gap_n = reward_N[rows] - expected_nk[at]
        best_n = np.where(mask_nk, score_nk, -np.inf).argmax(1)
        for key, choose in choices.items():
            policy_nk = choose(score_nk, mask_nk)
            robust_n = (policy_nk * expected_nk).sum(1) + policy_nk[at] / log.propensity_N[rows] * gap_n
            total[key] += np.bincount(index_N[rows], robust_n, len(members))
            explored[key] += float((1 - policy_nk[at[0], best_n]).sum())
    count_M = members.total(np.ones(len(log)))
    of = {key: Sums(sum_M[None], count_M[None]) for key, sum_M in total.items()}
    uniform = of["epsilon", 1.0]
    return [
        {
            "family": family,
            "strength": strength,
            "explored": explored[family, strength] / len(log),
            "reward": reward,
            **lift_row(of[family, strength], uniform),
        }
        for family, strength in choices
    ]


def _epsilon(share: float) -> ChoiceRule:
    def choose(score_nk: NDArray, mask_nk: NDArray) -> NDArray:
        return (1 - share) * greedy_NK(score_nk, mask_nk) + share * mask_nk / mask_nk.sum(1, keepdims=True)

    return choose


def _softmax(temperature: float) -> ChoiceRule:
    return lambda score_nk, mask_nk: softmax_NK(score_nk, mask_nk, temperature)
