"""Files of any of three kinds as rows of text: CSV, JSON lines and Parquet, plain or gzipped.

In: paths and how their text is encoded. Out: `Source`: the names of the columns, and SQL of DuckDB that reads each cell as text, so
that ids keep their leading zeros. A text file is read to its end once beforehand: DuckDB names neither the byte nor the line that
is not in the stated encoding.
"""

import codecs
import csv
import glob
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import duckdb

from datamodules.contract.check_files import printable
from datamodules.contract.stored_types import folded_name, visible_files
from datamodules.importing.broken_lines import broken_json_line
from datamodules.importing.config import ImportConfig, split
from foundation.errors import UserError
from foundation.shell import shell_word

KINDS = {
    "csv": (".csv", ".tsv", ".txt", ".dat", ".tab"),
    "json": (".json", ".jsonl", ".ndjson"),
    "parquet": (".parquet", ".pq"),
}
EXPORT = "Export it as CSV, JSON lines or Parquet, and name that"
OTHER_KINDS = (
    (b"PK", "a zip archive or a spreadsheet", "Extract it, or save the sheet as CSV in UTF-8, and name that"),
    (b"\xd0\xcf\x11\xe0", "a spreadsheet", "Save the sheet as CSV in UTF-8, and name that"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "Decompress it first: zstd -d {path}"),
    (b"BZh", "compressed by bzip2", "Decompress it first: bunzip2 -k {path}"),
    (b"\xfd7zXZ", "compressed by xz", "Decompress it first: xz -dk {path}"),
    (b"\x04\x22\x4d\x18", "compressed by lz4", "Decompress it first: lz4 -d {path}"),
    (b"ORC", "an ORC file", EXPORT),
    (b"Obj\x01", "an Avro file", EXPORT),
    (b"ARROW1", "an Arrow file (Feather)", EXPORT),
    (b"SQLite format 3", "a SQLite database", EXPORT),
    (b"\x89HDF", "an HDF5 file", EXPORT),
)
"""Kinds of files that are not read, by how they begin, and the remedy."""
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
CHUNK = 1 << 24
MARKS = ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
NUMBER = r"\s*[-+]?[\d.,]+([eE][-+]?\d+)?\s*"


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file, ready to be read."""

    path: Path
    """As the user named it."""
    kind: str
    columns: dict[str, str]
    """Its columns and their types as they are read; text in a CSV file."""
    relation: str
    """SQL of its rows."""
    staged: Path
    """The file that DuckDB reads: the same, or its copy in UTF-8."""
    note: str = ""
    """How it is read, where that is not plain."""
    fields: tuple[str, ...] = ()
    """Paths of the fields beside one that the user named and that is not there."""

    def text(self, column: str) -> str:
        """SQL of a column's cells as text; lists as JSON."""
        name, type_ = quoted(column), self.columns[column]
        if type_ in ("FLOAT", "DOUBLE"):  # pandas makes floats of integers with nulls: 7.0 is the id 7
            whole = f"{name} = trunc({name}) AND abs({name}) < 9e15"
            return f"CASE WHEN {whole} THEN CAST(CAST({name} AS BIGINT) AS VARCHAR) ELSE CAST({name} AS VARCHAR) END"
        if type_.endswith("]") or type_.startswith(("STRUCT", "MAP")):
            return f"CAST(to_json({name}) AS VARCHAR)"
        return f"CAST({name} AS VARCHAR)"


