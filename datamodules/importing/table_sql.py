"""The rows of one table as SQL: its sources one below the other, their cells as known text, then as values.

In: a `TablePlan` and a connection. Out: `TableSql`, whose columns were profiled and whose unreadable cells were counted; a
UserError names the first of them. Nothing is written here.
"""

import glob
import re
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from datamodules.contract.check_files import printable
from datamodules.contract.tables import IMPRESSIONS, Column
from datamodules.importing.candidate_rows import impressions_sql
from datamodules.importing.cells import (
    NULL_WORDS,
    SHOWN,
    UNIT_NAMES,
    WRITTEN,
    Cell,
    among,
    cell,
    known,
    profile_of,
    unit_of,
)
from datamodules.importing.config import ImportConfig
from datamodules.importing.mapping import KEYS, ROW_NUMBER, TablePlan
from datamodules.importing.sources import literal, quoted, reading
from foundation.errors import UserError
from foundation.shell import shell_word

ROW, SOURCE = "keyart_row", "keyart_source"


@dataclass(kw_only=True)
class TableSql:
    """A table as it will be written."""

    plan: TablePlan
    cells: dict[str, Cell]
    text: str
    """SQL of the known text of every column, with `ROW` and `SOURCE`."""
    values: str
    """SQL of every column's values."""
    rows: int = 0
    nulls: dict[str, int] = field(default_factory=dict)
    """By column: rows whose value is null."""
    spelled: dict[str, list[str]] = field(default_factory=dict)
    """By column: the texts, not empty, that became null."""
    notes: list[str] = field(default_factory=list)

    @property
    def files(self) -> tuple[tuple[Path, Path], ...]:
        """The sources, as `reading` takes them."""
        return tuple((source.path, source.staged) for source in self.plan.sources)


def table_sql(
    plan: TablePlan, config: ImportConfig, connection: duckdb.DuckDBPyConnection, folder: Path, candidates: str = ""
) -> TableSql:
    """Profile a table's columns and count what cannot be read; UserError with the first such cell.

    `folder`: where the cells of text files are kept while they are read again; `candidates`: SQL of artwork_id, title_id of every
    candidate, where the artworks are derived from impressions.
    """
    raw = _kept(_raw(plan), plan, connection, folder)
    texts = {column.name: _text(column, plan, config) for column in plan.columns}
    text = (
        f"SELECT {', '.join(f'{sql} AS {quoted(name)}' for name, sql in texts.items())}, {ROW}, {SOURCE} FROM ({raw})"
    )
    if candidates:
        text = f"{text} UNION ALL BY NAME SELECT *, NULL AS {ROW}, NULL AS {SOURCE} FROM ({candidates})"
    constants = [
        f"{_filled(template, texts.keys(), name)} AS {quoted(name)}" for name, template in plan.constants.items()
    ]
    if constants:
        text = f"SELECT * REPLACE ({', '.join(constants)}) FROM ({text})"
    if key := plan.derived and KEYS.get(plan.table.name):
        # the first row that knows a value says it
        others = [name for name in texts if name != key]
        firsts = [f"arg_min({quoted(name)}, {ROW}) AS {quoted(name)}" for name in others]
        firsts = [
            f"coalesce({first.partition(' AS ')[0]}, any_value({quoted(name)})) AS {quoted(name)}"
            for first, name in zip(firsts, others, strict=True)
        ]
        text = (
            f"SELECT {', '.join([quoted(key), *firsts])}, min({ROW}) AS {ROW}, min({SOURCE}) AS {SOURCE} FROM ({text}) "
            f"WHERE {quoted(key)} IS NOT NULL GROUP BY {quoted(key)}"
        )
    table = TableSql(plan=plan, cells={}, text=text, values="")
    with reading(*table.files):
        profiles = _profiles(table, connection)
        for column in plan.columns:
            if column.kind == "timestamp":
                _require_one_form(column, profiles[column.name], table, config)
            table.cells[column.name] = cell(quoted(column.name), column.kind, config, profiles[column.name])
        values = [
            f"CAST({made.value} AS {WRITTEN[column.kind]}) AS {quoted(column.name)}"
            for column in plan.columns
            for made in [table.cells[column.name]]
        ]
        table.values = f"SELECT {', '.join(values)} FROM ({text})"
        _count(table, raw, config, connection)
        if plan.candidate_rows:
            rows = f"SELECT {', '.join(values)}, {SOURCE}, {ROW} FROM ({text})"
            names = [column.name for column in plan.columns]
            path = plan.sources[0].path
            table.values, notes = impressions_sql(rows, names, (SOURCE, ROW), path, connection)
            table.notes += notes
        if key:
            _note_conflicts(table, key, raw, texts, connection)
    return table


