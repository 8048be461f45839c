"""Where a policy's value comes from: slice by slice, and how much of it is the artwork's.

In: a log with its policies weighed. Out: rows of JSON. A slice's values are doubly robust, its intervals by member, and its
verdict is given as for the whole log, so that a slice too small to say anything says that.

Legend: N impressions, M members.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.estimators import Terms
from evaluation.intervals import NONE, Members, Sums, normal_interval
from evaluation.slices import Slice
from evaluation.valuation import Weighing
from evaluation.verdict import Overlap, effective, judge

ESTIMATOR = "dr"
STEPS = (
    ("uniform", None, "the title and its place, whatever the artwork"),
    ("best_fixed", "uniform", "the best artwork of each title, the same for everybody"),
    ("scored", "best_fixed", "choosing for each member"),
    ("scored", "uniform", "the artwork in all"),
)
"""(policy, what it is held against, what the difference is due to)."""


def attribute(
    weighing: Weighing,
    slices: Sequence[Slice],
    *,
    bases: Sequence[str] = ("uniform", "best_fixed"),
    doubts: tuple[str, ...] = (),
) -> list[dict[str, Any]]:
    """The scored policy above each base in each slice, by reward: its value, the base's, the lift, relative and not."""
    log, weight_N = weighing.log, weighing.weighed["scored"].weight_N
    unsupported = weighing.weighed["scored"].overlap.unsupported
    rows: list[dict[str, Any]] = []
    for reward, reward_N in log.reward.items():
        own_N = weighing.robust_N("scored", reward)
        of_base = {base: weighing.robust_N(base, reward) for base in bases if base in weighing.weighed}
        for one in slices:
            members = Members.of(log.member_N[one.rows])
            value = members.sums(_mean(own_N[one.rows]))
            moved_M, part_n = value.moved_M, weight_N[one.rows]
            overlap = Overlap.of(part_n, members, unsupported)
            verdict, reason = judge(
                overlap,
                value=value.value,
                moved_M=moved_M,
                rewarded=effective(part_n * reward_N[one.rows]),
                reward=reward,
                doubts=doubts,
            )
            for base, base_N in of_base.items():
                told = lift_row(value, members.sums(_mean(base_N[one.rows])))
                if verdict == "unanswerable":
                    told = dict.fromkeys(told)
                rows.append(
                    {"slice": one.name, "level": one.level, "policy": "scored", "base": base, "reward": reward}
                    | {"estimator": ESTIMATOR, **told, "impressions": len(one.rows), "members": len(members)}
                    | {
                        "effective_sample_size": overlap.effective_sample_size,
                        "share_of_impressions": len(one.rows) / len(log),
                        "verdict": verdict,
                        "reason": reason,
                    }
                )
    return rows


def _mean(values_N: NDArray) -> Terms:
    return ((values_N, np.ones(len(values_N))),)


def lift_row(value: Sums, base: Sums) -> dict[str, float | None]:
    """`lift` and `relative`, with intervals by member, and both values; the relative one by the jackknife of the ratio."""
    above = value.value - base.value
    interval = normal_interval(above, value.moved_M - base.moved_M)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.divide(value.value, base.value)
        without_M = (value.value - value.moved_M) / (base.value - base.moved_M)
    relative, change = normal_interval(float(ratio) - 1, ratio - without_M), float(ratio) - 1
    if not normal_interval(base.value, base.moved_M).low > 0:
        # a base that may be 0: nothing can be said relative to it (Fieller, 1954)
        relative, change = NONE, float("nan")
    told = {
        "value": value.value,
        "base_value": base.value,
        "lift": above,
        "low": interval.low,
        "high": interval.high,
        "relative": change,
        "relative_low": relative.low,
        "relative_high": relative.high,
    }
    return {name: float(number) if np.isfinite(number) else None for name, number in told.items()}


def artwork_alone(told: dict[str, Any]) -> list[dict[str, Any]]:
    """How much of the value the artwork makes, the title held fixed: `STEPS`, by `title_snips` and by `dr`.

    `title_snips` compares within each title and averages the titles by their impressions, so that what titles differ in
    cannot enter; `dr` compares on the same impressions. `told` is what `valued` returns.
    """
    rows: list[dict[str, Any]] = []
    values = {(row["policy"], row["reward"], row["estimator"]): row for row in told["estimates"]}
    above = {(row["policy"], row["base"], row["reward"], row["estimator"]): row for row in told["differences"]}
    for reward in dict.fromkeys(row["reward"] for row in told["estimates"]):
        for estimator in ("title_snips", ESTIMATOR):
            for policy, base, due_to in STEPS:
                key: dict[str, Any] = {"policy": policy, "base": base, "reward": reward, "estimator": estimator}
                row, sign = values.get((policy, reward, estimator)), 1
                if base is not None:
                    row = above.get((policy, base, reward, estimator))
                    if row is None and (row := above.get((base, policy, reward, estimator))) is not None:
                        sign = -1
                if row is None:
                    continue
                ends = [None if row[end] is None else sign * row[end] for end in ("low", "high")][::sign]
                value = None if row["value"] is None else sign * row["value"]
                told_row = {"due_to": due_to, "value": value, "low": ends[0], "high": ends[1]}
                rows.append(key | told_row | {"verdict": row["verdict"]})
    return rows
