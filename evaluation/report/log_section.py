"""The part of a page that says what is wrong with the log: doubts, tests of propensities, who logged what."""

from collections.abc import Iterator
from html import escape

from evaluation.record.records import ValueSections
from evaluation.report.markup import table, table_row


def log_section(record: ValueSections) -> Iterator[str]:
    """Doubts as a list, which impressions are valued, and tables of the tests behind them."""
    if record["doubts"]:
        yield "<p><b>Doubtful:</b></p><ul>" + "".join(f"<li>{escape(text)}</li>" for text in record["doubts"]) + "</ul>"
    yield f'<p class="soft">{escape(_sentence(record["traffic"]))} {escape(_propensities(record))}</p>'
    tests = record["propensities"]["worst"]
    if tests:
        lines = []
        for row in tests:
            context = f", {row['attribute']} {row['level']}" if row["attribute"] else ""
            cells = [escape(f"{row['artwork'] or row['tested']}{context}"), f"{row['impressions']:,}"]
            cells += [f"{row['shown']:,.1f}", f"{row['expected']:,.1f}"]
            cells += [f"{row['standard_errors']:+.1f}", f"{row['chance']:.2g}"]
            lines.append(table_row(cells))
        heads = ["tested", "impressions", "shown", "by propensities", "standard errors", "chance, for all tests"]
        yield f"<details><summary>The tests of propensities that deviate most</summary>{table(heads, lines)}</details>"
    if record["assignment"]:
        lines = []
        for row in record["assignment"]:
            cells = [escape(f"{row['attribute']}: {row['level']}"), escape(row["policy"])]
            cells += [
                f"{row['share']:.1%}",
                f"{row['overall']:.1%}",
                f"{row['standard_errors']:+.1f}",
                f"{row['chance']:.2g}",
            ]
            lines.append(table_row(cells))
        heads = ["level that differs most", "logged by", "share", "in all", "standard errors", "chance, for all tests"]
        yield f"<details><summary>Whether who logs depends on the context</summary>{table(heads, lines)}</details>"
    lines = [
        table_row(
            [
                escape(row["policy"]) + (" (one artwork for certain)" if row["certain"] else ""),
                f"{row['impressions']:,}",
                "not known" if row["unsupported"] is None else f"{row['unsupported']:.1%}",
                "valued" if row["used"] else "left out",
            ]
        )
        for row in record["logging_policies"]
    ]
    if len(lines) > 1:
        yield table(["logging policy", "impressions", "of the scored policy, never shown", ""], lines)


def _sentence(text: str) -> str:
    text = text[0].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


def _propensities(record: ValueSections) -> str:
    """The result of the tests of propensities in words."""
    tests = record["propensities"]
    if not tests["tests"]:
        return "Propensities could not be tested."
    return (
        f"{tests['rejected']:,} of {tests['tests']:,} tests of propensities reject; in {tests['error_rate']:.0%} of honest logs "
        "at most does any."
    )
