"""Audits beside a policy's value: slices, the cost of exploring, calibration, clickbait and exposure.

In: a log with importance weights of its policies, and the dataset's other tables. Out: the sections of `value.json` after the
estimates. A section that the dataset has no data for is left out, and a note says so.

Legend: N impressions.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.audits.attribution import artwork_contribution, attribute_value
from evaluation.audits.clickbait import clickbait
from evaluation.audits.examples import examples, read_artwork_labels
from evaluation.audits.exploration import lift_by_exploration
from evaluation.audits.exposure import exposure
from evaluation.audits.metrics import auc, expected_calibration_error, log_loss, null_calibration_error, reliability
from evaluation.audits.segment_engagement import engagement_by_segment
from evaluation.audits.stability import changes
from evaluation.logs.log_slices import ImpressionAttributes, LogSlice, build_slices
from evaluation.logs.logged_impressions import Outcomes, read_outcomes
from evaluation.logs.scored_log import ScoredLog, record_beside
from evaluation.off_policy.valuation import LOGGED, WeightedLog
from evaluation.record.records import AuditSections
from evaluation.record.rows import (
    CalibrationSliceRow,
    Estimates,
    FitMetrics,
    Metrics,
    Reason,
    ReliabilityPoints,
    WeightRow,
    finite_or_none,
)
from foundation.context import BUILT_IN, CONTEXT_BESIDE_PARQUET, ContextFeature, load_context
from foundation.stored import reading

NO_ENGAGEMENT = "The log does not say of every click whether it led to a viewing: clickbait cannot be measured."
REASONS = "_reasons.json"
MIN_ROWS = 200
"""Rows of a slice below which its calibration is not reported."""
WEIGHT_EDGES = (0.0, 1e-9, 0.1, 0.2, 0.5, 0.8, 1.25, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1000.0, np.inf)


@dataclass(frozen=True, kw_only=True)
class AuditInputs:
    """The inputs of the audits besides the scored log."""

    dataset: Path
    since: datetime | None
    before: datetime | None
    outcomes: Outcomes | None
    """Outcomes of all impressions until the end of the period."""
    past: Outcomes | None
    """Outcomes of the impressions before the period."""
    reasons: dict[str, Reason]
    """Explanations of the scores' policy by impression; empty where the scores have none."""
    features: tuple[ContextFeature, ...]
    """The context features of the bundle that scored; the built-in ones for scores from elsewhere."""

    @classmethod
    def read(cls, dataset: Path, scores: Path, since: datetime | None, before: datetime | None = None) -> "AuditInputs":
        """Read the outcomes logged until the end of a period, and the explanations beside the scores."""
        outcomes = read_outcomes(dataset, before)
        past = None if since is None or outcomes is None else outcomes.shown_before(since)
        path, context = record_beside(scores, REASONS), record_beside(scores, CONTEXT_BESIDE_PARQUET)
        reasons = {}
        if path.is_file():
            with reading(path, "Score the dataset again."):
                reasons = {row["impression_id"]: row for row in json.loads(path.read_text("utf-8"))}
        features = load_context(context.parent, "Score the dataset again.") if context.is_file() else BUILT_IN
        period = {"dataset": dataset, "since": since, "before": before}
        return cls(**period, outcomes=outcomes, past=past, reasons=reasons, features=features)


def audit(
    scored: ScoredLog,
    weighted_log: WeightedLog,
    estimates: Estimates,
    audit_inputs: AuditInputs,
    attributes: ImpressionAttributes,
    fixed_N: NDArray[np.integer] | None,
    doubts: tuple[str, ...],
) -> AuditSections:
    """Compute the sections. `scored` and `weighted_log` have the same rows, `estimates` was computed from them.

    `attributes`: ids and context of the same impressions. `fixed_N`: (N,) index among the candidates of the best artwork for
    everybody, learned from the past.
    """
    slices, notes = build_slices(audit_inputs.dataset, scored, attributes, audit_inputs.past)
    catalogue = read_artwork_labels(audit_inputs.dataset)
    outcomes = audit_inputs.outcomes
    bait = None if outcomes is None else clickbait(outcomes, catalogue.name_of_artwork, doubts)
    if bait is None:
        notes.append(NO_ENGAGEMENT)
    shown, left_out = exposure(
        audit_inputs.dataset, scored, attributes.member, weighted_log.policy_weights["scored"].weight_N, doubts
    )
    return {
        "attribution": attribute_value(weighted_log, slices, doubts=doubts),
        "artwork_alone": artwork_contribution(estimates),
        "exploration": lift_by_exploration(weighted_log, doubts=doubts),
        "weight_histogram": weight_histogram(weighted_log),
        **fit_metrics(scored),
        "calibration_by_slice": calibration_by_slice(scored, slices),
        "clickbait": bait,
        "exposure": shown,
        "holds": engagement_by_segment(
            audit_inputs.dataset,
            scored,
            attributes.member,
            {name: weights for name, weights in weighted_log.policy_weights.items() if name != "best_fixed"},
            doubts,
        ),
        "stability": changes(scored),
        "examples": examples(audit_inputs.dataset, scored, attributes, catalogue, fixed_N, audit_inputs.reasons),
        "notes": list(dict.fromkeys([*notes, *left_out])),
    }


