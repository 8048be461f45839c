"""The report as one page: self-contained HTML, light and dark, readable on a phone; no network, no scripts.

In: the record of `evaluation.evaluate`. Out: HTML with the result in words, then the page of `keyart value` with the
policies' true values where they are known.
"""

from html import escape
from pathlib import Path

from evaluation.record.records import NotRandomisedRow, Report
from evaluation.report.markup import html_document, notes, with_interval
from evaluation.report.value_page import NOTES as VALUE_NOTES
from evaluation.report.value_page import headline, sections

NOTES = {
    "True": "Known only for simulated services, whose law of clicks is written beside them.",
}
"""Notes on how to read this page, besides those of `keyart value`'s page."""


def render(report: Report, dataset: Path) -> str:
    """The page as HTML; `dataset`: the folder with the pictures."""
    value = report["value"]
    verdict = value["verdict"]
    parts = [
        f'<p><span class="verdict {verdict["verdict"]}">{verdict["verdict"]}</span> {escape(verdict["reason"])}.</p>',
        f"<h1>{escape(_headline(report))}</h1>",
        f'<p class="soft">{_population(report)}</p>',
        *(_not_randomised(row) for row in report["not_randomised"]),
    ]
    # over all impressions, not only those with at least two candidates
    parts += sections(value, dataset, report["policies"], fit=report, preferences=report.get("preferences"))
    if "onnx_torch_largest_difference" in report:
        parts.append(
            "<p>Largest difference between ONNX Runtime and torch over these impressions: "
            f"{report['onnx_torch_largest_difference']:.1e}.</p>"
        )
    parts += notes(NOTES | VALUE_NOTES | report["notes"], value["notes"])
    return html_document("keyart report", "\n".join(parts))


def _population(report: Report) -> str:
    """The evaluated impressions, in words."""
    text = (
        f"{report['impressions']:,} impressions of {report['members']:,} members since "
        f"{report['since'][:16].replace('T', ' ')} UTC, "
        f"of which {report['randomised']:,} were randomised."
    )
    if report["without_choice"]:
        text += f" Another {report['without_choice']:,} had a single candidate, nothing to choose, and are left out."
    return text


def _not_randomised(row: NotRandomisedRow) -> str:
    """The logging policy's value on impressions that were not randomised, which exploring dilutes in its value."""
    if row["value"] is None:
        return ""
    return (
        f"<p>On the {row['impressions']:,} impressions that were not randomised the logging policy earned, {row['reward']} per "
        f"1,000, {with_interval(row)}: the figure to beat, which its randomised part dilutes.</p>"
    )


def _headline(report: Report) -> str:
    """The result in words, with the captured lift where the true law is known."""
    text = headline(report["value"], report["scored"])
    if report["captured_lift"] is None:
        return text
    return f"{text[:-1]}; by the true law it captures {100 * report['captured_lift']:.0f} % of the possible lift."