def _raw(plan: TablePlan) -> str:
    """SQL of the raw text of every column that has a source, of all sources."""
    selects, names = [], plan.taken.keys()
    for index, source in enumerate(plan.sources):
        columns = []
        for name in names:
            taken = plan.taken[name][index]
            sql = "NULL" if not taken else ROW_NUMBER if taken == ROW_NUMBER else source.text(taken)
            columns.append(f"{'NULL' if sql == ROW_NUMBER else sql} AS {quoted(name)}")
        columns += [f"row_number() OVER () AS {ROW}", f"{index} AS {SOURCE}"]
        selects.append(f"SELECT {', '.join(columns)} FROM {source.relation}")
    return " UNION ALL ".join(selects)


def _kept(raw: str, plan: TablePlan, connection: duckdb.DuckDBPyConnection, folder: Path) -> str:
    """SQL of the same rows from a copy in Parquet, where they are parsed from text, which costs more than all that follows."""
    if not plan.sources or all(source.kind == "parquet" for source in plan.sources):
        return raw
    path = folder / f"cells-{plan.table.name}.parquet"
    with reading(*((source.path, source.staged) for source in plan.sources)):
        connection.execute(f"COPY ({raw}) TO {literal(str(path))} (FORMAT parquet, COMPRESSION lz4)")
    return f"SELECT * FROM read_parquet({literal(glob.escape(str(path)))})"


def _text(column: Column, plan: TablePlan, config: ImportConfig) -> str:
    taken = plan.taken.get(column.name)
    if taken is None:
        return "CAST(NULL AS VARCHAR)"
    if ROW_NUMBER in taken:
        return f"{SOURCE} || '-' || {ROW}" if len(plan.sources) > 1 else f"CAST({ROW} AS VARCHAR)"
    return known(quoted(column.name), column.kind, config)


def _filled(template: str, names: object, target: str) -> str:
    """SQL of a constant's text, columns in braces filled in."""
    parts = []
    for index, part in enumerate(re.split(r"\{(\w+)\}", template)):
        if index % 2 == 0:
            parts += [literal(part)] if part else []
        elif part in names and part != target:  # pyright: ignore[reportOperatorIssue]
            parts.append(quoted(part))
        else:
            raise UserError(f"map={target}:={template}: {part} is no column of the table. Name another in braces.")
    return " || ".join(parts) or "NULL"


def _profiles(table: TableSql, connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, object]]:
    """What `cell` needs to know, by column, in one pass."""
    wanted = [
        (column.name, name, sql)
        for column in table.plan.columns
        for name, sql in profile_of(quoted(column.name), column.kind).items()
    ]
    profiles: dict[str, dict[str, object]] = {column.name: {} for column in table.plan.columns}
    if wanted:
        row = connection.execute(f"SELECT {', '.join(sql for _, _, sql in wanted)} FROM ({table.text})").fetchone()
        for (column, name, _), value in zip(wanted, row or (), strict=True):
            profiles[column][name] = value
    return profiles


def _require_one_form(column: Column, profile: dict[str, object], table: TableSql, config: ImportConfig) -> None:
    """UserError where times have no zone, or are numbers whose unit is not plain."""
    where = f"{table.plan.sources[0].path}: column {_source_name(table, column.name)}"
    if config.time_format:
        if not config.zone and "%z" not in config.time_format and "%Z" not in config.time_format:
            raise UserError(
                f"{where}: --time-format {config.time_format} has no zone. Give --zone, such as --zone UTC."
            )
        return
    if profile["naive"] and not config.zone:
        raise UserError(
            f"{where}: {profile['naive']:,} times without a zone (first: {printable(profile['first_naive'])}). Say in which "
            "zone they are: --zone UTC, or --zone Europe/Berlin."
        )
    if not profile["numbers"] or config.epoch:
        return
    if profile["dates"]:
        raise UserError(
            f"{where}: {profile['dates']:,} numbers look like dates without marks (first: "
            f"{printable(profile['first_number'])}). Give --time-format %Y%m%d%H%M%S, or --epoch ms where they are milliseconds."
        )
    if not unit_of(profile):
        raise UserError(
            f"{where}: numbers from {profile['least']:.15g} to {profile['most']:.15g} are in no single unit since 1970 "
            f"({', '.join(UNIT_NAMES.values())}). Give --epoch s, ms, us or ns, --time-format, or --null for what is no time."
        )


def _source_name(table: TableSql, column: str) -> str:
    taken = table.plan.taken.get(column)
    return printable(next((name for name in taken if name), column)) if taken else column


