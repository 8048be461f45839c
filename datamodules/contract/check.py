"""`keyart check`: is this folder a dataset by the contract?

In: a dataset folder, which is only read. Out: `CheckReport`: every violation counted, with the first offending rows and the
remedy. Three passes, each over what passed the one before: the files' schemas (`check_files`), the rows (the rules
of `row_rules`, counted by the engine in one aggregation per table), the images (Pillow, decoded to the end).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import ibis
from ibis.expr.types import BooleanColumn, Value
from rich.console import Console
from rich.progress import Progress
from rich.table import Table as TextTable
from rich.text import Text

from datamodules.contract.candidate_images import count_candidates, image_coverage, image_findings
from datamodules.contract.check_files import TableFiles, Violation, location_of, printable
from datamodules.contract.coverage import Coverage, coverage_findings, measure_coverage
from datamodules.contract.engines import FILE, Engine, EngineConfig, open_engine, to_arrow
from datamodules.contract.id_forms import likely_ids
from datamodules.contract.image_files import OFFENDERS, check_images
from datamodules.contract.rating_rules import RATING, Ratings, measure_ratings, rating_findings
from datamodules.contract.row_rule import Relations, RowRule, id_value
from datamodules.contract.row_rules import row_rules, with_foreign_candidate
from datamodules.contract.tables import (
    ARTWORKS,
    CONTRACT_VERSION,
    ENGINE_TYPES,
    IMPRESSIONS,
    MEMBERS,
    PLAYS,
    TABLES,
    TITLES,
    Column,
    Table,
)
from foundation.errors import UserError
from foundation.progress import progress_bar
from foundation.shell import shell_word

MEMORY = "2GB"
"""Memory that a check on its own may use."""
PARTS = {
    frozenset({IMPRESSIONS.name}): "keyart value {dataset} SCORES OUT",
    frozenset({TITLES.name, PLAYS.name}): "keyart bench titles --log {dataset}",
}
"""Tables that make a dataset of their own, a part of the contract, and the command that they are enough for."""


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """The contents of a dataset and its violations of the contract."""

    dataset: Path
    """The folder that was read."""
    violations: tuple[Violation, ...]
    """Violations of the schema first, then of rows, then of images; within each in the contract's order."""
    rows: dict[str, int]
    """Rows of each existing table, in the files that can be read."""
    files: dict[str, int]
    """Files of each existing table."""
    images: int
    """Number of different images that artworks name; 0 where images were not checked."""
    warnings: tuple[Violation, ...] = ()
    """What breaks no rule and is likely a mistake of the export."""
    remarks: tuple[str, ...] = ()
    """Columns that are read in another type than they are stored in, and images that are read in part or without their profile."""
    absent: tuple[Violation, ...] = ()
    """The missing tables of a dataset that is one of `PARTS`: all but one command refuse it."""
    coverage: Coverage | None = None
    """How many ids of one table are known to the others; None where that could not be counted."""
    ratings: Ratings | None = None
    """The ratings of plays; None where there are none."""

    def notices(self) -> list[Text]:
        """Warnings and remarks, a line each."""
        return [Text.assemble(("warning ", "bold yellow"), warning.line()) for warning in self.warnings] + [
            Text(f"{remark}.") for remark in self.remarks
        ]

    @property
    def ok(self) -> bool:
        """Whether nothing that is there breaks the contract."""
        return not self.violations

    @property
    def command(self) -> str:
        """The command that comes next: the whole pipeline, or what a part of a dataset is enough for."""
        tables = frozenset(self.rows) - {MEMBERS.name}
        return (PARTS[tables] if self.absent else "keyart pipeline {dataset} OUT").format(
            dataset=shell_word(self.dataset)
        )


