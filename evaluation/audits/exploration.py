"""The cost of exploring: the lift of the scores' policy by how often it shows other artworks than the best, in two families.

`epsilon` shows the best artwork and, in a share of impressions, a uniformly random one; `softmax` shows artworks more often
the better they are scored, more evenly at a higher temperature. Both range from the greedy policy to the uniform one.

Legend: N impressions, K candidates (padded), M members.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.audits.attribution import NO_LIFT, lift_row, mean_terms
from evaluation.off_policy.intervals import standard_error
from evaluation.off_policy.valuation import SAME_PROBABILITY, WeightedLog
from evaluation.off_policy.verdict import DifferenceSample, Overlap, Rewarded, assess
from evaluation.record.rows import ExplorationRow
from foundation.choice import greedy_NK, softmax_NK
from foundation.lists import blocks

EPSILONS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
TEMPERATURES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Temperatures of the softmax over click logits."""

UNIFORM = "epsilon", 1.0
"""Family and strength of the policy that all others are compared with."""

ChoiceRule = Callable[[NDArray, NDArray], NDArray]
"""Scores (n, K) and the candidates' mask (n, K) -> probabilities (n, K)."""


@dataclass(kw_only=True)
class _Point:
    """A policy of the curve on the log; arrays (N,), filled block by block."""

    weight_N: NDArray[np.float64]
    robust_N: NDArray[np.float64]
    """Doubly robust scores, whose mean is the value."""
    explored: float = 0.0
    """Summed probability of any but the best artwork."""
    unsupported: float = 0.0
    """Summed probability of artworks with propensity 0; NaN where propensities were not logged."""
    changes: bool = False
    """Whether the probabilities differ from the uniform policy's anywhere."""


def lift_by_exploration(
    weighted_log: WeightedLog, reward: str = "clicked", doubts: tuple[str, ...] = ()
) -> list[ExplorationRow]:
    """Rows of family, strength, explored (mean probability of any but the best), lift over uniform by `dr`, and a verdict.

    Every point is a policy of its own, judged by its own weights, support and rewards, and by those of its difference from
    the uniform one.
    """
    log, members = weighted_log.log, weighted_log.members
    reward_N = log.reward[reward]
    points = _points(weighted_log, reward)
    sums = {key: members.sums(mean_terms(point.robust_N)) for key, point in points.items()}
    judged = {
        key: assess(
            Overlap.of(point.weight_N, members, point.unsupported / max(len(log), 1)),
            value=sums[key].value,
            influence_M=sums[key].influence_M,
            rewarded=Rewarded.of(point.weight_N * reward_N, members),
            reward=reward,
            doubts=doubts,
        )
        for key, point in points.items()
    }
    uniform = points[UNIFORM]
    rows: list[ExplorationRow] = []
    for (family, strength), point in points.items():
        key = family, strength
        sample = DifferenceSample.of(point.weight_N, uniform.weight_N, reward_N, members, alike=not point.changes)
        error = standard_error(sums[key].influence_M - sums[UNIFORM].influence_M)
        verdict, reason = sample.judge((judged[key], judged[UNIFORM]), error, reward)
        rows.append(
            {
                "family": family,
                "strength": strength,
                "explored": point.explored / max(len(log), 1),
                "reward": reward,
                **(NO_LIFT if verdict == "unanswerable" else lift_row(sums[key], sums[UNIFORM])),
                "verdict": verdict,
                "reason": reason,
            }
        )
    return rows


def _points(weighted_log: WeightedLog, reward: str) -> dict[tuple[str, float], _Point]:
    """Every policy of the curve, by family and strength."""
    log = weighted_log.log
    choices: dict[tuple[str, float], ChoiceRule] = {("epsilon", e): _epsilon(e) for e in EPSILONS}
    choices |= {("softmax", t): _softmax(t) for t in TEMPERATURES}
    points = {key: _Point(weight_N=np.empty(len(log)), robust_N=np.empty(len(log))) for key in choices}
    model, reward_N = weighted_log.models[reward], log.reward[reward]
    for rows in blocks(log.artwork_NK):
        at = np.arange(rows.stop - rows.start), log.shown_N[rows]
        mask_nk, score_nk = log.artwork_NK[rows] >= 0, log.score_NK[rows].astype(np.float64)
        expected_nk = model.predict(weighted_log.choices, rows)
        gap_n = reward_N[rows] - expected_nk[at]
        best_n = np.where(mask_nk, score_nk, -np.inf).argmax(1)
        none_nk = None if log.propensity_NK is None else log.propensity_NK[rows] <= 0
        uniform_nk = choices[UNIFORM](score_nk, mask_nk)
        for key, choose in choices.items():
            point, policy_nk = points[key], choose(score_nk, mask_nk)
            point.weight_N[rows] = policy_nk[at] / log.propensity_N[rows]
            point.robust_N[rows] = np.einsum("nk,nk->n", policy_nk, expected_nk) + point.weight_N[rows] * gap_n
            point.explored += float((1 - policy_nk[at[0], best_n]).sum())
            point.unsupported += float("nan") if none_nk is None else float(np.einsum("nk,nk->", policy_nk, none_nk))
            point.changes |= bool((np.abs(policy_nk - uniform_nk) > SAME_PROBABILITY).any())
    return points


def _epsilon(share: float) -> ChoiceRule:
    def choose(score_nk: NDArray, mask_nk: NDArray) -> NDArray:
        return (1 - share) * greedy_NK(score_nk, mask_nk) + share * mask_nk / mask_nk.sum(1, keepdims=True)

    return choose


def _softmax(temperature: float) -> ChoiceRule:
    return lambda score_nk, mask_nk: softmax_NK(score_nk, mask_nk, temperature)
