"""The card's section on the result of `keyart evaluate`, which is the field `evaluation` of `bundle.json`."""

from serving.bundle.metadata import BundleRecord, Estimate, FitMetrics

NOT_EVALUATED = (
    "Not evaluated yet: `keyart evaluate BUNDLE DATASET REPORT --record` writes the result on the newest period here."
)


def section(metadata: BundleRecord) -> list[str]:
    """The section from a bundle's record."""
    evaluation = metadata.get("evaluation")
    if evaluation is None:
        return [NOT_EVALUATED]
    verdict = evaluation["verdict"]
    refreshed = evaluation.get("refreshed_since", [])
    since = [f"Evaluated before the catalogue was refreshed: {', '.join(refreshed)}.", ""] if refreshed else []
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
    lines += ["", _calibration_line("clicks", evaluation["metrics"])]
    if "engaged_metrics" in evaluation:
        lines.append(_calibration_line("viewings given a click", evaluation["engaged_metrics"]))
    if evaluation["captured_lift"] is not None:
        lines.append(f"- By the true law it captures {evaluation['captured_lift']:.2f} of the possible lift.")
    if "onnx_torch_largest_difference" in evaluation:
        lines.append(
            f"- Largest difference of ONNX Runtime from torch over the period: {evaluation['onnx_torch_largest_difference']:.1e}."
        )
    return lines + [f"- {heading}: {text}" for heading, text in evaluation["notes"].items()]


def _format_estimate(row: Estimate | None, sign: str) -> str:
    if row is None:
        return ""
    if row["value"] is None:
        return "unanswerable"
    ends = (
        "no interval"
        if row["low"] is None or row["high"] is None
        else f"{row['low']:{sign}.1f}, {row['high']:{sign}.1f}"
    )
    return f"{row['value']:{sign}.1f} [{ends}] ({row['estimator']}, {row['verdict']})"


def _calibration_line(words: str, metrics: FitMetrics) -> str:
    low, high = metrics["by_chance"]
    return (
        f"- Log loss of {words} {metrics['log_loss']:.5f} (a constant's "
        f"{metrics['log_loss_of_a_constant']:.5f}); calibration error "
        f"{metrics['expected_calibration_error']:.4f} (of a calibrated model {low:.4f} to {high:.4f})."
    )


def _minutes(text: str) -> str:
    return text[:16].replace("T", " ")
