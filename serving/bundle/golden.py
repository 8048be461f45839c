"""Golden cases: requests in ids with the answers that torch gave, for every language that runs the bundle.

One JSON line a case: `request` in the names of the graph's inputs, `answer` in those of its outputs. Among them: no history,
the longest, a history of plays whose artwork or share watched is not known, unknown ids, one candidate and forty,
every device and country, positions that are not known.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.shards.vocabulary import Vocabularies, Vocabulary
from foundation.context import HOURS, MAX_POSITION, ContextFeature
from serving.bundle.example import to_arrays
from serving.bundle.ids import vocabulary_of
from serving.bundle.requests import RequestLengths

AnswerFunction = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
"""A request over rows -> the bundle's outputs, each of batch 1."""

CASES = 240
UNKNOWN_ID = "known to nobody"
FRACTIONS = ("history_watched", "past_clicked", "past_hours")
"""Lists of numbers that are no ids."""
PAST = (0, 2, 50, 0, 7, 1, 20)
PLAYS = (0, 1, 3, 20, 50)
CANDIDATES = (1, 2, 4, 5, 7, 20, 40)


def golden_cases(
    answer: AnswerFunction,
    vocabularies: Vocabularies,
    features: Sequence[ContextFeature],
    lengths: RequestLengths,
    *,
    sampled_from: Vocabularies | None = None,
    cases: int = CASES,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Every case, answered from the rows of its ids. `lengths`: the longest history, and past impressions, which requests have
    where it is above 0. `sampled_from`: the ids that requests are made of; default: all."""
    rng = np.random.default_rng(seed)
    for case in range(cases):
        plays = lengths.plays if case % 12 == 5 else PLAYS[case % len(PLAYS)]
        drawn_from = sampled_from or vocabularies
        request = _request(rng, drawn_from, features, plays, CANDIDATES[case % len(CANDIDATES)], case)
        if lengths.past:
            request |= _past(rng, drawn_from, PAST[case % len(PAST)])
        yield make_case(request, answer, vocabularies)


def make_case(request: dict[str, Any], answer: AnswerFunction, vocabularies: Vocabularies) -> dict[str, Any]:
    """A request in plain values with its answer."""
    rows = {
        name: values if (vocabulary := vocabulary_of(name, vocabularies)) is None else rows_of(values, vocabulary)
        for name, values in to_arrays(request, _dtypes(request, vocabularies)).items()
    }
    return {"request": request, "answer": {name: value[0].tolist() for name, value in answer(rows).items()}}


def _request(
    rng: np.random.Generator,
    vocabularies: Vocabularies,
    features: Sequence[ContextFeature],
    plays: int,
    candidates: int,
    case: int,
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

    def context_value(feature: ContextFeature) -> str | float | None:
        """Every category and hour in turn, numbers up to three standard deviations from the mean, some values not known."""
        if feature.kind == "category":
            values = [*vocabularies[feature.name].values, UNKNOWN_ID]
            return values[case % len(values)]
        if feature.kind == "hour":
            return case % (HOURS + 1) - 1
        if feature.kind == "position":
            return int(rng.integers(-1, MAX_POSITION + 8))
        value = (feature.mean or 0.0) + (feature.std or 1.0) * float(rng.uniform(-3, 3))
        return None if case % 8 == 7 else float(np.float32(value))

    watched = [None if share < 0.2 else round(float(share), 4) for share in rng.random(plays)]
    return {
        "history_title": ids("titles", plays),
        "history_artwork": ids("artworks", plays, 0.4),
        "history_watched": watched,
        "history_length": plays,
        **{feature.name: context_value(feature) for feature in features},
        "play_count": plays + int(rng.integers(0, 500)) * (case % 3),
        "title": ids("titles", 1)[0],
        "artworks": ids("artworks", candidates),
    }


def _past(rng: np.random.Generator, vocabularies: Vocabularies, past: int) -> dict[str, Any]:
    """Past impressions in plain values, some of unknown artworks and of times that are not known."""
    values = [*vocabularies["artworks"].values, UNKNOWN_ID]
    return {
        "past_artwork": [values[index] for index in rng.integers(0, len(values), past)],
        "past_clicked": [float(share < 0.2) for share in rng.random(past)],
        "past_hours": [None if share < 0.1 else round(500 * float(share), 2) for share in rng.random(past)],
    }


def _dtypes(request: dict[str, Any], vocabularies: Vocabularies) -> dict[str, str]:
    """string, float32 or int64 by the input's name."""
    ids = {name: "string" for name in request if vocabulary_of(name, vocabularies) is not None}
    fractions = {name: "float32" for name, value in request.items() if value is None or isinstance(value, float)}
    return dict.fromkeys(request, "int64") | fractions | ids | dict.fromkeys(FRACTIONS, "float32")


def rows_of(values: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """The rows of ids, int64 of the same shape; 0 where unknown."""
    row_of = {value: row for row, value in enumerate(vocabulary.values, start=1)}
    return np.vectorize(lambda value: row_of.get(value, 0), otypes=[np.int64])(values)


def write_golden(cases: Iterator[dict[str, Any]], path: Path) -> int:
    """Write the cases; returns how many."""
    lines = [json.dumps(case, ensure_ascii=False) for case in cases]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)
