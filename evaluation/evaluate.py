"""`keyart evaluate`: a dataset and a scores table -> what the scored policy is worth, beside what it must beat.

Every policy stands in one table: uniform, the logging policy, the best artwork per title, the scored one, and, where the
truth is known, the best possible. Values are clicks (or engaged plays) per impression.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from datamodules.atomic import atomic_folder
from evaluation.metrics import auc, expected_calibration_error, log_loss, reliability
from evaluation.off_policy import ips, on_policy, snips, snips_lift
from evaluation.policies import best_fixed, greedy, uniform
from evaluation.report import render
from evaluation.scored_log import ScoredLog, read_past, read_scored_log

RECORD = "report.json"


def evaluate(
    dataset: Path,
    scores: Path,
    out: Path,
    *,
    since: datetime,
    scored_name: str = "keyart greedy",
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Judge scores on the impressions shown at or after `since`; writes `report.json` and `report.html`, returns the former.

    Policies that the log did not follow are valued on its randomised part alone, where the propensities are known
    beyond doubt; the logging policy is valued by what it earned over the whole period. `extra` goes into the record.
    """
    log = read_scored_log(dataset, scores, since)
    past = read_past(dataset, since)
    policies = {"uniform": uniform(log), "best_fixed": best_fixed(log, past), "scored": log.policy_NK}
    labels = {
        "uniform": "uniform: any artwork alike",
        "logged": "logging policy: what was shown",
        "best_fixed": "best artwork per title, the same for everybody",
        "scored": scored_name,
        "best_possible": "best possible",
    }
    rewards = {"clicked": (log.clicked, log.true_click_NK)}
    if log.engaged is not None:
        rewards["engaged"] = (log.engaged, log.true_engaged_NK)
    rows = []
    for reward, (reward_N, truth_NK) in rewards.items():
        known = dict(policies)
        if truth_NK is not None:
            known["best_possible"] = greedy(truth_NK, log)
        for policy in ("uniform", "logged", "best_fixed", "scored", "best_possible"):
            if policy == "logged":
                row = {
                    "true_value": _true_logged(log, truth_NK),
                    "estimates": [on_policy(reward_N, log.member).record()],
                }
            elif policy in known:
                row = _valued(log, known[policy], known["uniform"], reward_N, truth_NK)
            else:
                continue
            rows.append({"policy": policy, "label": labels[policy], "reward": reward, **row})
    shown = np.arange(len(log)), log.shown
    p_N = log.click_probability_NK[shown]
    points = reliability(p_N, log.clicked)
    report: dict[str, Any] = {
        "scored": scored_name,
        "since": since.isoformat(),
        "impressions": len(log),
        "members": len(np.unique(log.member)),
        "randomised": int(log.randomised.sum()),
        "policies": rows,
        "captured_lift": _captured(rows),
        "metrics": {
            "auc": _finite(auc(p_N, log.clicked)),
            "log_loss": log_loss(p_N, log.clicked),
            "log_loss_of_a_constant": log_loss(np.full(len(log), log.clicked.mean()), log.clicked),
            "expected_calibration_error": expected_calibration_error(p_N, log.clicked),
        },
        "reliability": {name: getattr(points, name).tolist() for name in ("predicted", "observed", "count")},
        **(extra or {}),
    }
    with atomic_folder(out, marker=RECORD) as folder:
        (folder / "report.html").write_text(render(report))
        (folder / RECORD).write_text(json.dumps(report, indent=1))
    return report


def _valued(
    log: ScoredLog, policy_NK: NDArray, uniform_NK: NDArray, reward_N: NDArray, truth_NK: NDArray | None
) -> dict[str, Any]:
    """A policy's true value, and its estimates on the randomised part."""
    part = log.randomised
    at = np.flatnonzero(part), log.shown[part]
    weight, base = (p_NK[at] / log.propensity[part] for p_NK in (policy_NK, uniform_NK))
    arrays = reward_N[part], weight
    estimates = [estimate(*arrays, log.member[part]).record() for estimate in (ips, snips)]
    estimates.append(snips_lift(*arrays, base, log.member[part]).record())
    truth = None if truth_NK is None else float((policy_NK * truth_NK).sum(1).mean())
    return {"true_value": truth, "estimates": estimates}


def _true_logged(log: ScoredLog, truth_NK: NDArray | None) -> float | None:
    """The logging policy's true value, where the truth and its whole propensities are known."""
    if truth_NK is None or np.isnan(log.propensity_NK).any():
        return None
    return float((log.propensity_NK * truth_NK).sum(1).mean())


def _captured(rows: list[dict[str, Any]]) -> float | None:
    """(scored - uniform) / (best possible - uniform), of true values of clicks; None where the truth is not known."""
    true = {row["policy"]: row["true_value"] for row in rows if row["reward"] == "clicked"}
    if true.get("best_possible") is None or true["best_possible"] == true["uniform"]:
        return None
    return (true["scored"] - true["uniform"]) / (true["best_possible"] - true["uniform"])


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


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
        told = {estimate["estimator"]: estimate for estimate in row["estimates"]}
        estimate = told.get("snips") or told["on_policy"]
        true = "not known" if row["true_value"] is None else f"{1000 * row['true_value']:.1f}"
        bold = "[bold]" if row["policy"] == "scored" else ""
        table.add_row(f"{bold}{row['label']}", f"{bold}{true}", f"{bold}{_interval(estimate)}")
    return table


def _interval(estimate: dict[str, Any]) -> str:
    if estimate["value"] is None:
        return "not to be told"
    if estimate["low"] is None:
        return f"{1000 * estimate['value']:.1f} [no interval]"
    low, high = max(0.0, estimate["low"]), estimate["high"]
    return f"{1000 * estimate['value']:.1f} [{1000 * low:.1f}, {1000 * high:.1f}]"
