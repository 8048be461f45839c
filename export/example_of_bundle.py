"""How to ask this bundle: runs its golden cases and prints how far the answers are from the model's own.

Needs numpy and onnxruntime, nothing else: pip install numpy onnxruntime; python example.py
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort

IDS = {"history_title", "history_artwork", "country", "device", "title", "artworks"}
PADDING = {"history_title": "", "history_artwork": "", "history_watched": np.nan, "history_time": 0}


def array_of(name: str, value) -> np.ndarray:
    """A batch of one. Lists of a batch are padded to one length; an empty history is a play of padding and length 0."""
    listed = value or [PADDING[name]] if name in PADDING else value
    if name == "history_watched":  # null: not known
        return np.array([[np.nan if share is None else share for share in listed]], np.float32)
    return np.array([listed], object if name in IDS else np.int64)


def ask(session: ort.InferenceSession, request: dict) -> dict:
    """A graph's outputs by name."""
    names = [part.name for part in session.get_outputs()]
    given = {part.name: request[part.name] for part in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True))


def worst_difference(folder: Path, graphs: str = "") -> float:
    """Of the golden cases by rank.onnx, and by member.onnx and choose.onnx, which keep a member's vector in between.

    `graphs`: the bundle's own folder, or "fp16" or "int8" for those of fewer bytes, where the bundle has them.
    """
    at = folder / graphs
    rank, member, choose = (ort.InferenceSession(at / f"{name}.onnx") for name in ("rank", "member", "choose"))
    looks_back, worst = json.loads((folder / "bundle.json").read_text("utf-8"))["looks_back"], 0.0
    for line in (
        (folder / "golden.jsonl").read_text("utf-8").strip("\n").split("\n")
    ):  # not splitlines, which cuts ids too
        case = json.loads(line)
        request = {name: array_of(name, value) for name, value in case["request"].items()}
        at_once = ask(rank, request)
        recent = case["request"]["history_title"][-looks_back:]
        request["played_before"] = np.array([case["request"]["title"] in recent])
        in_two = ask(choose, request | ask(member, request))
        for name, value in case["answer"].items():
            for answer in (at_once, in_two):
                apart = float(np.abs(answer[name][0] - value).max())
                worst = max(worst, np.inf if np.isnan(apart) else apart)
    return worst


if __name__ == "__main__":
    print(f"max_abs_difference={worst_difference(Path(__file__).parent):.2e}")
