"""Aggregated tables of tests: arm, impressions, clicks, as CSV or Parquet.

Columns: `arm`, `impressions`, `clicks`; optional `engaged` (clicks that led to a viewing), `day` (a date or a number;
rows then count that day alone) and `test` (several tests in one table). Other columns are ignored.

Legend: R rows, A arms, D days.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from foundation.errors import UserError

COUNTS = {"impressions": "impressions", "clicks": "clicked", "engaged": "engaged"}
"""Columns of counts, and the names of the rewards they are."""
TABLE_SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class CountedTest:
    """One test of a table."""

    name: str
    arms: tuple[str, ...]
    """In order of appearance."""
    days: list[str]
    """In order; one name where the table has no days."""
    counts: dict[str, NDArray[np.float64]]
    """By name, (D, A): `impressions`, `clicked` and, where the table has it, `engaged`."""


def is_table(source: Path) -> bool:
    """Whether a path is an aggregated table by its name, and no dataset."""
    return source.suffix.lower() in TABLE_SUFFIXES and not source.is_dir()


def read_counted_tests(source: Path) -> list[CountedTest]:
    """Read every test of a table; UserError for a missing column, a value that is no count, more clicks than impressions."""
    table = _read(source)
    for name in ("arm", "impressions", "clicks"):
        if name not in table.column_names:
            raise UserError(
                f"{source}: column {name} is missing (columns: {', '.join(table.column_names)[:200]}). Name the columns arm, "
                "impressions, clicks; engaged, day and test may follow."
            )
    if not len(table):
        raise UserError(f"{source}: has no rows. Give a row for every arm.")
    counts = {
        reward: _counts(source, table, column) for column, reward in COUNTS.items() if column in table.column_names
    }
    for more, fewer in (("clicked", "impressions"), ("engaged", "clicked")):
        if more in counts and (counts[more] > counts[fewer]).any():
            row = int(np.argmax(counts[more] > counts[fewer]))
            raise UserError(
                f"{source}: row {row + 1} has {counts[more][row]:g} {more} of {counts[fewer][row]:g} {fewer}. Correct the counts."
            )
    arm_R, day_R, test_R = (_texts(source, table, name) for name in ("arm", "day", "test"))
    return [
        _one(name, arm_R[rows], day_R[rows], {reward: count_R[rows] for reward, count_R in counts.items()})
        for name, rows in ((name, np.flatnonzero(test_R == name)) for name in dict.fromkeys(test_R.tolist()))
    ]


def _read(source: Path) -> pa.Table:
    try:
        return pq.read_table(source) if source.suffix.lower() == ".parquet" else pyarrow.csv.read_csv(source)
    except FileNotFoundError:
        raise UserError(f"{source}: does not exist. Name a dataset's folder, or a table as CSV or Parquet.") from None
    except (pa.ArrowException, OSError) as error:
        words = " ".join(str(error).split())[:200]
        raise UserError(f"{source}: cannot be read: {words}. Give a table as CSV or Parquet.") from None


def _counts(source: Path, table: pa.Table, column: str) -> NDArray[np.float64]:
    try:
        count_R = np.asarray(pc.fill_null(table[column].cast(pa.float64()), np.nan), np.float64)
    except pa.ArrowException:
        raise UserError(f"{source}: column {column} is {table[column].type}, must be whole numbers.") from None
    bad_R = ~((count_R >= 0) & (count_R == np.floor(count_R)))
    if bad_R.any():
        row = int(np.argmax(bad_R))
        raise UserError(
            f"{source}: {bad_R.sum()} rows whose {column} is no count (first: row {row + 1}, {count_R[row]:g}). "
            "Write whole numbers from 0 on."
        )
    return count_R


def _texts(source: Path, table: pa.Table, column: str) -> NDArray[np.object_]:
    """A column as text; one empty text throughout where the table lacks it."""
    if column not in table.column_names:
        return np.full(len(table), "", object)
    if table[column].null_count:
        raise UserError(f"{source}: {table[column].null_count} rows whose {column} is null. Name it in every row.")
    return np.array([str(value) for value in table[column].to_pylist()], object)


def _one(
    name: str, arm_R: NDArray[np.object_], day_R: NDArray[np.object_], counts: dict[str, NDArray[np.float64]]
) -> CountedTest:
    arms = tuple(dict.fromkeys(arm_R.tolist()))
    days = sorted(set(day_R.tolist()), key=lambda day: (len(day), day) if day.lstrip("-").isdigit() else (0, day))
    arm_index, day_index = ({label: index for index, label in enumerate(labels)} for labels in (arms, days))
    at = ([day_index[day] for day in day_R], [arm_index[arm] for arm in arm_R])
    summed = {}
    for reward, count_R in counts.items():
        summed[reward] = np.zeros((len(days), len(arms)))
        np.add.at(summed[reward], at, count_R)
    return CountedTest(name=name, arms=arms, days=days, counts=summed)
