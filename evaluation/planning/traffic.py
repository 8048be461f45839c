"""The traffic of a log by member and day, and how much of it any number of days would bring.

In: each impression's member and time. Out: `Traffic`: impressions, members and pairs of one member's impressions in d days.

Pairs matter because a member's impressions resemble each other: where members come back day after day, a longer log has more
impressions of the same members, and less news in each.

Legend: N impressions, B days of the log, L lags.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DAY = 86_400_000_000
"""Microseconds."""
MOST_LAGS = 56
"""Days back to which pairs are counted; further back they are as frequent as in the older half of these."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Frequencies a day, of all impressions with a choice."""

    days: float
    """Days that the log spans."""
    impressions_a_day: float
    pairs_L: NDArray[np.float64]
    """Ordered pairs of different impressions of one member, one of them on a day and the other so many days before or after; a
    day."""
    new_members_B: NDArray[np.float64]
    """Members whose first impression in the log is on each of its days."""

    def impressions(self, days: float) -> float:
        """Expected impressions in so many days."""
        return self.impressions_a_day * days

    def pairs(self, days: int) -> float:
        """Expected ordered pairs of different impressions of one member in so many days."""
        known = self.pairs_L[:days]
        lags = np.arange(len(known))
        total = float((known * (days - lags)).sum())
        beyond = np.arange(len(self.pairs_L), days)
        later = self.pairs_L[max(1, len(self.pairs_L) // 2) :]
        return total + float(later.mean() if len(later) else 0.0) * float((days - beyond).sum())

    def members(self, days: int) -> float:
        """Expected members with an impression in so many days; beyond the log's, new ones come as in its second half."""
        known = self.new_members_B[:days]
        later = self.new_members_B[len(self.new_members_B) // 2 :]
        return float(known.sum()) + float(later.mean()) * max(days - len(known), 0)

    @classmethod
    def of(cls, member_N: NDArray[np.integer], shown_at_N: NDArray[np.int64]) -> "Traffic":
        """Count; `shown_at_N`: microseconds. The log must span at least two days."""
        first, last = int(shown_at_N.min()), int(shown_at_N.max())
        # the first and the last impression bound one interval fewer than there are impressions
        days = (last - first) / DAY * len(shown_at_N) / max(len(shown_at_N) - 1, 1)
        bins = max(2, round(days))
        day_N = np.minimum((shown_at_N - first) * bins // (last - first + 1), bins - 1).astype(np.int64)
        _, index_N = np.unique(member_N, return_inverse=True)
        # a gap between members, so that no lag reaches from one into the next
        stride = bins + MOST_LAGS
        key_C, count_C = np.unique(index_N.reshape(-1) * stride + day_N, return_counts=True)
        pairs = [float((count_C * (count_C - 1.0)).sum()) / bins]
        for lag in range(1, min(bins, MOST_LAGS)):
            at_C = np.minimum(np.searchsorted(key_C, key_C + lag), len(key_C) - 1)
            both_C = key_C[at_C] == key_C + lag
            pairs.append(2 * float((count_C[both_C] * count_C[at_C[both_C]]).sum()) / (bins - lag))
        first_day_M = np.full(int(index_N.max()) + 1, bins)
        np.minimum.at(first_day_M, index_N.reshape(-1), day_N)
        return cls(
            days=days,
            impressions_a_day=len(shown_at_N) / days,
            pairs_L=np.array(pairs),
            new_members_B=np.bincount(first_day_M, minlength=bins).astype(np.float64),
        )
