"""Which column of which file becomes which column of which table.

In: `--map`, `--table` and the columns of the files. Out: `TablePlan`s. Names that the user gave come first, then columns that are
called as the contract calls them, case and marks aside. Whatever was named and does not exist is a UserError with the likely one.
"""

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from datamodules.contract.check_files import printable
from datamodules.contract.stored_types import folded_name
from datamodules.contract.tables import ARTWORKS, IMPRESSIONS, MEMBERS, PLAYS, TABLES, TITLES, Column, Kind, Table
from datamodules.importing.candidate_rows import ROW_COLUMNS, candidate_rows_table, has_candidate_rows
from datamodules.importing.config import ImportConfig
from datamodules.importing.sources import Source
from foundation.errors import UserError
from foundation.shell import shell_word

ROW_NUMBER = "@row"
"""The source of ids that number the rows."""
EXTRA_KINDS: dict[str, Kind] = {"text": "string", "number": "number", "integer": "integer", "boolean": "boolean"}
"""Types of columns that the contract does not name, as the user writes them."""
SIGNS = {
    TITLES.name: {"name", "genres", "release_year", "cast"},
    ARTWORKS.name: {"image", "embedding", "depicts"},
    PLAYS.name: {"played_at", "watched"},
    IMPRESSIONS.name: {"impression_id", "shown_at", "candidates", "clicked", "propensities", "propensity"},
    MEMBERS.name: set(),
}
"""A file holds a table where it has the table's key and one of these."""
KEYS = {TITLES.name: "title_id", ARTWORKS.name: "artwork_id", MEMBERS.name: "member_id"}
"""By table that can be derived from a file of finer rows, one row by id: the id."""
NEEDED = {TITLES.name: {"title_id"}, ARTWORKS.name: {"artwork_id", "title_id"}}
"""What a table of the catalogue cannot be told by without."""
ENOUGH = NEEDED | {
    PLAYS.name: {"member_id", "title_id"},
    IMPRESSIONS.name: {"member_id", "title_id", "artwork_id"},
    MEMBERS.name: {"member_id"},
}
"""Columns beside which a constant alone shows that a file holds the table."""

PROPENSITIES = {"propensities", "propensity"}
JOIN_FIRST = "; where one holds the candidates of the other's impressions, join them by impression_id first"
LIKELY = {
    "member_id": ("member", "user", "customer", "profile", "account", "viewer"),
    "title_id": ("title", "movie", "item", "film", "show", "content"),
    "artwork_id": ("artwork", "image", "poster", "creative", "thumb"),
    "played_at": ("time", "date", "watched", "started", "ts"),
    "shown_at": ("time", "date", "shown", "served", "ts"),
    "candidates": ("candidate", "options", "slate", "choices", "arms"),
    "clicked": ("click",),
}
"""What other systems call the columns that a table needs, for a hint."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of `--map`."""

    words: str
    """As the user wrote it."""
    table: str
    """Empty: every table that has the column."""
    target: str
    source: str
    """A column of the files, or a constant's text."""
    constant: bool
    kind: Kind | None
    """The kind of a column that the contract does not name; None for others."""


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """Where a table comes from."""

    table: Table
    sources: tuple[Source, ...]
    columns: tuple[Column, ...]
    """The columns that are written: those with a source, and required ones without, which are null."""
    taken: dict[str, tuple[str, ...]]
    """By column: the column of each source; `@row` where its rows are numbered."""
    constants: dict[str, str]
    """By column: the text of every row, {other} standing for the value of another column."""
    derived: bool
    """Whether the files hold finer rows, so that there is one row by id."""
    candidate_rows: bool = False
    """Whether the rows are those of candidates, several of one impression; `columns` are theirs."""

    def columns_of(self, source: Source) -> set[str]:
        """The columns that are taken from one of the sources."""
        index = self.sources.index(source)
        return {names[index] for names in self.taken.values()}


