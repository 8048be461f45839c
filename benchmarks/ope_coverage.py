"""Off-policy estimates on simulated logs whose truth is known: bias, coverage of the intervals, and whether verdicts hold.

    python -m benchmarks.ope_coverage --replications 1000

prints a table per setting. Every replication draws new members on one catalogue; some members have many impressions, and
members have tastes, so that impressions are far from independent.

Legend: M members, N impressions, K candidates, A artworks.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from evaluation.off_policy.estimators import snips
from evaluation.off_policy.intervals import DRAWS, Members, normal_interval
from evaluation.off_policy.valuation import LOGGED, BanditLog, PolicyProbabilities, value_policies
from evaluation.record.rows import EstimateKey, EstimateRow

TITLES, WIDTH, STYLES = 12, 4, 3


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Parameters of a simulated service and its log."""

    members: int = 200
    mean_impressions: float = 20.0
    spread: float = 1.0
    """Standard deviation of the logarithm of members' mean impressions: at 1, one in twenty has five times the median or more."""
    click_rate: float = 0.15
    """About."""
    taste: float = 0.8
    """Standard deviation of members' tastes, in logits."""
    greed: float = 3.0
    """Inverse temperature of the scored policy."""
    explored: float = 0.3
    """Share of the impressions that are randomised."""
    least: float = 0.05
    """Propensity that the logging policy spreads over all artworks."""


SETTINGS = {
    "ordinary": Setting(),
    "few members, many impressions": Setting(members=60, mean_impressions=80, spread=0.6, taste=1.2),
    "rare clicks": Setting(members=600, click_rate=0.02),
    "sharp policy, little explored": Setting(greed=30.0, explored=0.05, members=400),
}


@dataclass(frozen=True, kw_only=True)
class SimulatedCatalogue:
    """The part of the service that is the same in all replications."""

    added_A: NDArray = field(default_factory=lambda: np.random.default_rng(1).normal(0, 0.3, TITLES * WIDTH))
    title_T: NDArray = field(default_factory=lambda: np.random.default_rng(2).normal(0, 0.5, TITLES))
    style_AS: NDArray = field(default_factory=lambda: np.random.default_rng(3).normal(0, 0.4, (TITLES * WIDTH, STYLES)))


def draw(
    setting: Setting, seed: int, catalogue: SimulatedCatalogue | None = None
) -> tuple[BanditLog, dict[str, PolicyProbabilities | None], dict[str, float]]:
    """A log, the policies to estimate, and each one's expected reward on the log's impressions (its mean is the truth)."""
    world = catalogue or SimulatedCatalogue()
    rng = np.random.default_rng(seed)
    mean_M = setting.mean_impressions * np.exp(rng.normal(-(setting.spread**2) / 2, setting.spread, setting.members))
    member_N = np.repeat(np.arange(setting.members), 1 + rng.poisson(mean_M))
    level_M = rng.normal(0, setting.taste, setting.members)
    preference_MS = rng.normal(0, setting.taste, (setting.members, STYLES))
    title_N = rng.integers(0, TITLES, len(member_N))
    artwork_NK = title_N[:, None] * WIDTH + np.arange(WIDTH)
    appeal_NK = world.added_A[artwork_NK] + np.einsum("nks,ns->nk", world.style_AS[artwork_NK], preference_MS[member_N])
    base = np.log(setting.click_rate / (1 - setting.click_rate))
    p_NK = 1 / (1 + np.exp(-(base + level_M[member_N] + world.title_T[title_N])[:, None] - appeal_NK))
    seen_NK = appeal_NK + rng.normal(0, 0.4, appeal_NK.shape)
    score_NK = 1 / (1 + np.exp(-base - seen_NK))
    older_NK = _softmax(2.0 * (world.added_A[artwork_NK] + rng.normal(0, 0.3, appeal_NK.shape)))
    production_NK = (1 - setting.least) * older_NK + setting.least / WIDTH
    explored_N = rng.random(len(member_N)) < setting.explored
    propensity_NK = np.where(explored_N[:, None], 1 / WIDTH, production_NK)
    shown_N = (propensity_NK.cumsum(1) < rng.random(len(member_N))[:, None]).sum(1).clip(max=WIDTH - 1)
    rows = np.arange(len(member_N))
    clicked_N = (rng.random(len(member_N)) < p_NK[rows, shown_N]).astype(float)
    log = BanditLog(
        member_N=member_N,
        title_N=title_N,
        artwork_NK=artwork_NK,
        shown_N=shown_N,
        propensity_N=propensity_NK[rows, shown_N],
        propensity_NK=propensity_NK,
        score_NK=score_NK,
        randomised_N=explored_N,
        reward={"clicked": clicked_N},
    )
    arrays = {
        "scored": _softmax(setting.greed * seen_NK),
        "uniform": np.full(p_NK.shape, 1 / WIDTH),
        LOGGED: propensity_NK,
    }
    return (
        log,
        {name: _rows_of(a) for name, a in arrays.items()},
        {n: float((a * p_NK).sum()) for n, a in arrays.items()},
    )


def _softmax(values_NK: NDArray) -> NDArray:
    exp_NK = np.exp(values_NK - values_NK.max(1, keepdims=True))
    return exp_NK / exp_NK.sum(1, keepdims=True)


def _rows_of(policy_NK: NDArray) -> PolicyProbabilities:
    return lambda rows: policy_NK[rows]


