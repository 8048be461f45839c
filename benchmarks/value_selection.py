"""The best of ten policies on simulated logs of known truth: whether its interval and its guaranteed value hold, and the regret.

    uv run python -m benchmarks.value_selection --replications 300

In two settings all ten policies are equally good; in the third, one of them is truly better. Where little is explored, half of the
policies are sharp, which the log values with much noise. Members differ in activity (lognormal) and in how often they click.

Legend: N impressions, K candidates, M members, P policies.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.replications import Replicated, print_replications
from evaluation.off_policy.intervals import normal_interval
from evaluation.off_policy.selection import policy_sums, select
from evaluation.off_policy.valuation import HEADLINE_ESTIMATOR, BanditLog, estimate, importance_weights
from evaluation.record.selection_rows import Selection

POLICIES, WIDTH, TITLES = 10, 4, 12
SHARP = 0.9
"""Probability that a sharp policy gives to one artwork beyond what it gives to all."""
SOFT = 0.25
BETTER = "policy 5"
"""The policy that is better, where one is: a soft one."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Parameters of the simulated service."""

    better: bool
    """Whether the one policy chooses what members want, or at random as the others do."""
    members: int = 300
    mean_impressions: float = 20.0
    spread: float = 1.0
    """Standard deviation of the logarithm of members' mean impressions."""
    click_rate: float = 0.15
    explored: float = 0.1
    """Share of the impressions that are randomised."""
    sharp: int = POLICIES // 2
    """How many policies give nearly all probability to one artwork; the better one is the first that does not."""


