"""`keyart import`: CSV, JSON lines and Parquet files of any columns -> tables by the contract.

In: files, and which of their columns is which. Out: the tables that they hold, as Parquet in a dataset's folder. DuckDB reads every
cell as text, so that ids keep their zeros; in SQL, not by Ibis, which lacks functions that this needs (times by a format that may
not fit) and whose second engine is not needed. Every table is complete before the first is put into the folder, and a table that is
there is never replaced.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table as TextTable
from rich.text import Text

from datamodules.contract.check_files import printable
from datamodules.contract.stored_types import folded_name
from datamodules.contract.tables import ARTWORKS, IMPRESSIONS, PLAYS, TABLES, Table
from datamodules.importing.candidate_rows import becomes_of
from datamodules.importing.cells import SHOWN
from datamodules.importing.config import ImportConfig
from datamodules.importing.mapping import ROW_NUMBER, TablePlan, entries_of, plan_tables
from datamodules.importing.nested import with_fields
from datamodules.importing.sources import Source, expand, literal, open_source, reading
from datamodules.importing.table_sql import TableSql, candidates_sql, plays_sql, table_sql
from foundation.atomic import claimed_folder
from foundation.errors import UserError
from foundation.progress import progress_bar

MEMORY = "2GB"


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was read and written."""

    sources: tuple[Source, ...]
    tables: tuple[TableSql, ...]
    rows: dict[str, int]
    """Rows of each table that was written."""
    notes: tuple[str, ...]


def import_files(files: list[Path], dataset: Path, config: ImportConfig, console: Console) -> Imported:
    """Write the tables that files hold into a dataset's folder. UserError, and nothing written, where a file cannot be read."""
    if dataset.exists() and not dataset.is_dir():
        raise UserError(f"{dataset}: is a file. The last word is the folder of the dataset, after the files.")
    paths = expand(files)
    if config.images and not config.images.is_dir():
        raise UserError(f"images={config.images}: is no folder. Name the folder of the image files.")
    for table in TABLES:
        if table.name in config.tables:
            _require_absent(table, dataset)
    partial = dataset / ".import.partial"
    with claimed_folder(dataset):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            (partial / "work").mkdir()
            (partial / "staged").mkdir()
            imported = _import(paths, dataset, partial, config, console)
            _put(partial, dataset)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return imported


def _require_absent(table: Table, dataset: Path) -> None:
    target = table.source(dataset)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(
            f"{target}: is there already, and is never overwritten. Remove it first, or name another folder."
        )


def _import(paths: list[Path], dataset: Path, partial: Path, config: ImportConfig, console: Console) -> Imported:
    with (
        duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": str(partial / "work")}) as connection,
        progress_bar(console) as progress,
    ):
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET enable_progress_bar = false")
        task = progress.add_task("import: reading", total=len(paths) + len(TABLES))
        names = {folded_name(column.name) for table in TABLES for column in table.columns}
        named = [entry.source for entry in entries_of(config) if not entry.constant]
        names |= {folded_name(name) for name in named}
        sources = []
        for path in paths:
            source = open_source(path, config, names, partial / "staged", connection)
            sources.append(with_fields(source, named, connection))
            progress.advance(task)
        plans = {plan.table.name: plan for plan in plan_tables(sources, config)}
        for plan in plans.values():
            _require_absent(plan.table, dataset)
        if config.plays_from:
            if IMPRESSIONS.name not in plans or PLAYS.name in plans:
                why = "no file holds impressions" if IMPRESSIONS.name not in plans else "the files hold plays"
                raise UserError(f"plays_from={config.plays_from}: {why}. Leave it out.")
            _require_absent(PLAYS, dataset)
        made: dict[str, TableSql] = {}
        rows: dict[str, int] = {}
        for name in sorted(plans, key=lambda name: name != IMPRESSIONS.name):  # artworks need the candidates
            progress.update(task, description=f"import: {name}")
            of_log = name == ARTWORKS.name and plans[name].derived and IMPRESSIONS.name in made
            candidates = candidates_sql(made[IMPRESSIONS.name]) if of_log else ""
            made[name] = table_sql(plans[name], config, connection, partial / "staged", candidates)
            with reading(*made[name].files):
                rows[name] = _write(plans[name].table, made[name].values, partial, connection)
            progress.advance(task)
        notes = [f"{source.path}: {source.note}" for source in sources if source.note]
        if config.plays_from:
            with reading(*made[IMPRESSIONS.name].files):
                sql = plays_sql(made[IMPRESSIONS.name], config.plays_from)
                rows[PLAYS.name] = _write(PLAYS, sql, partial, connection)
            if not rows[PLAYS.name]:
                raise UserError(f"plays_from={config.plays_from}: no impression is {config.plays_from}. Leave it out.")
            notes.append(
                f"plays/: {rows[PLAYS.name]:,} impressions that were {config.plays_from}, as plays at shown_at"
            )
        if config.images:
            notes.append(_copy_images(config.images, partial, dataset))
    tables = tuple(made[table.name] for table in TABLES if table.name in made)
    ordered = {table.name: rows[table.name] for table in TABLES if table.name in rows}
    notes += [note for table in tables for note in table.notes]
    if IMPRESSIONS.name in rows and ARTWORKS.name in rows and PLAYS.name not in rows and not PLAYS.files(dataset):
        notes.append("plays/: not there yet. Import them too, or write them from the impressions: --plays-from clicked")
    return Imported(sources=tuple(sources), tables=tables, rows=ordered, notes=tuple(notes))


