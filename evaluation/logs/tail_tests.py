"""A batch of tests of propensities, as arrays: sums, their variances, and what is needed to name the worst in words.

Legend: T tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evaluation.record.log_rows import PropensityTestRow


@dataclass(frozen=True, kw_only=True)
class TailTests:
    """Tests that share one error rate."""

    what: str | Sequence[str]
    """The function of the candidates that is summed, of all tests or of each."""
    attribute: str | Sequence[str]
    """The attribute whose levels are tested; empty: the whole log."""
    names: Sequence[str]
    """Names of its levels."""
    level_T: NDArray[np.integer]
    artwork_T: NDArray[np.integer]
    """Index of the tested artwork in `artworks`; -1 where none is."""
    artworks: pa.Array | None
    sum_T: NDArray[np.number]
    """Shown minus expected."""
    variance_T: NDArray[np.number]
    slack_T: NDArray[np.number]
    """By how much rounding of the propensities may move the sum."""
    largest_T: NDArray[np.number]
    """Largest absolute term of the sum."""
    range_T: NDArray[np.number]
    """The largest sum that is possible, were every draw another."""
    negligible_T: NDArray[np.number]
    """Sums up to this one are no reason to doubt, however sure."""
    shown_T: NDArray[np.number]
    expected_T: NDArray[np.number]
    count_T: NDArray[np.number]
    overall_T: NDArray[np.bool_]
    """Whether the test is over the whole log."""
    phrase: str | Sequence[str]
    """What was shown, for a sentence; empty where the artwork is named."""

    def __len__(self) -> int:
        """T."""
        return len(self.sum_T)

    @classmethod
    def join(cls, batches: Sequence["TailTests"]) -> "TailTests":
        """All tests of several batches as one."""
        columns: dict[str, Any] = {}
        offsets = np.cumsum([0, *(len(batch.names) for batch in batches)])
        for column in fields(cls):
            values = [getattr(batch, column.name) for batch in batches]
            if column.name in ("what", "attribute", "phrase"):
                columns[column.name] = [
                    value if isinstance(value, str) else value[index]
                    for batch, value in zip(batches, values, strict=True)
                    for index in range(len(batch))
                ]
            elif column.name == "names":
                columns["names"] = [name for batch in batches for name in batch.names]
            elif column.name == "level_T":
                columns["level_T"] = np.concatenate(
                    [np.zeros(0, np.int64), *(value + offset for value, offset in zip(values, offsets, strict=False))]
                )
            elif column.name == "artworks":
                columns["artworks"] = next((value for value in values if value is not None), None)
            else:
                columns[column.name] = np.concatenate([np.zeros(0), *values])
        columns["overall_T"] = columns["overall_T"].astype(bool)
        columns["artwork_T"] = columns["artwork_T"].astype(np.int64)
        return cls(**columns)

    def surplus_only(self) -> "TailTests":
        """The same tests, against larger sums alone."""
        return replace(self, sum_T=np.maximum(self.sum_T, 0.0))

    @property
    def within_T(self) -> NDArray[np.bool_]:
        """Whether the test is of one level of an attribute, (T,)."""
        return np.array([self._of(self.attribute, index) != "" for index in range(len(self))], bool)

    def _of(self, column: str | Sequence[str], index: int) -> str:
        return column if isinstance(column, str) else column[index]

    def _artwork(self, index: int) -> str:
        artwork = int(self.artwork_T[index])
        return "" if artwork < 0 or self.artworks is None else self.artworks[artwork].as_py()

    def row(self, index: int, adjusted: float) -> PropensityTestRow:
        """One test as a row of a record; `adjusted`: its p value, adjusted for the number of tests."""
        return {
            "tested": self._of(self.what, index),
            "artwork": self._artwork(index) or None,
            "attribute": self._of(self.attribute, index) or None,
            "level": self.names[int(self.level_T[index])] or None,
            "impressions": int(self.count_T[index]),
            "shown": float(self.shown_T[index]),
            "expected": float(self.expected_T[index]),
            "standard_errors": float(self.sum_T[index] / max(float(self.variance_T[index]) ** 0.5, 1e-12)),
            "chance": adjusted,
        }

    def sentence(self, index: int) -> str:
        """One test in words."""
        attribute, level = self._of(self.attribute, index), self.names[int(self.level_T[index])]
        context = f", {attribute} {level}" if attribute else ""
        errors = abs(float(self.sum_T[index])) / max(float(self.variance_T[index]) ** 0.5, 1e-12)
        shown, expected = float(self.shown_T[index]), float(self.expected_T[index])
        artwork = self._artwork(index)
        if artwork:
            times = f"{shown:,.0f} times, by its propensities {expected:,.0f}"
            return f"{artwork}{context} was shown {times} ({errors:.1f} standard errors)"
        more = "more" if shown > expected else "less"
        how = f"{more} often than their propensities say{context}"
        return f"{self._of(self.phrase, index)} {how} ({errors:.1f} standard errors)"
