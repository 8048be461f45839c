"""Checks of a log itself: whether propensities agree with how often artworks were shown, and whether rewards drift.

Legend: N impressions, K candidates (padded), B bins, P parts of the period.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from evaluation.off_policy.estimators import snips
from evaluation.off_policy.intervals import Members, Sums, normal_interval, standard_error
from evaluation.off_policy.verdict import Overlap, Rewarded, assess
from evaluation.record.log_rows import PeriodRow, PropensityRow
from evaluation.record.rows import finite_or_none
from foundation.lists import Lists

ERRORS, SHARE = 4.0, 0.05
"""A bin of propensities is off where shown and expected differ by more than both: so many standard errors, and that share."""
DRIFT_ERRORS, DRIFT_SHARE = 4.0, 0.2
"""Rewards drift where two halves differ by more than both: so many standard errors, and that share."""
BINS = 10
ROWS_PER_BLOCK = 500_000
"""Impressions in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Candidates by their logged propensity, lowest first; arrays of shape (B,)."""

    propensity_B: NDArray[np.float64]
    """Mean."""
    shown_B: NDArray[np.float64]
    """Share of the bin's candidates that were shown."""
    count_B: NDArray[np.int64]
    error_B: NDArray[np.float64]
    """Standard error of the difference under the logged propensities."""

    @property
    def doubt(self) -> str:
        """A sentence about the bin that is most off; empty where none is."""
        gap_B = self.shown_B - self.propensity_B
        off_B = (np.abs(gap_B) > ERRORS * self.error_B) & (np.abs(gap_B) > SHARE * self.propensity_B)
        if not off_B.any():
            return ""
        worst = int(np.argmax(np.where(off_B, np.abs(gap_B) / np.maximum(self.error_B, 1e-12), 0)))
        return (
            f"propensities are not what happened: candidates logged at {self.propensity_B[worst]:.3f} were shown in "
            f"{self.shown_B[worst]:.3f}"
        )

    def rows(self) -> list[PropensityRow]:
        """The bins as rows of a record."""
        arrays = (self.propensity_B, self.shown_B, self.count_B.tolist(), self.error_B)
        return [
            {"propensity": float(p), "shown": float(s), "candidates": int(n), "standard_error": float(e)}
            for p, s, n, e in zip(*arrays, strict=True)
        ]


def calibration(propensity_NK: Lists, shown_N: NDArray) -> Calibration:
    """Shown shares against logged propensities over all candidates, in bins of about equal count.

    Standard error: sqrt(sum p (1 - p)) / count, draws being independent given their propensities, whoever the member.
    """
    some = np.arange(0, len(shown_N), 1 + len(shown_N) // ROWS_PER_BLOCK)
    probability = propensity_NK.take(some).values_C.astype(np.float64)
    edges = np.unique(np.quantile(probability, np.arange(1, BINS) / BINS)) if len(probability) else np.zeros(0)
    total = np.zeros((4, len(edges) + 1))
    for first in range(0, len(shown_N), ROWS_PER_BLOCK):
        rows = np.arange(first, min(first + ROWS_PER_BLOCK, len(shown_N)))
        part = propensity_NK.take(rows)
        probability = part.values_C.astype(np.float64)
        was_shown = part.one_hot(shown_N[rows]).values_C
        bin_index = np.digitize(probability, edges)
        for row, values in enumerate((None, probability, was_shown, probability * (1 - probability))):
            total[row] += np.bincount(bin_index, values, total.shape[1])
    count_B, sum_B, shown_B, variance_B = total[:, total[0] > 0]
    return Calibration(
        propensity_B=sum_B / count_B,
        shown_B=shown_B / count_B,
        count_B=count_B.astype(np.int64),
        error_B=np.sqrt(variance_B) / count_B,
    )


def drift(
    reward_N: NDArray, weight_N: NDArray, shown_at_N: NDArray, member_N: NDArray, parts: int = 4
) -> tuple[list[tuple[int, PeriodRow]], str]:
    """The uniform policy's value (SNIPS) in parts of the period with equal numbers of impressions; and the doubt, in words.

    The uniform policy, because it does not change: differences are due to members' behaviour or the catalogue, not to the
    policy. The first half is compared with the second. `member_N` must be ordered.
    """
    order = np.argsort(shown_at_N, kind="stable")
    part_N = np.empty(len(order), np.int64)
    part_N[order] = np.arange(len(order)) * parts // max(len(order), 1)
    rows: list[tuple[int, PeriodRow]] = []
    whole = Overlap.of(weight_N, Members.of(member_N), float("nan"))
    for part in range(parts):
        at = part_N == part
        if not at.any():
            continue
        rows.append((part + 1, period_row(reward_N[at], weight_N[at], shown_at_N[at], member_N[at], whole)))
    halves = [part_N < parts / 2, part_N >= parts / 2]
    if not all(half.any() for half in halves):
        return rows, ""
    sides = [_value_of(reward_N[half], weight_N[half], member_N[half]) for half in halves]
    return rows, _doubt(sides)


def period_row(
    reward_N: NDArray,
    weight_N: NDArray,
    shown_at_N: NDArray,
    member_N: NDArray,
    whole: Overlap | None = None,
    doubts: Sequence[str] = (),
) -> PeriodRow:
    """The value by SNIPS of one part of a log, whose members must be ordered, with a verdict by its own impressions.

    `whole`: the overlap of the whole log. `doubts`: its defects.
    """
    sums = _value_of(reward_N, weight_N, member_N)
    members, influence_M = Members.of(member_N), sums.influence_M
    interval = normal_interval(sums.value, influence_M)
    verdict, _ = assess(
        Overlap.of(weight_N, members, float("nan")),
        value=sums.value,
        influence_M=influence_M,
        rewarded=Rewarded.of(weight_N * reward_N, members),
        reward="rewarded",
        doubts=doubts,
        whole=whole,
    )
    none = verdict == "unanswerable"
    return {
        "since": datetime.fromtimestamp(int(shown_at_N.min()) / 1e6, UTC).isoformat(),
        "impressions": len(reward_N),
        "value": None if none else finite_or_none(sums.value),
        "low": None if none else finite_or_none(interval.low),
        "high": None if none else finite_or_none(interval.high),
        "verdict": verdict,
    }


def _value_of(reward_N: NDArray, weight_N: NDArray, member_N: NDArray) -> Sums:
    return Members.of(member_N).sums(snips(reward_N, weight_N))


def _doubt(sides: Sequence[Sums]) -> str:
    values = [side.value for side in sides]
    error = sum(standard_error(side.influence_M) ** 2 for side in sides) ** 0.5
    gap = abs(values[1] - values[0])
    if not gap > max(DRIFT_ERRORS * error, DRIFT_SHARE * min(values)):
        return ""
    return f"rewards drift: the uniform policy earns {values[0]:.4f} in the first half of the period, {values[1]:.4f} in the second"