def draw(setting: Setting, seed: int) -> tuple[BanditLog, dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """A log, the policies (N, K) by name, and the true click probabilities (N, K)."""
    rng = np.random.default_rng(seed)
    mean_M = setting.mean_impressions * np.exp(rng.normal(-(setting.spread**2) / 2, setting.spread, setting.members))
    member_N = np.repeat(np.arange(setting.members), 1 + rng.poisson(mean_M))
    count = len(member_N)
    title_N = rng.integers(0, TITLES, count)
    artwork_NK = title_N[:, None] * WIDTH + np.arange(WIDTH)
    level_N = rng.normal(0, 0.8, setting.members)[member_N]
    appeal_NK = rng.normal(0, 0.6, (count, WIDTH))
    base = np.log(setting.click_rate / (1 - setting.click_rate))
    p_NK = 1 / (1 + np.exp(-(base + level_N[:, None] + appeal_NK)))
    logits_NK = rng.normal(0, 1.5, (count, WIDTH))
    production_NK = np.exp(logits_NK) / np.exp(logits_NK).sum(1, keepdims=True)
    production_NK = 0.9 * production_NK + 0.1 / WIDTH
    explored_N = rng.random(count) < setting.explored
    propensity_NK = np.where(explored_N[:, None], 1 / WIDTH, production_NK)
    shown_N = (propensity_NK.cumsum(1) < rng.random(count)[:, None]).sum(1).clip(max=WIDTH - 1)
    rows = np.arange(count)
    policies = {}
    for number in range(POLICIES):
        name = f"policy {number}"
        share = SHARP if number < setting.sharp else SOFT
        choice_N = rng.integers(0, WIDTH, count)
        if setting.better and name == BETTER:
            choice_N = appeal_NK.argmax(1)
        policies[name] = share * (choice_N[:, None] == np.arange(WIDTH)) + (1 - share) / WIDTH
    log = BanditLog(
        member_N=member_N,
        title_N=title_N,
        artwork_NK=artwork_NK,
        shown_N=shown_N,
        propensity_N=propensity_NK[rows, shown_N],
        propensity_NK=propensity_NK,
        score_NK=np.zeros(p_NK.shape),
        randomised_N=explored_N,
        reward={"clicked": (rng.random(count) < p_NK[rows, shown_N]).astype(float)},
    )
    return log, policies, p_NK


@cache
def truth_of(setting: Setting, draws: int = 5) -> dict[str, float]:
    """Reward per impression of each policy in the population, by large independent logs."""
    large = Setting(**{**vars(setting), "members": 20_000})
    earned, impressions = np.zeros(2), 0
    for seed in range(draws):
        _, policies, p_NK = draw(large, 1_000_000 + seed)
        earned += [p_NK.mean(1).sum(), (policies[BETTER] * p_NK).sum()]
        impressions += len(p_NK)
    alike, better = earned / impressions
    return {f"policy {n}": float(alike) for n in range(POLICIES)} | ({BETTER: float(better)} if setting.better else {})


@dataclass
class Tally:
    """What held in each replication."""

    naive: list[bool] = field(default_factory=list)
    """The own interval of the policy with the largest estimate."""
    values: list[bool] = field(default_factory=list)
    """All ten simultaneous intervals."""
    differences: list[bool] = field(default_factory=list)
    """All ten simultaneous differences from the uniform policy."""
    at_least: list[bool] = field(default_factory=list)
    """All ten guaranteed values."""
    regret_of_largest: list[float] = field(default_factory=list)
    regret_of_chosen: list[float] = field(default_factory=list)
    guaranteed: list[float] = field(default_factory=list)
    """The chosen policy's guaranteed value, as a share of its true one."""


def replicate(setting: Setting, replications: int, first: int = 0, truth_draws: int = 5) -> Tally:
    """Draw logs and compare the ten policies on each; `truth_draws`: large logs that their true values are the means of."""
    truth, tally = truth_of(setting, truth_draws), Tally()
    uniform_value = truth["policy 0"]
    names = {name: name for name in truth}
    for seed in range(first, first + replications):
        log, policies, _ = draw(setting, seed)
        policies["uniform"] = np.full(log.artwork_NK.shape, 1 / WIDTH)  # pyright: ignore[reportAttributeAccessIssue]
        weighted_log = importance_weights(log, {name: p_NK.__getitem__ for name, p_NK in policies.items()}, seed=seed)
        (selection,) = select(weighted_log, estimate(weighted_log, draws=2), names, "uniform", seed=seed)
        largest, chosen = selection["largest_estimate"], selection["chosen"]
        assert largest is not None
        assert chosen is not None
        sums = policy_sums(weighted_log, largest, "clicked", HEADLINE_ESTIMATOR)
        alone = normal_interval(sums.value, sums.influence_M)
        tally.naive.append(alone.low <= truth[largest] <= alone.high)
        _count(tally, selection, truth, uniform_value)
        best = max(truth.values())
        tally.regret_of_largest.append(best - truth[largest])
        tally.regret_of_chosen.append(best - truth[chosen])
    return tally


def _count(tally: Tally, selection: Selection, truth: dict[str, float], uniform_value: float) -> None:
    """Count what held in one replication."""
    rows = [row for row in selection["rows"] if row["value"] is not None]
    held, apart, guaranteed = [], [], []
    for row in rows:
        low, high, at_least = row["low"], row["high"], row["at_least"]
        assert low is not None
        assert high is not None
        assert at_least is not None
        held.append(low <= truth[row["policy"]] <= high)
        guaranteed.append(at_least <= truth[row["policy"]])
        low, high = row["above_base_low"], row["above_base_high"]
        assert low is not None
        assert high is not None
        apart.append(low <= truth[row["policy"]] - uniform_value <= high)
        if row["policy"] == selection["chosen"]:
            tally.guaranteed.append(at_least / truth[row["policy"]])
    tally.values.append(all(held))
    tally.differences.append(all(apart))
    tally.at_least.append(all(guaranteed))


EQUAL = Setting(
    better=False, members=250, mean_impressions=12, spread=0.8, click_rate=0.08, explored=1.0, sharp=POLICIES
)
SETTINGS = {
    "ten policies of equal value": EQUAL,
    "equal value, little explored": Setting(better=False),
    "one of ten better": Setting(better=True),
}


def rows(replications: int = 300, names: Sequence[str] = tuple(SETTINGS)) -> Iterator[Replicated]:
    """Coverage, and regret in clicks per 1,000 impressions, in all settings."""
    for name in names:
        setting = SETTINGS[name]
        tally = replicate(setting, replications)
        for what, wanted, held in (
            ("own interval of the best-looking", "for comparison", tally.naive),
            ("all ten simultaneous intervals", "at least 95 % hold", tally.values),
            ("all ten differences from uniform", "at least 95 % hold", tally.differences),
            ("all ten guaranteed values", "at least 95 % hold", tally.at_least),
        ):
            yield Replicated(f"{name}: {what}", wanted, f"{np.mean(held):.1%} hold", replications)
        largest, chosen = (1000 * np.mean(v) for v in (tally.regret_of_largest, tally.regret_of_chosen))
        if setting.better:
            wanted = f"less than by the largest estimate, {largest:.2f}"
            measured = f"{chosen:.2f} per 1,000"
            yield Replicated(f"{name}: regret of the largest guaranteed value", wanted, measured, replications)
        share = f"{np.mean(tally.guaranteed):.0%} of the true value"
        yield Replicated(f"{name}: guaranteed value of the chosen policy", "for information", share, replications)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The best of ten policies on logs of known truth.")
    parser.add_argument("--replications", type=int, default=300)
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    arguments = parser.parse_args()
    print_replications(rows(arguments.replications, arguments.settings), Console(width=140))
