"""`keyart drift`: a bundle and a newer log -> what has changed since the bundle's validation period, without torch.

In: a bundle with reference histograms, and a dataset by the contract. Out: a table, and a record for a JSON file.
"""

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NotRequired, TypedDict

import numpy as np
from rich.console import Console
from rich.table import Table as TextTable
from rich.text import Text

from datamodules.contract.check import require_valid
from datamodules.contract.engines import open_engine
from datamodules.contract.tables import tables_with
from datamodules.prepare.prepare import prepare
from datamodules.shards.shard import Shard
from foundation.atomic import atomic_file
from foundation.errors import UserError
from foundation.machine import available_cores
from foundation.output_path import require_file
from serving.bundle.bundle import Bundle
from serving.bundle.metadata import BUNDLE_FILE, ReferenceHistogram
from serving.bundle.reference import BOUNDS
from serving.scoring.drift import FALSE_ALARMS, Comparison, Verdict, compare, names_of_drift
from serving.scoring.drift_counts import SEED, Counted, observe, sampled

DRIFT_VERSION = 1
"""Version of the record; raised when its content changes its meaning."""


class MoveRecord(TypedDict):
    """A bin and its shares: see `serving.scoring.drift.Move`."""

    low: float | None
    high: float | None
    share: float
    reference: float


class ComparisonRecord(TypedDict):
    """A histogram of the log beside the reference: see `serving.scoring.drift.Comparison`; `words` says what moved."""

    verdict: Verdict
    psi: float | None
    limit: float | None
    words: str
    moved: list[MoveRecord]
    log: ReferenceHistogram
    reference: ReferenceHistogram


class DriftRecord(TypedDict):
    """What `keyart drift` writes: `drift` names the histograms that changed, out of `histograms`."""

    schema_version: int
    bundle: str
    dataset: str
    since: str
    impressions: int
    sampled_from: int
    seed: int
    reference_impressions: int
    reference_sampled_from: int
    false_alarms: float
    drift: list[str]
    histograms: dict[str, ComparisonRecord]
    refreshed_since: NotRequired[list[str]]
    """When the bundle was refreshed after its reference was counted."""


def drift(bundle: Bundle, dataset: Path, since: datetime | None, console: Console) -> DriftRecord:
    """Compare at most MAX_IMPRESSIONS of the impressions shown at or after `since` (default: the bundle's test_from) with the
    bundle's reference; UserError where it has none, the dataset breaks the contract, or no impression is as new."""
    reference = bundle.metadata.get("reference")
    if reference is None:
        raise UserError(
            f"{bundle.folder / BUNDLE_FILE}: has no reference histograms: the run was exported without its shards. Export it "
            "where they are."
        )
    since = since or bundle.test_from
    with TemporaryDirectory(prefix="keyart-drift-") as work, open_engine() as engine:
        tables = tables_with(bundle.context)
        require_valid(dataset, images=False, console=console, engine=engine, tables=tables)
        folder = Path(work) / "shards"
        manifest = prepare(
            dataset,
            folder,
            vocabularies=bundle.vocabularies,
            features=bundle.context,
            since=since,
            engine=engine,
            console=console,
        )
        shards = [Shard.open(folder / f"shard-{index:05d}", bundle.context) for index in range(manifest["shards"])]
        observations = observe(bundle, shards, sampled([np.arange(shard.impressions) for shard in shards]))
    logged, histograms = observations.counted(), reference["histograms"]
    expected = {name: Counted.of_reference(histogram) for name, histogram in histograms.items()}
    comparisons = compare(BOUNDS, expected, logged)
    record: DriftRecord = {
        "schema_version": DRIFT_VERSION,
        "bundle": bundle.digest,
        "dataset": str(dataset),
        "since": since.isoformat(),
        "impressions": observations.impressions,
        "sampled_from": manifest["impressions"],
        "seed": SEED,
        "reference_impressions": reference["impressions"],
        "reference_sampled_from": reference["sampled_from"],
        "false_alarms": FALSE_ALARMS,
        "drift": names_of_drift(comparisons),
        "histograms": {one.name: _compared(one, logged[one.name], histograms[one.name]) for one in comparisons},
    }
    if refreshed := bundle.metadata.get("refreshed"):
        record["refreshed_since"] = [one["at"] for one in refreshed]
    return record


def drift_of_log(
    bundle: Path, dataset: Path, since: datetime | None, json_file: Path | None, console: Console
) -> DriftRecord:
    """`drift` of a bundle's folder; the record is written to `json_file` too, which is refused before any work."""
    if json_file is not None:
        require_file(json_file)
    record = drift(Bundle.open(bundle, threads=available_cores()), dataset, since, console)
    if json_file is not None:
        with atomic_file(json_file) as partial:
            partial.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return record


def _compared(comparison: Comparison, logged: Counted, reference: ReferenceHistogram) -> ComparisonRecord:
    return {
        "verdict": comparison.verdict,
        "psi": comparison.psi,
        "limit": comparison.limit,
        "words": comparison.words(),
        "moved": [MoveRecord(**asdict(move)) for move in comparison.moved],
        "log": {
            "bounds": list(BOUNDS[comparison.name]),
            "counts": logged.counts.tolist(),
            "design_effect": logged.design_effect,
            "effect_spread": logged.effect_spread,
        },
        "reference": reference,
    }


def print_drift(record: DriftRecord, console: Console) -> None:
    """One table of all histograms; then a line per histogram that drifted, or one that none did."""
    counted, of = record["impressions"], record["sampled_from"]
    sample = f"{counted:,} impressions" if counted == of else f"{counted:,} of {of:,} impressions"
    since = f"since {record['since'][:16].replace('T', ' ')}"
    expected = f"{record['reference_impressions']:,} of the bundle's validation"
    table = TextTable(title=Text(f"{sample} {since} beside {expected}"), title_justify="left")
    table.add_column("histogram")
    for heading in ("values", "PSI", "limit"):
        table.add_column(heading, justify="right")
    table.add_column("drift")
    for name, row in record["histograms"].items():
        figures = ("" if value is None else f"{value:.3f}" for value in (row["psi"], row["limit"]))
        table.add_row(name, f"{sum(row['log']['counts']):,}", *figures, row["verdict"])
    console.print(table)
    for name in record["drift"]:
        row = record["histograms"][name]
        console.print(Text(f"warning {row['verdict']} drift of {row['words']}"), soft_wrap=True)
    if not record["drift"]:
        console.print(Text("no drift beyond the noise of the samples"))
