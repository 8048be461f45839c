"""How to run this bundle: runs its golden cases and prints the largest difference from the model's own answers.

Needs numpy and onnxruntime, nothing else: pip install numpy onnxruntime; python example.py
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort

PADDING = {"history_title": "", "history_artwork": "", "history_watched": None}


def to_arrays(request: dict, dtypes: dict) -> dict:
    """A batch of one request. Lists are padded to one length: an empty history is one play of padding. null: not known."""
    arrays = {}
    for name, value in request.items():
        listed = value or [PADDING[name]] if name in PADDING else value
        known = [np.nan if entry is None else entry for entry in (listed if isinstance(listed, list) else [listed])]
        kind = dtypes.get(name, "float32")  # of an input that is not read
        arrays[name] = np.array(known, object if kind == "string" else kind).reshape(1, *np.shape(listed))
    return arrays


def run_graph(session: ort.InferenceSession, request: dict) -> dict:
    """A graph's outputs by name."""
    names = [part.name for part in session.get_outputs()]
    feeds = {part.name: request[part.name] for part in session.get_inputs()}
    return dict(zip(names, session.run(names, feeds), strict=True))


def largest_golden_difference(folder: Path, graphs: str = "") -> float:
    """Largest difference of the golden cases, by rank.onnx, and by member.onnx followed by choose.onnx.

    `graphs`: "" for the bundle's own folder, or "fp16" or "int8" for the reduced-precision graphs, where the bundle has them.
    """
    names = ("rank", "member", "choose")
    rank, member, choose = (ort.InferenceSession(folder / graphs / f"{name}.onnx") for name in names)
    record, worst = json.loads((folder / "bundle.json").read_text("utf-8")), 0.0
    dtypes = {part["name"]: part["dtype"] for part in record["graphs"]["rank.onnx"]["inputs"]}
    for line in (
        (folder / "golden.jsonl").read_text("utf-8").strip("\n").split("\n")
    ):  # not splitlines, which cuts ids too
        case = json.loads(line)
        request = to_arrays(case["request"], dtypes)
        at_once = run_graph(rank, request)
        recent = case["request"]["history_title"][-record["history_span"] :]
        request["played_before"] = np.array([case["request"]["title"] in recent])
        in_two = run_graph(choose, request | run_graph(member, request))
        for name, value in case["answer"].items():
            for answer in (at_once, in_two):
                difference = float(np.abs(answer[name][0] - value).max())
                worst = max(worst, np.inf if np.isnan(difference) else difference)
    return worst


def largest_graph_difference(folder: Path) -> float:
    """Largest difference of the outputs of each other graph, relative to those above 1; ids and whole numbers must be the same."""
    graphs, worst = json.loads((folder / "bundle.json").read_text("utf-8"))["graphs"], 0.0
    sessions = {}
    for line in (folder / "golden_graphs.jsonl").read_text("utf-8").strip("\n").split("\n"):
        case = json.loads(line)
        dtypes = {part["name"]: part["dtype"] for part in graphs[case["graph"]]["inputs"]}
        kinds = {name: object if dtype == "string" else dtype for name, dtype in dtypes.items()}
        feeds = {name: np.array(value, kinds[name]) for name, value in case["inputs"].items()}
        if case["graph"] not in sessions:
            sessions[case["graph"]] = ort.InferenceSession(folder / case["graph"])
        for name, answer in run_graph(sessions[case["graph"]], feeds).items():
            if answer.dtype != np.float32:
                worst = worst if answer.tolist() == case["outputs"][name] else np.inf
                continue
            expected = np.array(case["outputs"][name], np.float32)  # null becomes NaN
            expected = expected if expected.size or answer.size else answer  # JSON has no shape of what is empty
            finite = np.isfinite(answer)
            if answer.shape != expected.shape or not np.array_equal(finite, np.isfinite(expected)):
                return np.inf
            apart = np.abs(answer - expected) / np.maximum(1, np.abs(expected))
            worst = max(worst, float(apart[finite].max(initial=0)))
    return worst


if __name__ == "__main__":
    print(f"max_abs_difference={largest_golden_difference(Path(__file__).parent):.2e}")
    print(f"of the other graphs, relative={largest_graph_difference(Path(__file__).parent):.2e}")
