"""Checks of a table's Parquet files by their footers.

In: a table of the contract and a dataset folder. Out: its files, their row counts and `Violation`s of schema, from the
footers only. Types are checked here, by pyarrow, before an engine reads a row, because engines cast silently.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.contract.column_types import ACCEPTED_TYPES, holds, item_type, type_name
from datamodules.contract.stored_types import (
    FILE,
    folded_name,
    holds_parquet,
    int96_columns,
    partition_columns,
    similar_columns,
    similar_names,
    unread_files,
)
from datamodules.contract.tables import ARTWORKS, IMPRESSIONS, Column, Table

Problem = tuple[str, str, str]
"""Rule, description and remedy of a violation, before the files that share it are counted."""

IMPORTED = (".csv", ".tsv", ".txt", ".dat", ".tab", ".json", ".jsonl", ".ndjson", ".gz")
"""Endings of files that `keyart import` reads."""
VERSIONED = {"_delta_log": "Delta Lake", ".hoodie": "Hudi", "metadata": "Iceberg"}
"""By the folder of its log: table formats whose folders hold files of former versions."""
ONE_OF = ({"propensities", "propensity"}, {"image", "embedding"})
"""Optional columns of which one is enough."""
ZONE_REMEDY = (
    "Write {0} in UTC and mark it so: timestamp[us, tz=UTC]; in pandas by .dt.tz_localize('UTC'), in SQL by "
    "AT TIME ZONE 'UTC', in Spark as TIMESTAMP (spark.sql.timestampType=TIMESTAMP_LTZ), not TIMESTAMP_NTZ"
)


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One rule of the contract, broken in one table."""

    where: str
    """A file or table, relative to the dataset; for several files the first, and the number of others."""
    rule: str
    """Short and stable name, for tests and scripts."""
    what: str
    """Completes the sentence "where: ..."; carries the count where rows or images are counted."""
    count: int
    """Rows, images or files that break the rule."""
    first: tuple[str, ...] = ()
    """The first offenders, at most three, each an id and the value at fault."""
    remedy: str
    """What to do about it, one sentence."""
    rows: bool = False
    """Whether single rows break the rule, which `keyart prepare --drop-invalid` can leave out."""

    def line(self) -> str:
        """The violation on one line."""
        first = f" (first: {'; '.join(self.first)})" if self.first else ""
        return f"{self.where}: {self.what}{first}. {self.remedy}."


