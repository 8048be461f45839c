"""`keyart evaluate`: a dataset and a scores table -> what the scored policy is worth, beside what it must beat.

Every policy stands in one table: uniform, the logging policy, the best artwork per title, the scored one, and, where the
truth is known, the best possible. Values are clicks (or engaged plays) per impression, over impressions that offered at
least two artworks: where there is one, every policy earns the same.
"""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from evaluation.audits.audit import AuditInputs, fit_metrics
from evaluation.logs.policies import best_fixed, greedy, uniform
from evaluation.logs.scored_log import ScoredLog, read_scored_log
from evaluation.off_policy.randomised_estimates import Estimate, ips, on_policy, snips, snips_lift
from evaluation.report.evaluation_page import render
from evaluation.value import value_sections
from foundation.atomic import atomic_folder
from foundation.errors import UserError

REPORT_FILE = "report.json"
REPORT_VERSION = 5
"""Raised when the report says other things, or in another way: older ones are then made again."""

LABELS = {
    "uniform": "uniform: any artwork alike",
    "logged": "logging policy: what was shown",
    "best_fixed": "best artwork per title, the same for everybody",
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
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Judge scores on the impressions shown at or after `since`; writes `report.json` and `report.html`, returns the former.

    Policies that the log did not follow are valued on its randomised part alone, where the propensities are known
    beyond doubt; who falls into it must have been drawn by chance, or the values speak of those members only.

    The logging policy is what it was, explored part included, and earned what it earned: the mean of the whole period
    (`on_policy`). Its part that was not randomised is told beside it (`on_policy_not_randomised`): that is the policy
    to beat, which exploring dilutes. It cannot be replayed on the randomised part, whose logged propensities are those
    of exploring.

    `value` in the record is what `keyart value` says of the same impressions, by every estimator and on the whole log.

    `notes` (heading -> text) go into the record and on the page, `extra` into the record alone. UserError as
    `read_scored_log`, and where no impression offered two artworks; ValueError where `since` has no time zone.
    """
    everything = read_scored_log(dataset, scores, since)
    log = everything.where(everything.mask_NK.sum(1) > 1)
    if not len(log):
        raise UserError(
            f"{dataset}/impressions: no impression since {since} offered two artworks, so there was nothing to choose. "
            "Name another period."
        )
    notes = dict(notes or {})
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
    rows = []
    for reward, (reward_N, truth_NK) in rewards.items():
        policy_arrays = policies if truth_NK is None else policies | {"best_possible": greedy(truth_NK, log)}
        for policy in ("uniform", "logged", "best_fixed", "scored", "best_possible"):
            if policy == "logged":
                row = _logged_row(log, reward_N, truth_NK)
            elif policy in policy_arrays:
                row = _policy_row(log, policy_arrays[policy], policy_arrays["uniform"], reward_N, truth_NK)
            else:
                continue
            rows.append({"policy": policy, "label": labels[policy], "reward": reward, **row})
    report: dict[str, Any] = {
        "scored": scored_name,
        "since": since.astimezone(UTC).isoformat(),
        "until": datetime.fromtimestamp(int(everything.shown_at.max()) / 1e6, UTC).isoformat(),
        "impressions": len(log),
        "without_choice": len(everything) - len(log),
        "members": len(np.unique(log.member)),
        "randomised": int(log.randomised.sum()),
        "policies": rows,
        "captured_lift": _captured_lift(rows),
        "value": value_sections(log, audit_inputs),
        **fit_metrics(everything),
        "notes": notes,
        **(extra or {}),
    }
    with atomic_folder(out, marker=REPORT_FILE) as folder:
        (folder / "report.html").write_text(render(report, dataset), encoding="utf-8")
        (folder / REPORT_FILE).write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


def _policy_row(
    log: ScoredLog, policy_NK: NDArray, uniform_NK: NDArray, reward_N: NDArray, truth_NK: NDArray | None
) -> dict[str, Any]:
    """A policy's true value, and its estimates on the randomised part."""
    part = log.randomised
    at = np.flatnonzero(part), log.shown[part]
    weight, base = (p_NK[at] / log.propensity[part] for p_NK in (policy_NK, uniform_NK))
    arrays = reward_N[part], weight
    estimates = [estimate(*arrays, log.member[part]).record() for estimate in (ips, snips)]
    estimates.append(snips_lift(*arrays, base, log.member[part]).record())
    return {"true_value": _mean_under(policy_NK, truth_NK), "estimates": estimates}


def _logged_row(log: ScoredLog, reward_N: NDArray, truth_NK: NDArray | None) -> dict[str, Any]:
    """What the logging policy earned; its true value where the truth and its whole propensities are known."""
    known = truth_NK is not None and not np.isnan(log.propensity_NK).any()
    rest = ~log.randomised
    not_randomised: Estimate = replace(
        on_policy(reward_N[rest], log.member[rest]), estimator="on_policy_not_randomised"
    )
    return {
        "true_value": _mean_under(log.propensity_NK, truth_NK) if known else None,
        "estimates": [on_policy(reward_N, log.member).record(), not_randomised.record()],
    }


def _mean_under(policy_NK: NDArray, truth_NK: NDArray | None) -> float | None:
    return None if truth_NK is None else float((policy_NK * truth_NK).sum(1).mean())


def _captured_lift(rows: list[dict[str, Any]]) -> float | None:
    """(scored - uniform) / (best possible - uniform), of true values of clicks; None where the truth is not known."""
    true = {row["policy"]: row["true_value"] for row in rows if row["reward"] == "clicked"}
    if true.get("best_possible") is None or true["best_possible"] == true["uniform"]:
        return None
    return (true["scored"] - true["uniform"]) / (true["best_possible"] - true["uniform"])


def policy_table(report: dict[str, Any]) -> Table:
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
        by_estimator = {estimate["estimator"]: estimate for estimate in row["estimates"]}
        estimate = by_estimator.get("snips") or by_estimator["on_policy"]
        true = "—" if row["true_value"] is None else f"{1000 * row['true_value']:.1f}"
        style = "bold" if row["policy"] == "scored" else None
        # as Text: a label or an interval in brackets must not be read as markup
        table.add_row(Text(row["label"]), Text(true), Text(_interval(estimate)), style=style)
    if all(row["true_value"] is None for row in report["policies"]):
        table.caption = "true: known for simulated services alone"
    return table


def _interval(estimate: dict[str, Any]) -> str:
    if estimate["value"] is None:
        return "cannot be told"
    if estimate["low"] is None:
        return f"{1000 * estimate['value']:.1f} [no interval]"
    low, high = max(0.0, estimate["low"]), estimate["high"]
    return f"{1000 * estimate['value']:.1f} [{1000 * low:.1f}, {1000 * high:.1f}]"
