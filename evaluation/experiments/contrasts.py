"""Two arms of a test compared by the logarithm of the ratio of their rates, with its standard error.

In: sums of rewards, exposure and covariates by unit and arm (`UnitSums`), or an arm's counts alone (`ArmCounts`). Out: `Contrast`.

A rate is a ratio of totals, such as clicks over impressions, whose units are members: its error follows from each member's
influence (delta method; Deng, Knoblich and Lu, 2018, Applying the delta method in metric analytics), whether an artwork
was drawn anew for every impression or once for a member, who then counts once in one arm.

Legend: N impressions, M units, A arms, P covariates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log, log1p, sqrt
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FEWEST_EFFECTIVE = 20.0
"""Effective units below which no answer is given: about ten rewarded units in each of two arms."""
FEWEST_UNITS = 200
"""Units below which covariates are not used."""
MOST_OF_ONE = 0.99
"""Share of an arm's rewards or exposure in one unit above which nothing is estimated."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A metric as a ratio of two summed columns."""

    numerator: str
    denominator: str = "impressions"

    @property
    def name(self) -> str:
        """In words."""
        return self.numerator if self.denominator == "impressions" else f"{self.numerator} of those {self.denominator}"


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Arm against reference: log of the ratio of rates; NaN and inf where a total is 0."""

    estimate: float
    """Adjusted by the covariates where there are any."""
    error: float
    """Standard error of `estimate`."""
    plain_estimate: float
    """Without covariates."""
    plain_error: float
    """Standard error of `plain_estimate`."""
    effective: float
    """(sum of squared influences)^2 / sum of fourth powers: about two rewarded units in the smaller arm each count one."""

    @property
    def variance_reduction(self) -> float:
        """Share of the variance that the covariates remove; 0 without covariates."""
        if not (np.isfinite(self.error) and np.isfinite(self.plain_error) and self.plain_error > 0):
            return 0.0
        return 1 - (self.error / self.plain_error) ** 2


NO_CONTRAST = Contrast(
    estimate=float("nan"), error=float("inf"), plain_estimate=float("nan"), plain_error=float("inf"), effective=0.0
)


def _jackknife_error(influence_M: NDArray, units: int) -> float:
    """From the influences of all units, those of units outside both arms being 0: sqrt((n - 1) / n sum (influence - mean)^2)."""
    total = float(influence_M.sum())
    return sqrt(max(float((influence_M**2).sum()) - total**2 / units, 0.0) * (units - 1) / units)


class ArmTotals(Protocol):
    """What both kinds of sums answer."""

    def total(self, column: str, arm: int) -> float:
        """The sum of a column over an arm."""
        ...

    def contrast(self, metric: Ratio, arm: int, reference: int) -> Contrast:
        """An arm against a reference."""
        ...


@dataclass(kw_only=True)
class UnitSums:
    """Sums by unit and arm, to which impressions are added in order of time."""

    columns: Mapping[str, NDArray[np.float64]]
    """By name, (M, A): `impressions` (weights), rewards; all start at 0."""
    covariates_PMA: NDArray[np.float64]
    """Sums of weighted covariates."""
    fold_M: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """0 or 1: the half of the units whose coefficients the other half is adjusted by."""

    @classmethod
    def empty(cls, units: int, arms: int, names: tuple[str, ...], covariates: int) -> "UnitSums":
        """Sums of no impressions; folds are drawn by unit and stay the same at every look."""
        return cls(
            columns={name: np.zeros((units, arms)) for name in names},
            covariates_PMA=np.zeros((covariates, units, arms)),
            fold_M=np.random.default_rng(0).integers(0, 2, units),
        )

    def add(
        self,
        unit_N: NDArray[np.integer],
        arm_N: NDArray[np.integer],
        weight_N: NDArray[np.floating],
        values: Mapping[str, NDArray[np.floating]],
        covariates_PN: NDArray[np.floating],
    ) -> None:
        """Add impressions: `values` by the name of their column, `impressions` left out, which counts the weights."""
        units, arms = self.columns["impressions"].shape
        cell_N = unit_N.astype(np.int64) * arms + arm_N

        def summed(value_N: NDArray) -> NDArray:
            return np.bincount(cell_N, value_N, units * arms).reshape(units, arms)

        self.columns["impressions"][...] += summed(weight_N)
        for name, value_N in values.items():
            self.columns[name][...] += summed(weight_N * value_N)
        for index, covariate_N in enumerate(covariates_PN):
            self.covariates_PMA[index] += summed(weight_N * covariate_N)

    def total(self, column: str, arm: int) -> float:
        """The weighted sum of a column over an arm."""
        return float(self.columns[column][:, arm].sum())

    def contrast(self, metric: Ratio, arm: int, reference: int) -> Contrast:
        """The adjusted log ratio of two arms' rates.

        The error is the jackknife's, by unit, as that of `evaluation.off_policy.intervals`: without unit m, log(rate) is
        lower by log(1 - N_m / N) - log(1 - S_m / S), S being the numerator and N the denominator. Adjusted as in CUPED
        (Deng, Xu, Kohavi and Walker, 2013): minus coefficients times the difference between the arms' mean covariates,
        which is 0 but for chance because a covariate is fixed before an artwork is drawn. The coefficients are those of the
        other half of the units.
        """
        top_MA, bottom_MA = self.columns[metric.numerator], self.columns[metric.denominator]
        pair = [arm, reference]
        top_2, bottom_2 = top_MA[:, pair].sum(0), bottom_MA[:, pair].sum(0)
        if not ((top_2 > 0).all() and (bottom_2 > 0).all()):
            return NO_CONTRAST
        log_rate_2 = np.log(top_2 / bottom_2)
        top_M2, bottom_M2 = top_MA[:, pair] / top_2, bottom_MA[:, pair] / bottom_2
        if top_M2.max() > MOST_OF_ONE or bottom_M2.max() > MOST_OF_ONE:
            return NO_CONTRAST
        influence_M2 = np.log1p(-bottom_M2) - np.log1p(-top_M2)
        influence_M = influence_M2[:, 0] - influence_M2[:, 1]
        seen_M = self.columns["impressions"][:, pair].any(1)
        units = int(seen_M.sum())
        if units < 2:
            return NO_CONTRAST
        estimate = float(log_rate_2[0] - log_rate_2[1])
        error = _jackknife_error(influence_M, units)
        effective = float((influence_M**2).sum()) ** 2 / max(float((influence_M**4).sum()), 1e-300)
        adjusted, adjusted_error = estimate, error
        if len(self.covariates_PMA) and units >= FEWEST_UNITS:
            shift, fitted_M = self._adjustment(influence_M, pair)
            adjusted = estimate - shift
            adjusted_error = _jackknife_error(influence_M - fitted_M, units)
        return Contrast(
            estimate=adjusted,
            error=adjusted_error,
            plain_estimate=estimate,
            plain_error=error,
            effective=effective,
        )

    def _adjustment(self, influence_M: NDArray, pair: list[int]) -> tuple[float, NDArray]:
        """By how much the covariates move the estimate, and each unit's part of it, (M,)."""
        weight_M2 = self.columns["impressions"][:, pair]
        total_2 = weight_M2.sum(0)
        sums_PM2 = self.covariates_PMA[:, :, pair]
        mean_P = sums_PM2.sum((1, 2)) / total_2.sum()
        each_PM2 = (sums_PM2 - mean_P[:, None, None] * weight_M2) / total_2
        difference_MP = (each_PM2[:, :, 0] - each_PM2[:, :, 1]).T
        fitted_M = np.zeros(len(influence_M))
        for half in (0, 1):
            own, other = self.fold_M == half, self.fold_M != half
            coefficient_P, *_ = np.linalg.lstsq(difference_MP[other], influence_M[other], rcond=1e-9)
            fitted_M[own] = difference_MP[own] @ coefficient_P
        return float(fitted_M.sum()), fitted_M


