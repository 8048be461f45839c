"""`keyart evaluate`: a dataset and a scores table -> the scored policy's value, beside the policies it must beat.

One table holds every policy: uniform, the logging policy, the best artwork per title, the scored one, and, where the
truth is known, the best possible. Their values are those of `keyart value`: clicks (or engaged plays) per impression,
over impressions with at least two candidates, because with one every policy earns the same.
"""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from evaluation.audits.audit import AuditInputs, fit_metrics
from evaluation.logs.policies import best_fixed, greedy, uniform
from evaluation.logs.scored_log import ScoredLog, read_scored_log
from evaluation.logs.seen_scores import training_of
from evaluation.off_policy.estimators import snips
from evaluation.off_policy.intervals import Members, normal_interval
from evaluation.off_policy.verdict import Overlap, Rewarded, assess
from evaluation.record.records import (
    REPORT_FILE,
    REPORT_VERSION,
    NotRandomisedRow,
    PolicyRow,
    Report,
    ReportExtras,
    write_report,
)
from evaluation.record.rows import finite_or_none
from evaluation.report.evaluation_page import render
from evaluation.report.value_page import main_estimate
from evaluation.report.value_table import value_cell
from evaluation.value import value_sections
from foundation.atomic import atomic_folder, claimed_output
from foundation.errors import UserError
from foundation.lists import Lists

LABELS = {
    "uniform": "uniform: any artwork, equally likely",
    "logged": "logging policy: what was shown",
    "best_fixed": "best artwork per title, the same for everybody",
    "scored": "scored policy",
    "best_possible": "best possible",
}
NO_PAST = (
    "No impression was logged before this period, so there was nothing to learn the best artwork per title from: "
    "that row is left out."
)


def evaluate(
    dataset: Path,
    scores: Path,
    out: Path,
    *,
    since: datetime,
    scored_name: str = "keyart greedy",
    notes: dict[str, str] | None = None,
    extra: ReportExtras | None = None,
) -> Report:
    """Evaluate scores on the impressions shown at or after `since`; writes `report.json` and `report.html`, returns the former.

    `value` in the record has the sections of `keyart value` for the same impressions: every policy by every estimator. The
    record also has the policies' true values, where they are known, and the logging policy's value on the impressions that
    were not randomised (`not_randomised`): the figure to beat, which exploring dilutes in the logging policy's own value.

    `notes` (heading -> text) go into the record and on the page, `extra` into the record only. UserError as
    `read_scored_log`, and where no impression has two candidates; ValueError where `since` has no time zone.
    """
    with claimed_output(out, REPORT_FILE, dataset=dataset, sources=[scores]):
        report = _report(dataset, scores, since, scored_name, notes or {}, extra or ReportExtras())
        with atomic_folder(out, marker=REPORT_FILE) as folder:
            (folder / "report.html").write_text(render(report, dataset), encoding="utf-8")
            write_report(folder, report)
    return report