def _write(table: Table, sql: str, partial: Path, connection: duckdb.DuckDBPyConnection) -> int:
    """Write a table in the partial folder; returns the number of its rows."""
    target = table.source(partial)
    if table.folder:
        target.mkdir()
        target /= "part-0.parquet"
    connection.execute(f"COPY ({sql}) TO {literal(str(target))} (FORMAT parquet, COMPRESSION zstd)")
    return pq.read_metadata(target).num_rows


def _copy_images(folder: Path, partial: Path, dataset: Path) -> str:
    """Copy the files that artworks name; returns how many, and the first that is missing."""
    artworks = ARTWORKS.source(partial)
    names = set()
    if artworks.exists() and "image" in pq.read_schema(artworks).names:
        names = {name for name in pq.read_table(artworks, columns=["image"])["image"].to_pylist() if name}
    if not names:
        raise UserError(f"images={folder}: no artwork names an image. Map artworks.image, or leave --images out.")
    copied, missing = 0, []
    for name in sorted(names):
        source, target = folder / name, partial / name
        inside = target.resolve().is_relative_to(partial.resolve()) and not Path(name).is_absolute()
        if inside and source.is_file():
            if not (dataset / name).exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
            copied += 1
        else:
            missing.append(name)
    rest = f"; {len(missing):,} are not there (first: {printable(missing[0])})" if missing else ""
    return f"{folder}: {copied:,} of {len(names):,} images copied{rest}"


def _put(partial: Path, dataset: Path) -> None:
    """Move what is complete into the dataset, images before the tables that name them."""
    for name in ("work", "staged"):
        shutil.rmtree(partial / name)
    tables = {table.source(partial) for table in TABLES}
    for path in sorted(partial.rglob("*")):
        if path.is_file() and not tables & {path, *path.parents}:
            target = dataset / path.relative_to(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    for table in TABLES:
        source, target = table.source(partial), table.source(dataset)
        if source.exists():
            if target.is_dir():
                target.rmdir()  # empty, as was required
            os.rename(source, target)


def print_imported(imported: Imported, console: Console) -> None:
    """Print what became of every column, what was left out, and what was noticed."""
    for made in imported.tables:
        console.print(_mapping_table(made, imported.rows[made.plan.table.name]))
    for source in imported.sources:
        plans = [made.plan for made in imported.tables if source in made.plan.sources]
        taken = {column for plan in plans for column in plan.columns_of(source)}
        taken |= {name.partition(".")[0] for name in taken}  # a column of which a field is taken
        left = [name for name in source.columns if name not in taken]
        if left:
            console.print(Text(f"{source.path}: left out: {printable(', '.join(left), 200)}"), soft_wrap=True)
    for note in imported.notes:
        console.print(Text(note), soft_wrap=True)


def _mapping_table(made: TableSql, rows: int) -> TextTable:
    plan = made.plan
    first, *others = plan.sources
    title = f"{plan.table.name}: {rows:,} rows from {printable(first.path.name)}"
    title += f" and {len(others):,} more" if others else ""
    title += ", one by id" if plan.derived else ""
    title += f", whose {made.rows:,} rows are candidates" if plan.candidate_rows else ""
    table = TextTable(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("column", overflow="fold")
    table.add_column("becomes", no_wrap=True)
    table.add_column("read as", overflow="fold")
    table.add_column("written as", overflow="fold")
    table.add_column("null", justify="right")
    for column in plan.columns:
        name, nulls = column.name, made.nulls[column.name]
        spelled = f" ({', '.join(made.spelled[name])})" if made.spelled.get(name) else ""
        read_as = ", ".join(part for part in (_type_of(plan, name), made.cells[name].read_as) if part)
        becomes, written_as = name, SHOWN[column.kind]
        if plan.candidate_rows:
            becomes = becomes_of(name, {other.name for other in plan.columns})
            written_as = {"candidates": SHOWN["strings"], "propensities": SHOWN["floats"]}.get(
                becomes, SHOWN[column.kind]
            )
        cells = (_shown_source(plan, name), f"{plan.table.name}.{becomes}", read_as, written_as)
        table.add_row(*(Text(text) for text in (*cells, f"{nulls:,}{printable(spelled)}" if nulls else "")))
    return table


def _shown_source(plan: TablePlan, name: str) -> str:
    if name in plan.constants:
        return f":={printable(plan.constants[name])}"
    return printable(", ".join(dict.fromkeys(taken for taken in plan.taken.get(name, ()) if taken))) or "none"


def _type_of(plan: TablePlan, name: str) -> str:
    if name in plan.constants or name not in plan.taken:
        return ""
    types = {
        "the row's number" if taken == ROW_NUMBER else source.columns[taken]
        for source, taken in zip(plan.sources, plan.taken[name], strict=True)
        if taken
    }
    return ", ".join(sorted(types))
