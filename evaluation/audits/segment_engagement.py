"""Whether a policy's clicks lead to viewings, by segment of members, against the uniform policy's clicks.

Legend: N impressions, M members.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evaluation.logs.log_slices import read_segments, top_levels
from evaluation.logs.scored_log import ScoredLog
from evaluation.off_policy.intervals import Members, normal_interval, standard_error
from evaluation.off_policy.valuation import PolicyWeights
from evaluation.off_policy.verdict import DifferenceSample, Rewarded, assess
from evaluation.record.rows import EngagementRow, finite_or_none

ALL = "all members"


def engagement_by_segment(
    dataset: Path,
    log: ScoredLog,
    member: pa.Array,
    policies: Mapping[str, PolicyWeights],
    doubts: tuple[str, ...] = (),
) -> list[EngagementRow]:
    """The share of each policy's clicks in a segment that leads to a viewing, against the uniform policy's share.

    `policies`: by name, `uniform` included. Rows of segment, level, policy, value, uniform, gap with its interval, and a
    verdict by the segment's own clicks.
    """
    if log.engaged is None:
        return []
    members = Members.of(log.member)
    segments, _ = read_segments(dataset, member.take(pa.array(members.start_M)))
    count_M = np.diff(np.append(members.start_M, len(log)))
    rows: list[EngagementRow] = []
    for segment, level, at_M in _groups(segments, len(members)):
        at = np.flatnonzero(np.repeat(at_M, count_M))
        own_members, engaged_n, clicked_n = Members.of(log.member[at]), log.engaged[at], log.clicked[at]
        sums, judged = {}, {}
        for name, arrays in policies.items():
            weight_n = arrays.weight_N[at]
            sums[name] = own_members.sums(((weight_n * engaged_n, weight_n * clicked_n),))
            judged[name] = assess(
                arrays.overlap_of(at, own_members),
                value=sums[name].value,
                influence_M=sums[name].influence_M,
                rewarded=Rewarded.of(weight_n * engaged_n, own_members),
                reward="engaged",
                doubts=doubts,
                whole=arrays.overlap,
            )
        uniform = sums["uniform"]
        for name, own in sums.items():
            if name == "uniform":
                continue
            gap, influence_M = own.value - uniform.value, own.influence_M - uniform.influence_M
            weights = policies[name].weight_N[at], policies["uniform"].weight_N[at]
            sample = DifferenceSample.of(*weights, engaged_n, own_members, alike=bool((weights[0] == weights[1]).all()))
            verdict, _ = sample.judge((judged[name], judged["uniform"]), standard_error(influence_M), "engaged")
            none, ends = verdict == "unanswerable", normal_interval(gap, influence_M)
            rows.append(
                {
                    "segment": segment,
                    "level": level,
                    "policy": name,
                    "value": None if none else finite_or_none(own.value),
                    "uniform": None if judged["uniform"][0] == "unanswerable" else finite_or_none(uniform.value),
                    "gap": None if none else finite_or_none(gap),
                    "low": None if none else finite_or_none(ends.low),
                    "high": None if none else finite_or_none(ends.high),
                    "members": int(at_M.sum()),
                    "verdict": verdict,
                }
            )
    return rows


def _groups(segments: dict[str, pa.Array], members: int) -> list[tuple[str, str, NDArray[np.bool_]]]:
    """All members, and each level of each segment, as (segment, level, mask of members)."""
    groups: list[tuple[str, str, NDArray[np.bool_]]] = [(ALL, "", np.ones(members, bool))]
    for name, values in segments.items():
        code_M, levels = top_levels(values)
        groups += [(name, level, code_M == index) for index, level in enumerate(levels) if (code_M == index).any()]
    return groups
