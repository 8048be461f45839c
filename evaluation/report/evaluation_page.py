"""The report as one page: self-contained HTML, light and dark, readable on a phone; no network, no scripts.

In: the record that `evaluate` makes. Out: HTML with the finding in words and the policies with their true values where they
are known, before everything that `keyart value` says of them.
"""

from html import escape
from pathlib import Path
from typing import Any

from evaluation.report.markup import html_document, notes
from evaluation.report.value_page import NOTES as VALUE_NOTES
from evaluation.report.value_page import sections

OVERALL_SECTIONS = ("metrics", "reliability", "engaged_metrics", "engaged_reliability")
"""What the report says of all impressions, and the value of those alone that offered a choice."""
NOTES = {
    "Estimated from the log": "What a policy would have earned, had it chosen. Policies the log did not follow are valued "
    "on its randomised part, where every artwork had the same chance: of those impressions, the ones whose artwork the "
    "policy would have shown speak for it (IPS; SNIPS divides by how many there were). The logging policy earned what it "
    "earned: its value is the mean of the whole period.",
    "Intervals": "95 %, by member: a member's impressions resemble each other, so members, not impressions, are what was "
    "sampled. Where two intervals overlap, the difference may still be certain: the headline compares on the same members.",
    "Effective sample": "How many impressions of the policy itself would tell as much.",
    "True": "Known for simulated services alone, whose law of clicks is written beside them.",
}
"""What a reader needs who has never seen such a table."""


def render(report: dict[str, Any], dataset: Path) -> str:
    """The page; `dataset` is where the pictures are."""
    clicked = [row for row in report["policies"] if row["reward"] == "clicked"]
    engaged = [row for row in report["policies"] if row["reward"] == "engaged"]
    value = report["value"]
    verdict = value["verdict"]
    parts = [
        f'<p><span class="verdict {verdict["verdict"]}">{verdict["verdict"]}</span> {escape(verdict["reason"])}.</p>',
        f"<h1>{escape(_headline(report, clicked))}</h1>",
        f'<p class="soft">{_population(report)}</p>',
        "<h2>Clicks per 1,000 impressions, from the randomised part alone</h2>",
        _table(clicked),
        _not_randomised(clicked),
    ]
    if engaged:
        parts += ["<h2>Engaged plays per 1,000 impressions, likewise</h2>", _table(engaged)]
    truth = {row["policy"]: row["true_value"] for row in clicked if row["true_value"] is not None}
    parts += sections(value | {name: report[name] for name in OVERALL_SECTIONS if name in report}, dataset, truth)
    if "onnx_torch_largest_difference" in report:
        parts.append(
            "<p>Largest difference between ONNX Runtime and torch over these impressions: "
            f"{report['onnx_torch_largest_difference']:.1e}.</p>"
        )
    parts += notes(NOTES | VALUE_NOTES | report["notes"], value["notes"])
    return html_document("keyart report", "\n".join(parts))


def _population(report: dict[str, Any]) -> str:
    """Whose impressions the values speak of."""
    text = (
        f"{report['impressions']:,} impressions of {report['members']:,} members since "
        f"{report['since'][:16].replace('T', ' ')} UTC, "
        f"of which {report['randomised']:,} were randomised."
    )
    if report["without_choice"]:
        text += f" Another {report['without_choice']:,} offered a single artwork, nothing to choose, and are left out."
    return text


def _not_randomised(rows: list[dict[str, Any]]) -> str:
    """What the logging policy earned where it aimed, which exploring dilutes in its row above."""
    logged = next(row for row in rows if row["policy"] == "logged")
    aimed = _estimate(logged, "on_policy_not_randomised")
    if aimed is None:
        return ""
    return (
        f"<p>On the {aimed['impressions']:,} impressions that were not randomised the logging policy earned "
        f"{_range(aimed)}: the figure to beat, which its randomised part dilutes.</p>"
    )


def _estimate(row: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((e for e in row["estimates"] if e["estimator"] == name and e["value"] is not None), None)


def _main_estimate(row: dict[str, Any]) -> dict[str, Any] | None:
    """The estimate a reader should look at first."""
    return _estimate(row, "snips") or _estimate(row, "on_policy")


def _headline(report: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The finding in words."""
    scored = next(row for row in rows if row["policy"] == "scored")
    lift = _estimate(scored, "snips_lift")
    name = report["scored"]
    if lift is None or lift["low"] is None:
        return f"This log cannot tell what {name} would earn: its randomised part holds too little."
    value, low, high = (100 * lift[key] for key in ("value", "low", "high"))
    interval = f"95 % interval: {low:+.1f} to {high:+.1f} %"
    if low > 0:
        text = f"{name} would earn {value:.1f} % more clicks than showing any artwork alike ({interval})"
    elif high < 0:
        text = f"{name} would earn {-value:.1f} % fewer clicks than showing any artwork alike ({interval})"
    else:
        text = f"This log cannot tell {name} apart from showing any artwork alike: {value:+.1f} % clicks ({interval})"
    if report["captured_lift"] is not None:
        text += f"; by the true law it captures {100 * report['captured_lift']:.0f} % of the possible lift"
    return f"{text}."


def _per_mille(value: float | None) -> str:
    return "–" if value is None else f"{1000 * value:.1f}"


def _range(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "–"
    if estimate["low"] is None:
        return _per_mille(estimate["value"])
    interval = f"[{_per_mille(estimate['low'])}, {_per_mille(estimate['high'])}]"
    return f'{_per_mille(estimate["value"])} <span class="of">{interval}</span>'


def _table(rows: list[dict[str, Any]]) -> str:
    cells = ["<tr><th>policy</th><th>true</th><th>SNIPS, or mean</th><th>IPS</th><th>effective sample</th></tr>"]
    for row in rows:
        main = _main_estimate(row)
        size = "–" if main is None else f"{main['effective_sample_size']:,.0f}"
        values = [_per_mille(row["true_value"]), _range(main), _range(_estimate(row, "ips")), size]
        tds = "".join(f"<td>{value}</td>" for value in values)
        cells.append(f'<tr class="{row["policy"]}"><td>{escape(row["label"])}</td>{tds}</tr>')
    return f'<div class="scroll"><table>{"".join(cells)}</table></div>'
