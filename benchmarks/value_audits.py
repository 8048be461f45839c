"""False and missed alarms of the audits beside a value, on simulated logs whose truth is known.

    python -m benchmarks.value_audits --replications 200

prints a row per scenario: what is wanted, what was measured, and in how many replications. Worlds are those of
`benchmarks.audit_worlds`; every replication draws a new one.

Legend: N impressions, K candidates, M members.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.audit_worlds import HARMED, Simulated, World, simulate_world
from benchmarks.replications import Replicated
from evaluation.audits.attribution import attribute_value
from evaluation.audits.clickbait import clickbait
from evaluation.audits.depicted import GROUPS
from evaluation.audits.exposure import exposure
from evaluation.audits.metrics import expected_calibration_error, null_calibration_error
from evaluation.logs.log_review import to_bandit_log
from evaluation.logs.log_slices import LogSlice
from evaluation.logs.policies import uniform
from evaluation.logs.scored_log import ScoredLog
from evaluation.off_policy.valuation import importance_weights

DRIFTING = World(drift=2.0, arrivals=True)
NO_EFFECT = {
    "no effect": World(),
    "titles at 12 levels of engagement": World(title_levels=12),
    "segment of 12 countries": World(countries=12),
    "drift, artworks arrive and leave": DRIFTING,
    "all three": replace(DRIFTING, title_levels=12, countries=12),
    "heavy members": World(heavy=True),
    "30 % explored": World(explored=0.3),
    "10,000 impressions, 90 % engaged": World(impressions=10_000, engaged_rate=0.9),
}
PLANTED = {
    f"{faces} x {artworks}, {impressions:,} impressions": World(
        faces=faces, artworks_a_face=artworks, impressions=impressions
    )
    for impressions in (20_000, 30_000)
    for faces, artworks in ((1, 20), (12, 4), (20, 2))
}
EVEN_SLICES = {
    "uniform log": World(),
    "heavy members": World(heavy=True),
    "3 % clicks": World(impressions=30_000, click_rate=0.03),
}
SLICED = (
    ("member", (6, 12, 5, 5)),
    ("impression", (5, 4, 4)),
    ("title", (12, 3)),
)
"""Attributes of members, impressions and titles, by how many levels each has: 56 slices."""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Impressions with right probabilities, whose labels a member's own factor makes alike."""

    rows: int
    rate: float
    members: int
    variance: float = 0.0
    """Variance of the members' factors, which are gamma with mean 1."""
    activity: float = 1.0
    """Standard deviation of the logarithm of members' activity."""


CALIBRATED = {
    "0.5 % clicks, 200 impressions": Predicted(rows=200, rate=0.005, members=150),
    "0.5 % clicks, 2,000 impressions": Predicted(rows=2000, rate=0.005, members=500),
    "heavy members, 10 % clicks": Predicted(rows=20_000, rate=0.1, members=1000, variance=0.3, activity=1.5),
    "100 members, 10 % clicks": Predicted(rows=5000, rate=0.1, members=100, variance=0.3),
    "heavy members, 0.5 % clicks": Predicted(rows=2000, rate=0.005, members=200, variance=0.5, activity=1.5),
}


@dataclass(frozen=True, kw_only=True)
class AlarmRow:
    """One scenario: a share of replications, and what it may be."""

    scenario: str
    wanted: str
    measured: float
    replications: int


def worlds(world: World, replications: int, seed: int = 1000) -> Iterator[tuple[Simulated, Path]]:
    """Worlds drawn from consecutive seeds, with the folder of their tables."""
    for offset in range(replications):
        with tempfile.TemporaryDirectory(prefix="keyart-audit-") as folder:
            yield simulate_world(world, seed + offset, Path(folder)), Path(folder)


def exposure_flags(world: World, replications: int) -> tuple[float, float]:
    """Shares of reports that flag anything, and that flag a planted face or a group of people in the harmed segment."""
    anything, planted = [], []
    for simulated, folder in worlds(world, replications):
        rows, _ = exposure(folder, simulated.log, simulated.member, simulated.weight_N)
        flagged = [row for row in rows if row["flag"]]
        anything.append(bool(flagged))
        wanted = simulated.planted | set(GROUPS)
        planted.append(any(row["level"] == HARMED and row["depicts"] in wanted for row in flagged))
    return float(np.mean(anything)), float(np.mean(planted))


def clickbait_flags(world: World, replications: int) -> float:
    """Share of reports that flag an artwork."""
    flagged = []
    for simulated, _ in worlds(world, replications):
        summary = clickbait(simulated.outcomes, str)
        assert summary is not None
        flagged.append(summary["clickbait"] + summary["misleading"] > 0)
    return float(np.mean(flagged))


def slices_of(log: ScoredLog, rng: np.random.Generator) -> list[LogSlice]:
    """Slices by attributes that have nothing to do with clicks: of members, impressions and titles."""
    slices = []
    for kind, counts in SLICED:
        key_N = {"member": log.member, "title": log.title, "impression": np.arange(len(log))}[kind]
        for number, levels in enumerate(counts):
            code_N = rng.choice(levels, int(key_N.max()) + 1, p=rng.dirichlet(np.full(levels, 2.0)))[key_N]
            parts = [(level, np.flatnonzero(code_N == level)) for level in range(levels)]
            slices += [
                LogSlice(name=f"{kind} {number}", level=str(level), rows=rows) for level, rows in parts if len(rows)
            ]
    return slices


