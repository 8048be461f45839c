"""`keyart value`: a dataset and any model's scores table -> the scored policy's value, and how far the log supports it.

In: `impressions/` and a scores table by the contract; plays, titles, images and segments where the dataset has them. Out:
`value.json`, whose `verdict` comes first, and `value.html`, a page to read.

Values are rewards per impression, over impressions with at least two candidates: with one, every policy earns the same.

Legend: N impressions, K candidates (padded).
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation.audits.audit import AuditInputs, audit
from evaluation.logs.context_levels import context_levels
from evaluation.logs.log_checks import period_row
from evaluation.logs.log_faults import LogFault
from evaluation.logs.log_review import ALL_TRAFFIC, WeightsOption, review_log
from evaluation.logs.log_slices import ImpressionAttributes, read_impression_attributes
from evaluation.logs.logged_impressions import Outcomes
from evaluation.logs.policies import best_fixed_choice, uniform
from evaluation.logs.propensity_tests import ERROR_RATE
from evaluation.logs.scored_log import ScoredLog, read_scored_log
from evaluation.off_policy.intervals import DRAWS
from evaluation.off_policy.valuation import (
    HEADLINE_ESTIMATOR,
    LOGGED,
    PolicyProbabilities,
    estimate,
    importance_weights,
)
from evaluation.period import Period, SplitTimes, split_times
from evaluation.record.log_rows import LogFaultRow
from evaluation.record.records import VALUE_FILE, VALUE_VERSION, ValueRecord, ValueSections, write_value
from evaluation.record.rows import DifferenceRow, DriftRow, EstimateRow, Estimates, PeriodRow, VerdictRow
from evaluation.report.value_page import main_estimate, value_page
from foundation.atomic import atomic_folder, claimed_output
from foundation.errors import UserError
from foundation.output_path import require_output
from foundation.progress import progress_bar

VALUE_PAGE = "value.html"
PROGRESS_STEPS = 7

NO_PAST = "Nothing was logged before this period to learn the best artwork of each title from: best_fixed is left out."
SHOWN_ALONE = (
    "The log has only the shown artwork's propensity: whether the policy chooses artworks that the log never shows is visible "
    "only in the mean weight, and propensities cannot be compared with how often artworks were shown."
)


def value(
    dataset: Path,
    scores: Path,
    out: Path,
    *,
    base: Path | None = None,
    period: Period = "test",
    like: Path | None = None,
    log_policy: str = "all",
    weights: WeightsOption = "auto",
    allow_missing: bool = False,
    console: Console | None = None,
) -> ValueRecord:
    """Estimate the value of the scored, the uniform, the logging policy and the best artwork per title; writes `value.json` and
    `value.html`.

    `base`: another scores table of the same impressions, whose policy is estimated too and compared with. `period`: test,
    validation or all, by the split times of `split_times`. `weights`: which propensities the weights of several logging policies
    divide by. UserError as `split_times` and `read_scored_log`, and where no
    impression has two candidates.
    """
    sources = [path for path in (scores, base, like) if path is not None]
    require_output(out, VALUE_FILE, dataset=dataset, sources=sources)
    console = console or Console(quiet=True)
    if like is not None and period == "all":
        raise UserError(
            f"like={like}: period=all has no split times. Leave --like out, or give --period test or validation."
        )
    split = None if period == "all" else split_times(dataset, scores, like)
    since, before = (None, None) if split is None else split.bounds(period)
    if_missing = "Score the whole period, or leave out those without scores by --allow-missing."

    def read(table: Path) -> ScoredLog:
        logged_by = None if log_policy == "all" else log_policy
        return read_scored_log(
            dataset,
            table,
            since,
            before=before,
            logged_by=logged_by,
            allow_missing=allow_missing,
            if_missing=if_missing,
        )

    with claimed_output(out, VALUE_FILE), progress_bar(console) as progress:
        task = progress.add_task("value: read the log", total=PROGRESS_STEPS)

        def step(words: str) -> None:
            progress.update(task, description=f"value: {words}", advance=1)

        everything = read(scores)
        eligible = everything.width > 1
        other = None if base is None else read(base)
        if other is not None:
            index_N = np.asarray(
                pc.fill_null(pc.index_in(everything.impression_id, value_set=other.impression_id), -1), np.int64
            )
            in_base = index_N >= 0
            everything.policies["base"] = other.policy_NK.take(np.maximum(index_N, 0))
            uncompared = int((~in_base).sum())
            eligible &= in_base
        else:
            uncompared = 0
        kept_rows = np.flatnonzero(eligible)
        if not len(kept_rows):
            raise UserError(
                f"{dataset}/impressions: no impression of the period offered two artworks, so there was nothing to choose. "
                "Name another period."
            )
        single_candidate, missing, unknown = (
            len(everything) - len(kept_rows) - uncompared,
            everything.missing,
            everything.unknown,
        )
        log = everything.take(kept_rows[np.argsort(everything.member[kept_rows], kind="stable")])
        del everything, other  # so that a large log is in memory once
        step("read the outcomes of every artwork")
        audit_inputs = AuditInputs.read(dataset, scores, since, before)
        if split is not None:
            console.print(f"value: {_period_line(period, since, before, split)}", soft_wrap=True)
        for note in _exclusion_notes(single_candidate, missing, unknown, uncompared, scores, base):
            console.print(f"value: {note}")
        sections = value_sections(log, audit_inputs, step, weights)
        record: ValueRecord = {
            "verdict": sections["verdict"],  # first in the file
            "schema_version": VALUE_VERSION,
            "period": period,
            "split": None if split is None else split.source,
            "since": None if since is None else since.isoformat(),
            "before": None if before is None else before.isoformat(),
            "log_policy": log_policy,
            "impressions": len(log),
            "members": len(np.unique(log.member)),
            "without_choice": single_candidate,
            "without_scores": missing,
            "without_base": uncompared,
            "scores_of_other_impressions": unknown,
            **sections,
        }
        for doubt in sections["doubts"]:
            console.print(f"value: doubtful: {doubt}", soft_wrap=True, highlight=False, markup=False)
        if sections["traffic"] != ALL_TRAFFIC:
            console.print(f"value: {sections['traffic']}", soft_wrap=True, highlight=False, markup=False)
        step("draw the page")
        with atomic_folder(out, marker=VALUE_FILE) as folder:
            (folder / VALUE_PAGE).write_text(value_page(record, dataset), encoding="utf-8")
            write_value(folder, record)
        step("done")
    return record


def _period_line(period: Period, since: datetime | None, before: datetime | None, split: SplitTimes) -> str:
    """The evaluated period in words, with the source of its split times."""
    ends = [f"{word} {at:%Y-%m-%d %H:%M:%S}" for word, at in (("from", since), ("until", before)) if at is not None]
    return f"the {period} period, {' '.join(ends)} UTC, by {split.source}"


def _exclusion_notes(
    single_candidate: int, missing: int, unknown: int, uncompared: int, scores: Path, base: Path | None
) -> list[str]:
    """Notes on the impressions and scores that are left out."""
    notes = []
    if missing:
        notes.append(f"{missing:,} impressions without scores are left out: the values are over the others only")
    if unknown:
        notes.append(f"{scores}: {unknown:,} scores are of impressions that are not in this period's log")
    if uncompared:
        notes.append(f"{base}: lacks {uncompared:,} impressions, which are left out on both sides")
    if single_candidate:
        notes.append(f"{single_candidate:,} impressions had a single candidate, nothing to choose")
    return notes


def value_sections(
    scored: ScoredLog,
    audit_inputs: AuditInputs,
    step: Callable[[str], None] = lambda words: None,
    weights: WeightsOption = "auto",
) -> ValueSections:
    """The sections that `value.json` and `report.json` share: estimates, properties of the log and audits.

    `audit_inputs`: the inputs of the audits besides the log; `weights`: which propensities weights divide by, see
    `evaluation.logs.logging_policies`; `step`: called with a description of each step before it begins.
    """
    if (np.diff(scored.member) < 0).any():
        scored = scored.take(np.argsort(scored.member, kind="stable"))
    period = (audit_inputs.since, audit_inputs.before)
    attributes = read_impression_attributes(audit_inputs.dataset, scored, *period, audit_inputs.features)
    step("test the propensities, and who logged what")
    review = review_log(scored, context_levels(scored, attributes), weights=weights, slot_N=_slots(attributes))
    if len(review.kept) < len(scored):
        attributes = attributes.take(review.kept)
    scored, log, doubts = review.scored, review.log, review.doubts
    all_propensities = log.propensity_NK is not None
    notes = [*([] if all_propensities else [SHOWN_ALONE]), *review.notes]
    policies: dict[str, PolicyProbabilities | None] = {
        "scored": scored.policy_NK.__getitem__,
        "uniform": uniform(scored).__getitem__,
        LOGGED: scored.propensity_NK.__getitem__ if all_propensities else None,
    }
    fixed_N = None
    if audit_inputs.past is None:
        notes.append(NO_PAST)
    else:
        fixed_N = best_fixed_choice(scored, audit_inputs.past)
        policies["best_fixed"] = scored.artwork_NK.one_hot(fixed_N).__getitem__
    policies |= {name: policy_NK.__getitem__ for name, policy_NK in scored.policies.items()}
    step("weigh the policies")
    weighted_log = importance_weights(log, policies)
    step(f"{len(log):,} impressions by every estimator, {DRAWS:,} draws of the members")
    estimates = estimate(weighted_log, doubts=doubts, replay_doubts=review.replay_doubts)
    step("slice by slice, and how honest the artworks are")
    audit_sections = audit(scored, weighted_log, estimates, audit_inputs, attributes, fixed_N, doubts)
    return {
        "verdict": _headline(estimates),
        "doubts": list(doubts),
        "traffic": review.traffic,
        "weights": review.weights,
        "logging_policies": review.policies,
        "assignment": review.assignment,
        "propensities": {
            "tests": review.propensity_tests.tests,
            "rejected": review.propensity_tests.rejected,
            "error_rate": ERROR_RATE,
            "worst": review.propensity_tests.rows,
        },
        "faults": [_fault_row(fault) for fault in review.faults],
        "randomised": int(scored.randomised.sum()),
        **estimates,
        "calibration": None if review.calibration is None else review.calibration.rows(),
        "drift": [
            DriftRow(reward=reward, part=part, **row)
            for reward, parts in review.drift.items()
            for part, row in [*_before_period(audit_inputs.past, reward), *parts]
        ],
        **audit_sections,
        "notes": [*notes, *audit_sections["notes"]],
    }


def _slots(attributes: ImpressionAttributes) -> NDArray[np.int64] | None:
    """Row and column of the page as one integer, (N,), -1 where they are null; None where neither was logged."""
    logged = [attributes.columns[name] for name in ("row", "column") if name in attributes.columns]
    if not logged:
        return None
    numbers = [
        pc.fill_null(column.cast(pa.int64(), safe=False), -1).to_numpy(zero_copy_only=False) for column in logged
    ]
    return numbers[0] * 100_000 + numbers[-1]


def _fault_row(fault: LogFault) -> LogFaultRow:
    times = (
        None if at is None else datetime.fromtimestamp(at / 1e6, UTC).isoformat() for at in (fault.since, fault.until)
    )
    since, until = times
    return {"kind": fault.kind, "fault": fault.text, "impressions": fault.impressions, "since": since, "until": until}


def _before_period(past: Outcomes | None, reward: str) -> list[tuple[Literal["before"], PeriodRow]]:
    """The uniform policy's value before the period, to compare the period with."""
    reward_N = None if past is None else past.clicked if reward == "clicked" else past.engaged
    if past is None or reward_N is None:
        return []
    order = np.argsort(past.member, kind="stable")
    order = order[past.width[order] > 1]
    if not len(order):
        return []
    weight_N = 1 / (past.width * past.propensity)
    return [("before", period_row(*(v[order] for v in (reward_N, weight_N, past.shown_at, past.member))))]


