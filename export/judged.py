"""What `keyart evaluate` found, kept in the bundle that it judged: what `bundle.json` and the card say of it.

In: a report, as `report.json` holds it. Out: the part of it that who serves the bundle must know, values per 1,000
impressions; and the card's section.
"""

from typing import Any

POLICIES = ("uniform", "logged", "best_fixed", "scored")
NOT_YET = (
    "Not judged yet: `keyart evaluate BUNDLE DATASET REPORT --record` writes what the newest period says of it here."
)
HEADS = {"metrics": "clicks", "engaged_metrics": "viewings given a click"}


def judged(report: dict[str, Any]) -> dict[str, Any]:
    """What a bundle keeps of a report: period, verdict, policies and how well its probabilities fit."""
    value = report["value"]
    kept = ("since", "until", "dataset", "impressions", "without_choice", "members", "randomised", "captured_lift")
    kept += (*HEADS, "onnx_torch_largest_difference", "notes")
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
        **{name: report[name] for name in kept if name in report},
    }


def section(record: dict[str, Any]) -> list[str]:
    """Of the card, from a bundle's record."""
    found = record.get("evaluation")
    if found is None:
        return [NOT_YET]
    verdict = found["verdict"]
    refreshed = found.get("refreshed_since", [])
    since = [f"Judged before the catalogue was refreshed: {', '.join(refreshed)}.", ""] if refreshed else []
    of_log = f"; log {found['dataset']}" if "dataset" in found else ""
    lines = [
        *since,
        f"`{found['policy']}` on {found['impressions']:,} impressions of {found['members']:,} members, "
        f"{_moment(found['since'])} to {_moment(found['until'])} UTC, of which the log randomised "
        f"{found['randomised']:,}{of_log}.",
        "",
        f"Verdict of the log: **{verdict['verdict']}**: {verdict['reason']}.",
        "",
        "| per 1,000 impressions | reward | true | estimated [95 %] | above uniform [95 %] |",
        "|---|---|---|---|---|",
    ]
    for row in found["per_1000"]:
        true = "not known" if row["true"] is None else f"{row['true']:.1f}"
        told = [row["label"], row["reward"], true, _said(row["estimated"], ""), _said(row["above_uniform"], "+")]
        lines.append(f"| {' | '.join(told)} |")
    lines += ["", *(_fit(words, found[name]) for name, words in HEADS.items() if name in found)]
    if found["captured_lift"] is not None:
        lines.append(f"- By the true law it captures {found['captured_lift']:.2f} of the possible lift.")
    if "onnx_torch_largest_difference" in found:
        lines.append(
            f"- Largest difference of ONNX Runtime from torch over the period: {found['onnx_torch_largest_difference']:.1e}."
        )
    return lines + [f"- {heading}: {text}" for heading, text in found["notes"].items()]


def _estimate(value: dict[str, Any], row: dict[str, Any]) -> dict[str, Any] | None:
    """By the estimator to look at first, else SNIPS; None where neither was made."""
    for estimator in (value["verdict"]["estimator"], "snips"):
        for found in value["estimates"]:
            if (found["policy"], found["reward"], found["estimator"]) == (row["policy"], row["reward"], estimator):
                return {"estimator": estimator, "verdict": found["verdict"]} | _thousandfold(found, 1)
    return None


def _lift(value: dict[str, Any], row: dict[str, Any]) -> dict[str, Any] | None:
    """The same of what it earns above uniform; a difference stands in the report in one direction, whichever."""
    if row["policy"] == "uniform":
        return None
    for estimator in (value["verdict"]["estimator"], "snips"):
        for found in value["differences"]:
            if (found["reward"], found["estimator"]) == (row["reward"], estimator):
                sign = {(row["policy"], "uniform"): 1, ("uniform", row["policy"]): -1}.get(
                    (found["policy"], found["base"])
                )
                if sign:
                    return {"estimator": estimator, "verdict": found["verdict"]} | _thousandfold(found, sign)
    return None


def _thousandfold(found: dict[str, Any], sign: int) -> dict[str, float | None]:
    ends = ("low", "high") if sign > 0 else ("high", "low")
    places = {"value": "value", "low": ends[0], "high": ends[1]}
    return {name: None if found[end] is None else 1000 * sign * found[end] for name, end in places.items()}


def _said(row: dict[str, Any] | None, sign: str) -> str:
    if row is None:
        return ""
    if row["value"] is None:
        return "cannot be told"
    ends = "no interval" if row["low"] is None else f"{row['low']:{sign}.1f}, {row['high']:{sign}.1f}"
    return f"{row['value']:{sign}.1f} [{ends}] ({row['estimator']}, {row['verdict']})"


def _fit(words: str, told: dict[str, Any]) -> str:
    low, high = told["by_chance"]
    return (
        f"- Log loss of {words} {told['log_loss']:.5f} (a constant's {told['log_loss_of_a_constant']:.5f}); calibration error "
        f"{told['expected_calibration_error']:.4f} (a calibrated model's by chance {low:.4f} to {high:.4f})."
    )


def _moment(text: str) -> str:
    return text[:16].replace("T", " ")
