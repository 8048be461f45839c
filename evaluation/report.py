"""The report as one page: self-contained HTML, light and dark, readable on a phone; no network, no scripts.

In: the record that `evaluate` makes. Out: HTML with the finding in words, a table, and two drawings as inline SVG.
"""

from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --soft: #6b6b70; --line: #d9d9de; --paper: #fff; --mark: #0b63ce }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececf0; --soft: #a0a0a8; --line: #3a3a40; --paper: #17171a; --mark: #6aaeff } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto; max-width: 60rem;
  padding: 1.2rem }
h1 { font-size: 1.5rem; line-height: 1.25 } h2 { font-size: 1.1rem; margin-top: 2rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 9rem }
tr.scored td { font-weight: 650 } .soft { color: var(--soft) } svg { width: 100%; height: auto; display: block }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif } svg .soft { fill: var(--soft) }
svg line, svg path { stroke: var(--line); fill: none } svg .mark { stroke: var(--mark); stroke-width: 2 }
svg circle { fill: var(--mark) } svg .true { fill: none; stroke: var(--ink); stroke-width: 1.5 }
figure { margin: 1rem 0 } figcaption { color: var(--soft); font-size: .9rem }
"""

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


def render(report: dict[str, Any]) -> str:
    """The page."""
    clicked = [row for row in report["policies"] if row["reward"] == "clicked"]
    engaged = [row for row in report["policies"] if row["reward"] == "engaged"]
    parts = [
        f"<h1>{escape(_headline(report, clicked))}</h1>",
        f'<p class="soft">{_population(report)}</p>',
        "<h2>Clicks per 1,000 impressions</h2>",
        _table(clicked),
        _forest(clicked),
        _not_randomised(clicked),
    ]
    if engaged:
        parts += ["<h2>Engaged plays per 1,000 impressions</h2>", _table(engaged)]
    parts += ["<h2>Are the probabilities right?</h2>", _metrics(report), _reliability(report["reliability"])]
    if "onnx_torch_largest_difference" in report:
        parts.append(
            "<p>Largest difference between ONNX Runtime and torch over these impressions: "
            f"{report['onnx_torch_largest_difference']:.1e}.</p>"
        )
    parts += [
        "<h2>How to read this</h2>",
        *(_note(heading, text) for heading, text in (NOTES | report["notes"]).items()),
    ]
    body = "\n".join(parts)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>keyart report</title><style>{STYLE}</style>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>'


def _population(report: dict[str, Any]) -> str:
    """Whose impressions the values speak of."""
    said = (
        f"{report['impressions']:,} impressions of {report['members']:,} members since {escape(report['since'][:16])}, "
        f"of which {report['randomised']:,} were randomised."
    )
    if report["without_choice"]:
        said += f" Another {report['without_choice']:,} offered a single artwork, nothing to choose, and are left out."
    return said


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


def _note(heading: str, text: str) -> str:
    return f"<p><b>{escape(heading)}.</b> {escape(text)}</p>"


def _estimate(row: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((e for e in row["estimates"] if e["estimator"] == name and e["value"] is not None), None)


def _headline(report: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The finding in words."""
    scored = next(row for row in rows if row["policy"] == "scored")
    lift = _estimate(scored, "snips_lift")
    name = report["scored"]
    if lift is None or lift["low"] is None:
        return f"This log cannot tell what {name} would earn: its randomised part holds too little."
    value, low, high = (100 * lift[key] for key in ("value", "low", "high"))
    verb = "would earn" if low > 0 else "may or may not earn"
    said = f"{name} {verb} {value:+.0f} % clicks over showing any artwork alike (95 %: {low:+.0f} to {high:+.0f} %)"
    if report["captured_lift"] is not None:
        said += f"; by the true law it captures {report['captured_lift']:.0%} of the possible lift"
    return f"{said}."


def _per_mille(value: float | None) -> str:
    return "–" if value is None else f"{1000 * value:.1f}"