def entries_of(config: ImportConfig) -> list[Entry]:
    """Parse `--map`; UserError where an entry is no mapping, its target is unknown, or a target is named twice."""
    entries: list[Entry] = []
    for words in (part for given in config.map for part in next(csv.reader([given], skipinitialspace=True), [])):
        if words.strip():
            entry = _entry(words.strip())
            twice = [other for other in entries if (other.table, other.target) == (entry.table, entry.target)]
            if twice:
                raise UserError(
                    f"map={entry.words}: {entry.target} is mapped twice, first by {twice[0].words}. Name one column, or each for "
                    "its table: plays.title_id=COLUMN."
                )
            entries.append(entry)
    return entries


def _entry(words: str) -> Entry:
    parsed = re.fullmatch(r"(?:(\w+)\.)?([^=:]+?)(?::(\w+))?\s*(:?=)\s*(.+)", words, re.S)
    if not parsed:
        raise UserError(f"map={printable(words)}: give TARGET=COLUMN, such as member_id=userId, or TARGET:=TEXT.")
    table, target, kind_name, equals, source = parsed.groups()
    table, target = table or "", target.strip()
    tables = [each for each in TABLES if each.name == table] if table else list(TABLES)
    if not tables:
        raise UserError(
            f"map={printable(words)}: {table} is no table. Tables: {', '.join(each.name for each in TABLES)}."
        )
    named = {column.name for each in tables for column in _targets(each.name)}
    kind: Kind | None = None
    if target not in named:
        if table in (IMPRESSIONS.name, MEMBERS.name) and re.fullmatch(r"[a-z][a-z0-9_]*", target):
            kind = EXTRA_KINDS.get(kind_name or "text")
            if kind is None:
                raise UserError(
                    f"map={printable(words)}: {kind_name} is no type. Give one of {', '.join(EXTRA_KINDS)}."
                )
        else:
            every = sorted({column.name for each in TABLES for column in each.columns})
            if source in every:
                raise UserError(
                    f"map={printable(words)}: {target} is no column of the contract. Turn it round: {source}={target}."
                )
            near = get_close_matches(target, sorted(named), 1)
            hint = f"Did you mean {near[0]}?" if near else f"Columns: {', '.join(sorted(named))}."
            raise UserError(f"map={printable(words)}: {target} is no column of the contract. {hint}")
    elif kind_name:
        raise UserError(f"map={printable(words)}: the type of {target} is the contract's. Leave :{kind_name} out.")
    return Entry(words=printable(words), table=table, target=target, source=source, constant=equals == ":=", kind=kind)


def plan_tables(sources: list[Source], config: ImportConfig) -> list[TablePlan]:
    """The tables that the files hold, in the contract's order; UserError where a name fits no column, or a table lacks one."""
    entries = entries_of(config)
    _require_known_sources(entries, sources)
    files_of: dict[str, list[tuple[Source, dict[str, str]]]] = {}
    for source in sources:
        tables = _tables_of(source, entries, config)
        if not tables:
            raise UserError(
                f"{source.path}: no column shows which table it is: plays have played_at, titles name or genres, artworks image or "
                f"embedding, impressions shown_at. Map one, such as --map played_at=COLUMN, or leave the file out. Columns: "
                f"{_listed(source.columns)}."
            )
        for name in tables:
            files_of.setdefault(name, []).append((source, _taken(source, name, entries)))
    plans = []
    for table in TABLES:
        if table.name in files_of:
            plans.append(_plan(table, files_of[table.name], files_of, entries))
    return plans


def _require_known_sources(entries: Iterable[Entry], sources: list[Source]) -> None:
    names = list(dict.fromkeys(name for source in sources for name in source.columns))
    near_names = [*names, *(name for source in sources for name in source.fields)]
    where = str(sources[0].path) if len(sources) == 1 else f"{sources[0].path} and {len(sources) - 1} more"
    for entry in entries:
        if entry.constant or entry.source in names:
            continue
        if entry.source == ROW_NUMBER:
            if entry.target != "impression_id":
                raise UserError(f"map={entry.words}: only impression_id can number the rows. Name a column.")
            continue
        near = next((name for name in near_names if folded_name(name) == folded_name(entry.source)), None)
        near = near or next(iter(get_close_matches(entry.source, near_names, 1)), None)
        hint = f"Did you mean {near}?" if near else f"Columns: {_listed(names)}."
        raise UserError(f"map={entry.words}: {where}: no column {printable(entry.source)}. {hint}")


