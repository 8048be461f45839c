"""`value.json` and `report.json` as typed records: written and read here alone.

A record carries the version of its schema; a file of another version is refused by name, with what to do.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from evaluation.record.log_rows import (
    AssignmentRow,
    DriftRow,
    LogFaultRow,
    LoggingPolicyRow,
    PropensityChecks,
    PropensityRow,
)
from evaluation.record.rows import (
    CalibrationSliceRow,
    Clickbait,
    ContributionRow,
    EngagementRow,
    Estimates,
    ExampleMember,
    ExplorationRow,
    ExposureRow,
    FitMetrics,
    IntervalColumns,
    SliceRow,
    StabilityRow,
    Verdict,
    VerdictRow,
    WeightRow,
)
from evaluation.record.selection_rows import Selection
from foundation.preferences import Preferences
from foundation.records import read_versioned

VALUE_FILE, VALUE_VERSION = "value.json", 3
REPORT_FILE, REPORT_VERSION = "report.json", 9
"""Schema versions, raised when fields change or change their meaning: older records must then be written again."""


class AuditSections(FitMetrics):
    """The sections beside the estimates."""

    attribution: list[SliceRow]
    artwork_alone: list[ContributionRow]
    exploration: list[ExplorationRow]
    weight_histogram: list[WeightRow]
    calibration_by_slice: list[CalibrationSliceRow]
    clickbait: Clickbait | None
    exposure: list[ExposureRow]
    holds: list[EngagementRow]
    stability: list[StabilityRow]
    examples: list[ExampleMember]
    notes: list[str]


class Selections(TypedDict, total=False):
    """The best of many, where several scores tables were named."""

    selection: list[Selection]
    """By reward, the policies of all tables compared with one another."""


class ValueSections(AuditSections, Estimates, Selections):
    """The part that both records share: the policies' estimates on a log, and properties of the log."""

    verdict: VerdictRow
    """The verdict on the scored policy's clicks, by the main estimator."""
    doubts: list[str]
    """Defects of the log: with any, no verdict is reliable."""
    traffic: str
    """Which impressions are valued, and whether they stand for all, in words."""
    weights: str
    logging_policies: list[LoggingPolicyRow]
    assignment: list[AssignmentRow]
    """Whether who logs depends on the context; empty where one policy logged all."""
    propensities: PropensityChecks
    faults: list[LogFaultRow]
    randomised: int
    calibration: list[PropensityRow] | None
    drift: list[DriftRow]


class ValueRecord(ValueSections):
    """`value.json`."""

    schema_version: int
    period: str
    split: str | None
    """The source of the split times, in words; None for the whole log."""
    since: str | None
    before: str | None
    log_policy: str
    impressions: int
    members: int
    without_choice: int
    without_scores: int
    without_base: int
    scores_of_other_impressions: int


class PolicyRow(TypedDict):
    """A policy by its name in `value` and its label; its true value where it is known."""

    policy: str
    label: str
    reward: str
    true_value: float | None


class NotRandomisedRow(IntervalColumns):
    """The logging policy's value on the impressions that were not randomised."""

    reward: str
    impressions: int
    verdict: Verdict


class ReportExtras(TypedDict, total=False):
    """Further fields of a report, which the caller of `evaluate` fills."""

    made_from: str
    """Fingerprint of the report's inputs."""
    dataset: str
    """Fingerprint of the log."""
    onnx_torch_largest_difference: float
    validation: Mapping[str, Any]
    """The run's validation metrics, as in `metrics.json`."""
    preferences: Preferences
    """What the ranker looks at."""


class Report(FitMetrics, ReportExtras):
    """`report.json`; metrics are over all impressions, `value` over those with at least two candidates."""

    schema_version: int
    scored: str
    since: str
    until: str
    impressions: int
    without_choice: int
    members: int
    randomised: int
    policies: list[PolicyRow]
    not_randomised: list[NotRandomisedRow]
    captured_lift: float | None
    value: ValueSections
    notes: dict[str, str]


def write_value(folder: Path, record: ValueRecord) -> None:
    """Write `value.json`; ValueError where a number is not finite."""
    (folder / VALUE_FILE).write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")


def read_value(folder: Path) -> ValueRecord:
    """Read `value.json` of a folder; UserError as `foundation.records.read_versioned`."""
    return cast("ValueRecord", read_versioned(folder / VALUE_FILE, VALUE_VERSION, "Run keyart value again."))


def write_report(folder: Path, report: Report) -> None:
    """Write `report.json`; ValueError where a number is not finite."""
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=1, allow_nan=False), encoding="utf-8")


def read_report(folder: Path) -> Report:
    """Read `report.json` of a folder; UserError as `foundation.records.read_versioned`."""
    return cast("Report", read_versioned(folder / REPORT_FILE, REPORT_VERSION, "Run keyart evaluate again."))
