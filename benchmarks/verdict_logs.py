"""Simulated logs whose truth is known, made to mislead a verdict: heavy members, nearly equal policies, holes in the support.

Four artworks a title. Members have a level, tastes and a number of impressions, so that their impressions are correlated.

Legend: M members, N impressions, K candidates, S styles.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from evaluation.off_policy.valuation import LOGGED, BanditLog, PolicyProbabilities

TITLES, WIDTH, STYLES = 12, 4, 3


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A kind of log."""

    members: int = 1000
    impressions: float = 15.0
    """Impressions of a member, on average."""
    spread: float = 0.5
    """Standard deviation of the logarithm of members' activity."""
    heavy_clickers: float = 0.0
    """Share of members with ten times the impressions, who click on six in ten."""
    click_logit: float = -2.0
    differing: float = 0.0
    """Share of the impressions on which the policy `near` differs from `scored`."""
    greed: float = 6.0
    """Inverse temperature of the scored policy."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One simulated log."""

    log: BanditLog
    policies: dict[str, PolicyProbabilities | None]
    earned: dict[str, float]
    """By policy, the expected reward summed over the log's impressions."""
    policy_NK: dict[str, NDArray]


@cache
def catalogue() -> tuple[NDArray, NDArray, NDArray]:
    """What is the same in all logs: appeal of artworks, level of titles, styles of artworks."""
    rng = np.random.default_rng(1)
    return rng.normal(0, 0.3, TITLES * WIDTH), rng.normal(0, 0.4, TITLES), rng.normal(0, 0.5, (TITLES * WIDTH, STYLES))


def softmax(values_NK: NDArray) -> NDArray:
    """Probabilities over the last axis."""
    exp_NK = np.exp(values_NK - values_NK.max(-1, keepdims=True))
    return exp_NK / exp_NK.sum(-1, keepdims=True)


def draw_index(probability_NK: NDArray, rng: np.random.Generator) -> NDArray[np.int64]:
    """One candidate per row, by its probabilities, (N,)."""
    return (probability_NK.cumsum(1) < rng.random(len(probability_NK))[:, None]).sum(1).clip(max=WIDTH - 1)


def draw(setting: Setting, seed: int) -> Drawn:
    """A log with its policies: `scored`, `near` where policies are to differ little, `uniform` and the logging policy."""
    added_A, title_T, style_AS = catalogue()
    rng = np.random.default_rng(seed)
    activity_M = np.exp(rng.normal(-(setting.spread**2) / 2, setting.spread, setting.members))
    heavy_M = rng.random(setting.members) < setting.heavy_clickers
    count_M = (1 + rng.poisson(setting.impressions * activity_M)) * np.where(heavy_M, 10, 1)
    member_N = np.repeat(np.arange(setting.members), count_M)
    level_M = np.where(heavy_M, np.log(1.5) - setting.click_logit, rng.normal(0, 0.8, setting.members))
    taste_MS = rng.normal(0, 0.8, (setting.members, STYLES))
    title_N = rng.integers(0, TITLES, len(member_N))
    artwork_NK = title_N[:, None] * WIDTH + np.arange(WIDTH)
    appeal_NK = added_A[artwork_NK] + np.einsum("nks,ns->nk", style_AS[artwork_NK], taste_MS[member_N])
    logit_N = setting.click_logit + level_M[member_N] + title_T[title_N]
    p_NK = 1 / (1 + np.exp(-logit_N[:, None] - appeal_NK))
    seen_NK = appeal_NK + rng.normal(0, 0.3, appeal_NK.shape)
    propensity_NK = 0.6 * softmax(2 * added_A[artwork_NK]) + 0.4 / WIDTH
    shown_N = draw_index(propensity_NK, rng)
    rows = np.arange(len(member_N))
    clicked_N = (rng.random(len(member_N)) < p_NK[rows, shown_N]).astype(float)
    arrays = {"scored": softmax(setting.greed * seen_NK)}
    if setting.differing:
        best_N = seen_NK.argmax(1)
        arrays["scored"] = (np.arange(WIDTH) == best_N[:, None]).astype(float)
        other_N = np.where(rng.random(len(best_N)) < setting.differing, (best_N + 1) % WIDTH, best_N)
        arrays["near"] = (np.arange(WIDTH) == other_N[:, None]).astype(float)
    arrays |= {"uniform": np.full(p_NK.shape, 1 / WIDTH), LOGGED: propensity_NK}
    log = BanditLog(
        member_N=member_N,
        title_N=title_N,
        artwork_NK=artwork_NK,
        shown_N=shown_N,
        propensity_N=propensity_NK[rows, shown_N],
        propensity_NK=propensity_NK,
        score_NK=1 / (1 + np.exp(-setting.click_logit - seen_NK)),
        randomised_N=np.zeros(len(rows), bool),
        reward={"clicked": clicked_N},
    )
    return Drawn(
        log=log,
        policies={name: _rows_of(policy_NK) for name, policy_NK in arrays.items()},
        earned={name: float((policy_NK * p_NK).sum()) for name, policy_NK in arrays.items()},
        policy_NK=arrays,
    )


def _rows_of(policy_NK: NDArray) -> Callable[[slice], NDArray]:
    return lambda rows: policy_NK[rows]


def truth_of(setting: Setting, draws: int = 40) -> dict[str, float]:
    """Reward per impression of each policy in the population, by `draws` large independent logs."""
    large = replace(setting, members=20_000)
    earned: dict[str, float] = defaultdict(float)
    impressions = 0
    for seed in range(draws):
        drawn = draw(large, 1_000_000 + seed)
        impressions += len(drawn.log)
        for policy, total in drawn.earned.items():
            earned[policy] += total
    return {policy: total / impressions for policy, total in earned.items()}
