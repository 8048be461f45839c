"""The best of many policies, as a section of the page and as a table for a terminal.

In: `Selection`s. Out: HTML, or a table of rich.
"""

from collections.abc import Iterator, Sequence
from html import escape

from rich.table import Table
from rich.text import Text

from evaluation.record.rows import IntervalColumns
from evaluation.record.selection_rows import Selection, SelectionRow
from evaluation.report.markup import per_mille, table, table_row, with_interval

BASES = {"uniform": "uniform", "base": "the base"}
EXPLANATION = (
    "The largest of many estimates is too high: it was picked for its luck, too. All intervals here hold at once, in 95 of 100 "
    "logs, and so do the guaranteed values: lower bounds that assume only that propensities are right and that members click "
    "independently of one another. The policy to take is the one that guarantees most."
)


def verdict_words(selection: Selection) -> str:
    """Which policy guarantees most, and what the intervals say of it, in words."""
    chosen = next((row for row in selection["rows"] if row["policy"] == selection["chosen"]), None)
    reward, base = selection["reward"], BASES.get(selection["base"], selection["base"])
    if chosen is None or chosen["at_least"] is None:
        return f"{reward}: this log does not support an estimate of any of the {len(selection['rows'])} policies."
    words = (
        f"{reward}: {chosen['scores']} guarantees most, at least {1000 * chosen['at_least']:.1f} per 1,000 impressions"
    )
    low, high = chosen["above_base_low"], chosen["above_base_high"]
    if low is not None and high is not None:
        apart = "better than" if low > 0 else "worse than" if high < 0 else "not clearly apart from"
        words += f"; it is {apart} {base}"
    highs = [row["above_chosen_high"] for row in selection["rows"] if row is not chosen]
    rivals = sum(high is not None and high >= 0 for high in highs)
    if rivals:
        words += f"; {rivals} of the {len(highs)} others {'is' if rivals == 1 else 'are'} not clearly worse"
    return words + "."


def _interval(row: SelectionRow, name: str) -> IntervalColumns:
    """A difference of the row, with its interval."""
    if name == "above_base":
        return {"value": row["above_base"], "low": row["above_base_low"], "high": row["above_base_high"]}
    return {"value": row["above_chosen"], "low": row["above_chosen_low"], "high": row["above_chosen_high"]}


def _in_order(selection: Selection) -> list[SelectionRow]:
    """The rows by guaranteed value, largest first."""
    return sorted(selection["rows"], key=lambda row: -1.0 if row["at_least"] is None else row["at_least"], reverse=True)


def selection_section(selections: Sequence[Selection]) -> Iterator[str]:
    """The section of the page; nothing where one policy was scored."""
    if not selections:
        return
    yield "<h2>The best of many</h2>"
    yield f"<p>{escape(EXPLANATION)}</p>"
    for selection in selections:
        words = verdict_words(selection)
        yield f"<p><b>{escape(words[0].upper() + words[1:])}</b></p>"
        lines = []
        for row in _in_order(selection):
            mark = " (weak)" if row["verdict"] == "weak" else ""
            apart = [_interval(row, name) for name in ("above_base", "above_chosen")]
            cells = [escape(row["scores"]), per_mille(row["at_least"]), with_interval(row) + mark]
            cells += ["–" if each["value"] is None else with_interval(each) for each in apart]
            lines.append(table_row(cells, "scored" if row["policy"] == selection["chosen"] else ""))
        base = BASES.get(selection["base"], selection["base"])
        heads = [f"{selection['reward']} per 1,000", "guaranteed at least", f"value ({selection['estimator']})"]
        yield table([*heads, f"above {base}", "above the chosen"], lines)


def selection_table(selection: Selection) -> Table:
    """The policies by guaranteed value, per 1,000 impressions, for reading in a terminal."""
    words = verdict_words(selection)
    drawn = Table(title=words[0].upper() + words[1:], title_justify="left")
    drawn.caption = f"{selection['estimator']}, per 1,000 impressions; all intervals hold at once, 95 %"
    drawn.add_column("scores", overflow="fold")
    base = BASES.get(selection["base"], selection["base"])
    for heading in ("at least", "value", f"above {base}", "above the chosen"):
        drawn.add_column(heading, justify="right")
    for row in _in_order(selection):
        mark = {"weak": " (weak)", "unanswerable": "unanswerable"}.get(row["verdict"], "")
        least = "" if row["at_least"] is None else f"{1000 * row['at_least']:.1f}"
        apart = (_plain(_interval(row, name)) for name in ("above_base", "above_chosen"))
        cells = [row["scores"], least, _plain(row) + mark, *apart]
        drawn.add_row(*map(Text, cells), style="bold" if row["policy"] == selection["chosen"] else None)
    return drawn


def _plain(row: IntervalColumns) -> str:
    """A value per 1,000 with its interval; empty where it is not known."""
    if row["value"] is None:
        return ""
    if row["low"] is None or row["high"] is None:
        return f"{1000 * row['value']:.1f}"
    return f"{1000 * row['value']:.1f} [{1000 * row['low']:.1f}, {1000 * row['high']:.1f}]"
