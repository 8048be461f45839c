"""A test's sums at every look, before any answer: of a log by members or impressions, or of an aggregated table.

Legend: N impressions, A arms, L looks, D days of a table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from evaluation.experiments.contrasts import ArmCounts, ArmTotals, Contrast, Ratio, UnitSums
from evaluation.experiments.experiment_log import ExperimentLog
from evaluation.experiments.mismatch import Mismatch, mismatch_of_counts, mismatch_of_log, randomised_by_member

DAY = 86_400_000_000
"""Microseconds."""
MOST_LOOKS = 60
"""Looks of the chart: the ends of days, every second or third where there are more."""
STATED, FROM_PROPENSITIES, EQUAL = "stated by --split", "logged propensities", "equal shares, because none are known"
"""Sources of the expected shares."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """The test as it stood at a moment."""

    until: str
    impressions: int
    contrasts: list[Contrast | None]
    """Each arm against the control, None for the control."""


@dataclass(frozen=True, kw_only=True)
class PreparedTest:
    """All that the answers are given from."""

    name: str
    arms: tuple[str, ...]
    control: int
    totals: ArmTotals
    """At the last look."""
    columns: tuple[str, ...]
    """What `totals` knows beside impressions."""
    impressions_A: NDArray[np.int64]
    members_A: NDArray[np.int64]
    members: int
    left_out: int
    since: str | None
    until: str | None
    by_member: bool
    mismatch: Mismatch
    expected_by: str
    looks: list[Look]
    """Empty where the test is read out at its end alone."""
    covariates: list[str]
    notes: list[str] = field(default_factory=list)


def prepare_log(
    name: str,
    log: ExperimentLog,
    control: int,
    metric: Ratio,
    *,
    by_impression: bool,
    split: NDArray[np.float64] | None,
    level_of_mismatch: float,
    with_looks: bool,
) -> PreparedTest:
    """Sum a log's test by unit, at the end of every day or at the end alone.

    `by_impression`: impressions are the units, else members. `split`: the arms' shares as planned, (A,), where they are stated.
    """
    arms = len(log.arms)
    share_NA, expected_by = _shares(log, split)
    by_member = randomised_by_member(log.member_N, log.arm_N, share_NA.mean(0))
    unit_N = np.arange(len(log)) if by_impression else log.member_N
    units = len(log) if by_impression else int(log.member_N.max()) + 1
    sums = UnitSums.empty(units, arms, ("impressions", *log.rewards), len(log.covariates))
    covariates_PN = np.stack(list(log.covariates.values())) if log.covariates else np.zeros((0, len(log)))
    looks: list[Look] = []
    start = 0
    for end in _looks(log.shown_at_N) if with_looks else [len(log)]:
        rows = slice(start, end)
        values = {reward: reward_N[rows] for reward, reward_N in log.rewards.items()}
        sums.add(unit_N[rows], log.arm_N[rows], log.weight_N[rows], values, covariates_PN[:, rows])
        start = end
        if with_looks:
            looks.append(
                Look(
                    until=_moment(log.shown_at_N[end - 1]),
                    impressions=end,
                    contrasts=_contrasts(sums, metric, arms, control),
                )
            )
    seen = np.unique(log.member_N * arms + log.arm_N) % arms
    return PreparedTest(
        name=name,
        arms=log.arms,
        control=control,
        totals=sums,
        columns=tuple(log.rewards),
        impressions_A=log.impressions_A,
        members_A=np.bincount(seen, minlength=arms),
        members=int(log.member_N.max()) + 1,
        left_out=log.left_out,
        since=_moment(log.shown_at_N[0]),
        until=_moment(log.shown_at_N[-1]),
        by_member=by_member,
        mismatch=mismatch_of_log(log.member_N, log.arm_N, share_NA, by_member=by_member, level=level_of_mismatch),
        expected_by=expected_by,
        looks=looks,
        covariates=list(log.covariates),
        notes=_notes(log, by_member, by_impression),
    )


def prepare_counts(
    name: str,
    arms: tuple[str, ...],
    counts: Mapping[str, NDArray[np.float64]],
    days: list[str],
    control: int,
    metric: Ratio,
    *,
    split: NDArray[np.float64] | None,
    level_of_mismatch: float,
) -> PreparedTest:
    """Sum an aggregated test over its days. `counts`: by column, (D, A); `days`: names of the days, in order, one without days."""
    summed = {column: np.cumsum(count_DA, 0) for column, count_DA in counts.items()}
    looks = []
    for index, day in enumerate(days):
        totals = ArmCounts(columns={column: count_DA[index] for column, count_DA in summed.items()})
        impressions = int(totals.columns["impressions"].sum())
        looks.append(Look(until=day, impressions=impressions, contrasts=_contrasts(totals, metric, len(arms), control)))
    last = ArmCounts(columns={column: count_DA[-1] for column, count_DA in summed.items()})
    count_A = last.columns["impressions"]
    share_A = np.full(len(arms), 1 / len(arms)) if split is None else split
    return PreparedTest(
        name=name,
        arms=arms,
        control=control,
        totals=last,
        columns=tuple(column for column in counts if column != "impressions"),
        impressions_A=count_A.astype(np.int64),
        members_A=count_A.astype(np.int64),
        members=int(count_A.sum()),
        left_out=0,
        since=days[0] if len(days) > 1 else None,
        until=days[-1] if len(days) > 1 else None,
        by_member=False,
        mismatch=mismatch_of_counts(count_A, share_A, level_of_mismatch),
        expected_by=EQUAL if split is None else STATED,
        looks=looks if len(days) > 1 else [],
        covariates=[],
    )


def _shares(log: ExperimentLog, split: NDArray[np.float64] | None) -> tuple[NDArray[np.float64], str]:
    """Expected shares of the arms for each impression, (N, A), and where they come from."""
    shape = (len(log), len(log.arms))
    if split is not None:
        return np.broadcast_to(split, shape), STATED
    if log.share_NA is not None:
        return log.share_NA, FROM_PROPENSITIES
    if log.constant_A is not None:
        return np.broadcast_to(log.constant_A / log.constant_A.sum(), shape), FROM_PROPENSITIES
    return np.broadcast_to(np.full(shape[1], 1 / shape[1]), shape), EQUAL


def _contrasts(totals: ArmTotals, metric: Ratio, arms: int, control: int) -> list[Contrast | None]:
    return [None if arm == control else totals.contrast(metric, arm, control) for arm in range(arms)]


def _looks(shown_at_N: NDArray[np.int64]) -> list[int]:
    """How many impressions there were at the end of every day, UTC, at most `MOST_LOOKS` of them; the last is all of them."""
    day_N = shown_at_N // DAY
    ends = np.flatnonzero(np.diff(day_N, append=day_N[-1] + 1)) + 1
    step = -(-len(ends) // MOST_LOOKS)
    return ends[::-1][::step][::-1].tolist()


def _moment(microseconds: int) -> str:
    return datetime.fromtimestamp(int(microseconds) / 1e6, UTC).isoformat(timespec="minutes")


def _notes(log: ExperimentLog, by_member: bool, by_impression: bool) -> list[str]:
    notes = []
    if log.weighted:
        notes.append(
            "Propensities vary within an arm: every impression counts by its inverse propensity, so that arms are compared on the "
            "same mix of impressions."
        )
    if by_member:
        notes.append("Members keep their arm: the arms were drawn by member, and shares are counted in members.")
    if by_member and by_impression:
        notes.append(
            "Impressions are the units although members keep their arm: the intervals are too narrow. Use --unit member."
        )
    if log.left_out:
        notes.append(
            f"{log.left_out:,} impressions of these arms are left out: they were not drawn with every arm possible."
        )
    notes += log.notes
    return notes