def _count(table: TableSql, raw: str, config: ImportConfig, connection: duckdb.DuckDBPyConnection) -> None:
    """Rows, nulls and unreadable cells of every column, in one pass; UserError with the first unreadable one."""
    plan, counts = table.plan, ["count(*)"]
    for column in plan.columns:
        made = table.cells[column.name]
        counts += [f"count(*) FILTER (WHERE {made.bad})", f"count(*) FILTER (WHERE ({made.value}) IS NULL)"]
    row: tuple[int, ...] = connection.execute(f"SELECT {', '.join(counts)} FROM ({table.text})").fetchone() or (0,)
    table.rows = row[0]
    if not table.rows:
        raise UserError(f"{plan.sources[0].path}: {plan.table.name} have no rows. Export the file with its rows.")
    for index, column in enumerate(plan.columns):
        bad, table.nulls[column.name] = row[1 + 2 * index], row[2 + 2 * index]
        if bad:
            table.notes.append(_unreadable(table, column, bad, config, connection))
    sourced = [
        column for column in plan.columns if column.name in plan.taken and ROW_NUMBER not in plan.taken[column.name]
    ]
    lists = []
    for column in sourced:
        name = quoted(column.name)
        spelled = f"trim({name}) <> '' AND ({known(name, column.kind, config)}) IS NULL"
        lists.append(f"list(DISTINCT trim({name})) FILTER (WHERE {spelled})")
        kept = f"{among(f'lower(trim({name}))', NULL_WORDS)} AND ({known(name, column.kind, config)}) IS NOT NULL"
        lists.append(f"list(DISTINCT trim({name})) FILTER (WHERE {kept})")
        lists.append(f"count(*) FILTER (WHERE {kept})")
    if not lists:
        return
    values = list(connection.execute(f"SELECT {', '.join(lists)} FROM ({raw})").fetchone() or ())
    for column, spelled, kept, number in zip(sourced, values[::3], values[1::3], values[2::3], strict=True):
        table.spelled[column.name] = sorted(spelled or [])[:5]
        if kept and column.name not in ("country", "name"):  # NA is Namibia, and there is a film of that name
            words = ", ".join(repr(word) for word in sorted(kept)[:3])
            table.notes.append(
                f"{plan.table.name}.{column.name}: {number:,} {'row says' if number == 1 else 'rows say'} {words}, kept as text; "
                f"--null {shell_word(sorted(kept)[0])} makes it null"
            )


def _unreadable(
    table: TableSql, column: Column, bad: int, config: ImportConfig, connection: duckdb.DuckDBPyConnection
) -> str:
    made, name = table.cells[column.name], quoted(column.name)
    row, source, text = connection.execute(
        f"SELECT {ROW}, {SOURCE}, {name} FROM ({table.text}) WHERE {made.bad} ORDER BY {SOURCE}, {ROW} LIMIT 1"
    ).fetchone() or (0, 0, "")
    path = table.plan.sources[source or 0].path
    what = (
        f"{path}: column {_source_name(table, column.name)}: {bad:,} {'value' if bad == 1 else 'values'} that "
        f"{'is' if bad == 1 else 'are'} no {SHOWN[column.kind].partition(',')[0]} (first: {printable(text)!r}, row {row})"
    )
    if config.unparsable == "null":
        return f"{what}; null now"
    raise UserError(f"{what}. {made.remedy}; --unparsable null leaves such values out.")


def _note_conflicts(
    table: TableSql, key: str, raw: str, texts: dict[str, str], connection: duckdb.DuckDBPyConnection
) -> None:
    """Count ids whose rows say different things: the first counts."""
    others = [name for name in texts if name != key and name in table.plan.taken]
    if not others or key not in table.plan.taken:
        return
    inner = ", ".join(f"count(DISTINCT {texts[name]}) > 1 AS {quoted(name)}" for name in others)
    outer = ", ".join(f"count(*) FILTER (WHERE {quoted(name)})" for name in others)
    conflicts = (
        connection.execute(f"SELECT {outer} FROM (SELECT {inner} FROM ({raw}) GROUP BY {texts[key]})").fetchone() or ()
    )
    for name, count in zip(others, conflicts, strict=True):
        if count:
            table.notes.append(
                f"{table.plan.table.name}.{name}: {count:,} {'id has' if count == 1 else 'ids have'} more than one value; the "
                "first row's is written"
            )


def candidates_sql(impressions: TableSql) -> str:
    """SQL of artwork_id and title_id, text, of every candidate of impressions."""
    return f"SELECT DISTINCT unnest(candidates) AS artwork_id, title_id FROM ({impressions.values})"


def plays_sql(impressions: TableSql, chosen: str) -> str:
    """SQL of plays: the impressions that were `chosen`, clicked or engaged."""
    if chosen not in impressions.nulls:
        raise UserError(
            f"plays_from={chosen}: the {IMPRESSIONS.name} have no column {chosen}. Map one, or take another."
        )
    return f"SELECT member_id, title_id, shown_at AS played_at, artwork_id FROM ({impressions.values}) WHERE {quoted(chosen)}"
