"""Golden cases: requests in ids with the answers that torch gave, for every language that runs the bundle.

One JSON line a case: `request` in the names of the graph's inputs, `answer` in those of its outputs. Among them: no history,
the longest, a history of plays whose artwork or share watched is not known, ids nobody knows, one candidate and forty,
every device and country, places that are not known.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.shards.vocabulary import Vocabularies
from serving.bundle.ids import VOCABULARY_OF

AnswerFunction = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
"""A request over rows -> what a bundle answers, each output of batch 1."""

CASES = 240
UNKNOWN_ID = "known to nobody"
PLAYS = (0, 1, 3, 20, 50)
CANDIDATES = (1, 2, 4, 5, 7, 20, 40)


def golden_cases(
    answer: AnswerFunction,
    vocabularies: Vocabularies,
    longest: int,
    *,
    sampled_from: Vocabularies | None = None,
    cases: int = CASES,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Every case, answered from the rows of its ids. `drawn`: the ids that requests are made of; default: all."""
    rng = np.random.default_rng(seed)
    for case in range(cases):
        plays = longest if case % 12 == 5 else PLAYS[case % len(PLAYS)]
        request = _request(rng, sampled_from or vocabularies, plays, CANDIDATES[case % len(CANDIDATES)], case)
        yield make_case(request, answer, vocabularies)


def make_case(request: dict[str, Any], answer: AnswerFunction, vocabularies: Vocabularies) -> dict[str, Any]:
    """A request in plain values with its answer."""
    rows = {
        name: _rows(values, vocabularies[VOCABULARY_OF[name]]) if name in VOCABULARY_OF else values
        for name, values in as_arrays(request).items()
    }
    return {"request": request, "answer": {name: value[0].tolist() for name, value in answer(rows).items()}}


def _request(
    rng: np.random.Generator, vocabularies: Vocabularies, plays: int, candidates: int, case: int
) -> dict[str, Any]:
    """One request in plain values: ids, numbers, and None for a share watched that is not known."""

    def ids(name: str, count: int, empty: float = 0.0) -> list[str]:
        values = vocabularies[name].values or [UNKNOWN_ID]
        sampled = [values[index] for index in rng.integers(0, len(values), count)]
        uniform = rng.random(count)
        return [
            "" if share < empty else UNKNOWN_ID if share > 0.97 else value
            for value, share in zip(sampled, uniform, strict=True)
        ]

    def in_turn(name: str) -> str:
        values = [*vocabularies[name].values, UNKNOWN_ID]
        return values[case % len(values)]

    watched = [None if share < 0.2 else round(float(share), 4) for share in rng.random(plays)]
    return {
        "history_title": ids("titles", plays),
        "history_artwork": ids("artworks", plays, 0.4),
        "history_watched": watched,
        "history_length": plays,
        "country": in_turn("countries"),
        "device": in_turn("devices"),
        "hour": case % 24,
        "row": int(rng.integers(-1, 40)),
        "column": int(rng.integers(-1, 40)),
        "play_count": plays + int(rng.integers(0, 500)) * (case % 3),
        "title": ids("titles", 1)[0],
        "artworks": ids("artworks", candidates),
    }


def as_arrays(request: dict[str, Any]) -> dict[str, np.ndarray]:
    """One request as the graph's inputs, of batch 1; an empty history is one play of padding and length 0."""
    empty = {"history_title": "", "history_artwork": "", "history_watched": None}
    arrays = {}
    for name, value in request.items():
        listed = value or [empty[name]] if name in empty else value
        if name == "history_watched":
            arrays[name] = np.array([[np.nan if share is None else share for share in listed]], np.float32)
        else:
            arrays[name] = np.array([listed], object if name in VOCABULARY_OF else np.int64)
    return arrays


def _rows(values: np.ndarray, vocabulary: Any) -> np.ndarray:
    row_of = {value: row for row, value in enumerate(vocabulary.values, start=1)}
    return np.vectorize(lambda value: row_of.get(value, 0), otypes=[np.int64])(values)


def write_golden(cases: Iterator[dict[str, Any]], path: Path) -> int:
    """Write the cases; returns how many."""
    lines = [json.dumps(case, ensure_ascii=False) for case in cases]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)