def _range(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "–"
    return f"{_per_mille(estimate['value'])} [{_per_mille(estimate['low'])}, {_per_mille(estimate['high'])}]"


def _table(rows: list[dict[str, Any]]) -> str:
    cells = ["<tr><th>policy</th><th>true</th><th>SNIPS, or mean</th><th>IPS</th><th>effective sample</th></tr>"]
    for row in rows:
        main = _estimate(row, "snips") or _estimate(row, "on_policy")
        size = "–" if main is None else f"{main['effective_sample_size']:,.0f}"
        values = [_per_mille(row["true_value"]), _range(main), _range(_estimate(row, "ips")), size]
        tds = "".join(f"<td>{value}</td>" for value in values)
        cells.append(f'<tr class="{row["policy"]}"><td>{escape(row["label"])}</td>{tds}</tr>')
    return f'<div class="scroll"><table>{"".join(cells)}</table></div>'


def _metrics(report: dict[str, Any]) -> str:
    metrics = report["metrics"]
    auc = "–" if metrics["auc"] is None else f"{metrics['auc']:.4f}"
    return (
        f"<p>Log loss of the shown artwork {metrics['log_loss']:.5f} (a constant: {metrics['log_loss_of_a_constant']:.5f}), "
        f"AUC {auc}, expected calibration error {metrics['expected_calibration_error']:.4f} over 20 bins of equal count.</p>"
    )


def _forest(rows: list[dict[str, Any]]) -> str:
    """Intervals of every policy on one scale; a ring marks the true value where it is known."""
    told = [(row, _estimate(row, "snips") or _estimate(row, "on_policy")) for row in rows]
    ends = [
        v
        for row, e in told
        for v in (row["true_value"], *((e["value"], e["low"], e["high"]) if e else ()))
        if v is not None
    ]
    if not ends:
        return ""
    low, high = min(ends), max(ends)
    span = (high - low) or 1e-9

    def x(value: float) -> float:
        return 20 + 660 * (value - low) / span

    marks = []
    for i, (row, estimate) in enumerate(told):
        y = 34 + 52 * i
        marks.append(f'<text x="20" y="{y - 10}">{escape(row["label"])}</text>')
        if estimate is not None:
            if estimate["low"] is not None:
                marks.append(
                    f'<line class="mark" x1="{x(estimate["low"]):.1f}" x2="{x(estimate["high"]):.1f}" y1="{y}" y2="{y}"/>'
                )
            marks.append(f'<circle cx="{x(estimate["value"]):.1f}" cy="{y}" r="5"/>')
        if row["true_value"] is not None:
            marks.append(f'<circle class="true" cx="{x(row["true_value"]):.1f}" cy="{y}" r="8"/>')
    bottom = 52 * len(told) + 20
    for k in range(5):
        value = low + span * k / 4
        anchor = ("start", "middle", "middle", "middle", "end")[k]
        marks.append(
            f'<text class="soft" text-anchor="{anchor}" x="{x(value):.1f}" y="{bottom + 14}">{1000 * value:.1f}</text>'
        )
    marks.append(f'<line x1="20" x2="680" y1="{bottom - 4}" y2="{bottom - 4}"/>')
    caption = (
        "Clicks per 1,000 impressions: estimate with 95 % interval; the ring is the true value, where it is known."
    )
    drawn = "".join(marks)
    return f'<figure><svg viewBox="0 0 700 {bottom + 22}" role="img">{drawn}</svg><figcaption>{caption}</figcaption></figure>'


def _reliability(points: dict[str, list[float]]) -> str:
    """Observed against predicted in bins of equal count."""
    most = max(*points["predicted"], *points["observed"], 1e-9) * 1.05

    def at(value: float) -> float:
        return 320 * value / most

    marks = [
        '<path d="M60 340 L380 20"/><line x1="60" x2="380" y1="340" y2="340"/><line x1="60" x2="60" y1="20" y2="340"/>'
    ]
    for predicted, observed, count in zip(points["predicted"], points["observed"], points["count"], strict=True):
        title = f"<title>{count:,} impressions: predicted {predicted:.2%}, clicked {observed:.2%}</title>"
        marks.append(f'<circle cx="{60 + at(predicted):.1f}" cy="{340 - at(observed):.1f}" r="4">{title}</circle>')
    for k in range(1, 4):
        value = most * k / 3.2
        marks.append(f'<text class="soft" text-anchor="middle" x="{60 + at(value):.0f}" y="358">{value:.1%}</text>')
        marks.append(f'<text class="soft" text-anchor="end" x="54" y="{344 - at(value):.0f}">{value:.1%}</text>')
    caption = f"Observed click rate against predicted, {len(points['count'])} bins of {points['count'][0]:,} impressions each."
    svg = f'<svg viewBox="0 0 440 370" role="img" style="max-width:32rem">{"".join(marks)}</svg>'
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"