@dataclass(frozen=True, kw_only=True)
class TableFiles:
    """A table's files and the contents of their footers."""

    table: Table
    """The table by the contract."""
    paths: list[Path]
    """Empty where the table is absent."""
    columns: tuple[str, ...]
    """Columns of the contract that the files have."""
    rows: int
    """Rows in the files whose footer can be read."""
    violations: list[Violation]
    """Violations of the schema; where there are any, the rows cannot be checked."""
    remarks: tuple[str, ...] = ()
    """Columns that are read in another type than they are stored in, a sentence each."""
    warnings: tuple[Violation, ...] = ()
    """Optional columns that may be there under another name, and files that no command reads."""
    misplaced: bool = False
    """Whether the table is absent, and its files are where another kind of table would have them."""

    @property
    def sound(self) -> bool:
        """Whether there are rows, and an engine can read them."""
        return bool(self.paths) and not self.violations

    @classmethod
    def read(cls, dataset: Path, table: Table) -> "TableFiles":
        """Read every footer and check the schemas."""
        paths, (unread, in_folder) = table.files(dataset), unread_files(table.source(dataset))
        location = f"{table.name}/" if table.folder else f"{table.name}.parquet"
        similar = similar_names(dataset, table.source(dataset).name)
        others = [path for path in similar if holds_parquet(path)]
        in_other_formats = [path for path in similar if path.suffix.lower() in IMPORTED]
        not_read = [_unread(dataset, unread, *UNREAD_PARQUET)] if unread else []
        not_read += [_unread(dataset, in_folder, *UNREAD_FORMAT)] if in_folder and paths else []
        if not paths:
            remedy = f"Export it as Parquet files in {location}" if table.folder else "Export it as this one file"
            if in_folder:
                in_other_formats = [*in_other_formats, *in_folder]
            if others or in_other_formats:
                remedy = _misplaced((others or in_other_formats)[0], table, location)
            missing = Violation(
                where=location, rule="missing-table", what="the table is missing", count=1, remedy=remedy
            )
            misplaced = bool(others or in_other_formats)
            broken = not_read or ([missing] if table.required or misplaced else [])
            return cls(table=table, paths=[], columns=(), rows=0, violations=broken, misplaced=misplaced)
        rows = 0
        problems: dict[Problem, list[Path]] = {}
        remarks: dict[str, None] = {}
        readable: list[tuple[Path, pa.Schema]] = []
        for path in paths:
            try:
                if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
                    raise OSError("is no regular file")
                with pq.ParquetFile(path) as file:
                    rows += file.metadata.num_rows
                    schema = file.schema_arrow
                    instants = int96_columns(file.metadata)
            except (pa.ArrowException, OSError, ValueError) as error:
                problems.setdefault(_unreadable(error), []).append(path)
                continue
            folders = partition_columns(table.source(dataset), path) if path != table.source(dataset) else {}
            file_problems = list(_schema_problems(table, schema, instants, folders))
            for column in table.columns:
                if remark := _conversion(column, schema, instants):
                    remarks.setdefault(f"{location}: {remark}")
            if not file_problems:
                readable.append((path, schema))
                file_problems = list(_disagreements(table, readable, schema))
            for problem in file_problems:
                problems.setdefault(problem, []).append(path)
        violations = not_read + [
            Violation(where=location_of(dataset, broken), rule=rule, what=what, count=len(broken), remedy=remedy)
            for (rule, what, remedy), broken in problems.items()
        ]
        if not rows and not violations:
            what, remedy = "the table is empty", "Export it with its rows"
            violations.append(Violation(where=location, rule="empty-table", what=what, count=1, remedy=remedy))
        names = {name for _, schema in readable for name in schema.names}
        if readable and not violations:
            violations += [
                Violation(
                    where=location,
                    rule="missing-column",
                    what=f"no file has the context feature's column {column.name}",
                    count=1,
                    remedy=_nearest_column(column.name, names),
                )
                for column in table.columns
                if column.in_some_files and column.name not in names
            ]
        columns = tuple(column.name for column in table.columns if column.name in names)
        warnings = [_beside(other, location) for other in others]
        warnings += _of_a_versioned_table(table.source(dataset), location)
        warnings += list(_similar_columns(table, location, names)) if not violations else []
        return cls(
            table=table,
            paths=paths,
            columns=columns,
            rows=rows,
            violations=violations,
            remarks=tuple(remarks),
            warnings=tuple(warnings),
        )

    def damage(self, dataset: Path) -> list[Violation]:
        """Files whose footer is fine and whose pages are not. Reads every page: only for when an engine has failed."""
        damaged = []
        for path in self.paths:
            try:
                with pq.ParquetFile(path) as file:
                    for batch in file.iter_batches(columns=list(self.columns)):
                        batch.validate(full=True)
            except (pa.ArrowException, OSError, ValueError) as error:
                rule, what, remedy = _unreadable(error)
                damaged.append(
                    Violation(where=location_of(dataset, [path]), rule=rule, what=what, count=1, remedy=remedy)
                )
        return damaged


def location_of(dataset: Path, paths: list[Path]) -> str:
    """The first of some files, relative to the dataset, and the number of others."""
    first = printable(paths[0].relative_to(dataset).as_posix())
    more = len(paths) - 1
    return f"{first} and {more:,} more {'file' if more == 1 else 'files'}" if more else first


