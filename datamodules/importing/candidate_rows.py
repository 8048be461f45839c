"""A log with one row per impression and candidate -> one row per impression, its candidates and propensities as lists.

In: SQL of the rows' values, and which of them is the artwork that was shown: by a flag `shown`, or by the column `candidate` beside
`artwork_id`. Out: SQL of impressions by the contract; a UserError where the rows of an impression contradict each other.
"""

from dataclasses import replace

import duckdb

from datamodules.contract.check_files import printable
from datamodules.contract.tables import IMPRESSIONS, Column, Table
from datamodules.importing.sources import quoted
from foundation.errors import UserError

CANDIDATE = Column(name="candidate", kind="string")
IS_SHOWN = Column(name="shown", kind="boolean", nullable=True)
ROW_COLUMNS = (CANDIDATE, IS_SHOWN)
"""Columns of a row of a candidate beside those of impressions: the candidate, and whether it was shown."""
LISTS = {"candidates", "propensities"}
OF_ONE_IMPRESSION = ("member_id", "title_id", "shown_at")
"""What may not differ between the rows of an impression."""


def has_candidate_rows(names: set[str]) -> bool:
    """Whether impressions with columns of these names are logged by one row per candidate."""
    return "candidates" not in names and bool(names & {column.name for column in ROW_COLUMNS})


def candidate_rows_table(names: set[str]) -> Table:
    """The columns of such a log: impressions without lists, and how the shown candidate is marked."""
    columns = tuple(column for column in IMPRESSIONS.columns if column.name not in LISTS)
    marked_by = (CANDIDATE,) if {"candidate", "artwork_id"} <= names else (IS_SHOWN,)
    return replace(IMPRESSIONS, columns=(*columns, *marked_by))


def becomes_of(name: str, names: set[str]) -> str:
    """The impression's column that a column of the rows becomes, `names` being all of theirs."""
    candidate = "candidate" if "candidate" in names else "artwork_id"
    return {candidate: "candidates", "shown": "artwork_id", "propensity": "propensities"}.get(name, name)


def impressions_sql(
    rows: str, names: list[str], order: tuple[str, str], path: object, connection: duckdb.DuckDBPyConnection
) -> tuple[str, list[str]]:
    """SQL of one row per impression, its candidates in the order of the rows, and what is to be noted.

    `rows`: SQL of columns `names` and of the two that `order` them. UserError where an impression has no shown candidate or
    several, is of several members, titles or times, or was clicked on a candidate that was not shown.
    """
    shown = "candidate = artwork_id" if "candidate" in names else "shown"
    candidate = "candidate" if "candidate" in names else "artwork_id"
    marked = f"SELECT *, coalesce({shown}, false) AS keyart_shown FROM ({rows})"
    clicked_elsewhere = (
        "bool_or(clicked AND NOT keyart_shown) AND NOT coalesce(bool_or(clicked AND keyart_shown), false)"
    )
    faults = {
        "candidates, none of them shown": "count(*) FILTER (WHERE keyart_shown) = 0",
        "several candidates that were shown": "count(*) FILTER (WHERE keyart_shown) > 1",
        **{f"rows that differ in {name}": f"count(DISTINCT {name}) > 1" for name in OF_ONE_IMPRESSION},
        "a click on a candidate that was not shown": clicked_elsewhere,
    }
    counts = ", ".join(
        f"count(*) FILTER (WHERE fault_{index}), min(impression_id) FILTER (WHERE fault_{index})"
        for index in range(len(faults))
    )
    partly = "count(propensity) < count(*)"
    flags = ", ".join(f"{sql} AS fault_{index}" for index, sql in enumerate(faults.values()))
    impressions, most, unknown, partial, *counted = connection.execute(
        f"SELECT count(*), max(keyart_rows), count(*) FILTER (WHERE impression_id IS NULL), count(*) FILTER (WHERE partly), "
        f"{counts} FROM (SELECT impression_id, count(*) AS keyart_rows, {partly} AS partly, {flags} FROM ({marked}) "
        "GROUP BY impression_id)"
    ).fetchone() or (0, 0, 0, 0)
    if unknown:
        raise UserError(
            f"{path}: candidates without an impression_id. Write it in every row: it says which candidates belong together."
        )
    if most == 1:
        raise UserError(
            f"{path}: every impression has one row, so that its candidates are not known. Export a row for each candidate that "
            "could have been shown, or name the column of their list: --map candidates=COLUMN."
        )
    for what, count, first in zip(faults, counted[::2], counted[1::2], strict=True):
        if count:
            raise UserError(
                f"{path}: {count:,} of {impressions:,} impressions have {what} (first: {printable(first)}). Correct the export, "
                "or leave these impressions out of it."
            )
    ordered = f"ORDER BY {', '.join(order)}"
    lists = [
        f"list({candidate} {ordered}) AS candidates",
        f"CASE WHEN {partly} THEN NULL ELSE list(propensity {ordered}) END AS propensities",
    ]
    of_shown = [name for name in names if name not in ("impression_id", "candidate", "shown", "propensity")]
    of_shown += ["propensity"] if partial else []
    columns = [
        "impression_id",
        *lists,
        *(f"any_value({quoted(n)}) FILTER (WHERE keyart_shown) AS {quoted(n)}" for n in of_shown),
    ]
    notes = []
    if partial:
        notes.append(
            f"impressions.propensities: {partial:,} of {impressions:,} impressions lack the propensity of a candidate; that of "
            "the shown artwork alone is written"
        )
    grouped = f"SELECT {', '.join(columns)} FROM ({marked}) GROUP BY impression_id"
    first_rows = ", ".join(f"min({name})" for name in order)
    return f"{grouped} ORDER BY {first_rows}", notes
