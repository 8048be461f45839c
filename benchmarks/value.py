"""`keyart bench value`: off-policy estimates beside Open Bandit Pipeline, on the same arrays, and the cost of a whole log.

Both must agree to 1e-6, or the benchmark stops, because times of different results cannot be compared. Open Bandit Pipeline
runs in an environment of its own (declared in `benchmarks/obp_estimators.py`), made by uv on the first run. `--replications N` adds
what was wanted and measured on simulated logs of known truth, by every module `benchmarks/value_*.py`.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console

from benchmarks.copy_members import copy_members
from benchmarks.replications import figures_of, print_replications, replicated
from benchmarks.six_policies import write_scores
from benchmarks.subprocess_usage import measure, python
from benchmarks.table import OURS, Row
from datamodules.simulator.simulate import SimulateConfig, simulate
from evaluation.off_policy import estimators as by
from evaluation.off_policy.estimators import Terms
from evaluation.off_policy.intervals import Members, bootstrap
from foundation.errors import UserError

NAME = "value"
THEIRS = "Open Bandit Pipeline"
ACTIONS, IMPRESSIONS_A_MEMBER = 10, 20
DRAWS, REPEATS = 1000, 5
PARAMETERS = {"clip": 4.0, "tau": 4.0, "shrinkage": 25.0}
AGREE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the benchmark."""

    impressions: int = 100_000
    """Impressions of the arrays that both estimate on, with 10 candidates each."""
    sizes: list[float] = field(default_factory=lambda: [0.6])
    """Millions of impressions of the whole logs: six policies, all estimators, 1,000 draws."""
    replications: int = 0
    """Replications on logs of known truth for every claim of `docs/evaluation.md`; 0: none. Hundreds take an hour or more."""
    work: str = ""
    """Folder for the data, removed at the end; default: the system's temporary folder."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.impressions < 1000:
            raise UserError(f"impressions={self.impressions}: must be at least 1000.")
        if self.replications < 0:
            raise UserError(f"replications={self.replications}: must be at least 0.")
        if self.sizes and min(self.sizes) <= 0:
            raise UserError(f"sizes={self.sizes}: give millions of impressions, above 0, such as --sizes '[0.6, 6]'.")


def bench(config: Config, console: Console) -> list[Row]:
    """Measure side by side, then on whole logs."""
    with tempfile.TemporaryDirectory(dir=config.work or None, prefix="keyart-bench-") as folder:
        work = Path(folder)
        rows = _side_by_side(config, work, console)
        for millions in sorted(config.sizes):
            rows += _whole_log(millions, work, console)
    if config.replications:
        lines = print_replications(replicated(config.replications), Console(highlight=False, markup=False))
        rows += [_row(OURS, figure, unit, measured) for line in lines for figure, unit, measured in figures_of(line)]
    return rows


def simulate_arrays(impressions: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays of a log of one title with `ACTIONS` artworks, a policy, and an imperfect reward model."""
    rng = np.random.default_rng(seed)
    shape = (impressions, ACTIONS)
    truth_NK = 1 / (1 + np.exp(-rng.normal(-2, 0.7, shape)))
    logging_NK, policy_NK = (rng.dirichlet(np.full(ACTIONS, 2.0), impressions) for _ in range(2))
    logging_NK = 0.9 * logging_NK + 0.1 / ACTIONS
    action = (logging_NK.cumsum(1) < rng.random(impressions)[:, None]).sum(1).clip(max=ACTIONS - 1)
    rows = np.arange(impressions)
    return {
        "reward": (rng.random(impressions) < truth_NK[rows, action]).astype(float),
        "action": action,
        "propensity": logging_NK[rows, action],
        "logging": logging_NK,
        "policy": policy_NK,
        "certain": (np.arange(ACTIONS) == policy_NK.argmax(1)[:, None]).astype(float),
        "predicted": np.clip(truth_NK + rng.normal(0, 0.05, shape), 0, 1),
    }