def _listed(names: Iterable[str]) -> str:
    return printable(", ".join(names), 200)


def _targets(table: str) -> tuple[Column, ...]:
    """What a column of a file may become: the contract's columns, and those of a row of a candidate."""
    columns = next(each.columns for each in TABLES if each.name == table)
    return (*columns, *ROW_COLUMNS) if table == IMPRESSIONS.name else columns


def _applies(entry: Entry, table: str) -> bool:
    columns = {column.name for column in _targets(table)}
    return entry.table == table or (not entry.table and entry.target in columns)


def _taken(source: Source, table: str, entries: list[Entry]) -> dict[str, str]:
    """By column of a table: the file's column, by the user's words, then by name, then by name without case and marks."""
    taken: dict[str, str] = {}
    mapped = [entry for entry in entries if _applies(entry, table)]
    for entry in sorted(mapped, key=lambda entry: not entry.table):  # of one table before of all
        if (
            not entry.constant
            and entry.target not in taken
            and (entry.source in source.columns or entry.source == ROW_NUMBER)
        ):
            taken[entry.target] = entry.source
    targets = {entry.target for entry in mapped}
    for column in _targets(table):
        if column.name in taken or column.name in targets:
            continue
        like = [name for name in source.columns if folded_name(name) == folded_name(column.name)]
        if column.name in like or len(like) == 1:
            taken[column.name] = column.name if column.name in like else like[0]
    if table == IMPRESSIONS.name:
        _settle_candidate_rows(taken, mapped)
    return taken


def _settle_candidate_rows(taken: dict[str, str], mapped: list[Entry]) -> None:
    """Leave of the columns of a row of a candidate those that are needed; UserError where one is mapped beside lists."""
    if "candidates" in taken or any(entry.target == "candidates" for entry in mapped):
        for column in ROW_COLUMNS:
            taken.pop(column.name, None)  # by name alone, as a feature may be called
            if entry := next((entry for entry in mapped if entry.target == column.name), None):
                raise UserError(
                    f"map={entry.words}: {column.name} is of logs with one row per candidate, and here candidates are a list. "
                    "Leave one out."
                )
    elif {"candidate", "artwork_id"} <= taken.keys():
        taken.pop("shown", None)
    elif {"candidate", "shown"} <= taken.keys():
        taken["artwork_id"] = taken.pop("candidate")


def _tables_of(source: Source, entries: list[Entry], config: ImportConfig) -> list[str]:
    if config.tables:
        return list(config.tables)
    tables = []
    for table in TABLES:
        columns = _taken(source, table.name, entries).keys()
        constants = {entry.target for entry in entries if entry.constant and _applies(entry, table.name)}
        signs = SIGNS[table.name] | {entry.target for entry in entries if entry.table == table.name and entry.kind}
        shown = signs & columns and NEEDED.get(table.name, set()) <= columns
        if shown or (signs & constants and ENOUGH[table.name] <= columns | constants):
            tables.append(table.name)
    members = _taken(source, MEMBERS.name, entries)
    if not tables and members and not _taken(source, TITLES.name, entries).get("title_id"):
        tables.append(MEMBERS.name)
    return tables


