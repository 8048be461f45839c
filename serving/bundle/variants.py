"""Reduced graphs in a bundle: BUNDLE/fp16 and BUNDLE/int8, each with rank.onnx, member.onnx, choose.onnx and weights.bin.

They have the inputs and outputs of the full graphs of the same names. A precision ships only where it was measured on the run's
own validation impressions and kept every bound of `export.gates`; record, console and card report the measurements.
"""

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto
from rich.console import Console

from serving.bundle.bundle import RANK_ROWS
from serving.bundle.example import largest_golden_difference
from serving.bundle.ids import WEIGHTS, read_graph, write_graphs
from serving.bundle.metadata import PrecisionRow
from serving.bundle.precision import reduce_graph
from serving.bundle.precision_bounds import BOUNDS, FULL_PRECISION, LOWER_BOUNDED, PRECISIONS, Precision

SERVED_GRAPHS = ("rank.onnx", "member.onnx", "choose.onnx")
FIGURES = ("largest_difference", "log_loss", "log_loss_change", "same_choice", "captured_lift", "snips_lift")


def write_variant(folder: Path, precision: Precision) -> Path:
    """Write a bundle's graphs in a precision to a subfolder of its name, over rows too, which the gates run; returns it."""
    out = folder / precision
    out.mkdir()
    write_graphs(
        {name: reduce_graph(read_graph(folder / name), precision) for name in (*SERVED_GRAPHS, RANK_ROWS)}, out
    )
    return out


def rebuild_variants(folder: Path, old: list[PrecisionRow], golden: float, console: Console) -> list[PrecisionRow]:
    """Rebuild the shipped reduced graphs from float32 graphs that gained rows; returns their record.

    A table is reduced row by row, so that old rows keep their bits. Measurements on the log are kept; size and the golden
    cases are measured again, and graphs that now break a bound are removed.
    """
    rows: list[PrecisionRow] = [{**row} for row in old]
    size = served_bytes(folder)
    by_name = {row["precision"]: row for row in rows}
    by_name[FULL_PRECISION]["bytes"] = size
    by_name[FULL_PRECISION]["golden_difference"] = golden
    for precision in PRECISIONS:
        row = by_name[precision]
        if row["ships"]:
            graphs_folder = write_variant(folder, precision)
            (graphs_folder / RANK_ROWS).unlink()
            row["golden_difference"] = finite_or_none(largest_golden_difference(folder, precision))
            row["bytes"] = served_bytes(graphs_folder)
            row["size_share"] = row["bytes"] / size
            row["reasons"] = BOUNDS[precision].violations(row)
            row["ships"] = not row["reasons"]
            if row["reasons"]:
                shutil.rmtree(graphs_folder)
                console.print(f"refresh: {graphs_folder.name} ships no more: {'; '.join(row['reasons'])}")
    return rows


def finite_or_none(number: float) -> float | None:
    """The number as a JSON value: None where it is infinite or NaN."""
    return number if np.isfinite(number) else None


def served_bytes(folder: Path) -> int:
    """Bytes of the served graphs and of the weights they read, each counted once."""
    weights: dict[int, int] = {}
    for name in SERVED_GRAPHS:
        for tensor in onnx.load(str(folder / name), load_external_data=False).graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                entry = {part.key: part.value for part in tensor.external_data}
                assert entry["location"] == WEIGHTS
                weights[int(entry["offset"])] = int(entry["length"])
    return sum((folder / name).stat().st_size for name in SERVED_GRAPHS) + sum(weights.values())


def precision_table(rows: list[PrecisionRow]) -> list[str]:
    """The card's table of each precision's figures against float32, with the bound of each figure."""
    names = (*FIGURES, "golden_difference", "size_share")
    lines = ["| precision | ships | " + " | ".join(name.replace("_", " ") for name in names) + " | MB |"]
    lines += ["|---|---|" + "---|" * (len(names) + 1)]
    for row in rows:
        cells = [_cell(name, row, row.get("bounds", {}).get(name)) for name in names]
        megabytes = f"{row['bytes'] / 1e6:.1f}" if "bytes" in row else "-"
        lines += [f"| {row['precision']} | {'yes' if row['ships'] else 'no'} | {' | '.join(cells)} | {megabytes} |"]
    lines += [f"- {row['precision']} does not ship: {'; '.join(row['reasons'])}" for row in rows if row["reasons"]]
    return lines


def _cell(name: str, row: PrecisionRow, bound: float | None) -> str:
    value = row.get(name)
    if value is None:
        return "-"
    if name in ("same_choice", "captured_lift", "size_share"):
        return f"{value:.2%}" + (
            "" if bound is None else f" ({'least' if name in LOWER_BOUNDED else 'most'} {bound:.0%})"
        )
    plain = {"log_loss": f"{value:.5f}", "snips_lift": f"{value:+.2f}"}
    return plain.get(name, f"{value:.1e}" + ("" if bound is None else f" (most {bound:g})"))
