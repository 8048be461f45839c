"""Replications on simulated logs, joined in one table: what was wanted, what was measured, in how many replications.

Every module `benchmarks/value_*.py` with a function `rows(replications)` joins by its name alone. `rows` returns, one by one,
what has a scenario, what was wanted and measured, in words, and a number of replications.
"""

import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table


class Replicated(NamedTuple):
    """One line of the table."""

    scenario: str
    wanted: str
    measured: str
    replications: int


def modules() -> list[str]:
    """Names of the modules of replications, in order of the alphabet."""
    return sorted(path.stem for path in Path(__file__).parent.glob("value_*.py"))


def replicated(replications: int) -> Iterator[Replicated]:
    """The lines of all modules."""
    for name in modules():
        for line in import_module(f"benchmarks.{name}").rows(replications):
            yield Replicated(line.scenario, line.wanted, line.measured, line.replications)


def print_replications(lines: Iterable[Replicated], console: Console) -> list[Replicated]:
    """Print the lines as one table, and return them."""
    have = list(lines)
    table = Table(title="replications on logs of known truth", title_justify="left")
    for heading in ("scenario", "wanted", "measured", "replications"):
        table.add_column(heading, justify="right" if heading == "replications" else "left", overflow="fold")
    for scenario, wanted, measured, count in have:
        table.add_row(scenario, wanted, measured, f"{count:,}")
    console.print(table)
    return have


def figures_of(line: Replicated) -> Iterator[tuple[str, str, float]]:
    """The first number that was measured, as (figure, unit, value); nothing where the words have none."""
    number = re.search(r"(-?[\d,]*\.?\d+)\s*(%?)", line.measured)
    if number is not None:
        figure = f"{line.scenario}: {line.measured} (wanted: {line.wanted})"
        yield figure, number[2] or "number", float(number[1].replace(",", ""))
