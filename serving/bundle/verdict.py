"""What `keyart evaluate` found, kept in the bundle that it judged: what `bundle.json` and the card say of it.

In: a report, as `report.json` holds it. Out: the part of it that who serves the bundle must know, values per 1,000
impressions; and the card's section.
"""

from typing import Any

POLICIES = ("uniform", "logged", "best_fixed", "scored")
NOT_EVALUATED = (
    "Not judged yet: `keyart evaluate BUNDLE DATASET REPORT --record` writes what the newest period says of it here."
)
HEADS = {"metrics": "clicks", "engaged_metrics": "viewings given a click"}


def verdict_record(report: dict[str, Any]) -> dict[str, Any]:
    """What a bundle keeps of a report: period, verdict, policies and how well its probabilities fit."""
    value = report["value"]
    copied_keys = (
        "since",
        "until",
        "dataset",
        "impressions",
        "without_choice",
        "members",
        "randomised",
        "captured_lift",
    )
    copied_keys += (*HEADS, "onnx_torch_largest_difference", "notes")
    rows = [row for row in report["policies"] if row["policy"] in POLICIES]
    return {
        "policy": report["scored"],
        "verdict": value["verdict"],
        "per_1000": [
            {
                "policy": row["policy"],
                "label": row["label"],
                "reward": row["reward"],
                "true": None if row["true_value"] is None else 1000 * row["true_value"],
                "estimated": _estimate(value, row),
                "above_uniform": _lift(value, row),
            }
            for row in rows
        ],
        **{name: report[name] for name in copied_keys if name in report},
    }


def section(metadata: dict[str, Any]) -> list[str]:
    """Of the card, from a bundle's record."""
    evaluation = metadata.get("evaluation")
    if evaluation is None:
        return [NOT_EVALUATED]
    verdict = evaluation["verdict"]
    refreshed = evaluation.get("refreshed_since", [])
    since = [f"Judged before the catalogue was refreshed: {', '.join(refreshed)}.", ""] if refreshed else []
    of_log = f"; log {evaluation['dataset']}" if "dataset" in evaluation else ""
    lines = [
        *since,
        f"`{evaluation['policy']}` on {evaluation['impressions']:,} impressions of {evaluation['members']:,} members, "
        f"{_minutes(evaluation['since'])} to {_minutes(evaluation['until'])} UTC, of which the log randomised "
        f"{evaluation['randomised']:,}{of_log}.",
        "",
        f"Verdict of the log: **{verdict['verdict']}**: {verdict['reason']}.",
        "",
        "| per 1,000 impressions | reward | true | estimated [95 %] | above uniform [95 %] |",
        "|---|---|---|---|---|",
    ]
    for row in evaluation["per_1000"]:
        true = "not known" if row["true"] is None else f"{row['true']:.1f}"
        cells = [
            row["label"],
            row["reward"],
            true,
            _format_estimate(row["estimated"], ""),
            _format_estimate(row["above_uniform"], "+"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(_calibration_line(words, evaluation[name]) for name, words in HEADS.items() if name in evaluation)]
    if evaluation["captured_lift"] is not None:
        lines.append(f"- By the true law it captures {evaluation['captured_lift']:.2f} of the possible lift.")
    if "onnx_torch_largest_difference" in evaluation:
        lines.append(
            f"- Largest difference of ONNX Runtime from torch over the period: {evaluation['onnx_torch_largest_difference']:.1e}."
        )
    return lines + [f"- {heading}: {text}" for heading, text in evaluation["notes"].items()]


def _estimate(value: dict[str, Any], row: dict[str, Any]) -> dict[str, Any] | None:
    """By the estimator to look at first, else SNIPS; None where neither was made."""
    for estimator in (value["verdict"]["estimator"], "snips"):
        for estimate in value["estimates"]:
            if (estimate["policy"], estimate["reward"], estimate["estimator"]) == (
                row["policy"],
                row["reward"],
                estimator,
            ):
                return {"estimator": estimator, "verdict": estimate["verdict"]} | _per_thousand(estimate, 1)
    return None


def _lift(value: dict[str, Any], row: dict[str, Any]) -> dict[str, Any] | None:
    """The same of what it earns above uniform; a difference stands in the report in one direction, whichever."""
    if row["policy"] == "uniform":
        return None
    for estimator in (value["verdict"]["estimator"], "snips"):
        for difference in value["differences"]:
            if (difference["reward"], difference["estimator"]) == (row["reward"], estimator):
                sign = {(row["policy"], "uniform"): 1, ("uniform", row["policy"]): -1}.get(
                    (difference["policy"], difference["base"])
                )
                if sign:
                    return {"estimator": estimator, "verdict": difference["verdict"]} | _per_thousand(difference, sign)
    return None


def _per_thousand(interval: dict[str, Any], sign: int) -> dict[str, float | None]:
    ends = ("low", "high") if sign > 0 else ("high", "low")
    bound_names = {"value": "value", "low": ends[0], "high": ends[1]}
    return {name: None if interval[end] is None else 1000 * sign * interval[end] for name, end in bound_names.items()}


def _format_estimate(row: dict[str, Any] | None, sign: str) -> str:
    if row is None:
        return ""
    if row["value"] is None:
        return "cannot be told"
    ends = "no interval" if row["low"] is None else f"{row['low']:{sign}.1f}, {row['high']:{sign}.1f}"
    return f"{row['value']:{sign}.1f} [{ends}] ({row['estimator']}, {row['verdict']})"


def _calibration_line(words: str, metrics: dict[str, Any]) -> str:
    low, high = metrics["by_chance"]
    return (
        f"- Log loss of {words} {metrics['log_loss']:.5f} (a constant's "
        f"{metrics['log_loss_of_a_constant']:.5f}); calibration error "
        f"{metrics['expected_calibration_error']:.4f} (a calibrated model's by chance {low:.4f} to {high:.4f})."
    )


def _minutes(text: str) -> str:
    return text[:16].replace("T", " ")