def _plan(
    table: Table,
    files: list[tuple[Source, dict[str, str]]],
    files_of: dict[str, list[tuple[Source, dict[str, str]]]],
    entries: list[Entry],
) -> TablePlan:
    coarse = [_is_derived(table, source, files_of) for source, _ in files]
    if not all(coarse):  # a file of its own says more than rows of another table
        files = [file for file, derived in zip(files, coarse, strict=True) if not derived]
    first, first_taken = files[0]
    for source, _ in files[1:]:
        if source.kind != "json" and set(source.columns) != set(first.columns):
            more, lacking = set(source.columns) - set(first.columns), set(first.columns) - set(source.columns)
            differs = f"has {_listed(sorted(more))}" if more else f"lacks {_listed(sorted(lacking))}"
            raise UserError(
                f"{source.path}: {differs}, unlike {first.path}, and both hold {table.name}. Import files of one header in one "
                f"command, and leave the others out{JOIN_FIRST if table is IMPRESSIONS else ''}."
            )
    constants = {entry.target: entry.source for entry in entries if entry.constant and _applies(entry, table.name)}
    names = {name for _, taken in files for name in taken} | constants.keys()
    candidate_rows = table is IMPRESSIONS and has_candidate_rows(names)
    if candidate_rows:
        table = candidate_rows_table(names)
        if any(taken.get("impression_id") == ROW_NUMBER for _, taken in files):
            raise UserError(
                f"map=impression_id={ROW_NUMBER}: {first.path} has a row for each candidate, and the id says which belong "
                "together. Name a column."
            )
    for column in table.columns:
        if column.name not in names and not column.nullable:
            raise UserError(_missing(column, table, first, first_taken))
    if table.name == IMPRESSIONS.name and not names & {column.name for column in table.columns} & PROPENSITIES:
        raise UserError(
            f"{first.path}: impressions have neither propensities, of every candidate, nor propensity, of the shown artwork. Name "
            f"one: --map propensity=COLUMN. Columns: {_listed(first.columns)}."
        )
    extra = [
        Column(name=entry.target, kind=entry.kind, required=False, nullable=True)
        for entry in entries
        if entry.kind and entry.table == table.name
    ]
    if table is MEMBERS and not _is_derived(table, first, files_of):
        known = {*(column.name for column in extra), "member_id", *first_taken.values()}
        segments = [name for name in first.columns if name not in known and re.fullmatch(r"\w+", name)]
        extra += [Column(name=name, kind="string", required=False, nullable=True) for name in segments]
        files = [(source, {**{name: name for name in segments}, **taken}) for source, taken in files]
        names |= set(segments)
    columns = [column for column in table.columns if column.name in names or column.required]
    kept = {column.name for column in (*columns, *extra)}
    names &= kept
    return TablePlan(
        table=table,
        sources=tuple(source for source, _ in files),
        columns=(*columns, *extra),
        taken={name: tuple(taken.get(name, "") for _, taken in files) for name in names - constants.keys()},
        constants={name: text for name, text in constants.items() if name in kept},
        derived=_is_derived(table, first, files_of),
        candidate_rows=candidate_rows,
    )


def _is_derived(table: Table, source: Source, files_of: dict[str, list[tuple[Source, dict[str, str]]]]) -> bool:
    """Whether a file's rows are those of a finer table too."""
    finer = {
        TITLES.name: (ARTWORKS.name, PLAYS.name, IMPRESSIONS.name),
        ARTWORKS.name: (PLAYS.name, IMPRESSIONS.name),
        MEMBERS.name: (PLAYS.name, IMPRESSIONS.name),
    }.get(table.name, ())
    return any(source is other for name in finer for other, _ in files_of.get(name, []))


def _missing(column: Column, table: Table, source: Source, taken: dict[str, str]) -> str:
    free = [name for name in source.columns if name not in taken.values()]
    words = LIKELY.get(column.name, (column.name,))
    near = [name for name in free if any(word in folded_name(name) for word in words)]
    likely = shell_word(near[0]) if near else "COLUMN"
    if column.name == "candidates":
        remedy = (
            f"Name the column of their list: --map candidates={likely}; or, where every row is one "
            "candidate, the column that marks the shown one: --map shown=COLUMN"
        )
    elif column.name == "impression_id":
        remedy = f"Name it, or number the rows: --map impression_id={ROW_NUMBER}"
    else:
        remedy = f"Name it: --map {column.name}={likely}"
    return (
        f"{source.path}: {table.name} need {column.name}, and no column is called so. {remedy}. "
        f"Columns: {_listed(source.columns)}."
    )