def check(
    dataset: Path,
    *,
    images: bool = True,
    console: Console | None = None,
    engine: Engine | None = None,
    tables: Sequence[Table] = TABLES,
) -> CheckReport:
    """Check a dataset against the contract; the dataset is never written to.

    Where a table's schema is broken, neither its rows nor its images are checked, nor references to it from other tables.
    With `images` false, no image is opened; only `tables` are read. Progress is drawn on `console`, standard error by default;
    `engine` counts, by default a DuckDB of this call, and rows that it does not read are not checked. Raises `UserError` where
    the engine fails for a reason outside of the dataset, such as a full disk.
    """
    if not dataset.is_dir():
        what = "is not a folder" if dataset.exists() else "does not exist"
        remedy = "Name the folder that holds titles.parquet and impressions/"
        broken = Violation(where=printable(dataset), rule="no-dataset", what=what, count=1, remedy=remedy)
        return CheckReport(dataset=dataset, violations=(broken,), rows={}, files={}, images=0)

    present = [TableFiles.read(dataset, table) for table in tables]
    absent = _absent(present)
    violations = [violation for files in present for violation in files.violations if violation not in absent]
    sound = [files for files in present if files.sound]
    failures: tuple[type[Exception], ...] = ()
    with progress_bar(console or Console(stderr=True)) as progress:
        while True:
            try:
                with nullcontext(engine) if engine else open_engine(EngineConfig(memory=MEMORY)) as working:
                    failures = working.errors
                    relations = _relations(working, sound)
                    row_violations = list(_row_violations(dataset, sound, relations, working, progress))
                    listed = _listed_images(relations) if images else []
                    coverage, counted = measure_coverage(relations), count_candidates(relations)
                    of_coverage, warnings = coverage_findings(coverage, relations) if coverage else ([], [])
                    has_ratings = any(RATING in files.columns for files in sound if files.table.name == PLAYS.name)
                    ratings = measure_ratings(relations) if has_ratings else None
                break
            except failures as error:
                # the footers were fine, so damage is in the pages: name those files, then check the others
                damage = [files.damage(dataset) for files in sound]
                if not any(damage):
                    reason = printable(str(error).splitlines()[0], 200)
                    raise UserError(
                        f"{dataset}: cannot be checked: {reason}. Free memory or disk, then retry."
                    ) from error
                violations += [violation for file_violations in damage for violation in file_violations]
                sound = [files for files, file_violations in zip(sound, damage, strict=True) if not file_violations]
        violations += row_violations
        if ratings:
            broken, doubtful = rating_findings(ratings)
            violations += broken
            warnings += doubtful
        of_images, image_remarks, unreadable = check_images(dataset, listed, progress)
        violations += [*of_coverage, *of_images]
        if counted:
            of_candidates = image_coverage(*counted, unreadable if images else None)
            coverage = coverage and replace(coverage, images=of_candidates)
            broken, doubtful = image_findings(of_candidates)
            violations += broken
            warnings += doubtful
    warnings += [warning for files in present for warning in files.warnings]
    present = [files for files in present if files.paths]
    return CheckReport(
        dataset=dataset,
        violations=tuple(violations),
        rows={files.table.name: files.rows for files in present},
        files={files.table.name: len(files.paths) for files in present},
        images=len({image for _, image in listed}),
        warnings=tuple(warnings),
        remarks=(*(remark for files in present for remark in files.remarks), *image_remarks),
        absent=absent,
        coverage=coverage,
        ratings=ratings,
    )


def require_valid(
    dataset: Path,
    *,
    images: bool = True,
    drop_invalid: bool = False,
    console: Console | None = None,
    engine: Engine | None = None,
    tables: Sequence[Table] = TABLES,
) -> CheckReport:
    """Check a dataset and return the report of one that keeps the contract, with `drop_invalid` except for droppable rows.

    Warnings, remarks and, where there are more than one, violations are printed on `console`, standard error by default. Raises
    `UserError` with the first violation of a dataset that does not.
    """
    console = console or Console(stderr=True, soft_wrap=True, highlight=False)
    check_report = check(dataset, images=images, console=console, engine=engine, tables=tables)
    findings = (*check_report.absent, *check_report.violations)
    blocking = [violation for violation in findings if not (drop_invalid and violation.rows)]
    if not blocking:
        for line in check_report.notices():
            console.print(line, soft_wrap=True)
        return check_report
    more = len(blocking) - 1
    if more:
        _print_violations(blocking, console, soft_wrap=True)
    rest = f" And {more} more, printed above." if more else ""
    raise UserError(f"{blocking[0].line()}{rest}")