def _headline(estimates: Estimates) -> VerdictRow:
    """The verdict on the scored policy's clicks, by the main estimate."""
    key = ("scored", "clicked", HEADLINE_ESTIMATOR)
    return next(r for r in estimates["verdicts"] if (r["policy"], r["reward"], r["estimator"]) == key)


def value_table(record: ValueRecord) -> Table:
    """The policies by their main estimates, per 1,000 impressions, for reading in a terminal."""
    verdict = record["verdict"]
    table = Table(
        title=f"{verdict['verdict']}: {verdict['reason']}",
        caption=f"doubly robust, per 1,000 of {record['impressions']:,} impressions of {record['members']:,} members [95 %]",
        title_justify="left",
    )
    for heading in ("policy", "reward", "value", "above uniform"):
        table.add_column(heading, justify="left" if heading in ("policy", "reward") else "right")
    above = {(d["policy"], d["reward"], d["estimator"]): d for d in record["differences"] if d["base"] == "uniform"}
    for policy, reward in dict.fromkeys((e["policy"], e["reward"]) for e in record["estimates"]):
        main = main_estimate(record, policy, reward)
        lift = None if main is None else above.get((policy, reward, main["estimator"]))
        cells = [policy, reward, value_cell(main), _lift_cell(lift)]
        table.add_row(*map(Text, cells), style="bold" if policy == "scored" else None)
    return table


def value_cell(row: EstimateRow | None) -> str:
    """An estimate per 1,000 impressions with its interval, for a terminal."""
    if row is None:
        return "left out"
    if row["value"] is None:
        return "unanswerable"
    mark = "" if row["verdict"] == "reliable" else " (weak)"
    if row["low"] is None or row["high"] is None:
        return f"{1000 * row['value']:.1f}{mark}"
    return f"{1000 * row['value']:.1f} [{1000 * row['low']:.1f}, {1000 * row['high']:.1f}]{mark}"


def _lift_cell(row: DifferenceRow | None) -> str:
    if row is None:
        return ""
    if row["relative"] is None or row["relative_low"] is None or row["relative_high"] is None:
        return "unanswerable"
    return f"{row['relative']:+.1%} [{row['relative_low']:+.1%}, {row['relative_high']:+.1%}]"
