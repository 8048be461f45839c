"""The report as one page: self-contained HTML, light and dark, readable on a phone; no network, no scripts.

In: the record that `evaluate` makes. Out: HTML with the finding in words, a table, and two drawings as inline SVG.
"""

from html import escape
from math import ceil, floor, log10
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
tr.scored td { font-weight: 650 } .soft { color: var(--soft) } svg { width: 100%; max-width: 36rem; height: auto; display: block }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif } svg .soft { fill: var(--soft) }
svg line, svg path { stroke: var(--line); fill: none } svg .mark { stroke: var(--mark); stroke-width: 2.5 }
svg .thin { stroke-width: 1; opacity: .6 }
svg circle { fill: var(--mark) } svg .true { fill: none; stroke: var(--ink); stroke-width: 1.5 }
.of { white-space: nowrap }
@media (max-width: 45rem) { td .of { display: block; font-size: .85rem } th, td { padding: .35rem .3rem }
  th:first-child, td:first-child { min-width: 6.5rem; overflow-wrap: anywhere } th { white-space: normal } }
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
        f"{report['impressions']:,} impressions of {report['members']:,} members since "
        f"{report['since'][:16].replace('T', ' ')} UTC, "
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
        said = f"{name} would earn {value:.1f} % more clicks than showing any artwork alike ({interval})"
    elif high < 0:
        said = f"{name} would earn {-value:.1f} % fewer clicks than showing any artwork alike ({interval})"
    else:
        said = f"This log cannot tell {name} apart from showing any artwork alike: {value:+.1f} % clicks ({interval})"
    if report["captured_lift"] is not None:
        said += f"; by the true law it captures {100 * report['captured_lift']:.0f} % of the possible lift"
    return f"{said}."


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


def _metrics(report: dict[str, Any]) -> str:
    metrics = report["metrics"]
    auc = "–" if metrics["auc"] is None else f"{metrics['auc']:.4f}"
    return (
        f"<p>Log loss of the shown artwork {metrics['log_loss']:.5f} (a constant: {metrics['log_loss_of_a_constant']:.5f}), "
        f"AUC {auc}, expected calibration error {metrics['expected_calibration_error']:.4f} over 20 bins of equal count.</p>"
    )


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within low .. high, at most `most` + 1 of them."""
    raw = (high - low) / most
    power = 10.0 ** floor(log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * (1 - 1e-9))
    return [k * step for k in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def _forest(rows: list[dict[str, Any]]) -> str:
    """Intervals of every policy on one scale; a ring marks the true value where it is known.

    Drawn 440 wide, so that a phone shows its letters at nearly their size.
    """
    told = [(row, _main_estimate(row)) for row in rows]
    values = [e[key] for _, e in told if e for key in ("value", "low", "high")] + [row["true_value"] for row in rows]
    ends = [value for value in values if value is not None]
    if not ends:
        return ""
    low, high = min(ends), max(ends)
    span = (high - low) or max(high, 1e-3)

    def x(value: float) -> float:
        return 16 + 408 * (value - low) / span

    bottom = 50 * len(told) + 10
    marks = []
    for tick in _ticks(1000 * low, 1000 * (low + span)):
        place = x(tick / 1000)
        marks.append(f'<line x1="{place:.1f}" x2="{place:.1f}" y1="6" y2="{bottom}"/>')
        marks.append(f'<text class="soft" text-anchor="middle" x="{place:.1f}" y="{bottom + 17}">{tick:g}</text>')
    for i, (row, estimate) in enumerate(told):
        y = 44 + 50 * i
        marks.append(f'<text x="16" y="{y - 15}">{escape(row["label"])}</text>')
        if estimate is not None and estimate["low"] is not None:
            a, b = x(estimate["low"]), x(estimate["high"])
            marks.append(f'<line class="mark" x1="{a:.1f}" x2="{b:.1f}" y1="{y}" y2="{y}"/>')
        if estimate is not None:
            marks.append(f'<circle cx="{x(estimate["value"]):.1f}" cy="{y}" r="5"/>')
        if row["true_value"] is not None:
            marks.append(f'<circle class="true" cx="{x(row["true_value"]):.1f}" cy="{y}" r="8"/>')
    caption = "Clicks per 1,000 impressions: estimate with 95 % interval"
    caption += "; the ring is the true value." if any(row["true_value"] is not None for row in rows) else "."
    return _figure(440, bottom + 24, marks, caption)


def _reliability(points: dict[str, list[float]]) -> str:
    """Observed against predicted in bins of equal count, with the spread that chance gives each bin."""
    bars = [1.96 * (o * (1 - o) / n) ** 0.5 for o, n in zip(points["observed"], points["count"], strict=True)]
    most = min(1.0, 1.05 * max(*points["predicted"], *map(sum, zip(points["observed"], bars, strict=True)), 1e-3))

    def at(value: float) -> float:
        return 340 * min(1.0, max(0.0, value / most))

    marks = [
        '<path d="M60 360 L400 20"/><line x1="60" x2="400" y1="360" y2="360"/><line x1="60" x2="60" y1="20" y2="360"/>'
    ]
    for predicted, observed, count, bar in zip(
        points["predicted"], points["observed"], points["count"], bars, strict=True
    ):
        x = f"{60 + at(predicted):.1f}"
        title = f"<title>{count:,} impressions: predicted {predicted:.2%}, clicked {observed:.2%}</title>"
        low, high = 360 - at(observed - bar), 360 - at(observed + bar)
        marks.append(f'<line class="mark thin" x1="{x}" x2="{x}" y1="{low:.1f}" y2="{high:.1f}"/>')
        marks.append(f'<circle cx="{x}" cy="{360 - at(observed):.1f}" r="4">{title}</circle>')
    for tick in _ticks(0, 100 * most, 4):
        place = at(tick / 100)
        marks.append(f'<text class="soft" text-anchor="middle" x="{60 + place:.0f}" y="378">{tick:g} %</text>')
        marks.append(f'<text class="soft" text-anchor="end" x="54" y="{364 - place:.0f}">{tick:g} %</text>')
    marks.append('<text text-anchor="middle" x="230" y="398">predicted</text><text x="6" y="14">clicked</text>')
    least, greatest = min(points["count"]), max(points["count"])
    size = f"{least:,}" if least == greatest else f"{least:,} to {greatest:,}"
    caption = (
        f"Share that was clicked against the predicted probability, {len(points['count'])} bins of {size} impressions each; "
        "bars: 95 % of chance. On the diagonal, probabilities are right."
    )
    return _figure(440, 404, marks, caption)


def _figure(width: int, height: int, marks: list[str], caption: str) -> str:
    svg = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(caption)}">{"".join(marks)}</svg>'
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
