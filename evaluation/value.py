"""`keyart value`: a dataset and any model's scores table -> the scored policy's value, and how far the log supports it.

In: `impressions/` and a scores table by the contract; plays, titles, images and segments where the dataset has them. Out:
`value.json`, whose `verdict` comes first, and `value.html`, a page to read.

Values are rewards per impression, over impressions with at least two candidates: with one, every policy earns the same.

Legend: N impressions, K candidates (padded).
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from rich.console import Console

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
from evaluation.logs.seen_scores import Training, draw_test, overlap_doubt, training_of
from evaluation.off_policy.intervals import DRAWS
from evaluation.off_policy.selection import select
from evaluation.off_policy.valuation import (
    HEADLINE_ESTIMATOR,
    LOGGED,
    PolicyProbabilities,
    WeightedLog,
    estimate,
    importance_weights,
)
from evaluation.period import Period, SplitTimes, split_times
from evaluation.record.log_rows import DriftRow, LogFaultRow, PeriodRow
from evaluation.record.records import VALUE_FILE, VALUE_VERSION, Selections, ValueRecord, ValueSections, write_value
from evaluation.record.rows import Estimates, VerdictRow
from evaluation.report.value_page import value_page
from foundation.atomic import atomic_folder, claimed_output
from foundation.errors import UserError
from foundation.output_path import real_path, require_output
from foundation.progress import progress_bar

VALUE_PAGE = "value.html"
PROGRESS_STEPS = 7

OWN_POLICIES = ("scored", "base", "uniform", LOGGED, "best_fixed")
"""Names that no scores table's policy may have."""
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
    also: Sequence[Path] = (),
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

    `also`: further scores tables, whose policies are compared with the first and with one another, see `select`. `base`: another
    scores table of the same impressions, whose policy is estimated too and compared with. `period`: test, validation or all, by
    the split times of `split_times`. `weights`: which propensities the weights of several logging policies divide by. UserError
    as `split_times` and `read_scored_log`, and where no
    impression has two candidates.
    """
    compared = compared_policies(scores, also)
    sources = [path for path in (scores, *also, base, like) if path is not None]
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
        others = {"base": base} if base is not None else {}
        others |= {name: Path(table) for name, table in compared.items() if name != "scored"}
        lacking = {}
        for name, table in others.items():
            other = read(table)
            index_N = np.asarray(
                pc.fill_null(pc.index_in(everything.impression_id, value_set=other.impression_id), -1), np.int64
            )
            everything.policies[name] = other.policy_NK.take(np.maximum(index_N, 0))
            lacking[table] = index_N < 0
            del other
        in_others = ~np.logical_or.reduce([np.zeros(len(everything), bool), *lacking.values()])
        uncompared = int((~in_others).sum())
        eligible &= in_others
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
        del everything  # so that a large log is in memory once
        step("read the outcomes of every artwork")
        audit_inputs = AuditInputs.read(dataset, scores, since, before)
        if split is not None:
            console.print(f"value: {_period_line(period, since, before, split)}", soft_wrap=True)
        without = {table: int(lacking_N.sum()) for table, lacking_N in lacking.items()}
        for note in _exclusion_notes(single_candidate, missing, unknown, scores, without):
            console.print(f"value: {note}")
        seen = [(table, training_of(table)) for table in others.values()]
        overlaps = [
            overlap_doubt(training, log.shown_at, f"the model of {table}") for table, training in seen if training
        ]
        sections = value_sections(
            log,
            audit_inputs,
            step,
            weights,
            training=training_of(scores),
            doubts=tuple(doubt for doubt in overlaps if doubt),
            compared=compared,
        )
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


def compared_policies(scores: Path, also: Sequence[Path]) -> dict[str, str]:
    """By policy, the name of its scores table: the first is `scored`, each further one is called by its path.

    UserError where a table is named twice.
    """
    compared = {"scored": str(scores)}
    seen = {real_path(scores)}
    for table in also:
        if real_path(table) in seen:
            raise UserError(f"{table}: is named twice. Name each scores table once, and the output folder last.")
        seen.add(real_path(table))
        compared[f"./{table}" if str(table) in OWN_POLICIES else str(table)] = str(table)
    return compared


def _period_line(period: Period, since: datetime | None, before: datetime | None, split: SplitTimes) -> str:
    """The evaluated period in words, with the source of its split times."""
    ends = [f"{word} {at:%Y-%m-%d %H:%M:%S}" for word, at in (("from", since), ("until", before)) if at is not None]
    return f"the {period} period, {' '.join(ends)} UTC, by {split.source}"


def _exclusion_notes(
    single_candidate: int, missing: int, unknown: int, scores: Path, without: Mapping[Path, int]
) -> list[str]:
    """Notes on the impressions and scores that are left out; `without`: how many impressions each further table lacks."""
    notes = []
    if missing:
        notes.append(f"{missing:,} impressions without scores are left out: the values are over the others only")
    if unknown:
        notes.append(f"{scores}: {unknown:,} scores are of impressions that are not in this period's log")
    for table, lacking in without.items():
        if lacking:
            notes.append(f"{table}: lacks {lacking:,} impressions, which are left out on both sides")
    if single_candidate:
        notes.append(f"{single_candidate:,} impressions had a single candidate, nothing to choose")
    return notes


def value_sections(
    scored: ScoredLog,
    audit_inputs: AuditInputs,
    step: Callable[[str], None] = lambda words: None,
    weights: WeightsOption = "auto",
    *,
    training: Training | None,
    doubts: tuple[str, ...] = (),
    compared: Mapping[str, str] | None = None,
) -> ValueSections:
    """The sections that `value.json` and `report.json` share: estimates, properties of the log and audits.

    `audit_inputs`: the inputs of the audits besides the log; `weights`: which propensities weights divide by, see
    `evaluation.logs.logging_policies`; `step`: called with a description of each step before it begins; `training`: until when
    the scored model saw impressions, None where its scores do not say, which are then tested for having seen these; `doubts`:
    further defects, in words; `compared`: by policy, the name of its scores table, where there are several to choose from.
    """
    if (np.diff(scored.member) < 0).any():
        scored = scored.take(np.argsort(scored.member, kind="stable"))
    period = (audit_inputs.since, audit_inputs.before)
    attributes = read_impression_attributes(audit_inputs.dataset, scored, *period, audit_inputs.features)
    step("test the propensities, and who logged what")
    review = review_log(scored, context_levels(scored, attributes), weights=weights, slot_N=_slots(attributes))
    if len(review.kept) < len(scored):
        attributes = attributes.take(review.kept)
    scored, log = review.scored, review.log
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
    all_doubts = (*review.doubts, *doubts, _training_doubt(scored, weighted_log, training))
    doubts = tuple(doubt for doubt in all_doubts if doubt)
    step(f"{len(log):,} impressions by every estimator, {DRAWS:,} draws of the members")
    estimates = estimate(weighted_log, doubts=doubts, replay_doubts=review.replay_doubts)
    step("slice by slice, and how honest the artworks are")
    further = set(compared or ()) - {"scored"}  # the audits are of the first table
    audited = replace(scored, policies={name: p for name, p in scored.policies.items() if name not in further})
    own_weights = {name: p for name, p in weighted_log.policy_weights.items() if name not in further}
    audited_log = replace(weighted_log, policy_weights=own_weights)
    audit_sections = audit(audited, audited_log, estimates, audit_inputs, attributes, fixed_N, doubts)
    selection: Selections = {}
    if compared is not None and len(compared) > 1:
        selection["selection"] = select(
            weighted_log, estimates, compared, "base" if "base" in policies else "uniform", seed=weighted_log.seed
        )
    return {
        "verdict": _headline(estimates),
        **selection,
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


def _training_doubt(scored: ScoredLog, weighted_log: WeightedLog, training: Training | None) -> str:
    """A doubt where the scored model has seen the impressions: by its record, else by the test of its scores."""
    if training is not None:
        return overlap_doubt(training, scored.shown_at)
    effect_fA = weighted_log.models["clicked"].artwork_effect_fA
    fold_C = np.repeat(weighted_log.choices.fold_N, scored.width)
    tested = draw_test(scored, effect_fA[fold_C, scored.artwork_NK.values_C])
    return "" if tested is None else tested.doubt


def _fault_row(fault: LogFault) -> LogFaultRow:
    times = (
        None if at is None else datetime.fromtimestamp(at / 1e6, UTC).isoformat() for at in (fault.since, fault.until)
    )
    since, until = times
    return {"kind": fault.kind, "fault": fault.text, "impressions": fault.impressions, "since": since, "until": until}


def _before_period(past: Outcomes | None, reward: str) -> list[tuple[Literal["before"], PeriodRow]]:
    """The uniform policy's value before the period, to compare the period with."""
    reward_N = (
        None if past is None else {"clicked": past.clicked, "engaged": past.engaged, "minutes": past.minutes}[reward]
    )
    if past is None or reward_N is None:
        return []
    order = np.argsort(past.member, kind="stable")
    order = order[past.width[order] > 1]
    if not len(order):
        return []
    weight_N = 1 / (past.width * past.propensity)
    reward_n, weight_n, shown_at_n, member_n = (v[order] for v in (reward_N, weight_N, past.shown_at, past.member))
    return [("before", period_row(reward_n, weight_n, shown_at_n, member_n))]


def _headline(estimates: Estimates) -> VerdictRow:
    """The verdict on the scored policy's clicks, by the main estimate."""
    key = ("scored", "clicked", HEADLINE_ESTIMATOR)
    return next(r for r in estimates["verdicts"] if (r["policy"], r["reward"], r["estimator"]) == key)
