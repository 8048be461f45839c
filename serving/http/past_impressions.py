"""Past impressions of HTTP requests: JSON in, columns of the graph's inputs out, every fault named by field, value and remedy.

Legend: N requests, J past impressions.
"""

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from serving.bundle.requests import no_past
from serving.http.fields import RequestError, id_of, quoted, require_known_fields, timestamp_of
from serving.http.schema import IMPRESSION

Past = tuple[list[int], list[float], list[float]]
"""Columns of past impressions: rows of artworks, clicked (1 or 0), and hours ago (NaN: not known)."""


class PastReader:
    """Lists of past impressions -> columns, for one bundle."""

    def __init__(self, artworks: Mapping[str, int], length: int, outcome_seconds: float) -> None:
        """`artworks`: rows by id; `length`: impressions that are read, at most; `outcome_seconds`: after which time an outcome is
        known."""
        self.artworks, self.past_length, self.outcome_seconds = artworks, length, outcome_seconds

    def read(self, impressions: Any, prefix: str, timestamp: float) -> tuple[Past, int]:
        """Columns of the last past impressions whose outcome was known, and how many were left out.

        Where every one has a time, time is their order, else it is that of the list.
        """
        if impressions is None:
            return ([], [], []), 0
        if not isinstance(impressions, list):
            raise RequestError(
                422,
                f"{prefix}impressions={quoted(impressions)}: must be a list. Give past impressions, oldest first, or [].",
            )
        rows = [
            _impression(impression, f"{prefix}impressions[{index}]") for index, impression in enumerate(impressions)
        ]
        known = [row for row in rows if not row[2] > timestamp - self.outcome_seconds]
        if not any(math.isnan(row[2]) for row in known):
            known.sort(key=itemgetter(2))
        last = known[len(known) - self.past_length :] if self.past_length < len(known) else known
        columns = (
            [self.artworks.get(artwork, 0) for artwork, _, _ in last],
            [float(clicked) for _, clicked, _ in last],
            [(timestamp - time) / 3600 for _, _, time in last],
        )
        return columns, len(rows) - len(known)


def _impression(impression: Any, where: str) -> tuple[str, bool, float]:
    """Id of the artwork, clicked, and the time in seconds since 1970, NaN where not known; RequestError otherwise."""
    if type(impression) is not dict:
        raise RequestError(
            422, f"{where}={quoted(impression)}: invalid impression. Give an object with artwork and clicked."
        )
    require_known_fields(impression, IMPRESSION, f"{where}.")
    artwork, clicked = id_of(impression, "artwork", f"{where}."), impression.get("clicked")
    if clicked is not None and type(clicked) is not bool:
        raise RequestError(422, f"{where}.clicked={quoted(clicked)}: must be true or false.")
    time = impression.get("time")
    return artwork, bool(clicked), math.nan if time is None else timestamp_of(time, f"{where}.time")


def padded_past(requests: Sequence[Past]) -> dict[str, np.ndarray]:
    """Past impressions of requests, padded on the right to the longest."""
    padded = no_past(len(requests))
    longest = max(len(artworks) for artworks, _, _ in requests)
    for name, values in padded.items():
        padded[name] = np.zeros((len(requests), longest), values.dtype)
    for index, columns in enumerate(requests):
        for values, column in zip(padded.values(), columns, strict=True):
            values[index, : len(column)] = column
    return padded