def printable(value: object, width: int = 80) -> str:
    """A value on one line of a message: line breaks and control characters escaped, long values cut."""
    text = str(value)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _nearest_column(name: str, names: set[str]) -> str:
    close = get_close_matches(name, sorted(names), 1)
    hint = f"name {close[0]} if that is meant" if close else f"columns: {', '.join(sorted(names))}"
    return f"Write it, null where it is not known, or prepare and train without the feature; {hint}"


def _misplaced(other: Path, table: Table, location: str) -> str:
    name = printable(other.name)
    if not holds_parquet(other):
        return f"{name} is there, and is not Parquet: keyart import writes the table"
    if table.folder and other.is_file():
        return f"{name} is there: move it into {location}, with a name that ends in .parquet"
    return f"{name} is there: call it {location}"


UNREAD_PARQUET = (
    "holds Parquet, but is not read: its name does not end in .parquet",
    "Let its name end so, decompressed, or move it out of the dataset",
)
UNREAD_FORMAT = (
    "is not Parquet, and is not read, though it may hold rows of the table",
    "Import it by keyart import into another dataset, or move it out of this one",
)
"""What is wrong with files beside a table that are not read, and the remedy."""


def _unread(dataset: Path, paths: list[Path], what: str, remedy: str) -> Violation:
    location = location_of(dataset, paths)
    return Violation(where=location, rule="unread-file", what=what, count=len(paths), remedy=remedy)


def _of_a_versioned_table(source: Path, location: str) -> list[Violation]:
    return [
        Violation(
            where=location,
            rule="versioned-table",
            what=f"is a table of {name}, of which every Parquet file is read: rows that its log has deleted or replaced too",
            count=1,
            remedy=f"Export its current rows as plain Parquet, unless it was only ever appended to ({folder}/ is there)",
        )
        for folder, name in VERSIONED.items()
        if (source / folder).is_dir()
    ]


def _beside(other: Path, location: str) -> Violation:
    return Violation(
        where=printable(other.name),
        rule="unread-file",
        what=f"holds Parquet, but is not read: {location} is there too",
        count=1,
        remedy=f"Join it to {location} if its rows are not there, or move it out of the dataset",
    )


def _similar_columns(table: Table, location: str, names: set[str]) -> Iterator[Violation]:
    """Optional columns that no file has, and columns that are not read and may be them."""
    declared = {column.name for column in table.columns}
    for column in table.columns:
        one_of = next((pair for pair in ONE_OF if column.name in pair), {column.name})
        if column.required or column.in_some_files or one_of & names:
            continue
        if similar := similar_columns(column.name, sorted(names - declared)):
            yield Violation(
                where=location,
                rule="unread-column",
                what=f"has no column {column.name}; {printable(similar[0])} is there, which is not read",
                count=1,
                remedy=f"Rename it to {column.name} if that is meant",
            )


def _unreadable(error: Exception) -> Problem:
    if isinstance(error, UnicodeError):
        return "unreadable-file", "has a name that is not UTF-8", "Rename the file"
    lines = str(error).splitlines()
    reason = printable(lines[0].rstrip("."), 160) if lines else type(error).__name__
    return "unreadable-file", f"cannot be read as Parquet: {reason}", "Export or copy the file again"


def _conversion(column: Column, schema: pa.Schema, instants: set[str]) -> str:
    """A sentence about a column that is read in another type than it is stored in; empty for others."""
    if schema.names.count(column.name) != 1:
        return ""
    type_ = schema.field(column.name).type
    if column.of_ids and pa.types.is_integer(item_type(type_) or type_):
        return f"{column.name} holds whole numbers ({item_type(type_) or type_}); their digits are the ids"
    if column.name in instants and pa.types.is_timestamp(type_) and type_.tz is None:
        return f"{column.name} is stored as INT96, which has no zone; read as UTC, as Spark writes it"
    return ""