def ours(arrays: dict[str, np.ndarray]) -> dict[str, Callable[[], Terms]]:
    """By name, a function that computes an estimator from the arrays, weights and expectations included, as the peer must."""
    rows = np.arange(len(arrays["reward"]))
    action, r = arrays["action"], arrays["reward"]

    def weight() -> np.ndarray:
        return arrays["policy"][rows, action] / arrays["propensity"]

    def model() -> tuple[np.ndarray, np.ndarray]:
        expected = np.einsum("nk,nk->n", arrays["policy"], arrays["predicted"])
        return expected, arrays["predicted"][rows, action]

    return {
        "replay": lambda: by.replay(r, arrays["certain"][rows, action]),
        "ips": lambda: by.ips(r, weight()),
        "clipped_ips": lambda: by.clipped_ips(r, weight(), PARAMETERS["clip"]),
        "snips": lambda: by.snips(r, weight()),
        "dm": lambda: by.dm(model()[0]),
        "dr": lambda: by.dr(r, weight(), *model()),
        "sndr": lambda: by.sndr(r, weight(), *model()),
        "switch_dr": lambda: by.switch_dr(r, weight(), *model(), PARAMETERS["tau"]),
        "dr_os": lambda: by.dr_os(r, weight(), *model(), PARAMETERS["shrinkage"]),
    }


def _side_by_side(config: Config, work: Path, console: Console) -> list[Row]:
    arrays = simulate_arrays(config.impressions)
    np.savez(work / "arrays.npz", **arrays)  # pyright: ignore[reportArgumentType]
    if shutil.which("uv") is None:
        raise UserError("uv: is not on PATH, and Open Bandit Pipeline needs an environment of its own. Install uv.")
    console.print("bench value: Open Bandit Pipeline, in an environment of its own (made on the first run)")
    script = Path(__file__).with_name("obp_estimators.py")
    arguments = ["uv", "run", "--no-project", "--script", script, work / "arrays.npz", work / "theirs.json"]
    measure([*map(str, arguments), json.dumps(PARAMETERS | {"draws": DRAWS, "repeats": REPEATS})])
    theirs = json.loads((work / "theirs.json").read_text(encoding="utf-8"))
    members = Members.of(np.arange(config.impressions) // IMPRESSIONS_A_MEMBER)
    rows, sums, differences = [], [], []
    for name, terms_of in ours(arrays).items():
        seconds, value = [], float("nan")
        for _ in range(REPEATS):
            start = time.perf_counter()
            value = members.sums(terms_of()).value
            seconds.append(time.perf_counter() - start)
        sums.append(members.sums(terms_of()))
        differences.append(abs(value - theirs[name]["value"]))
        if not differences[-1] <= AGREE:
            raise UserError(f"{name}: ours is {value:.9f}, Open Bandit Pipeline's {theirs[name]['value']:.9f}.")
        rows.append(_row(OURS, f"{name}: time", "ms", 1000 * median(seconds)))
        rows.append(_row(THEIRS, f"{name}: time", "ms", 1000 * median(theirs[name]["seconds"])))
    rows.append(_row(OURS, "largest difference of the two", "1e-9", 1e9 * max(differences)))
    start = time.perf_counter()
    bootstrap(sums, 0, DRAWS)
    rows.append(_row(OURS, "1,000 bootstrap draws, by member, of all nine", "s", time.perf_counter() - start))
    slow = sum(result.get("interval_seconds", 0.0) for result in theirs.values())
    rows.append(_row(THEIRS, "1,000 bootstrap draws, by impression, of ips, snips and dr", "s", slow))
    return rows


def _whole_log(millions: float, work: Path, console: Console) -> list[Row]:
    console.print(f"bench value: a log of {millions:g} M impressions, read and valued")
    service, dataset, scores = (work / name for name in ("service", "dataset", "scores"))
    if not service.is_dir():
        simulate(service, SimulateConfig())
    copy_members(service, dataset, round(millions * 1e6))
    write_scores(dataset, scores)
    done = measure(python("benchmarks.six_policies", dataset, scores))
    command = measure(python("keyart", "value", dataset, scores, work / "out", "--period", "all"))
    for made_here in (dataset, scores, work / "out"):
        shutil.rmtree(made_here)
    label = f"{millions:g} M"
    return [
        _row(OURS, f"six policies, all estimators, 1,000 draws, {label}: time", "s", done.seconds),
        _row(OURS, f"six policies, all estimators, 1,000 draws, {label}: peak memory", "GB", done.peak_bytes / 1e9),
        _row(OURS, f"keyart value --period all, {label}: time", "s", command.seconds),
        _row(OURS, f"keyart value --period all, {label}: peak memory", "GB", command.peak_bytes / 1e9),
    ]


def _row(subject: str, figure: str, unit: str, value: float) -> Row:
    return Row(benchmark=NAME, subject=subject, figure=figure, unit=unit, value=value)
