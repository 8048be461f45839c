"""Writes reduced graphs into a bundle where they keep their bounds on the run's own validation impressions."""

import shutil
from dataclasses import asdict
from pathlib import Path

import onnxruntime as ort
from rich.console import Console

from datamodules.shards.shard import Shards
from datamodules.shards.vocabulary import Vocabularies
from export.gates import measure
from foundation.errors import UserError
from serving.bundle.bundle import RANK_ROWS
from serving.bundle.example import largest_golden_difference
from serving.bundle.metadata import PrecisionRow
from serving.bundle.precision_bounds import BOUNDS, FULL_PRECISION, PRECISIONS, Precision
from serving.bundle.requests import RequestLengths
from serving.bundle.variants import finite_or_none, served_bytes, write_variant


def ship_variants(
    folder: Path,
    vocabularies: Vocabularies,
    lengths: RequestLengths,
    golden: float,
    validation: Shards | None,
    console: Console,
) -> list[PrecisionRow]:
    """Write the reduced graphs of a bundle that keep their bounds; a row of figures for float32 and for each of them.

    `golden`: float32's difference from torch on the golden cases. Without validation impressions nothing is measured and
    nothing ships. UserError where the shards have other ids than the bundle.
    """
    size = served_bytes(folder)
    full: PrecisionRow = {
        "precision": FULL_PRECISION,
        "ships": True,
        "reasons": [],
        "golden_difference": golden,
        "size_share": 1.0,
        "bytes": size,
    }
    if validation is None:
        return [full, *_unmeasured("not measured: no validation impressions were given")]
    for name, vocabulary in vocabularies.items():
        if list(validation.vocabularies[name].values) != list(vocabulary.values):
            raise UserError(f"{validation.folder}: its {name} are not those of the bundle. Give the run's own shards.")
    written: dict[Precision, Path] = {precision: write_variant(folder, precision) for precision in PRECISIONS}
    graphs = {FULL_PRECISION: _session(folder / RANK_ROWS)}
    graphs |= {str(precision): _session(graphs_folder / RANK_ROWS) for precision, graphs_folder in written.items()}
    figures = measure(graphs, validation, lengths)
    rows: list[PrecisionRow] = [{**full, **figures[FULL_PRECISION]} if figures else full]
    for precision, graphs_folder in written.items():
        (graphs_folder / RANK_ROWS).unlink()  # its weights are all rank.onnx's
        if not figures:
            shutil.rmtree(graphs_folder)
            continue
        row: PrecisionRow = {
            "precision": precision,
            "ships": False,
            "reasons": [],
            **figures[precision],
            "golden_difference": finite_or_none(largest_golden_difference(folder, precision)),
            "bytes": served_bytes(graphs_folder),
            "size_share": served_bytes(graphs_folder) / size,
            "bounds": asdict(BOUNDS[precision]),
        }
        row["reasons"] = BOUNDS[precision].violations(row)
        row["ships"] = not row["reasons"]
        rows.append(row)
        if row["ships"]:
            ending = f"ships, same choice {figures[precision]['same_choice']:.2%}"
        else:
            shutil.rmtree(graphs_folder)
            ending = f"does not ship: {'; '.join(row['reasons'])}"
        console.print(f"export: {precision}, {row['size_share']:.0%} of the bytes: {ending}")
    if not figures:
        rows += _unmeasured(f"not measured: {validation.folder} has no validation impression")
    return rows


def _unmeasured(reason: str) -> list[PrecisionRow]:
    return [
        {"precision": precision, "ships": False, "reasons": [reason], "bounds": asdict(BOUNDS[precision])}
        for precision in PRECISIONS
    ]


def _session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])