def truth_of(setting: Setting, draws: int = 40) -> dict[str, float]:
    """Reward per impression of each policy in the population, by `draws` large independent logs."""
    large = Setting(**{**vars(setting), "members": 20_000})
    earned: dict[str, float] = defaultdict(float)
    impressions = 0
    for seed in range(draws):
        log, _, sums = draw(large, 1_000_000 + seed)
        impressions += len(log)
        for policy, earnings in sums.items():
            earned[policy] += earnings
    return {policy: total / impressions for policy, total in earned.items()}


@dataclass
class Tally:
    """Results of one estimate over the replications."""

    values: list[float] = field(default_factory=list)
    covered: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    """By kind of interval, whether each contained the truth; `reliable` has those with that verdict."""
    verdicts: list[str] = field(default_factory=list)

    def share(self, kind: str) -> float:
        """Share of the intervals of a kind that contained the truth; NaN where there were none."""
        return float(np.mean(self.covered[kind])) if self.covered[kind] else float("nan")


def replicate(
    setting: Setting, replications: int, truth: dict[str, float], draws: int = DRAWS
) -> dict[tuple[str, str], Tally]:
    """By (policy, estimator) and (policy over uniform, estimator): tallies; `naive` intervals count impressions as members."""
    tallies: dict[tuple[str, str], Tally] = defaultdict(Tally)
    for seed in range(replications):
        log, policies, _ = draw(setting, seed)
        record = value_policies(log, policies, seed=seed, draws=draws)
        of = {_key(row): row for row in record["intervals"]}
        for row in record["estimates"]:
            tally = tallies[row["policy"], row["estimator"]]
            _count(tally, row, truth[row["policy"]])
            ends = of.get(_key(row))
            if ends is not None:  # None where the estimate is unanswerable
                for kind, low, high in (
                    ("normal", ends["normal_low"], ends["normal_high"]),
                    ("bootstrap", ends["bootstrap_low"], ends["bootstrap_high"]),
                ):
                    if low is not None and high is not None:
                        tally.covered[kind].append(low <= truth[row["policy"]] <= high)
        for row in record["differences"]:
            if row["base"] == "uniform":
                _count(
                    tallies[f"{row['policy']} - uniform", row["estimator"]],
                    row,
                    truth[row["policy"]] - truth["uniform"],
                )
        _naive(log, policies, truth, tallies)
    return tallies


def _key(row: EstimateKey) -> tuple[str, ...]:
    return row["policy"], row["reward"], row["estimator"]


def _count(tally: Tally, row: EstimateRow, truth: float) -> None:
    tally.verdicts.append(row["verdict"])
    if row["value"] is None or row["low"] is None or row["high"] is None:
        return
    tally.values.append(row["value"])
    covered = row["low"] <= truth <= row["high"]
    tally.covered["reported"].append(covered)
    if row["verdict"] == "reliable":
        tally.covered["reliable"].append(covered)


def _naive(
    log: BanditLog,
    policies: dict[str, PolicyProbabilities | None],
    truth: dict[str, float],
    tallies: dict[tuple[str, str], Tally],
) -> None:
    rows = np.arange(len(log))
    for name, policy in policies.items():
        if policy is not None:
            policy_NK = policy(slice(0, len(log)))
            weight_N = np.ones(len(log)) if name == LOGGED else policy_NK[rows, log.shown_N] / log.propensity_N
            sums = Members.of(rows).sums(snips(log.reward["clicked"], weight_N))
            alone = normal_interval(sums.value, sums.influence_M)
            tallies[name, "snips"].covered["naive"].append(alone.low <= truth[name] <= alone.high)


def table_of(name: str, tallies: dict[tuple[str, str], Tally], truth: dict[str, float]) -> Table:
    """One setting's table."""
    table = Table(title=name, title_justify="left")
    for heading in (
        "policy",
        "estimator",
        "bias %",
        "deviation %",
        "normal",
        "bootstrap",
        "naive",
        "reliable",
        "where reliable",
    ):
        table.add_column(heading, justify="left" if heading in ("policy", "estimator") else "right")
    for (policy, estimator), tally in tallies.items():
        true = truth.get(policy, truth["scored" if policy.startswith("scored") else LOGGED] - truth["uniform"])
        values = np.array(tally.values)
        reliable = np.mean([verdict == "reliable" for verdict in tally.verdicts])
        numbers = [100 * (values.mean() / true - 1), 100 * values.std() / abs(true)] if len(values) else [np.nan] * 2
        kinds = [tally.share("reported") if not tally.covered["normal"] else tally.share("normal")]
        kinds += [tally.share(kind) for kind in ("bootstrap", "naive")]
        cells = [f"{n:+.1f}" for n in numbers] + [
            _percent(k) for k in (*kinds, float(reliable), tally.share("reliable"))
        ]
        table.add_row(policy, estimator, *cells)
    return table


def _percent(share: float) -> str:
    return "" if np.isnan(share) else f"{100 * share:.1f}"


def main(replications: int, names: Iterable[str]) -> None:
    """Every setting's table."""
    console = Console(width=140)
    for name in names:
        truth = truth_of(SETTINGS[name])
        tallies = replicate(SETTINGS[name], replications, truth)
        console.print(table_of(f"{name}: {SETTINGS[name]}", tallies, truth))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Bias and coverage of off-policy estimates on logs of known truth.")
    parser.add_argument("--replications", type=int, default=1000)
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    arguments = parser.parse_args()
    main(arguments.replications, arguments.settings)
