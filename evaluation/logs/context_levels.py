"""The context of a log's impressions as a few levels per attribute: what propensities and logging policies are tested against.

In: a scored log and the context columns of its impressions. Out: `ContextLevels`, an integer per impression and names.

Legend: N impressions, L levels.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from evaluation.logs.log_slices import NOT_LOGGED, ImpressionAttributes, top_levels
from evaluation.logs.scored_log import ScoredLog

LAST_POSITION = 9
"""Positions from this one on share a level."""
HOUR_BAND = 3
"""Hours of the day in a level."""
MAX_DAYS = 14
"""The period is cut by days up to this number, else into as many parts of equal length."""
MICROSECONDS_A_DAY = 86_400_000_000
MICROSECONDS_AN_HOUR = 3_600_000_000


@dataclass(frozen=True, kw_only=True)
class ContextLevels:
    """One attribute of the impressions, such as device."""

    name: str
    code_N: NDArray[np.integer]
    """(N,): index into `levels`."""
    levels: Sequence[str]

    def take(self, rows: NDArray[np.integer]) -> "ContextLevels":
        """The same attribute of some impressions."""
        return ContextLevels(name=self.name, code_N=self.code_N[rows], levels=self.levels)


def context_levels(scored: ScoredLog, attributes: ImpressionAttributes) -> list[ContextLevels]:
    """Logging policy, hour, part of the period, and every logged context feature; attributes of a single level are left out."""
    every = [
        ContextLevels(name="logging policy", code_N=scored.logging_policy, levels=scored.logging_policies),
        _hours(scored.shown_at),
        _parts(scored.shown_at),
        *_columns(attributes),
    ]
    return [one for one in every if len(one.code_N) and (one.code_N != one.code_N[0]).any()]


def _hours(shown_at_N: NDArray[np.int64]) -> ContextLevels:
    hour_N = shown_at_N // MICROSECONDS_AN_HOUR % 24
    names = [f"{hour} to {hour + HOUR_BAND - 1} h" for hour in range(0, 24, HOUR_BAND)]
    return ContextLevels(name="hour", code_N=hour_N // HOUR_BAND, levels=names)


def _parts(shown_at_N: NDArray[np.int64]) -> ContextLevels:
    """Days, or parts of equal length where the period has many."""
    first_day = int(shown_at_N.min()) // MICROSECONDS_A_DAY
    day_N = shown_at_N // MICROSECONDS_A_DAY - first_day
    days = int(day_N.max(initial=0)) + 1
    length = -(-days // MAX_DAYS)
    starts = range(0, days, length)
    names = [f"from {datetime.fromtimestamp((first_day + start) * 86_400, UTC):%Y-%m-%d}" for start in starts]
    return ContextLevels(name="part of the period", code_N=day_N // length, levels=names)


def _columns(attributes: ImpressionAttributes) -> Iterator[ContextLevels]:
    """A category by its values, a position by its first values, a number by quarters."""
    for feature in attributes.features:
        column = attributes.columns.get(feature.name)
        if column is None or feature.from_time:
            continue
        if feature.kind == "category":
            code_N, names = top_levels(column)
            yield ContextLevels(name=feature.name, code_N=code_N, levels=names)
            continue
        numbers = column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column
        value_N = pc.fill_null(numbers.cast(pa.float64(), safe=False), np.nan).to_numpy(zero_copy_only=False)
        known_N = np.isfinite(value_N)
        if not known_N.any():
            continue
        if feature.kind == "number":
            edges = np.unique(np.quantile(value_N[known_N], (0.25, 0.5, 0.75)))
            names = [f"below {edge:.4g}" for edge in edges] + [f"{edges[-1]:.4g} or more"]
        else:
            step = HOUR_BAND if feature.kind == "hour" else 1
            edges = np.arange(step, 24 if feature.kind == "hour" else LAST_POSITION + 1, step)
            names = [str(int(edge) - step) for edge in edges] + [f"{int(edges[-1])} or more"]
        code_N = np.searchsorted(edges, np.where(known_N, value_N, 0.0), side="right")
        yield ContextLevels(
            name=feature.name, code_N=np.where(known_N, code_N, len(names)), levels=[*names, NOT_LOGGED]
        )
