"""Shared by `keyart bench feed` and `keyart bench train`: shards to measure on, and subjects that take turns, each in a
process of its own; torch-rechub in an environment of its own too, because of its pinned dependencies.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console

from benchmarks.impression_rows import ImpressionRows, write_for_torch_rechub
from benchmarks.ranges import require_at_least
from benchmarks.subprocess_usage import ProcessUsage, measure
from benchmarks.table import OURS, Row
from datamodules.prepare.prepare import prepare
from datamodules.shards.shard import Shards
from datamodules.simulator.simulate import SimulateConfig, simulate
from foundation.errors import UserError
from foundation.progress import progress_bar
from train.embed import EmbedConfig, embed, load_embedding

MATERIALISED, PEER = "per-impression", "torch-rechub"
PEER_VERSION = "torch-rechub==0.9.0"
PEER_FILE = "materialised.npz"
SERVICE = SimulateConfig(members=5000, mean_plays=60.0)


@dataclass(frozen=True, kw_only=True)
class SideBySideConfig:
    """Options of both benchmarks."""

    shards: str = ""
    """Shards with embedded artworks; default: those of a simulated service."""
    batch: int = 8192
    """Impressions per batch, for every subject."""
    plays: int = 50
    """Plays of a history, at most."""
    width: int = 64
    """Length of both models' vectors."""
    repeats: int = 3
    """Runs of each subject, of which the median is reported."""
    impressions: int = 100_000
    """Impressions that each subject is timed on; the feed reads a whole epoch."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_at_least(self, batch=1, plays=1, width=1, repeats=1, impressions=1)


@contextmanager
def measured_shards(config: SideBySideConfig, name: str, console: Console) -> Iterator[tuple[Path, Path]]:
    """The shards to measure on, and a folder for other files, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="keyart-bench-") as folder:
        work = Path(folder)
        shards = Path(config.shards) if config.shards else work / "shards"
        if not config.shards:
            console.print(f"bench {name}: simulates a service of {SERVICE.members:,} members to measure on")
            quiet = Console(quiet=True)
            simulate(work / "service", SERVICE)
            prepare(work / "service", shards, console=quiet)
            embed(work / "service", shards, EmbedConfig(views=640), console=quiet)
            shutil.rmtree(work / "service")
        yield shards, work


def materialise(shards: Path, work: Path, config: SideBySideConfig) -> None:
    """Write the rows for torch-rechub."""
    opened, (embedding, _) = Shards.open(shards), load_embedding(shards)
    rows = ImpressionRows.of(opened, config.plays, config.impressions)
    write_for_torch_rechub(rows, opened, embedding.numpy(), work / PEER_FILE)


def our_command(what: str, subject: str, shards: Path, work: Path, config: SideBySideConfig, *more: str) -> list[str]:
    """The command line of a subject in this environment."""
    numbers = [str(n) for n in (config.batch, config.plays, config.width, config.impressions)]
    arguments = [
        "-P",
        "-m",
        "benchmarks.subject",
        str(shards),
        str(work / "results.json"),
        what,
        subject,
        *numbers,
        *more,
    ]
    return [sys.executable, *arguments]


def peer_command(what: str, work: Path, config: SideBySideConfig) -> list[str]:
    """The command line of torch-rechub."""
    uv = shutil.which("uv")
    if uv is None:
        raise UserError(f"uv: is not installed, and {PEER} needs an environment made by it. Run pip install uv.")
    script = Path(__file__).with_name("rechub_train.py")
    arguments = ["run", "--quiet", "--isolated", "--no-project", "--with", PEER_VERSION, "python", "-P", str(script)]
    numbers = [str(config.batch), str(config.width)]
    return [uv, *arguments, str(work / PEER_FILE), str(work / "results.json"), what, *numbers]


def alternate(
    name: str, subjects: dict[str, list[str]], repeats: int, work: Path, console: Console
) -> dict[str, list[tuple[dict[str, float], ProcessUsage]]]:
    """Run every subject once, then every subject again; returns each run's own figures and its process's usage.

    A peer that fails is left out, with a message.
    """
    results: dict[str, list[tuple[dict[str, float], ProcessUsage]]] = {subject: [] for subject in subjects}
    with progress_bar(console) as progress:
        task = progress.add_task(f"bench {name}", total=repeats * len(subjects))
        for _ in range(repeats):
            for subject, arguments in subjects.items():
                progress.update(task, description=f"bench {name}: {subject}")
                if subject in results:
                    try:
                        usage = measure(arguments)
                        results[subject].append(
                            (json.loads((work / "results.json").read_text(encoding="utf-8")), usage)
                        )
                    except UserError as error:
                        if subject != PEER:
                            raise
                        console.print(f"bench {name}: {subject} left out: {error}")
                        del results[subject]
                progress.advance(task)
    return results


def rates(name: str, figure: str, results: dict[str, list[tuple[dict[str, float], ProcessUsage]]]) -> list[Row]:
    """Rate and peak memory of each subject, and the ratio of keyart's rate to each other's."""
    rows, rate = [], {}
    for subject, runs in results.items():
        rate[subject] = median(report["impressions"] / report["seconds"] for report, _ in runs)
        peak = median(usage.peak_bytes for _, usage in runs)
        rows += [
            Row(benchmark=name, subject=subject, figure=figure, unit="impressions/s", value=rate[subject]),
            Row(benchmark=name, subject=subject, figure=f"{figure}, peak memory", unit="GB", value=peak / 1e9),
        ]
    for subject, value in rate.items():
        if subject != OURS:
            times = rate[OURS] / value
            rows.append(Row(benchmark=name, subject=OURS, figure=f"times {subject}", unit="ratio", value=times))
    return rows


def reported_rows(
    name: str, figures: dict[str, tuple[str, str]], results: dict[str, list[tuple[dict[str, float], ProcessUsage]]]
) -> list[Row]:
    """Rows of the further figures of keyart's subject; `figures`: key -> (figure, unit)."""
    runs = results[OURS]
    scale = {key: 100 if unit == "%" else 1 for key, (_, unit) in figures.items()}
    return [
        Row(
            benchmark=name,
            subject=OURS,
            figure=figure,
            unit=unit,
            value=scale[key] * median(report[key] for report, _ in runs),
        )
        for key, (figure, unit) in figures.items()
        if key in runs[0][0]
    ]
