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
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation.audits.audit import AuditInputs, audit
from evaluation.logs.log_checks import calibration, drift, period_row
from evaluation.logs.logged_impressions import Outcomes
from evaluation.logs.logging_policies import mixture_propensities
from evaluation.logs.policies import best_fixed_choice, uniform
from evaluation.logs.scored_log import ScoredLog, read_scored_log
from evaluation.off_policy.intervals import DRAWS
from evaluation.off_policy.selection import select
from evaluation.off_policy.valuation import (
    HEADLINE_ESTIMATOR,
    LOGGED,
    BanditLog,
    PolicyProbabilities,
    estimate,
    importance_weights,
)
from evaluation.period import Period, SplitTimes, split_times
from evaluation.record.records import VALUE_FILE, VALUE_VERSION, Selections, ValueRecord, ValueSections, write_value
from evaluation.record.rows import DifferenceRow, DriftRow, EstimateRow, Estimates, PeriodRow, VerdictRow
from evaluation.report.value_page import main_estimate, value_page
from foundation.atomic import atomic_folder, claimed_output
from foundation.errors import UserError
from foundation.output_path import real_path, require_output
from foundation.progress import progress_bar

VALUE_PAGE = "value.html"
PROGRESS_STEPS = 6

BALANCED_WEIGHTS = (
    "balanced: no logging policy is personalised, so an impression's weight divides by their mixture, assuming that "
    "impressions were assigned to policies at random"
)
PER_POLICY_WEIGHTS = "per policy: an impression's weight divides by the propensity of the policy that logged it"
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
    allow_missing: bool = False,
    console: Console | None = None,
) -> ValueRecord:
    """Estimate the value of the scored, the uniform, the logging policy and the best artwork per title; writes `value.json` and
    `value.html`.

    `also`: further scores tables, whose policies are compared with the first and with one another, see `select`. `base`: another
    scores table of the same impressions, whose policy is estimated too and compared with. `period`: test,
    validation or all, by the split times of `split_times`. UserError as `split_times` and `read_scored_log`, and where no
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
        sections = value_sections(log, audit_inputs, step, compared=compared)
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
    *,
    compared: Mapping[str, str] | None = None,
) -> ValueSections:
    """The sections that `value.json` and `report.json` share: estimates, properties of the log and audits.

    `audit_inputs`: the inputs of the audits besides the log; `step`: called with a description of each step before it begins.
    `compared`: by policy, the name of its scores table, where there are several to choose from.
    """
    if (np.diff(scored.member) < 0).any():
        scored = scored.take(np.argsort(scored.member, kind="stable"))
    log, weights = to_bandit_log(scored)
    all_propensities = log.propensity_NK is not None
    notes = [] if all_propensities else [SHOWN_ALONE]
    calibrated = calibration(scored.propensity_NK, scored.shown) if all_propensities else None
    uniform_N = 1 / scored.width
    drifts = {
        reward: drift(reward_N, uniform_N / log.propensity_N, scored.shown_at, log.member_N)
        for reward, reward_N in log.reward.items()
    }
    all_doubts = (calibrated.doubt if calibrated else "", *(doubt for _, doubt in drifts.values()))
    doubts = tuple(doubt for doubt in all_doubts if doubt)
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
    estimates = estimate(weighted_log, doubts=doubts)
    step("slice by slice, and how honest the artworks are")
    further = set(compared or ()) - {"scored"}  # the audits are of the first table
    audited = replace(scored, policies={name: p for name, p in scored.policies.items() if name not in further})
    own_weights = {name: p for name, p in weighted_log.policy_weights.items() if name not in further}
    audited_log = replace(weighted_log, policy_weights=own_weights)
    audit_sections = audit(audited, audited_log, estimates, audit_inputs, fixed_N, doubts)
    selection: Selections = {}
    if compared is not None and len(compared) > 1:
        selection["selection"] = select(
            weighted_log, estimates, compared, "base" if "base" in policies else "uniform", seed=weighted_log.seed
        )
    return {
        "verdict": _headline(estimates),
        **selection,
        "weights": weights,
        "logging_policies": [
            {"policy": name, "impressions": int(count)}
            for name, count in zip(
                scored.logging_policies,
                np.bincount(scored.logging_policy, minlength=len(scored.logging_policies)),
                strict=True,
            )
            if count
        ],
        "randomised": int(scored.randomised.sum()),
        **estimates,
        "calibration": None if calibrated is None else calibrated.rows(),
        "drift": [
            DriftRow(reward=reward, part=part, **row)
            for reward, (parts, _) in drifts.items()
            for part, row in [*_before_period(audit_inputs.past, reward), *parts]
        ],
        **audit_sections,
        "notes": [*notes, *audit_sections["notes"]],
    }


def to_bandit_log(scored: ScoredLog) -> tuple[BanditLog, str]:
    """Convert a scored log, ordered by member, for the estimators; and which propensities its weights divide by, in words."""
    all_propensities = not np.isnan(scored.propensity_NK.values_C).any()
    mixed_NK = mixture_propensities(scored.propensity_NK, scored.artwork_NK, scored.logging_policy)
    propensity_NK = scored.propensity_NK if mixed_NK is None else mixed_NK
    log = BanditLog(
        member_N=scored.member,
        title_N=scored.title,
        artwork_NK=scored.artwork_NK,
        shown_N=scored.shown,
        propensity_N=scored.propensity if mixed_NK is None else mixed_NK[np.arange(len(scored)), scored.shown],
        propensity_NK=propensity_NK if all_propensities else None,
        score_NK=scored.click_probability_NK,
        randomised_N=scored.randomised,
        reward={"clicked": scored.clicked} | ({} if scored.engaged is None else {"engaged": scored.engaged}),
    )
    return log, PER_POLICY_WEIGHTS if mixed_NK is None else BALANCED_WEIGHTS


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
