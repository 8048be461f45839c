"""Sample ratio mismatch: whether the arms were shown as often as the test meant to show them.

A test whose shares are off was not randomised as stated, or lost impressions on the way, and its lift means nothing; so this
comes before any lift (Fabijan et al., 2019, Diagnosing sample ratio mismatch in online controlled experiments).

Legend: N impressions, M units, A arms, F free arms (all but the last).
"""

from dataclasses import dataclass
from math import exp, log

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.01
"""How often a test without a mismatch is accused of one at any look, at most."""
DRIFT = 0.05
"""Standard deviation of the mixture over mismatches, in standard deviations of one unit."""
FEWEST_REPEATED = 20
"""Members with several impressions below which it is not decided whether members keep their arm."""
SAME_ARM = 0.95
"""Share of members with several impressions who saw one arm alone, from which a test counts as randomised by member."""
MOST_EXPECTED = 0.8
"""Share of them that would see one arm alone if arms were drawn by impression, up to which that is decided."""


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """The test of shares."""

    counted: str
    """What was counted: impressions or members."""
    count_A: NDArray[np.float64]
    expected_A: NDArray[np.float64]
    chi_square: float
    e_value: float
    level: float

    @property
    def mismatched(self) -> bool:
        """Whether the shares are off, at a level that holds however often it is looked at."""
        return self.e_value >= 1 / self.level


def randomised_by_member(unit_N: NDArray[np.integer], arm_N: NDArray[np.integer], share_A: NDArray) -> bool:
    """Whether members keep their arm, decided from those with several impressions."""
    count_M = np.bincount(unit_N)
    low_M, high_M = np.full(len(count_M), len(share_A)), np.full(len(count_M), -1)
    np.minimum.at(low_M, unit_N, arm_N)
    np.maximum.at(high_M, unit_N, arm_N)
    same_M = low_M == high_M
    several_M = count_M > 1
    if several_M.sum() < FEWEST_REPEATED:
        return False
    expected_same = (share_A[:, None] ** count_M[several_M]).sum(0).mean()
    return bool(same_M[several_M].mean() >= SAME_ARM and expected_same <= MOST_EXPECTED)


def mismatch_of_log(
    unit_N: NDArray[np.integer], arm_N: NDArray[np.integer], share_NA: NDArray, *, by_member: bool, level: float
) -> Mismatch:
    """Counts against the probabilities with which the arms were drawn, (N, A), rows in order of time.

    `by_member`: a member counts once, by the first impression, because later ones are no draws of their own. Else every
    impression counts, and where those of a unit resemble each other more than draws do, the variance is raised by that factor.
    """
    if by_member:
        _, first_M = np.unique(unit_N, return_index=True)
        unit_N, arm_N, share_NA = unit_N[first_M], arm_N[first_M], share_NA[first_M]
    arms = share_NA.shape[1]
    drawn_NA = np.zeros_like(share_NA)
    drawn_NA[np.arange(len(arm_N)), arm_N] = 1.0
    residual_NA = drawn_NA - share_NA
    variance_AA = np.diag(share_NA.sum(0)) - share_NA.T @ share_NA
    inflation = 1.0
    if not by_member and len(unit_N):
        summed_MA = np.stack([np.bincount(unit_N, residual_NA[:, arm]) for arm in range(arms)], 1)
        if len(summed_MA) < len(unit_N):
            inflation = max(1.0, float((summed_MA**2).sum() / max(np.trace(variance_AA), 1e-12)))
    return _tested(
        "members" if by_member else "impressions",
        drawn_NA.sum(0),
        share_NA.sum(0),
        inflation * variance_AA,
        len(unit_N) / inflation,
        level,
    )


def mismatch_of_counts(count_A: NDArray, share_A: NDArray, level: float) -> Mismatch:
    """Counts of impressions against stated shares, (A,), which sum to 1."""
    total = float(count_A.sum())
    variance_AA = total * (np.diag(share_A) - np.outer(share_A, share_A))
    return _tested("impressions", count_A, total * share_A, variance_AA, total, level)


def _tested(
    counted: str, count_A: NDArray, expected_A: NDArray, variance_AA: NDArray, size: float, level: float
) -> Mismatch:
    """Chi-square, and its e-value: the ratio of a normal mixture of mismatches to none, valid at every look.

    Source: Lindon and Malek (2022), Anytime-valid inference for multinomial count data, here by its normal limit.
    """
    residual_F = (count_A - expected_A)[:-1]
    chi_square = float(residual_F @ np.linalg.pinv(variance_AA[:-1, :-1]) @ residual_F) if len(residual_F) else 0.0
    clock = size * DRIFT**2
    exponent = chi_square * clock / (1 + clock) / 2 - len(residual_F) * log(1 + clock) / 2
    return Mismatch(
        counted=counted,
        count_A=count_A,
        expected_A=expected_A,
        chi_square=chi_square,
        e_value=exp(min(exponent, 700.0)),
        level=level,
    )
