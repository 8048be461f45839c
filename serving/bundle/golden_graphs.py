"""Golden cases of every graph but rank.onnx, member.onnx and choose.onnx, which `serving.bundle.golden` has: one graph a case.

In: a bundle's graphs, and a few of its golden requests. Out: `golden_graphs.jsonl`, a JSON line a case: `graph`, `inputs` and
`outputs` by name, null for a number that is not finite. The answers are ONNX Runtime's where the bundle was made; that they are
torch's is measured at export (`export.parity`), and on every machine these cases tell whether its ONNX Runtime agrees.

Legend: N requests (1), K candidates, L list length.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort

from datamodules.shards.vocabulary import Vocabularies
from serving.bundle.bundle import GOLDEN, GOLDEN_GRAPHS
from serving.bundle.example import run_graph, to_arrays
from serving.bundle.golden import rows_of
from serving.bundle.ids import vocabulary_of
from serving.bundle.metadata import BundleRecord

REQUESTS = 4
MOST_PLAYS, MOST_CANDIDATES = 20, 7
"""Requests taken have a choice, and no more than these plays and candidates, so that the file stays small."""
NUDGE = 1e-4
"""Appeals are moved by so much to see whether a choice among draws is close: one that other rounding could turn is left out."""
TWO_STEPS = ("rank.onnx", "member.onnx", "choose.onnx")


def write_graph_cases(folder: Path, record: BundleRecord, vocabularies: Vocabularies) -> int:
    """Write the cases of a bundle whose graphs and golden cases are written; returns how many."""
    lines = [json.dumps(case, ensure_ascii=False) for case in _cases(folder, record, vocabularies)]
    (folder / GOLDEN_GRAPHS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


def _cases(folder: Path, record: BundleRecord, vocabularies: Vocabularies) -> Iterator[dict[str, object]]:
    sessions = {name: ort.InferenceSession(folder / name) for name in record["graphs"]}
    dtypes = {part["name"]: part["dtype"] for part in record["graphs"]["rank.onnx"]["inputs"]}
    taken = 0
    for line in (folder / GOLDEN).read_text("utf-8").strip("\n").split("\n"):
        request = json.loads(line)["request"]
        if not 0 < len(request["history_title"]) <= MOST_PLAYS or not 1 < len(request["artworks"]) <= MOST_CANDIDATES:
            continue
        by_name = _inputs(sessions, to_arrays(request, dtypes), vocabularies, taken)
        if _is_close(sessions["explore.onnx"], by_name):
            continue
        rows = {name: _in_rows(name, values, vocabularies) for name, values in by_name.items()}
        for name in sorted(set(sessions) - set(TWO_STEPS)):
            given = rows if name.endswith("_rows.onnx") else by_name
            inputs = {part.name: given[part.name] for part in sessions[name].get_inputs()}
            outputs = run_graph(sessions[name], inputs)
            yield {"graph": name, "inputs": _plain(inputs), "outputs": _plain(outputs)}
        taken += 1
        if taken == REQUESTS:
            return


def _inputs(
    sessions: dict[str, ort.InferenceSession], request: dict[str, np.ndarray], vocabularies: Vocabularies, seed: int
) -> dict[str, np.ndarray]:
    """A value for every input of every graph over ids, by name, of batch 1: the request's own, what rank.onnx and member.onnx make
    of it, and random images, vectors and words."""
    rng = np.random.default_rng(seed)
    played_before = np.array([request["title"][0] in request["history_title"][0]])
    given = request | run_graph(sessions["rank.onnx"], request) | run_graph(sessions["member.onnx"], request)
    given |= {"played_before": played_before, "played": request["history_title"], "top": np.array([5])}
    given |= {"artwork": request["artworks"][:, 0], "clicked": np.array([seed % 2], np.float32)}
    given |= {"candidates": np.array([request["artworks"].shape[1]]), "seed": np.array([seed])}
    for part in (part for session in sessions.values() for part in session.get_inputs()):
        if part.name in given:
            continue
        if part.name == "image":
            given["image"] = rng.integers(0, 256, (1, 24, 16, 3), np.uint8)
        elif part.name in ("genres", "cast", "depicts"):
            names = {"genres": ("genres",), "cast": ("people",), "depicts": ("people", "genres")}[part.name]
            words = [word for name in names for word in vocabularies[name].values] or [""]
            given[part.name] = np.array([[*rng.choice(words, 3), ""]], object)
        elif part.name == "release_year":
            given["release_year"] = np.array([1987.0 + seed], np.float32)
        else:  # vectors, of artworks by candidate or of the user's own
            shape = [size if isinstance(size, int) else 1 for size in part.shape]
            if len(shape) > 1 and not isinstance(part.shape[1], int):
                shape[1] = request["artworks"].shape[1]
            given[part.name] = (0.1 * rng.standard_normal(shape)).astype(np.float32)
    return given


def _is_close(explore: ort.InferenceSession, given: dict[str, np.ndarray]) -> bool:
    """Whether some draw's best candidate depends on differences that rounding makes."""
    nudges = np.where(np.arange(given["appeal"].shape[1]) % 2, NUDGE, -NUDGE).astype(np.float32)
    policies = [
        run_graph(explore, given | {"appeal": given["appeal"] + nudge})["policy"] for nudge in (0, nudges, -nudges)
    ]
    return not all(np.array_equal(policies[0], policy) for policy in policies[1:])


def _in_rows(name: str, values: np.ndarray, vocabularies: Vocabularies) -> np.ndarray:
    vocabulary = vocabulary_of(name, vocabularies) if values.dtype == object else None
    return values if vocabulary is None else rows_of(values, vocabulary)


def _plain(arrays: dict[str, np.ndarray]) -> dict[str, object]:
    """As JSON values."""

    def finite(value: object) -> object:
        if isinstance(value, list):
            return [finite(part) for part in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    return {name: finite(np.asarray(values).tolist()) for name, values in arrays.items()}
