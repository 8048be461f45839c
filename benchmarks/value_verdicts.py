"""Whether verdicts and intervals of values keep what they promise, on simulated logs whose truth is known.

    uv run python -m benchmarks.value_verdicts --replications 300

prints a row per scenario: what is wanted, what was measured, over how many logs. `verdict_rows` returns them.

Legend: R replications.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.replications import Replicated
from benchmarks.seen_logs import HARMLESS, MODELS, doubted_tables
from benchmarks.verdict_logs import Setting, draw, truth_of
from evaluation.off_policy.valuation import value_policies

ESTIMATORS = ("ips", "snips", "dr")


@dataclass(frozen=True, kw_only=True)
class VerdictRow:
    """What one scenario should give, and what it gave."""

    scenario: str
    wanted: str
    measured: float
    """A share of the replications, 0 .. 1; NaN where none counts."""
    met: bool
    replications: int


HEAVY = {
    "ordinary members": (Setting(), 0.93, 0.975),
    "100 ordinary members": (Setting(members=100), 0.92, 0.98),
    "lognormal activity": (Setting(spread=1.5), 0.92, 0.98),
    "a few heavy clickers": (Setting(heavy_clickers=0.005, spread=0.3), 0.92, 0.985),
    "both": (Setting(heavy_clickers=0.005, spread=1.2), 0.92, 0.98),
}
"""Logs, and the least and greatest share of 95 % intervals that should hold the truth."""
NEAR = {40: 0.004, 400: 0.04, 1500: 0.15}
"""By number of impressions of 10,000 on which two policies differ, its share."""


def coverage_rows(setting: Setting, replications: int, wanted: tuple[float, float], name: str) -> list[VerdictRow]:
    """Shares of reliable 95 % intervals that hold the truth: values of three policies, and the scored policy's lift."""
    truth = truth_of(setting)
    held: dict[str, list[bool]] = {}
    for seed in range(replications):
        drawn = draw(setting, seed)
        record = value_policies(drawn.log, drawn.policies, seed=seed, draws=10)
        for row in record["estimates"]:
            if row["estimator"] in ESTIMATORS and row["verdict"] == "reliable":
                held.setdefault("values", []).append(_holds(row["low"], truth[row["policy"]], row["high"]))
        for row in record["differences"]:
            if row["estimator"] in ESTIMATORS and row["verdict"] == "reliable":
                lift = truth[row["policy"]] - truth[row["base"]]
                held.setdefault("differences", []).append(_holds(row["low"], lift, row["high"]))
    return [
        _between(f"{name}: reliable intervals of {kind} hold the truth", held.get(kind, []), wanted, replications)
        for kind in ("values", "differences")
    ]


def near_rows(differing: int, replications: int, truth_draws: int = 40) -> list[VerdictRow]:
    """Two policies that differ on few of 10,000 impressions: verdicts, widths, and coverage where reliable.

    `truth_draws`: how many large logs the truth is computed from.
    """
    setting = Setting(members=700, differing=NEAR[differing])
    truth = truth_of(setting, truth_draws)
    gap = truth["scored"] - truth["near"]
    reliable, held, empty = [], [], []
    for seed in range(replications):
        drawn = draw(setting, seed)
        policies = {name: drawn.policies[name] for name in ("scored", "near")}
        for row in value_policies(drawn.log, policies, seed=seed, draws=10)["differences"]:
            if row["estimator"] not in ESTIMATORS:
                continue
            reliable.append(row["verdict"] == "reliable")
            if row["value"] is not None:
                empty.append(row["low"] == row["high"])
            if reliable[-1]:
                held.append(_holds(row["low"], gap, row["high"]))
    name = f"{differing} of 10,000 impressions differ"
    rows = [_between(f"{name}: intervals of no width", empty, (0.0, 0.0), replications)]
    if differing < 100:
        return [_between(f"{name}: difference reliable", reliable, (0.0, 0.05), replications), *rows]
    return [_between(f"{name}: reliable intervals hold the truth", held, (0.92, 0.98), replications), *rows]


def seen_rows(replications: int) -> list[VerdictRow]:
    """Shares of score tables that are doubted: honest models, and models that have seen the log."""
    rows = []
    for model in MODELS:
        # boosted trees take seconds to train
        count = max(replications // 10, 10) if model == "trees" else replications
        honest, seen = doubted_tables(model, count)
        rows.append(_between(f"{model}, trained on another log: doubted", honest, (0.0, 0.05), count))
        wanted = (0.0, 0.05) if model in HARMLESS else (0.8, 1.0)
        rows.append(_between(f"{model}, trained on the log itself: doubted", seen, wanted, count))
    return rows


def _holds(low: float | None, truth: float, high: float | None) -> bool:
    return low is not None and high is not None and low <= truth <= high


def _between(scenario: str, flags: Iterable[bool], wanted: tuple[float, float], replications: int) -> VerdictRow:
    values = list(flags)
    measured = float(np.mean(values)) if values else float("nan")
    return VerdictRow(
        scenario=scenario,
        wanted=f"{wanted[0]:.1%} to {wanted[1]:.1%}",
        measured=measured,
        met=wanted[0] <= measured <= wanted[1],
        replications=replications,
    )


def verdict_rows(replications: int = 300, report: Callable[[str], None] = lambda words: None) -> list[VerdictRow]:
    """All scenarios; `report` is called with the name of each before it begins."""
    rows: list[VerdictRow] = []
    for name, (setting, least, greatest) in HEAVY.items():
        report(name)
        rows += coverage_rows(setting, replications, (least, greatest), name)
    for differing in NEAR:
        report(f"{differing} impressions differ")
        rows += near_rows(differing, replications)
    report("scores that have seen the log")
    return rows + seen_rows(replications)


def rows(replications: int = 300) -> Iterator[Replicated]:
    """All scenarios, for `keyart bench value`."""
    for row in verdict_rows(replications):
        yield Replicated(row.scenario, row.wanted, f"{row.measured:.1%}", row.replications)


def table_of(rows: Iterable[VerdictRow]) -> Table:
    """The rows for a terminal."""
    table = Table(title="value verdicts", title_justify="left")
    for heading in ("scenario", "wanted", "measured", "", "replications"):
        table.add_column(heading, justify="left" if heading == "scenario" else "right")
    for row in rows:
        table.add_row(
            row.scenario, row.wanted, f"{row.measured:.1%}", "met" if row.met else "missed", str(row.replications)
        )
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Verdicts and intervals of values on logs of known truth.")
    parser.add_argument("--replications", type=int, default=300)
    console = Console(width=140)
    console.print(table_of(verdict_rows(parser.parse_args().replications, console.print)))
