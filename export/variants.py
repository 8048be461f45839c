"""Reduced graphs in a bundle: BUNDLE/fp16 and BUNDLE/int8, each with rank.onnx, member.onnx, choose.onnx and weights.bin.

They ask and answer as the graphs of the same names beside them. One ships only where it was measured on the run's own
validation impressions and kept every bound of `export.gates`; the record, the console and the card say what was measured.
"""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto
from rich.console import Console

from datamodules.contract import UserError
from datamodules.shards import Shards
from datamodules.vocabulary import Vocabularies
from export.bundle import RANK_ROWS
from export.example_of_bundle import worst_difference
from export.gates import AT_LEAST, BOUNDS, FULL, measure
from export.ids import WEIGHTS, read_graph, write_graphs
from export.precision import KINDS, Kind, reduced

SERVED = ("rank.onnx", "member.onnx", "choose.onnx")
FIGURES = ("largest_difference", "log_loss", "log_loss_change", "same_choice", "captured_lift", "snips_lift")


def write_variant(folder: Path, kind: Kind) -> Path:
    """Write a bundle's graphs in fewer bytes to `folder/kind`, over rows too, which is what the gates ask."""
    out = folder / kind
    out.mkdir()
    write_graphs({name: reduced(read_graph(folder / name), kind) for name in (*SERVED, RANK_ROWS)}, out)
    return out


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
    full = {"precision": FULL, "ships": True, "reasons": [], "golden_difference": golden, "size_share": 1.0}
    full["bytes"] = size = bytes_of(folder)
    if validation is None:
        return [full, *_unmeasured("not measured: no validation impressions were given")]
    for name, vocabulary in vocabularies.items():
        if list(validation.vocabularies[name].values) != list(vocabulary.values):
            raise UserError(f"{validation.folder}: its {name} are not those of the bundle. Give the run's own shards.")
    written: dict[Kind, Path] = {kind: write_variant(folder, kind) for kind in KINDS}
    graphs = {FULL: _session(folder / RANK_ROWS)}
    graphs |= {str(kind): _session(at / RANK_ROWS) for kind, at in written.items()}
    found = measure(graphs, validation, history_length)
    rows = [full | found.get(FULL, {})]
    for kind, at in written.items():
        (at / RANK_ROWS).unlink()  # its weights are all rank.onnx's
        if not found:
            shutil.rmtree(at)
            continue
        row = found[kind] | {"golden_difference": worst_difference(folder, kind), "bytes": bytes_of(at)}
        row["size_share"] = row["bytes"] / size
        reasons = BOUNDS[kind].broken(row)
        rows.append(
            {"precision": kind, "ships": not reasons, "reasons": reasons} | row | {"bounds": asdict(BOUNDS[kind])}
        )
        if reasons:
            shutil.rmtree(at)
        ending = f"does not ship: {'; '.join(reasons)}" if reasons else f"ships, same choice {row['same_choice']:.2%}"
        console.print(f"export: {kind}, {row['size_share']:.0%} of the bytes: {ending}")
    if not found:
        rows += _unmeasured(f"not measured: {validation.folder} has no validation impression")
    return [{name: _number(value) for name, value in row.items()} for row in rows]


def remake_variants(folder: Path, old: list[dict[str, Any]], golden: float, console: Console) -> list[dict[str, Any]]:
    """Make the reduced graphs that shipped anew from float32 graphs that gained rows; their record.

    A table is reduced row by row, so that old rows are the bits they were. What the log said of them stands; size and the
    golden cases are measured again, and a bound that is broken now withdraws the graphs.
    """
    rows, size = [], bytes_of(folder)
    for row in old:
        if row["precision"] == FULL:
            row = row | {"bytes": size, "golden_difference": golden}
        elif row["ships"]:
            at = write_variant(folder, row["precision"])
            (at / RANK_ROWS).unlink()
            row = row | {"golden_difference": worst_difference(folder, at.name), "bytes": bytes_of(at)}
            row["size_share"] = row["bytes"] / size
            reasons = BOUNDS[row["precision"]].broken(row)
            row |= {"ships": not reasons, "reasons": reasons}
            if reasons:
                shutil.rmtree(at)
                console.print(f"refresh: {at.name} ships no more: {'; '.join(reasons)}")
        rows.append(row)
    return [{name: _number(value) for name, value in row.items()} for row in rows]


def _unmeasured(reason: str) -> list[dict[str, Any]]:
    return [{"precision": kind, "ships": False, "reasons": [reason], "bounds": asdict(BOUNDS[kind])} for kind in KINDS]


def _number(value: Any) -> Any:
    """As JSON: what is no number is null."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def bytes_of(folder: Path) -> int:
    """Of the graphs that are served and what of the weights beside them they read, each once."""
    weights: dict[int, int] = {}
    for name in SERVED:
        for tensor in onnx.load(str(folder / name), load_external_data=False).graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                entry = {part.key: part.value for part in tensor.external_data}
                assert entry["location"] == WEIGHTS
                weights[int(entry["offset"])] = int(entry["length"])
    return sum((folder / name).stat().st_size for name in SERVED) + sum(weights.values())


def precisions_in_words(rows: list[dict[str, Any]]) -> list[str]:
    """The card's table: what each precision keeps of float32, and the bound of each figure."""
    names = (*FIGURES, "golden_difference", "size_share")
    lines = ["| precision | ships | " + " | ".join(name.replace("_", " ") for name in names) + " | MB |"]
    lines += ["|---|---|" + "---|" * (len(names) + 1)]
    for row in rows:
        cells = [_cell(name, row, row.get("bounds", {}).get(name)) for name in names]
        megabytes = f"{row['bytes'] / 1e6:.1f}" if "bytes" in row else "-"
        lines += [f"| {row['precision']} | {'yes' if row['ships'] else 'no'} | {' | '.join(cells)} | {megabytes} |"]
    lines += [f"- {row['precision']} does not ship: {'; '.join(row['reasons'])}" for row in rows if row["reasons"]]
    return lines


def _cell(name: str, row: dict[str, Any], bound: float | None) -> str:
    value = row.get(name)
    if value is None:
        return "-"
    if name in ("same_choice", "captured_lift", "size_share"):
        return f"{value:.2%}" + ("" if bound is None else f" ({'least' if name in AT_LEAST else 'most'} {bound:.0%})")
    plain = {"log_loss": f"{value:.5f}", "snips_lift": f"{value:+.2f}"}
    return plain.get(name, f"{value:.1e}" + ("" if bound is None else f" (most {bound:g})"))
