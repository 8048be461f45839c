"""The policies' values as a table for reading in a terminal."""

from rich.table import Table
from rich.text import Text

from evaluation.record.records import ValueRecord
from evaluation.record.rows import DifferenceRow, EstimateRow
from evaluation.report.value_page import main_estimate


def value_table(record: ValueRecord) -> Table:
    """The policies by their main estimates, per 1,000 impressions, for reading in a terminal."""
    verdict = record["verdict"]
    table = Table(
        title=f"{verdict['verdict']}: {verdict['reason']}",
        caption=f"doubly robust, per 1,000 of {record['impressions']:,} impressions of {record['members']:,} members [95 %]",
        title_justify="left",
    )
    for heading in ("policy", "reward", "value", "above uniform"):
        table.add_column(heading, justify="left" if heading in ("policy", "reward") else "right")
    above = {(d["policy"], d["reward"], d["estimator"]): d for d in record["differences"] if d["base"] == "uniform"}
    for policy, reward in dict.fromkeys((e["policy"], e["reward"]) for e in record["estimates"]):
        main = main_estimate(record, policy, reward)
        lift = None if main is None else above.get((policy, reward, main["estimator"]))
        cells = [policy, reward, value_cell(main), _lift_cell(lift)]
        table.add_row(*map(Text, cells), style="bold" if policy == "scored" else None)
    return table


def value_cell(row: EstimateRow | None) -> str:
    """An estimate per 1,000 impressions with its interval, for a terminal."""
    if row is None:
        return "left out"
    if row["value"] is None:
        return "unanswerable"
    mark = "" if row["verdict"] == "reliable" else " (weak)"
    if row["low"] is None or row["high"] is None:
        return f"{1000 * row['value']:.1f}{mark}"
    return f"{1000 * row['value']:.1f} [{1000 * row['low']:.1f}, {1000 * row['high']:.1f}]{mark}"


def _lift_cell(row: DifferenceRow | None) -> str:
    if row is None:
        return ""
    if row["relative"] is None or row["relative_low"] is None or row["relative_high"] is None:
        return "unanswerable"
    mark = "" if row["verdict"] == "reliable" else " (weak)"
    return f"{row['relative']:+.1%} [{row['relative_low']:+.1%}, {row['relative_high']:+.1%}]{mark}"