@dataclass(frozen=True, kw_only=True)
class ArmCounts:
    """Counts of an aggregated table, whose units are impressions that are rewarded or not."""

    columns: Mapping[str, NDArray[np.float64]]
    """By name, (A,): `impressions` and rewards."""

    def total(self, column: str, arm: int) -> float:
        """An arm's count."""
        return float(self.columns[column][arm])

    def contrast(self, metric: Ratio, arm: int, reference: int) -> Contrast:
        """The log ratio of two shares with the jackknife's error, about 1 / rewarded - 1 / exposed in each arm: what `UnitSums`
        gives of single impressions."""
        square, fourth, mean, estimate, units = 0.0, 0.0, 0.0, 0.0, 0.0
        for index, sign in ((arm, 1), (reference, -1)):
            top, bottom = self.total(metric.numerator, index), self.total(metric.denominator, index)
            if not (top > 1 and bottom > 1):
                return NO_CONTRAST
            estimate += sign * log(top / bottom)
            rewarded, other = log1p(-1 / bottom) - log1p(-1 / top), log1p(-1 / bottom)
            square += top * rewarded**2 + (bottom - top) * other**2
            fourth += top * rewarded**4 + (bottom - top) * other**4
            mean += sign * (top * rewarded + (bottom - top) * other)
            units += bottom
        variance = (square - mean**2 / units) * (units - 1) / units
        if not variance > 0:
            return NO_CONTRAST
        error = sqrt(variance)
        return Contrast(
            estimate=estimate,
            error=error,
            plain_estimate=estimate,
            plain_error=error,
            effective=square**2 / max(fourth, 1e-300),
        )
