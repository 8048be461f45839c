"""Results of a benchmark: rows of figures, printed as one table with the subjects side by side, and written as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from foundation.atomic import atomic_file

OURS = "keyart"
"""keyart's name among the subjects of every benchmark."""
MAX_WIDTH = 500
"""Width of a table in characters, at most."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of one subject."""

    benchmark: str
    subject: str
    figure: str
    unit: str
    value: float


def print_table(rows: Sequence[Row], console: Console) -> None:
    """Figures down, subjects across, ours first."""
    for benchmark in dict.fromkeys(row.benchmark for row in rows):
        own = [row for row in rows if row.benchmark == benchmark]
        subjects = sorted(dict.fromkeys(row.subject for row in own), key=lambda subject: subject != OURS)
        table = Table(title=benchmark, title_justify="left")
        table.add_column("figure")
        table.add_column("unit", no_wrap=True)
        for subject in subjects:
            table.add_column(subject, justify="right", no_wrap=True)
        for figure, unit in dict.fromkeys((row.figure, row.unit) for row in own):
            values = {row.subject: row.value for row in own if (row.figure, row.unit) == (figure, unit)}
            table.add_row(figure, unit, *(format_value(values[s]) if s in values else "" for s in subjects))
        # in a pipe, or a narrow window, figures would be cut off
        table_width = Measurement.get(console, console.options.update(max_width=MAX_WIDTH), table).maximum
        if table_width > console.width:
            console = Console(file=console.file, width=table_width, force_terminal=console.is_terminal, highlight=False)
        console.print(table)


def format_value(value: float) -> str:
    """The value with at least three significant digits and thousands separators."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"


def write_json(rows: Sequence[Row], path: Path) -> None:
    """The rows as a list of {benchmark, subject, figure, unit, value}; the file appears whole or not at all."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
