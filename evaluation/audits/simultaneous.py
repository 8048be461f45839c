"""Intervals that hold together: in 95 % of reports, every slice's interval contains its truth.

In: rows with intervals by member, and each row's influences by member. Out: the rows with wider intervals. Slices share members
and impressions, so that their estimates are correlated: the critical value is that of the largest of correlated normal variables
(Hothorn, Bretz and Westfall, 2008, Simultaneous inference in general parametric models), which asks for less than Bonferroni's.

Legend: R rows, M members of a row, B buckets of members, D draws.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from evaluation.off_policy.intervals import degrees_of_freedom, student_point
from evaluation.off_policy.student import largest_quantile, student_quantile
from evaluation.record.rows import LiftColumns

BUCKETS = 4096
"""Members are put together in so many sums at most: members are independent, so that sums have the same correlations."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """What is kept of an estimate's influences by member."""

    sum_B: NDArray[np.float64]
    """Influences summed in buckets of members, (B,)."""
    freedom: float
    """Degrees of freedom of its standard error, see `degrees_of_freedom`."""

    @classmethod
    def of(cls, member_M: NDArray[np.integer], influence_M: NDArray) -> "Spread":
        """Sums of influences, (M,), by members' integers, (M,)."""
        return cls(
            sum_B=np.asarray(np.bincount(member_M % BUCKETS, influence_M, BUCKETS), np.float64),
            freedom=degrees_of_freedom(influence_M),
        )


def widen(rows: Iterable[LiftColumns], spreads: Sequence[Spread], seed: int = 0) -> None:
    """Make the rows' 95 % intervals simultaneous, in place; a row without an interval stays so, and does not count.

    `spreads`: of the rows' lifts, in their order.
    """
    kept = [(row, spread) for row, spread in zip(rows, spreads, strict=True) if row["low"] is not None]
    if not kept:
        return
    upper = NormalDist().cdf(-largest_quantile(np.stack([spread.sum_B for _, spread in kept]), seed))
    for row, spread in kept:
        factor = max(1.0, student_quantile(upper, spread.freedom) / student_point(spread.freedom))
        lift, low, high = row["lift"], row["low"], row["high"]
        if lift is not None and low is not None and high is not None:
            row["low"], row["high"] = lift - factor * (lift - low), lift + factor * (high - lift)
        change, below, above = row["relative"], row["relative_low"], row["relative_high"]
        if change is not None and below is not None and above is not None:
            row["relative_low"] = change - factor * (change - below)
            row["relative_high"] = change + factor * (above - change)
