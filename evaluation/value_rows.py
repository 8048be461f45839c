"""Estimates and their differences as rows of JSON: numbers, intervals, diagnostics, verdicts and what stands behind them.

Legend: D bootstrap draws, E estimates, M members.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.intervals import Sums, normal_interval, percentile_interval, standard_error
from evaluation.verdict import Overlap, Reference, Verdict, doubts_of_bias, judge, worse


@dataclass(frozen=True, kw_only=True)
class Estimated:
    """One estimate before its interval."""

    policy: str
    reward: str
    estimator: str
    sums: Sums
    overlap: Overlap
    rewarded: float
    """Effective number of rewarded impressions."""
    impressions: int
    members: int
    unbiased: Sums | None = None
    """Of one that can be biased: the unbiased estimate to hold it against."""
    told: str = ""
    """Where its bias would come from."""
    by_model: bool = False
    """It leans on the reward model."""
    bias: float = 0.0
    """Of one that has no such reference: about its bias."""
    parameter: dict[str, Any] | None = None
    """What was chosen on the data, as a row."""


def told_rows(found: Sequence[Estimated], drawn_DE: NDArray, doubts: tuple[str, ...]) -> dict[str, Any]:
    """Estimates and differences as rows, with what stands behind them."""
    told: dict[str, Any] = {"estimates": [], "differences": [], "intervals": [], "verdicts": [], "parameters": []}
    judged: list[Verdict] = []
    for place, one in enumerate(found):
        moved_M = one.sums.moved_M
        verdict, reason = judge(
            one.overlap,
            value=one.sums.value,
            moved_M=moved_M,
            rewarded=one.rewarded,
            reward=one.reward,
            doubts=[*doubts, *_leaning(one)],
        )
        judged.append(verdict)
        key = {"policy": one.policy, "reward": one.reward, "estimator": one.estimator}
        normal = normal_interval(one.sums.value, moved_M)
        drawn = percentile_interval(drawn_DE[:, place])
        told["estimates"].append(
            key
            | _number(one.sums.value, normal.low, normal.high, verdict)
            | _of_weights(one.overlap)
            | {"impressions": one.impressions, "members": one.members, "verdict": verdict}
        )
        told["verdicts"].append(key | {"verdict": verdict, "reason": reason})
        if verdict != "unanswerable":
            ends = {"normal_low": normal.low, "normal_high": normal.high}
            ends |= {"bootstrap_low": drawn.low, "bootstrap_high": drawn.high}
            told["intervals"].append(key | {name: end if np.isfinite(end) else None for name, end in ends.items()})
        if one.parameter:
            told["parameters"].append(key | one.parameter)
    for (a, one), (b, other) in combinations(enumerate(found), 2):
        if (one.reward, one.estimator) == (other.reward, other.estimator):
            verdict = worse(judged[a], judged[b])
            if verdict == "reliable" and _leaning(one, other):
                # what two values have room for, their difference may not
                verdict = "weak"
            told["differences"].append(_difference(one, other, drawn_DE[:, a], drawn_DE[:, b], verdict))
    return told


def _leaning(one: Estimated, base: Estimated | None = None) -> list[str]:
    """Doubts of an estimator that can be biased: on a value, or on its difference from the base's."""
    value, moved_M = one.sums.value, one.sums.moved_M
    if base is not None:
        value, moved_M = value - base.sums.value, moved_M - base.sums.moved_M
    if one.unbiased is None:
        bias = one.bias + (base.bias if base is not None else 0.0)
        return doubts_of_bias(bias, standard_error(moved_M), one.told) if bias else []
    sides = [one.unbiased, *([] if base is None or base.unbiased is None else [base.unbiased])]
    reference = Reference(
        value=sides[0].value - sum(side.value for side in sides[1:]),
        moved_M=sides[0].moved_M - sum(side.moved_M for side in sides[1:]),
        told=one.told,
        by_model=one.by_model,
    )
    return reference.doubts(value, moved_M)


def _difference(one: Estimated, base: Estimated, one_D: NDArray, base_D: NDArray, verdict: Verdict) -> dict[str, Any]:
    """What `one` earns above `base`, on the same members; the relative one by bootstrap, as a ratio is not normal."""
    value, below = one.sums.value, base.sums.value
    moved_M = one.sums.moved_M - base.sums.moved_M
    interval = normal_interval(value - below, moved_M)
    weaker = min(one, base, key=lambda side: side.overlap.effective_sample_size)
    row: dict[str, Any] = {"policy": one.policy, "base": base.policy, "reward": one.reward, "estimator": one.estimator}
    row |= _number(value - below, interval.low, interval.high, verdict)
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = percentile_interval(one_D / base_D - 1)
    relative = value / below - 1 if below > 0 else float("nan")
    told = _number(relative, lift.low, lift.high, verdict)
    row |= {f"relative_{name}" if name != "value" else "relative": number for name, number in told.items()}
    return row | _of_weights(weaker.overlap) | {
        "impressions": one.impressions,
        "members": one.members,
        "verdict": verdict,
    }  # fmt: skip


def _number(value: float, low: float, high: float, verdict: Verdict) -> dict[str, float | None]:
    """As JSON; no number at all where the log holds no answer."""
    told = {"value": value, "low": low, "high": high}
    return {name: None if verdict == "unanswerable" or not np.isfinite(v) else float(v) for name, v in told.items()}


def _of_weights(overlap: Overlap) -> dict[str, float | None]:
    mean = overlap.mean_weight
    return {
        "effective_sample_size": overlap.effective_sample_size,
        "mean_weight": mean if np.isfinite(mean) else None,
        "largest_weight": overlap.largest_weight,
    }


def overlap_row(policy: str, overlap: Overlap) -> dict[str, Any]:
    interval = overlap.mean_weight_interval
    told = {"mean_weight_low": interval.low, "mean_weight_high": interval.high, "unsupported": overlap.unsupported}
    return {"policy": policy} | _of_weights(overlap) | {k: v if np.isfinite(v) else None for k, v in told.items()}