def quoted(name: str) -> str:
    """A name as an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def _literal_path(path: Path) -> str:
    """A path as a literal, not as a pattern of paths."""
    return literal(glob.escape(str(path)))


def expand(paths: list[Path]) -> list[Path]:
    """Files, and the files of folders and their folders by name; UserError where there is none, or one is named twice."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            if (path / "_delta_log").is_dir() or any(path.glob("metadata/*.metadata.json")):
                raise UserError(
                    f"{path}: is a table of Delta or Iceberg, whose folder also holds rows that were replaced. Export the "
                    "table as Parquet, and name that."
                )
            inside = visible_files(path)
            if not inside:
                raise UserError(f"{path}: the folder holds no file. Name files.")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise UserError(f"{path}: does not exist. Name CSV, JSON lines or Parquet files.")
    for index, path in enumerate(files):
        if not path.exists():
            raise UserError(f"{path}: is a link that leads to no file. Remove it, or copy the file here.")
        if not path.is_file():  # a pipe can be read once, and files are read several times
            raise UserError(f"{path}: is a pipe or a device. Save what it gives as a file, and name that.")
        if any(path.samefile(other) for other in files[:index]):
            raise UserError(f"{path}: is named twice. Name each file once.")
    return files


def open_source(
    path: Path, config: ImportConfig, names: set[str], folder: Path, connection: duckdb.DuckDBPyConnection
) -> Source:
    """Find out how to read a file; what DuckDB cannot decode is written to `folder` in UTF-8. UserError where it cannot be read.

    `names`: folded names of columns that are looked for; a first line that has one of them is a header.
    """
    kind = _kind_of(path)
    if not path.stat().st_size:
        raise UserError(f"{path}: is empty. Export it again, or leave it out.")
    if kind == "parquet":
        relation = f"read_parquet({_literal_path(path)}, binary_as_string = true, hive_partitioning = false)"
        with reading((path, path)):
            described = connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
        return Source(
            path=path, kind=kind, columns={row[0]: row[1] for row in described}, relation=relation, staged=path
        )
    encoding = _encoding_of(path, config.encoding)
    mixed = _require_encoding(path, encoding, stated=bool(config.encoding)) and kind == "csv"
    staged, note = path, f"read as {encoding}" if encoding != "utf-8" else ""
    if encoding != "utf-8" or mixed:  # DuckDB reads one kind of line breaks; Excel writes another inside cells
        staged = folder / f"{len(list(folder.iterdir()))}-{path.name.removesuffix('.gz')}"
        with _opened(path) as file, staged.open("w", encoding="utf-8", newline="") as out:
            breaks = io.IncrementalNewlineDecoder(None, translate=True)
            for part in _decoded(file, encoding):
                out.write(breaks.decode(part))  # pyright: ignore[reportArgumentType]
            out.write(breaks.decode("", final=True))  # pyright: ignore[reportArgumentType]
    compression = "'gzip'" if staged == path and _gzipped(path) else "'uncompressed'"
    if kind == "json":
        return _json(path, staged, compression, connection, note)
    return _csv(path, staged, compression, encoding, config, names, note)


def _kind_of(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(b"PAR1"):
        return "parquet"
    for mark, what, remedy in OTHER_KINDS:
        if start.startswith(mark):
            raise UserError(f"{path}: is {what}. {remedy.format(path=shell_word(path))}.")
    name = path.name.lower().removesuffix(".gz")
    for kind, suffixes in KINDS.items():
        if name.endswith(suffixes):
            if kind == "parquet" and start:
                raise UserError(f"{path}: cannot be read as Parquet. Export or copy the file again.")
            return kind
    raise UserError(
        f"{path}: of no known kind. Export CSV, JSON lines or Parquet, and call it .csv, .tsv, .jsonl or .parquet, with .gz "
        "where it is gzipped."
    )


def _gzipped(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with gzip.open(path) if _gzipped(path) else path.open("rb") as file:
        try:
            yield file  # pyright: ignore[reportReturnType]
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: the gzip file is damaged ({error}). Copy it again.") from None


def _encoding_of(path: Path, stated: str) -> str:
    if stated:
        return codecs.lookup(stated).name
    with _opened(path) as file:
        start = file.read(2)
    return next((name for mark, name in MARKS if start == mark), "utf-8")


def _decoded(file: IO[bytes], encoding: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)()
    while chunk := file.read(CHUNK):
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


def _require_encoding(path: Path, encoding: str, *, stated: bool) -> bool:
    """Whether a file has several kinds of line breaks.

    UserError with line and bytes where the file is in another encoding, or holds nothing but white space.
    """
    lines, beyond_ascii, blank = 1, False, True
    breaks = io.IncrementalNewlineDecoder(None, translate=False)
    with _opened(path) as file:
        try:
            for part in _decoded(file, encoding):
                if "\0" in part:
                    line = lines + part[: part.index("\0")].count("\n")
                    raise UserError(
                        f"{path}: line {line} holds a zero byte, so it is no text in {encoding}. Give --encoding, such as "
                        "UTF-16, or export it again."
                    )
                lines += part.count("\n")
                breaks.decode(part)  # pyright: ignore[reportArgumentType]
                beyond_ascii = beyond_ascii or not part.isascii()
                blank = blank and not part.strip("\ufeff \t\r\n")
        except UnicodeDecodeError as error:
            line = lines + error.object[: error.start].count(b"\n")
            begin, end = error.object.rfind(b"\n", 0, error.start) + 1, error.object.find(b"\n", error.start)
            shown = error.object[max(begin, error.start - 20) : min(end if end >= 0 else error.end, error.start + 10)]
            western = shown.decode("cp1252", "backslashreplace").strip()
            if b"\0" in error.object[: error.start]:
                raise UserError(
                    f"{path}: line {line} holds zero bytes, so it is no text in {encoding}. Give --encoding, such as UTF-16-LE, "
                    "or export it again."
                ) from None
            likely = "windows-1252" if re.search(rb"[\x80-\x9f]", error.object[:CHUNK]) else "ISO-8859-1"
            remedy = (
                f"Give the file's encoding: with --encoding {likely} it reads {printable(western, 40)!r}"
                if encoding == "utf-8"
                else "Give the file's own --encoding"
            )
            raise UserError(
                f"{path}: line {line} is not in {encoding} (byte 0x{error.object[error.start]:02X}). {remedy}."
            ) from None
    if blank:
        raise UserError(f"{path}: is empty. Export it again, or leave it out.")
    if stated and beyond_ascii and encoding not in ("utf-8", "utf-8-sig"):
        with _opened(path) as file:
            try:
                for _ in _decoded(file, "utf-8"):
                    pass
            except UnicodeDecodeError:
                return isinstance(breaks.newlines, tuple)
        raise UserError(f"{path}: is UTF-8, and {encoding} would garble it. Leave --encoding out.")
    return isinstance(breaks.newlines, tuple)


def _json(path: Path, staged: Path, compression: str, connection: duckdb.DuckDBPyConnection, note: str) -> Source:
    options = f"format = 'auto', compression = {compression}, maximum_object_size = 268435456"
    objects = f"read_json_objects({_literal_path(staged)}, {options})"
    with reading((path, staged)):
        (other,) = connection.execute(
            f"SELECT count(*) FROM {objects} WHERE json_type(json) <> 'OBJECT'"
        ).fetchone() or (0,)
        if other:
            raise UserError(
                f"{path}: {other:,} {'line is' if other == 1 else 'lines are'} no JSON object. Write one object a line: "
                '{"member_id": "m7", ...}.'
            )
        rows = connection.execute(
            f"SELECT name, min(place) FROM (SELECT unnest(json_keys(json)) AS name, "
            f"generate_subscripts(json_keys(json), 1) AS place FROM {objects}) GROUP BY name ORDER BY 2, 1"
        ).fetchall()
    names = [row[0] for row in rows]
    if not names:
        raise UserError(f"{path}: holds no rows. Export it with its rows.")
    columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
    relation = f"read_json({_literal_path(staged)}, {options}, columns = {{{columns}}})"
    return Source(
        path=path, kind="json", columns=dict.fromkeys(names, "JSON"), relation=relation, staged=staged, note=note
    )


def _csv(
    path: Path, staged: Path, compression: str, encoding: str, config: ImportConfig, looked_for: set[str], note: str
) -> Source:
    with _opened(path) as file:
        text = codecs.getincrementaldecoder(encoding)().decode(file.read(1 << 20)).removeprefix("\ufeff")
    if text.lower().startswith("sep="):
        raise UserError(
            f"{path}: line 1 is {printable(text.splitlines()[0])!r}, which Excel reads and no table has. Remove the line."
        )
    blank_lines = text[: len(text) - len(text.lstrip("\r\n"))].replace("\r\n", "\n")
    given = split(config.header)
    delimiter = config.delimiter.replace("\\t", "\t") or _sniffed(text)
    first = _record(text, delimiter)
    names = given or [name.strip() for name in first]
    if given and len(given) != len(first):
        raise UserError(
            f"{path}: the first line has {len(first)} columns, and --header names {len(given)}. Name every column."
        )
    if not given and _like_data(names) and not looked_for & {folded_name(name) for name in names}:
        raise UserError(
            f"{path}: line 1 has no names of columns ({printable(', '.join(names))}). Add a header line, or name the "
            "columns: --header userId,movieId,rating."
        )
    unique: dict[str, None] = {}
    for index, name in enumerate(names):
        name = name or f"column{index}"
        if any(name.lower() == other.lower() for other in unique):
            raise UserError(
                f"{path}: two columns are called {printable(name)}. Rename one, or name all: --header A,B,C."
            )
        unique[name] = None
    if not given and len(text) < 1 << 20 and _only_header(text, delimiter):
        raise UserError(f"{path}: holds a header and no rows. Export it with its rows.")
    columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in unique)
    relation = (
        f"read_csv({_literal_path(staged)}, auto_detect = false, header = {str(not given).lower()}, skip = {len(blank_lines)}, "
        f"delim = {literal(delimiter)}, quote = '\"', escape = '\"', compression = {compression}, "
        f"max_line_size = 16777216, buffer_size = 33554432, columns = {{{columns}}})"
    )
    usual = "\t" if path.name.lower().removesuffix(".gz").endswith((".tsv", ".tab")) else ","
    separated = DELIMITERS.get(delimiter, delimiter)
    notes = [note] if note else []
    notes += [f"columns are separated by {separated}"] if delimiter != usual else []
    return Source(
        path=path,
        kind="csv",
        columns=dict.fromkeys(unique, "text"),
        relation=relation,
        staged=staged,
        note=", ".join(notes),
    )


def _sniffed(text: str) -> str:
    """The delimiter that makes most columns of the first line, the comma where several do."""
    return max(DELIMITERS, key=lambda delimiter: len(_record(text, delimiter)))


def _record(text: str, delimiter: str) -> list[str]:
    if len(delimiter) > 1:
        return text.splitlines()[0].split(delimiter)
    lines = io.StringIO(text.lstrip("\r\n"), newline="")
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 26))
    return next(csv.reader(lines, delimiter=delimiter), [])


def _only_header(text: str, delimiter: str) -> bool:
    if len(delimiter) > 1:
        return len(text.strip().splitlines()) < 2
    rows = csv.reader(io.StringIO(text.lstrip("\r\n"), newline=""), delimiter=delimiter)
    next(rows, None)
    return not any(any(cell.strip() for cell in row) for row in rows)


def _like_data(names: list[str]) -> bool:
    """Whether a first line is data: numbers, dates or truth values among its cells; the first may be an index without a name."""
    data = [re.fullmatch(rf"{NUMBER}|\d{{4}}-\d\d-\d\d.*|true|false|\[.*\]", name, re.I | re.S) for name in names]
    return any(data)


@contextmanager
def reading(*files: tuple[Path, Path]) -> Iterator[None]:
    """A failure of DuckDB to read some files, each with what it reads in its stead, as one line with the file and the line."""
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.InterruptException):
        raise
    except duckdb.Error as error:
        message = str(error)
        if "No space left" in message:
            raise
        file, read = next(((path, staged) for path, staged in files if str(staged) in message), files[0])
        line = re.search(r"CSV Error on Line: (\d+)", message)
        counts = re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", message)
        if line and counts:
            raise UserError(
                f"{file}: line {line[1]} has {counts[2]} columns, and the header has {counts[1]}. Put cells that hold the "
                "delimiter or a line break in quotes, or fix the line."
            ) from None
        if line:
            what = next((text for text in message.splitlines()[1:] if text and "Original Line" not in text), "")
            raise UserError(
                f"{file}: line {line[1]} cannot be read ({printable(what, 120)}). Fix the line, or export the file again."
            ) from None
        if "Malformed JSON" in message:
            with _opened(read) as opened:
                broken = broken_json_line(opened)
            if broken:
                what = f"line {broken[0]} is no JSON ({printable(broken[1], 60)}): {printable(broken[2], 60)}"
                raise UserError(f"{file}: {what}. Fix the line, or export the file again.") from None
        reason = " ".join(message.replace(str(file), file.name).split())
        raise UserError(f"{file}: cannot be read ({printable(reason, 160)}). Export or copy the file again.") from None