def false_lifts(world: World, replications: int) -> float:
    """Share of reports with a slice whose lift is called reliable and above or below 0, for a policy that chooses at random and
    is as good as uniform in every slice."""
    claimed = []
    for seed, (simulated, _) in enumerate(worlds(world, replications, seed=5000)):
        rng = np.random.default_rng(seed)
        drawn = simulated.log.policy_NK.like(rng.random(len(simulated.log.policy_NK.values_C)))
        log = replace(simulated.log, policy_NK=drawn.one_hot(drawn.best()))
        bandit_log = to_bandit_log(log)
        policies = {"scored": log.policy_NK.__getitem__, "uniform": uniform(log).__getitem__}
        rows = attribute_value(importance_weights(bandit_log, policies), slices_of(log, rng), bases=("uniform",))
        claimed.append(
            any(
                row["verdict"] == "reliable"
                and row["low"] is not None
                and row["high"] is not None
                and (row["low"] > 0 or row["high"] < 0)
                for row in rows
            )
        )
    return float(np.mean(claimed))


def draw_labels(predicted: Predicted, rng: np.random.Generator) -> tuple[NDArray, NDArray, NDArray]:
    """Probabilities, labels and members, (N,) each."""
    activity_M = np.exp(rng.normal(0, predicted.activity, predicted.members))
    member_N = rng.choice(predicted.members, predicted.rows, p=activity_M / activity_M.sum())
    p_N = np.clip(predicted.rate * np.exp(rng.normal(-0.32, 0.8, predicted.rows)), 0, 0.9)
    factor_M = np.ones(predicted.members)
    if predicted.variance:
        factor_M = rng.gamma(1 / predicted.variance, predicted.variance, predicted.members)
    return p_N, (rng.random(predicted.rows) < np.clip(p_N * factor_M[member_N], 0, 1)).astype(float), member_N


def band_misses(predicted: Predicted, replications: int) -> float:
    """Share of replications whose calibration error is outside the band of right probabilities."""
    rng, outside = np.random.default_rng(1), []
    for seed in range(replications):
        p_N, y_N, member_N = draw_labels(predicted, rng)
        low, high = null_calibration_error(p_N, seed=seed, y_N=y_N, member_N=member_N)
        outside.append(not low <= expected_calibration_error(p_N, y_N) <= high)
    return float(np.mean(outside))


def audit_alarms(replications: int = 200, console: Console | None = None) -> list[AlarmRow]:
    """Every scenario's row; planted effects and slices in half of the replications.

    `console`: where a row is printed as soon as it is known.
    """
    rows: list[AlarmRow] = []

    def add(scenario: str, wanted: str, measure: Callable[[int], float], count: int) -> None:
        rows.append(AlarmRow(scenario=scenario, wanted=wanted, measured=measure(count), replications=count))
        if console is not None:
            console.print(f"{scenario}: {rows[-1].measured:.3f} ({wanted}; {count})", highlight=False)

    half = max(replications // 2, 1)
    for name, world in NO_EFFECT.items():
        add(f"exposure, any flag: {name}", "<= .10", lambda n, w=world: exposure_flags(w, n)[0], replications)
    for name, world in PLANTED.items():
        add(f"exposure, planted found: {name}", ">= .80", lambda n, w=world: exposure_flags(w, n)[1], half)
    for name in ("no effect", "drift, artworks arrive and leave", "30 % explored"):
        world = NO_EFFECT[name]
        add(f"clickbait, any flag: {name}", "<= .10", lambda n, w=world: clickbait_flags(w, n), replications)
    for name, world in EVEN_SLICES.items():
        add(f"slices, any false lift: {name}", "<= .10", lambda n, w=world: false_lifts(w, n), half)
    for name, predicted in CALIBRATED.items():
        add(f"calibration band missed: {name}", "<= .08", lambda n, w=predicted: band_misses(w, n), replications)
    return rows


def rows(replications: int = 200) -> Iterator[Replicated]:
    """Every scenario's row, for `keyart bench value`."""
    for row in audit_alarms(replications):
        yield Replicated(row.scenario, row.wanted, f"{row.measured:.3f}", row.replications)


def main(replications: int) -> None:
    """Print the table."""
    console = Console(width=120)
    table = Table(title="False and missed alarms of the audits", title_justify="left")
    for heading in ("scenario", "wanted", "measured", "replications"):
        table.add_column(heading, justify="left" if heading == "scenario" else "right")
    for row in audit_alarms(replications, Console(stderr=True)):
        table.add_row(row.scenario, row.wanted, f"{row.measured:.3f}", str(row.replications))
    console.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="False and missed alarms of the audits on logs of known truth.")
    parser.add_argument("--replications", type=int, default=200)
    main(parser.parse_args().replications)