def weight_histogram(weighted_log: WeightedLog) -> list[WeightRow]:
    """Rows by policy: how many impressions have weights in low .. high, and their share of all weight."""
    rows: list[WeightRow] = []
    for policy, arrays in weighted_log.policy_weights.items():
        if policy == LOGGED:
            continue
        weight_N = arrays.weight_N
        index_N = np.searchsorted(WEIGHT_EDGES, weight_N, side="right") - 1
        count_B, sum_B = (np.bincount(index_N, v, len(WEIGHT_EDGES) - 1) for v in (None, weight_N))
        total = max(float(weight_N.sum()), 1e-300)
        for low, high, count, weight in zip(WEIGHT_EDGES[:-1], WEIGHT_EDGES[1:], count_B, sum_B, strict=True):
            if count:
                rows.append(
                    {
                        "policy": policy,
                        "low": low,
                        "high": finite_or_none(high),
                        "impressions": int(count),
                        "share_of_weight": weight / total,
                    }
                )
    return rows


def fit_metrics(log: ScoredLog) -> FitMetrics:
    """Metrics of the shown artworks' probabilities against the outcomes: of a click, and of a viewing after a click."""
    p_N = log.click_probability_NK[np.arange(len(log)), log.shown]
    fit: FitMetrics = {"metrics": _metrics(p_N, log.clicked, log.member), "reliability": _points(p_N, log.clicked)}
    engagement_fit = engaged_after_click(log, p_N)
    if engagement_fit is not None:
        fit["engaged_metrics"] = _metrics(*engagement_fit, log.member[log.clicked > 0])
        fit["engaged_reliability"] = _points(*engagement_fit)
    return fit


def engaged_after_click(log: ScoredLog, p_N: NDArray) -> tuple[NDArray, NDArray] | None:
    """For clicked impressions, the probability of a viewing given the click, and whether it followed, 1 or 0, (n,) each; None
    where scores or log do not say."""
    at = log.clicked > 0
    if log.engaged_probability is None or log.engaged is None or not at.any():
        return None
    return np.clip(log.engaged_probability[at] / np.maximum(p_N[at], 1e-9), 0, 1), log.engaged[at]


def calibration_by_slice(log: ScoredLog, slices: Sequence[LogSlice]) -> list[CalibrationSliceRow]:
    """By slice, predicted and observed rates of the shown artworks, and the calibration error beside its null distribution."""
    p_N = log.click_probability_NK[np.arange(len(log)), log.shown]
    heads = [("clicked", p_N, log.clicked, np.arange(len(log)))]
    engagement_fit = engaged_after_click(log, p_N)
    if engagement_fit is not None:
        heads.append(("engaged", *engagement_fit, np.flatnonzero(log.clicked > 0)))
    rows: list[CalibrationSliceRow] = []
    for log_slice in slices:
        for reward, q_n, y_n, indices in heads:
            at = np.isin(indices, log_slice.rows, assume_unique=True)
            if at.sum() >= MIN_ROWS:
                metrics = _metrics(q_n[at], y_n[at], log.member[indices[at]])
                rows.append(
                    {
                        "slice": log_slice.name,
                        "level": log_slice.level,
                        "reward": reward,
                        "rows": int(at.sum()),
                        "predicted": float(q_n[at].mean()),
                        "observed": float(y_n[at].mean()),
                        "expected_calibration_error": metrics["expected_calibration_error"],
                        "by_chance": metrics["by_chance"],
                    }
                )
    return rows


def _metrics(p_N: NDArray, y_N: NDArray, member_N: NDArray[np.integer]) -> Metrics:
    return {
        "auc": finite_or_none(auc(p_N, y_N)),
        "log_loss": log_loss(p_N, y_N),
        "log_loss_of_a_constant": log_loss(np.full(len(y_N), y_N.mean()), y_N),
        "expected_calibration_error": expected_calibration_error(p_N, y_N),
        "by_chance": list(null_calibration_error(p_N, y_N=y_N, member_N=member_N)),
    }


def _points(p_N: NDArray, y_N: NDArray) -> ReliabilityPoints:
    bins = reliability(p_N, y_N)
    return {
        "predicted": bins.predicted.tolist(),
        "observed": bins.observed.tolist(),
        "count": bins.count.tolist(),
    }
