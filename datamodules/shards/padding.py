"""Gathers runs of rows of flat columns and pads them to one length, for batches and requests.

Legend: M runs, T longest run, P rows of the flat columns.
"""

from collections.abc import Mapping

import numpy as np

PLAY_FILLS: dict[str, tuple[float, type]] = {
    "play_title": (0, np.int64),
    "play_artwork": (0, np.int64),
    "play_watched": (np.nan, np.float32),
}
"""Columns of plays: their padding value and type."""

PAST_FILLS: dict[str, tuple[float, type]] = {
    "past_artwork": (0, np.int64),
    "past_clicked": (0, np.float32),
    "past_time": (0, np.int64),
}
"""Columns of past impressions: their padding value and type."""
MAX_PAST = 512
"""Past impressions that a request reads, the last ones: more change hardly anything, and a member may have 100,000."""
MICROSECONDS_AN_HOUR = 3_600_000_000


def padded(
    values: np.ndarray, start: np.ndarray, length: np.ndarray, fill: float = 0, dtype: type = np.int64
) -> tuple[np.ndarray, np.ndarray]:
    """Runs of `values` (P,) from `start` (M,), with `length` (M,): (M, T), T at least 1, and the mask of entries of a run."""
    index, inside = _index(start, length)
    return _filled(values, index, inside, fill, dtype), inside


def padded_plays(columns: Mapping[str, np.ndarray], start: np.ndarray, length: np.ndarray) -> dict[str, np.ndarray]:
    """Padded runs of every column of `PLAY_FILLS`, each (P,) -> (M, T)."""
    index, inside = _index(start, length)
    return {name: _filled(columns[name], index, inside, *how) for name, how in PLAY_FILLS.items()}


def padded_past(
    columns: Mapping[str, np.ndarray], time: np.ndarray, start: np.ndarray, length: np.ndarray
) -> dict[str, np.ndarray]:
    """Padded runs of past impressions, (J,) -> (M, T), T = 0 where all are empty: `past_artwork`, `past_clicked`, and instead of
    their times `past_hours`, float32: hours to `time` (M,), in microseconds."""
    within = np.arange(int(length.max(initial=0)))
    inside = within < length[:, None]
    index = np.where(inside, start[:, None] + within, 0)
    runs = {name: _filled(columns[name], index, inside, *how) for name, how in PAST_FILLS.items()}
    hours = np.where(inside, (time[:, None] - runs.pop("past_time")) / MICROSECONDS_AN_HOUR, 0)
    return runs | {"past_hours": hours.astype(np.float32)}


def _index(start: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    within = np.arange(max(1, int(length.max(initial=0))))
    inside = within < length[:, None]
    return np.where(inside, start[:, None] + within, 0), inside


def _filled(values: np.ndarray, index: np.ndarray, inside: np.ndarray, fill: float, dtype: type) -> np.ndarray:
    return np.where(inside, values[index] if len(values) else fill, fill).astype(dtype, copy=False)
