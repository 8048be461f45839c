"""Where a policy's value comes from: slice by slice, and how much of it is the artwork's.

In: a log with importance weights of its policies. Out: rows of JSON. A slice's values are doubly robust, its intervals by
member and simultaneous over slices, and its verdict follows the rules for the whole log, so that a slice that is too small is
reported as such.

Legend: N impressions, M members.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.audits.simultaneous import Spread, widen
from evaluation.logs.log_slices import LogSlice
from evaluation.off_policy.estimators import Terms
from evaluation.off_policy.intervals import NONE, Members, Sums, normal_interval
from evaluation.off_policy.valuation import WeightedLog
from evaluation.off_policy.verdict import Overlap, assess, kish_sample_size
from evaluation.record.rows import ContributionRow, EstimateRow, Estimates, LiftColumns, SliceRow, finite_or_none

ESTIMATOR = "dr"
NO_LIFT = LiftColumns(
    value=None,
    base_value=None,
    lift=None,
    low=None,
    high=None,
    relative=None,
    relative_low=None,
    relative_high=None,
)
CONTRASTS = (
    ("uniform", None, "the title and its position, whatever the artwork"),
    ("best_fixed", "uniform", "the best artwork of each title, the same for everybody"),
    ("scored", "best_fixed", "choosing for each member"),
    ("scored", "uniform", "the artwork in all"),
)
"""(policy, the base it is compared with, the cause of the difference)."""


def attribute_value(
    weighted_log: WeightedLog,
    slices: Sequence[LogSlice],
    *,
    bases: Sequence[str] = ("uniform", "best_fixed"),
    doubts: tuple[str, ...] = (),
) -> list[SliceRow]:
    """The scored policy above each base in each slice, by reward: its value, the base's, the lift, relative and not.

    Intervals are simultaneous over all rows (`simultaneous.widen`): in 95 % of reports no slice's interval misses its truth.
    """
    log, weight_N = weighted_log.log, weighted_log.policy_weights["scored"].weight_N
    unsupported = weighted_log.policy_weights["scored"].overlap.unsupported
    rows: list[SliceRow] = []
    spreads: list[Spread] = []
    for reward, reward_N in log.reward.items():
        own_N = weighted_log.dr_scores_N("scored", reward)
        of_base = {
            base: weighted_log.dr_scores_N(base, reward) for base in bases if base in weighted_log.policy_weights
        }
        for log_slice in slices:
            members = Members.of(log.member_N[log_slice.rows])
            value = members.sums(_mean(own_N[log_slice.rows]))
            influence_M, part_n = value.influence_M, weight_N[log_slice.rows]
            overlap = Overlap.of(part_n, members, unsupported)
            verdict, reason = assess(
                overlap,
                value=value.value,
                influence_M=influence_M,
                effective_rewarded=kish_sample_size(part_n * reward_N[log_slice.rows]),
                reward=reward,
                doubts=doubts,
            )
            for base, base_N in of_base.items():
                of_base_here = members.sums(_mean(base_N[log_slice.rows]))
                lift = lift_row(value, of_base_here)
                ids_M = log.member_N[log_slice.rows][members.start_M]
                spreads.append(Spread.of(ids_M, influence_M - of_base_here.influence_M))
                if verdict == "unanswerable":
                    lift = NO_LIFT
                rows.append(
                    {
                        "slice": log_slice.name,
                        "level": log_slice.level,
                        "policy": "scored",
                        "base": base,
                        "reward": reward,
                        "estimator": ESTIMATOR,
                        **lift,
                        "impressions": len(log_slice.rows),
                        "members": len(members),
                        "effective_sample_size": overlap.effective_sample_size,
                        "share_of_impressions": len(log_slice.rows) / len(log),
                        "verdict": verdict,
                        "reason": reason,
                    }
                )
    widen(rows, spreads)
    return rows


def _mean(values_N: NDArray) -> Terms:
    return ((values_N, np.ones(len(values_N))),)


def lift_row(value: Sums, base: Sums) -> LiftColumns:
    """`lift` and `relative`, with intervals by member, and both values; the relative one by the jackknife of the ratio."""
    above = value.value - base.value
    interval = normal_interval(above, value.influence_M - base.influence_M)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.divide(value.value, base.value)
        without_M = (value.value - value.influence_M) / (base.value - base.influence_M)
    relative, change = normal_interval(float(ratio) - 1, ratio - without_M), float(ratio) - 1
    if not normal_interval(base.value, base.influence_M).low > 0:
        # a base that may be 0 has no relative difference (Fieller, 1954)
        relative, change = NONE, float("nan")
    return {
        "value": finite_or_none(value.value),
        "base_value": finite_or_none(base.value),
        "lift": finite_or_none(above),
        "low": finite_or_none(interval.low),
        "high": finite_or_none(interval.high),
        "relative": finite_or_none(change),
        "relative_low": finite_or_none(relative.low),
        "relative_high": finite_or_none(relative.high),
    }


def artwork_contribution(estimates: Estimates) -> list[ContributionRow]:
    """The artwork's part of the value, with the title held fixed: `CONTRASTS`, by `title_snips` and by `dr`.

    `title_snips` compares within each title and averages the titles by their impressions, so that what titles differ in
    cannot enter; `dr` compares on the same impressions.
    """
    rows: list[ContributionRow] = []
    values = {(row["policy"], row["reward"], row["estimator"]): row for row in estimates["estimates"]}
    above = {(row["policy"], row["base"], row["reward"], row["estimator"]): row for row in estimates["differences"]}
    for reward in dict.fromkeys(row["reward"] for row in estimates["estimates"]):
        for estimator in ("title_snips", ESTIMATOR):
            for policy, base, due_to in CONTRASTS:
                row: EstimateRow | None = values.get((policy, reward, estimator))
                sign = 1
                if base is not None:
                    row = above.get((policy, base, reward, estimator))
                    if row is None and (row := above.get((base, policy, reward, estimator))) is not None:
                        sign = -1
                if row is None:
                    continue
                ends = [None if end is None else sign * end for end in (row["low"], row["high"])][::sign]
                rows.append(
                    {
                        "policy": policy,
                        "base": base,
                        "reward": reward,
                        "estimator": estimator,
                        "due_to": due_to,
                        "value": None if row["value"] is None else sign * row["value"],
                        "low": ends[0],
                        "high": ends[1],
                        "verdict": row["verdict"],
                    }
                )
    return rows