def print_check_report(check_report: CheckReport, console: Console) -> None:
    """Print the contents as a table; then one line that all is well, or one line per violation."""
    if check_report.rows:
        table = TextTable(title=Text(printable(check_report.dataset)), title_justify="left")
        table.add_column("table")
        table.add_column("files", justify="right")
        table.add_column("rows", justify="right")
        for name, rows in check_report.rows.items():
            table.add_row(name, f"{check_report.files[name]:,}", f"{rows:,}")
        if check_report.images:
            table.add_row("images", f"{check_report.images:,}", "")
        console.print(table)
    if check_report.coverage:
        console.print(Text(f"{check_report.coverage.line()}."))
    if check_report.ratings:
        console.print(Text(f"{check_report.ratings.line()}."))
    for line in check_report.notices():
        console.print(line)
    if check_report.ok:
        tables = [name for name in ("impressions", "plays", "titles", "artworks") if name in check_report.rows]
        counts = ", ".join(f"{check_report.rows[name]:,} {name}" for name in tables)
        if check_report.absent:
            missing = ", ".join(violation.where for violation in check_report.absent)
            enough = f"enough for {check_report.command}; every other command also needs {missing}"
            console.print(Text(f"dataset holds a part of contract {CONTRACT_VERSION}: {counts}; {enough}"))
        else:
            console.print(Text(f"dataset holds contract {CONTRACT_VERSION}: {counts}"))
        return
    _print_violations(check_report.violations, console)
    count = len(check_report.violations)
    console.print(Text(f"{count} {'violation' if count == 1 else 'violations'} of contract {CONTRACT_VERSION}"))


def _absent(present: list[TableFiles]) -> tuple[Violation, ...]:
    """The findings of missing tables, where those that are there are one of `PARTS` and no file of the others is misplaced."""
    present_names = frozenset(files.table.name for files in present if files.paths) - {MEMBERS.name}
    missing = [files for files in present if files.table.required and not files.paths]
    if present_names not in PARTS or any(files.misplaced for files in missing):
        return ()
    return tuple(violation for files in missing for violation in files.violations)


def _print_violations(violations: Iterable[Violation], console: Console, *, soft_wrap: bool = False) -> None:
    for violation in violations:
        console.print(Text.assemble(("violation ", "bold red"), violation.line()), soft_wrap=soft_wrap)


def _relations(engine: Engine, sound: list[TableFiles]) -> Relations:
    """The sound tables with every column of the contract, in the types the files have; absent columns are null."""
    tables = {}
    # impressions before plays: an engine narrowed to some impressions reads only their members' plays
    for files in sorted(sound, key=lambda files: files.table.name != IMPRESSIONS.name):
        raw = engine.read(files.paths, files.table.name, merged=files.table.merged)
        columns = {
            column.name: _judged(raw[column.name], column)
            if column.name in files.columns
            else ibis.null(ENGINE_TYPES[column.kind])
            for column in files.table.columns
        }
        # as keyword arguments, a column called `self` could not be
        tables[files.table.name] = raw.select(raw[FILE], *(value.name(name) for name, value in columns.items()))
    if IMPRESSIONS.name in tables and ARTWORKS.name in tables:
        tables[IMPRESSIONS.name] = with_foreign_candidate(tables[IMPRESSIONS.name], tables[ARTWORKS.name])
    return tables


