"""Reduced graphs written into a bundle where the run's own validation impressions say that choices stay the same."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnxruntime as ort
from rich.console import Console

from datamodules.shards.shard import Shards
from datamodules.shards.vocabulary import Vocabularies
from export.gates import measure
from foundation.errors import UserError
from serving.bundle.bundle import RANK_ROWS
from serving.bundle.example import largest_golden_difference
from serving.bundle.precision import PRECISIONS, Precision
from serving.bundle.precision_bounds import BOUNDS, FULL_PRECISION
from serving.bundle.variants import json_number, served_bytes, write_variant


def ship_variants(
    folder: Path,
    vocabularies: Vocabularies,
    history_length: int,
    golden: float,
    validation: Shards | None,
    console: Console,
) -> list[dict[str, Any]]:
    """Write the reduced graphs of a bundle that keep their bounds; a row of figures for float32 and for each of them.

    `golden`: what float32 differs from torch by on the golden cases. Where there is no validation impression, nothing is
    measured and nothing ships. UserError where the shards are of other ids than the bundle.
    """
    full = {"precision": FULL_PRECISION, "ships": True, "reasons": [], "golden_difference": golden, "size_share": 1.0}
    full["bytes"] = size = served_bytes(folder)
    if validation is None:
        return [full, *_unmeasured("not measured: no validation impressions were given")]
    for name, vocabulary in vocabularies.items():
        if list(validation.vocabularies[name].values) != list(vocabulary.values):
            raise UserError(f"{validation.folder}: its {name} are not those of the bundle. Give the run's own shards.")
    written: dict[Precision, Path] = {precision: write_variant(folder, precision) for precision in PRECISIONS}
    graphs = {FULL_PRECISION: _session(folder / RANK_ROWS)}
    graphs |= {str(precision): _session(graphs_folder / RANK_ROWS) for precision, graphs_folder in written.items()}
    figures = measure(graphs, validation, history_length)
    rows = [full | figures.get(FULL_PRECISION, {})]
    for precision, graphs_folder in written.items():
        (graphs_folder / RANK_ROWS).unlink()  # its weights are all rank.onnx's
        if not figures:
            shutil.rmtree(graphs_folder)
            continue
        row = figures[precision] | {
            "golden_difference": largest_golden_difference(folder, precision),
            "bytes": served_bytes(graphs_folder),
        }
        row["size_share"] = row["bytes"] / size
        reasons = BOUNDS[precision].violations(row)
        rows.append(
            {"precision": precision, "ships": not reasons, "reasons": reasons}
            | row
            | {"bounds": asdict(BOUNDS[precision])}
        )
        if reasons:
            shutil.rmtree(graphs_folder)
        ending = f"does not ship: {'; '.join(reasons)}" if reasons else f"ships, same choice {row['same_choice']:.2%}"
        console.print(f"export: {precision}, {row['size_share']:.0%} of the bytes: {ending}")
    if not figures:
        rows += _unmeasured(f"not measured: {validation.folder} has no validation impression")
    return [{name: json_number(value) for name, value in row.items()} for row in rows]


def _unmeasured(reason: str) -> list[dict[str, Any]]:
    return [
        {"precision": precision, "ships": False, "reasons": [reason], "bounds": asdict(BOUNDS[precision])}
        for precision in PRECISIONS
    ]


def _session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])
