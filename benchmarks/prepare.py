"""`keyart bench prepare`: raw tables -> shards, beside a lower bound and beside pandas.

Every run is the whole command as a user types it, in a process of its own; the subjects take turns, and the median of
the repeats is reported.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from benchmarks.copy_members import copy_members
from benchmarks.ranges import require_at_least
from benchmarks.subprocess_usage import ProcessUsage, measure, python
from benchmarks.table import OURS, Row
from datamodules.contract.tables import IMPRESSIONS
from datamodules.simulator.simulate import SimulateConfig, simulate
from foundation.errors import UserError
from foundation.progress import progress_bar

NAME = "prepare"
MEMORY = "2GB"
NEW_DAY = 0.01


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the benchmark."""

    dataset: str = ""
    """Dataset whose members are copied to reach each size; default: a simulated service."""
    sizes: list[float] = field(default_factory=lambda: [0.6, 6.0, 24.0])
    """Millions of impressions."""
    repeats: int = 3
    """Runs of each subject up to 10 million impressions, of which the median is reported; above that, one."""
    work: str = ""
    """Folder for the data, removed at the end; default: the system's temporary folder."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.sizes or min(self.sizes) <= 0:
            raise UserError(f"sizes={self.sizes}: give millions of impressions, above 0, such as --sizes '[0.6, 6]'.")
        require_at_least(self, repeats=1)


def bench(config: Config, console: Console) -> list[Row]:
    """Measure every size and subject; subjects that are left out are reported on the console, with the reason."""
    rows: list[Row] = []
    ours: dict[str, float] = {}
    pandas_peak_per_row = 0.0
    with tempfile.TemporaryDirectory(dir=config.work or None, prefix="keyart-bench-") as folder:
        work = Path(folder)
        source = Path(config.dataset) if config.dataset else work / "service"
        if not config.dataset:
            console.print("bench prepare: simulates a service to copy members of")
            simulate(source, SimulateConfig())
        for millions in sorted(config.sizes):
            label = f"{millions:g} M"
            dataset = work / "dataset"
            count = copy_members(source, dataset, round(millions * 1e6))
            subjects = {
                OURS: python("keyart", "prepare", dataset, work / "keyart", "--memory", MEMORY),
                "floor": python("benchmarks.duckdb_floor", dataset, work / "floor"),
                "pandas": python("benchmarks.pandas_prepare", dataset, work / "pandas"),
            }
            free, needed = _free_memory(), pandas_peak_per_row * count
            if needed > 0.9 * free:
                console.print(
                    f"bench prepare: pandas at {label} left out: extrapolated from the former size it needs about "
                    f"{needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free"
                )
                del subjects["pandas"]
            results = _alternate(subjects, config.repeats if count <= 10_000_000 else 1, label, console)
            for subject, runs in results.items():
                seconds, peak = median(run.seconds for run in runs), median(run.peak_bytes for run in runs)
                rows += [
                    Row(benchmark=NAME, subject=subject, figure=f"time at {label}", unit="s", value=seconds),
                    Row(benchmark=NAME, subject=subject, figure=f"rate at {label}", unit="impressions/s", value=count / seconds),
                    Row(benchmark=NAME, subject=subject, figure=f"peak memory at {label}", unit="GB", value=peak / 1e9),
                ]  # fmt: skip
                if subject == "pandas":
                    pandas_peak_per_row = peak / count
                if subject == OURS:
                    ours[label] = seconds
            rows += _ratios(rows, label)
            since = _instant_of(dataset, 1 - NEW_DAY)
            arguments = ("--memory", MEMORY, "--like", work / "keyart", "--since", since)
            day = measure(python("keyart", "prepare", dataset, work / "day", *arguments))
            rows.append(_ours(f"one new day (newest 1 %) at {label}", "s", day.seconds))
            rows.append(_ours(f"one new day against the whole at {label}", "ratio", day.seconds / ours[label]))
            for name in ("dataset", "keyart", "day", "floor", "pandas"):
                shutil.rmtree(work / name, ignore_errors=True)
    labels = list(ours)
    for small, large in pairwise(labels):
        rows.append(_ours(f"growth of time, {small} to {large}", "ratio", ours[large] / ours[small]))
    return rows


def _ours(figure: str, unit: str, value: float) -> Row:
    return Row(benchmark=NAME, subject=OURS, figure=figure, unit=unit, value=value)


def _ratios(rows: Sequence[Row], label: str) -> list[Row]:
    """Ours against the others at one size: time and memory."""
    by = {(row.subject, row.figure): row.value for row in rows}
    results = [_ours(f"time against the floor at {label}", "ratio", _ratio_of(by, "floor", f"time at {label}"))]
    if ("pandas", f"time at {label}") in by:
        results.append(_ours(f"time against pandas at {label}", "ratio", _ratio_of(by, "pandas", f"time at {label}")))
        results.append(
            _ours(f"memory against pandas at {label}", "ratio", _ratio_of(by, "pandas", f"peak memory at {label}"))
        )
    return results


def _ratio_of(by: dict[tuple[str, str], float], other: str, figure: str) -> float:
    return by[OURS, figure] / by[other, figure]


def _alternate(
    subjects: dict[str, list[str]], repeats: int, label: str, console: Console
) -> dict[str, list[ProcessUsage]]:
    """Run every subject once, then every subject again; one that fails is left out, with a message."""
    results: dict[str, list[ProcessUsage]] = {subject: [] for subject in subjects}
    with progress_bar(console) as progress:
        task = progress.add_task(f"bench prepare at {label}", total=repeats * len(subjects))
        for _ in range(repeats):
            for subject, arguments in subjects.items():
                progress.update(task, description=f"bench prepare at {label}: {subject}")
                if subject in results:
                    try:
                        results[subject].append(measure(arguments))
                    except UserError as error:
                        if subject in (OURS, "floor"):
                            raise
                        console.print(f"bench prepare: {subject} at {label} left out: {error}")
                        del results[subject]
                progress.advance(task)
    return results


def _instant_of(dataset: Path, share: float) -> str:
    """The time before which this share of the impressions was shown, in ISO 8601."""
    times = pq.read_table([str(path) for path in IMPRESSIONS.files(dataset)], columns=["shown_at"])["shown_at"]
    (results,) = pc.quantile(times.cast("int64"), q=share, interpolation="higher").to_pylist()  # pyright: ignore
    return pc.cast(results, times.type).as_py().isoformat()  # pyright: ignore


def _free_memory() -> int:
    """Bytes of memory that a new process could use; a large number where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 2**62
