"""Where a policy's value comes from: slice by slice, and how much of it is the artwork's.

In: a log with importance weights of its policies. Out: rows of JSON. A slice's values are doubly robust, its intervals by
member and simultaneous over slices. Its verdict follows the rules for the whole log, on the slice's own impressions: support,
weights and rewards of the policy and of the base there, and of their difference.

Legend: N impressions, M members.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.audits.simultaneous import Spread, widen
from evaluation.logs.log_slices import LogSlice
from evaluation.off_policy.estimators import Terms
from evaluation.off_policy.intervals import Members, Sums, normal_interval, ratio_interval, standard_error
from evaluation.off_policy.valuation import WeightedLog
from evaluation.off_policy.verdict import DifferenceSample, Rewarded, assess
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
    log = weighted_log.log
    weights = {
        name: weighted_log.policy_weights[name] for name in ("scored", *bases) if name in weighted_log.policy_weights
    }
    scores = {(name, reward): weighted_log.dr_scores_N(name, reward) for name in weights for reward in log.reward}
    rows: list[SliceRow] = []
    spreads: list[Spread] = []
    for reward, reward_N in log.reward.items():
        for log_slice in slices:
            at, members = log_slice.rows, Members.of(log.member_N[log_slice.rows])
            sums = {name: members.sums(mean_terms(scores[name, reward][at])) for name in weights}
            overlaps = {name: arrays.overlap_of(at, members) for name, arrays in weights.items()}
            judged = {
                name: assess(
                    overlaps[name],
                    value=sums[name].value,
                    influence_M=sums[name].influence_M,
                    rewarded=Rewarded.of(arrays.weight_N[at] * reward_N[at], members),
                    reward=reward,
                    doubts=doubts,
                    whole=arrays.overlap,
                )
                for name, arrays in weights.items()
            }
            for base in weights:
                if base == "scored":
                    continue
                sample = DifferenceSample.of(
                    weights["scored"].weight_N[at],
                    weights[base].weight_N[at],
                    reward_N[at],
                    members,
                    alike=weighted_log.alike("scored", base),
                )
                influence_M = sums["scored"].influence_M - sums[base].influence_M
                error = standard_error(influence_M)
                spreads.append(Spread.of(log.member_N[at][members.start_M], influence_M))
                verdict, reason = sample.judge((judged["scored"], judged[base]), error, reward)
                rows.append(
                    {
                        "slice": log_slice.name,
                        "level": log_slice.level,
                        "policy": "scored",
                        "base": base,
                        "reward": reward,
                        "estimator": ESTIMATOR,
                        **(NO_LIFT if verdict == "unanswerable" else lift_row(sums["scored"], sums[base])),
                        "impressions": len(at),
                        "members": len(members),
                        "effective_sample_size": overlaps["scored"].effective_sample_size,
                        "share_of_impressions": len(at) / len(log),
                        "verdict": verdict,
                        "reason": reason,
                    }
                )
    widen(rows, spreads)
    return rows


def mean_terms(values_N: NDArray) -> Terms:
    """The mean of values (N,) as an estimate's terms."""
    return ((values_N, np.ones(len(values_N))),)


def lift_row(value: Sums, base: Sums) -> LiftColumns:
    """`lift` and `relative`, with intervals by member, and both values."""
    above = value.value - base.value
    interval = normal_interval(above, value.influence_M - base.influence_M)
    change, relative = ratio_interval(value, base)
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