def _schema_problems(table: Table, schema: pa.Schema, instants: set[str], folders: dict[str, str]) -> Iterator[Problem]:
    """Columns that one file lacks, or has in a type that the contract does not allow; `folders`: Hive values by column."""
    # engines ignore case in column names: Row beside row would be read instead, or not at all
    folded = [name.lower() for name in schema.names]
    misspelled = set()
    reserved = [name for name in schema.names if name.lower() == FILE]
    if reserved:
        yield "reserved-column", f"has a column {reserved[0]}, a name that keyart uses itself", f"Rename {reserved[0]}"
    for column in table.columns:
        if column.name not in schema.names:
            like = [name for name in schema.names if folded_name(name) == folded_name(column.name)]
            partition = [folder for name, folder in folders.items() if folded_name(name) == folded_name(column.name)]
            if like:
                misspelled.add(column.name)
                what = f"column {column.name} is missing, and {printable(like[0])} is there"
                rule = "missing-column" if column.required else "misspelled-column"
                yield rule, what, f"Rename {printable(like[0])} to {column.name}"
            elif partition:
                misspelled.add(column.name)
                what = f"column {column.name} is missing: its values are in names of folders alone, as {printable(partition[0])}"
                yield "partition-column", what, f"Write {column.name} into the files too"
            elif column.required:
                yield "missing-column", f"column {column.name} is missing", f"Add it as {ACCEPTED_TYPES[column.kind]}"
            continue
        if folded.count(column.name.lower()) > 1:
            what = f"duplicate column {column.name}, ignoring case"
            yield "ambiguous-column", what, "Rename or drop the others"
            continue
        type_ = schema.field(column.name).type
        if holds(type_, column) or (column.in_some_files and pa.types.is_null(type_)):
            continue
        if column.kind == "timestamp" and pa.types.is_timestamp(type_):
            if column.name in instants:
                continue
            what = f"column {column.name} has type {type_}, a timestamp without a zone"
            yield "timestamp-without-zone", what, ZONE_REMEDY.format(column.name)
        else:
            yield "wrong-type", f"column {column.name} has type {type_name(type_)}", _retype(column)
    names = {*schema.names, *misspelled}
    if table.name == IMPRESSIONS.name and not {"propensities", "propensity"} & names:
        what = "has neither propensities nor propensity"
        yield "no-propensity-column", what, "Log the probabilities; without them no policy can be valued"
    if table is ARTWORKS and not {"image", "embedding"} & names:
        what = "has neither image nor embedding"
        yield "no-image-column", what, "Add image, the path of each artwork's file, or embedding, a vector of your own"


def _retype(column: Column) -> str:
    leave = "" if column.required else ", or leave the column out"
    return f"Write {column.name} as {ACCEPTED_TYPES[column.kind]}{leave}"


def _disagreements(table: Table, readable: list[tuple[Path, pa.Schema]], other: pa.Schema) -> Iterator[Problem]:
    """Differences of a file's schema from the first's, because an engine reads all files of a table with one schema.

    A column that some files may lack is compared with the first file that has it with values in it.
    """
    remedy = "Export all files of the table with one schema"
    for column in table.columns:
        name, rule = column.name, "schema-mismatch"
        first_path, first = readable[0]
        if column.in_some_files:
            with_values = [(path, schema) for path, schema in readable if _has_values(schema, name)]
            if not with_values or not _has_values(other, name):
                continue
            first_path, first = with_values[0]
        if (name in first.names) != (name in other.names):
            here, in_first = ("has no", "has it") if name in first.names else ("has a", "has none")
            yield rule, f"{here} column {name}, {printable(first_path.name)} {in_first}", remedy
        elif name in first.names:
            a, b = type_name(first.field(name).type), type_name(other.field(name).type)
            if a != b:
                yield rule, f"column {name} has type {b}, in {printable(first_path.name)} it has type {a}", remedy


def _has_values(schema: pa.Schema, name: str) -> bool:
    """Whether a file has the column in a type other than null."""
    return name in schema.names and not pa.types.is_null(schema.field(name).type)
