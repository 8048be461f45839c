"""Values, and intervals by member, of estimates given as ratios of totals.

A member's impressions share tastes, so that members, not impressions, are what was sampled: everything is summed within
members once, and both intervals are made of those sums, whatever the number of impressions. Two policies on one log are
compared on the same members, so that much of their noise cancels.

Legend: N impressions (ordered by member), M members, T terms of an estimate, D bootstrap draws, E estimates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.estimators import Terms

Z = 1.959963984540054
"""97.5 % point of the normal distribution."""
DRAWS = 1000
AT_ONCE = 2048
"""Members whose draws are held at a time."""


@dataclass(frozen=True)
class Interval:
    """95 %; NaN at both ends where there is none."""

    low: float
    high: float


NONE = Interval(float("nan"), float("nan"))


@dataclass(frozen=True)
class Sums:
    """An estimate's numerators and denominators, summed within members."""

    numerator_TM: NDArray[np.float64]
    denominator_TM: NDArray[np.float64]

    @property
    def value(self) -> float:
        """sum_t total(numerator) / total(denominator); NaN where a denominator is 0."""
        return float(_ratios(self.numerator_TM.sum(1), self.denominator_TM.sum(1)))

    @property
    def influence_M(self) -> NDArray[np.float64]:
        """What each member moves the value by: sum_t (a_m - (A / B) b_m) / B, of member sums a, b and totals A, B."""
        total_T = self.denominator_TM.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio_T = self.numerator_TM.sum(1) / total_T
            moved_TM = (self.numerator_TM - ratio_T[:, None] * self.denominator_TM) / total_T[:, None]
        return moved_TM.sum(0)


def _ratios(numerator_T: NDArray, denominator_T: NDArray) -> NDArray:
    """The sum of ratios along the last axis; NaN where a denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(denominator_T > 0, numerator_T / denominator_T, np.nan)
    return ratio.sum(-1)


@dataclass(frozen=True)
class Members:
    """Where each member's impressions begin, of rows that are ordered by member."""

    start_M: NDArray[np.integer]
    rows: int

    @classmethod
    def of(cls, member_N: NDArray[np.integer]) -> "Members":
        """Of ordered members; ValueError where a member's rows are not together."""
        start_M = np.flatnonzero(np.diff(member_N, prepend=member_N[0] - 1)) if len(member_N) else np.zeros(0, int)
        if len(np.unique(member_N[start_M])) != len(start_M):
            raise ValueError("members: rows must be ordered by member.")
        return cls(start_M, len(member_N))

    def __len__(self) -> int:
        """M."""
        return len(self.start_M)

    def total(self, values_N: NDArray) -> NDArray[np.float64]:
        """Sums within members, (M,)."""
        return np.add.reduceat(np.asarray(values_N, np.float64), self.start_M) if self.rows else np.zeros(0)

    def sums(self, terms: Terms) -> Sums:
        """An estimate's terms, summed within members."""
        return Sums(*(np.stack([self.total(part[i]) for part in terms]) for i in (0, 1)))


def standard_error(influence_M: NDArray) -> float:
    """Cluster-robust, sqrt(M / (M - 1) sum_m influence_m^2) (Liang and Zeger, 1986); NaN for one member or none."""
    members = len(influence_M)
    return float(np.sqrt((influence_M**2).sum() * members / (members - 1))) if members > 1 else float("nan")


def normal_interval(value: float, influence_M: NDArray) -> Interval:
    """value -+ 1.96 cluster-robust standard errors. Needs some dozens of members, none of which is most of the sum."""
    half = Z * standard_error(influence_M)
    return Interval(value - half, value + half) if np.isfinite(value + half) else NONE


def effective_members(influence_M: NDArray) -> float:
    """(sum_m i_m^2)^2 / sum_m i_m^4: how many members the standard error is made of. One over it is about the relative
    variance of the squared error; of normal influences it is M / 3."""
    squares_M = influence_M**2
    fourth = (squares_M**2).sum()
    return float(squares_M.sum() ** 2 / fourth) if fourth > 0 else 0.0


def bootstrap(sums: Sequence[Sums], seed: int, draws: int = DRAWS) -> NDArray[np.float64]:
    """Values of all estimates in each draw of the members, (D, E): the same draw for all, so that they can be compared.

    Poisson bootstrap: a member counts Poisson(1) times (Chamandy et al., 2012, Estimating uncertainty for massive data
    streams), all draws at once as one matrix product over the members' sums.
    """
    members = sums[0].numerator_TM.shape[1] if sums else 0
    flat = [array_TM for one in sums for array_TM in (one.numerator_TM, one.denominator_TM)]
    chance = np.random.default_rng(seed)
    counted = _poisson_table()
    total_DC = np.zeros((draws, sum(len(array_TM) for array_TM in flat)))
    for first in range(0, members, AT_ONCE):
        columns_MC = np.concatenate([array_TM[:, first : first + AT_ONCE] for array_TM in flat]).T
        picked_DM = chance.integers(0, len(counted), (draws, len(columns_MC)), np.uint16)
        total_DC += counted[picked_DM].astype(np.float64) @ columns_MC
    values_DE = np.empty((draws, len(sums)))
    column = 0
    for place, one in enumerate(sums):
        terms = len(one.numerator_TM)
        numerator_DT = total_DC[:, column : column + terms]
        values_DE[:, place] = _ratios(numerator_DT, total_DC[:, column + terms : column + 2 * terms])
        column += 2 * terms
    return values_DE


def _poisson_table() -> NDArray[np.uint8]:
    """Counts by a 16-bit number drawn evenly: Poisson(1), to one part in 65,536, at the price of a look-up."""
    chance = np.cumsum(np.exp(-1) / np.cumprod([1, *range(1, 12)]))
    return np.searchsorted(chance, (np.arange(2**16) + 0.5) / 2**16).astype(np.uint8)


def percentile_interval(values_D: NDArray) -> Interval:
    """2.5 and 97.5 % of the draws that have a value; none where fewer than nine in ten have one."""
    there_D = values_D[np.isfinite(values_D)]
    if len(there_D) < 0.9 * len(values_D):
        return NONE
    low, high = np.quantile(there_D, [0.025, 0.975])
    return Interval(float(low), float(high))