def _report(
    dataset: Path, scores: Path, since: datetime, scored_name: str, notes: dict[str, str], extra: ReportExtras
) -> Report:
    """The record of an evaluation."""
    everything = read_scored_log(dataset, scores, since)
    log = everything.where(everything.width > 1)
    if not len(log):
        raise UserError(
            f"{dataset}/impressions: no impression since {since} offered two artworks, so there was nothing to choose. "
            "Name another period."
        )
    notes = dict(notes)
    policies = {"uniform": uniform(log)}
    audit_inputs = AuditInputs.read(dataset, scores, since)
    if audit_inputs.past is None:
        notes["Best artwork per title"] = NO_PAST
    else:
        policies["best_fixed"] = best_fixed(log, audit_inputs.past)
    policies["scored"] = log.policy_NK
    labels = LABELS | {"scored": scored_name}
    rewards = {"clicked": (log.clicked, log.true_click_NK)}
    if log.engaged is not None:
        rewards["engaged"] = (log.engaged, log.true_engaged_NK)
    rows: list[PolicyRow] = []
    for reward, (_, truth_NK) in rewards.items():
        policy_arrays: dict[str, Lists | None] = dict(policies)
        # its true value is known where the propensities of all candidates are
        policy_arrays["logged"] = None if np.isnan(log.propensity_NK.values_C).any() else log.propensity_NK
        if truth_NK is not None:
            policy_arrays["best_possible"] = greedy(truth_NK)
        for policy in (name for name in labels if name in policy_arrays):
            true_value = _mean_under(policy_arrays[policy], truth_NK)
            rows.append({"policy": policy, "label": labels[policy], "reward": reward, "true_value": true_value})
    return {
        "schema_version": REPORT_VERSION,
        "scored": scored_name,
        "since": since.astimezone(UTC).isoformat(),
        "until": datetime.fromtimestamp(int(everything.shown_at.max()) / 1e6, UTC).isoformat(),
        "impressions": len(log),
        "without_choice": len(everything) - len(log),
        "members": len(np.unique(log.member)),
        "randomised": int(log.randomised.sum()),
        "policies": rows,
        "not_randomised": [_not_randomised(log, reward, reward_N) for reward, (reward_N, _) in rewards.items()],
        "captured_lift": _captured_lift(rows),
        "value": value_sections(log, audit_inputs, training=training_of(scores)),
        **fit_metrics(everything),
        "notes": notes,
        **extra,
    }


def _not_randomised(log: ScoredLog, reward: str, reward_N: NDArray) -> NotRandomisedRow:
    """The logging policy's value on impressions that were not randomised: the mean, with its interval by member."""
    rows = np.flatnonzero(~log.randomised)
    rows = rows[np.argsort(log.member[rows], kind="stable")]
    members, one_n = Members.of(log.member[rows]), np.ones(len(rows))
    sums = members.sums(snips(reward_N[rows], one_n))
    verdict, _ = assess(
        Overlap.of(one_n, members, 0.0),
        value=sums.value,
        influence_M=sums.influence_M,
        rewarded=Rewarded.of(reward_N[rows], members),
        reward=reward,
    )
    none, interval = verdict == "unanswerable", normal_interval(sums.value, sums.influence_M)
    return {
        "reward": reward,
        "impressions": len(rows),
        "value": None if none else finite_or_none(sums.value),
        "low": None if none else finite_or_none(interval.low),
        "high": None if none else finite_or_none(interval.high),
        "verdict": verdict,
    }


def _mean_under(policy_NK: Lists | None, truth_NK: Lists | None) -> float | None:
    if policy_NK is None or truth_NK is None:
        return None
    return float(policy_NK.like(policy_NK.values_C * truth_NK.values_C).sums().mean())


def _captured_lift(rows: list[PolicyRow]) -> float | None:
    """(scored - uniform) / (best possible - uniform), in true values of clicks; None where the truth is not known."""
    true = {row["policy"]: row["true_value"] for row in rows if row["reward"] == "clicked"}
    best, own, even = true.get("best_possible"), true["scored"], true["uniform"]
    if best is None or own is None or even is None or best == even:
        return None
    return (own - even) / (best - even)


def policy_table(report: Report) -> Table:
    """The policies side by side in clicks per 1,000 impressions, for reading in a terminal."""
    table = Table(
        title=f"Clicks per 1,000 impressions since {report['since'][:10]} ({report['impressions']:,} impressions)"
    )
    table.add_column("policy")
    table.add_column("true", justify="right")
    table.add_column("estimated from the log [95 %]", justify="right")
    for row in report["policies"]:
        if row["reward"] != "clicked":
            continue
        estimate = main_estimate(report["value"], row["policy"], "clicked")
        estimated = "" if row["policy"] == "best_possible" else value_cell(estimate)
        true = "—" if row["true_value"] is None else f"{1000 * row['true_value']:.1f}"
        style = "bold" if row["policy"] == "scored" else None
        # as Text: a label or an interval in brackets must not be read as markup
        table.add_row(Text(row["label"]), Text(true), Text(estimated), style=style)
    if all(row["true_value"] is None for row in report["policies"]):
        table.caption = "true: known only for simulated services"
    return table