def _judged(value: Any, column: Column) -> Value:
    """A column as its rules are asked of it: in the type of the file, but for ids and for times without a zone."""
    if column.of_ids:
        return value.cast(ENGINE_TYPES[column.kind]) if column.kind == "strings" else id_value(value)
    stored = value.type()
    if column.kind == "timestamp" and stored.is_timestamp() and stored.timezone is None:
        return value.cast(ENGINE_TYPES["timestamp"])
    return value


def _row_violations(
    dataset: Path, sound: list[TableFiles], tables: Relations, engine: Engine, progress: Progress
) -> Iterator[Violation]:
    """Count every rule in one pass per table; files and first offending rows are queried only for broken rules."""
    task = progress.add_task("rows", total=len(sound))
    for files in sound:
        table, rows = files.table, tables[files.table.name]
        progress.update(task, description=f"rows of {table.name}")
        rules = [rule for rule in row_rules(table) if all(other.name in tables for other in rule.depends_on)]
        rules = [rule for rule in rules if set(rule.needs) <= set(files.columns)]
        rules = [rule for rule in rules if rule.suspects is None or len(to_arrow(rule.suspects(rows).limit(1)))]
        flags = rows.select(rows[FILE], *(rule.flags(rows, tables).name(rule.name) for rule in rules))
        sums = {rule.name: flags.count(where=cast(BooleanColumn, flags[rule.name])).name(rule.name) for rule in rules}
        (counts,) = to_arrow(flags.aggregate(list(sums.values()))).to_pylist()
        broken = [rule for rule in rules if counts[rule.name]]
        per_file = flags.group_by(FILE).agg(**{rule.name: sums[rule.name] for rule in broken}).order_by(FILE)
        in_files = to_arrow(per_file).to_pylist() if broken else []
        for rule in broken:
            count = counts[rule.name]
            first, remedy = _offenders(rule, tables)
            yield Violation(
                where=location_of(dataset, [engine.file_of(file[FILE]) for file in in_files if file[rule.name]]),
                rule=rule.name,
                what=f"{count:,} {'row' if count == 1 else 'rows'} {rule.what}",
                count=count,
                first=first,
                remedy=remedy,
                rows=True,
            )
        progress.advance(task)
    progress.remove_task(task)


def _offenders(rule: RowRule, tables: Relations) -> tuple[tuple[str, ...], str]:
    """The first rows that break a rule, and the remedy: another where an id is listed in another form."""
    rows = tables[rule.table.name]
    key = rule.table.columns[0].name
    offenders = rows.filter(rule.flags(rows, tables)).order_by([FILE, key]).limit(OFFENDERS)
    shown = rule.offending_value(offenders).cast("string") if rule.offending_value else ibis.null("string")
    if rule.reference is None:
        referred, likely, remedy = ibis.null("string"), {}, rule.remedy
    else:
        other, column, id_of = rule.reference
        listed = tables[other.name].select(id=tables[other.name][column])
        referred = id_of(offenders)
        likely = likely_ids(offenders.select(id=referred), listed.filter(listed["id"].notnull()))
        remedy = f"Write {column} in one form in every table" if likely else rule.remedy
    pairs = to_arrow(offenders.select(key=offenders[key], shown=shown, referred=referred)).to_pylist()
    hints = {id_: f" ({printable(meant)} is listed)" for id_, meant in likely.items()}
    first = tuple(
        f"{printable(pair['key'])}, {printable(pair['shown'])}{hints.get(pair['referred'], '')}"
        if pair["shown"] is not None
        else printable("null" if pair["key"] is None else pair["key"])
        for pair in pairs
    )
    return first, remedy


def _listed_images(tables: Relations) -> list[tuple[str, str]]:
    """(artwork, image) of every artwork that names one, sorted by artwork."""
    if ARTWORKS.name not in tables:
        return []
    artworks = tables[ARTWORKS.name]
    listed = artworks.filter(artworks["image"].notnull()).select("artwork_id", "image").order_by("artwork_id")
    return [(str(row["artwork_id"]), row["image"]) for row in to_arrow(listed).to_pylist() if row["image"].strip()]
