"""The one builder of the inputs of a bundle's ranking graph over rows.

Scoring of shards, the HTTP service, comparisons of members, golden cases and benchmarks pass flat columns of plays and
candidates, and the run of each request in them; here runs are padded and named.

Legend: N requests, T plays, K candidates.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from datamodules.shards.padding import padded, padded_plays
from foundation.context import ContextFeature, category_text

GRAPH_NAMES = {
    "play_title": "history_title",
    "play_artwork": "history_artwork",
    "play_watched": "history_watched",
}
"""Inputs of a graph by the columns of plays they are made from."""


class RequestLengths(NamedTuple):
    """How much of a member's past a request holds, at most: the last ones."""

    plays: int
    past: int
    """Past impressions."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Start and length of each request's run in flat columns."""

    start: np.ndarray
    """int64 (N,)."""
    length: np.ndarray
    """int64 (N,)."""

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Runs":
        """Consecutive runs of some lengths."""
        length = np.array(lengths, np.int64)
        return cls(start=np.cumsum(length) - length, length=length)


def ranking_inputs(
    plays: Mapping[str, np.ndarray],
    history: Runs,
    context: Mapping[str, np.ndarray],
    play_count: np.ndarray,
    title: np.ndarray,
    candidates: np.ndarray,
    candidate_runs: Runs,
    past: Mapping[str, np.ndarray] | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The graph's inputs by name, in their order, and which entries of `artworks` are candidates, bool (N, K).

    `plays`: columns of `datamodules.shards.padding.PLAY_FILLS`, of which `history` are runs, oldest play
    first; `past`: past impressions by `datamodules.shards.padding.padded_past`, None: none; `context`: by feature, (N,);
    `candidates`: artwork rows, of which `candidate_runs` are runs.
    """
    played = {GRAPH_NAMES[name]: values for name, values in padded_plays(plays, history.start, history.length).items()}
    past = past if past is not None else no_past(len(title))
    artworks_NK, mask_NK = padded(candidates, candidate_runs.start, candidate_runs.length)
    scalars = {"play_count": play_count, "title": title}
    inputs = played | {"history_length": history.length.astype(np.int64), **past, **context}
    inputs |= {name: values.astype(np.int64, copy=False) for name, values in scalars.items()}
    return inputs | {"artworks": artworks_NK}, mask_NK


def no_past(requests: int) -> dict[str, np.ndarray]:
    """The inputs of requests without past impressions, each (N, 0)."""
    dtypes = {"past_artwork": np.int64, "past_clicked": np.float32, "past_hours": np.float32}
    return {name: np.zeros((requests, 0), dtype) for name, dtype in dtypes.items()}


def reference_context(
    features: Iterable[ContextFeature],
    row_of: Mapping[str, Mapping[str, int]],
    requests: int,
    given: Mapping[str, str] | None = None,
) -> dict[str, np.ndarray]:
    """The context of requests without one, each (N,): every feature's reference, or its value in `given`.

    `row_of`: by category, rows by value.
    """
    columns = {}
    for feature in features:
        value = (given or {}).get(feature.name, feature.reference)
        if feature.kind == "category":
            value = 0 if value is None else row_of[feature.name].get(category_text(value), 0)
        columns[feature.name] = np.full(requests, feature.unknown if value is None else value, feature.dtype)
    return columns
