"""The engine that does the relational work: DuckDB inside the process, or PySpark where the logs outgrow one machine.

In: Parquet files and Ibis expressions. Out: relations to write expressions on, and their rows as Arrow batches. Nothing
but this module knows which engine it is.
"""

import glob
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import unquote, urlparse

import duckdb
import ibis
import pyarrow as pa
import pyarrow.parquet as pq
from ibis.expr.types import Table as Relation

from datamodules.contract.row_rule import id_value
from datamodules.contract.stored_types import FILE, int96_columns
from datamodules.contract.tables import ENGINE_TYPES, IMPRESSIONS, PLAYS, TABLES, Table
from foundation.atomic import exclusive_lock
from foundation.errors import UserError
from foundation.machine import machine_memory
from foundation.output_path import real_path

EngineName = Literal["duckdb", "pyspark"]
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
LEAST_MEMORY = 500_000_000
ERRORS_ALONE = """\
rootLogger.level = error
rootLogger.appenderRef.stderr.ref = stderr
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = spark: %m%ex{none}%n
"""
"""Log settings of Spark: errors only, without the session's start and Java stack traces."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Which engine, and what it may use. None of it changes a result."""

    engine: EngineName = "duckdb"
    """duckdb, in this process; or pyspark, a session started here (extra `spark`, Java 17). Its executors must see every
    folder by the same path and, to score, have keyart: no extra, no torch."""
    memory: str = ""
    """Memory of the whole command, such as 2GB; data that does not fit is spilled beside the output. Default: half of the
    machine's memory."""
    spark: list[str] = field(default_factory=list)
    """Settings of the Spark session as KEY=VALUE, such as spark.master=spark://host:7077; may be given again."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.bytes < LEAST_MEMORY:
            raise UserError(f"memory={self.memory}: too little to work in. Give at least 500MB.")
        for setting in self.spark:
            if not re.fullmatch(r"[^=\s]+=.*", setting):
                raise UserError(f"spark={setting}: give KEY=VALUE, such as spark.executor.memory=8g.")
        if self.spark and self.engine != "pyspark":
            raise UserError(f"spark={self.spark[0]}: is a setting of Spark. Add --engine pyspark.")

    @property
    def bytes(self) -> int:
        """Memory of the whole command, in bytes."""
        if not self.memory:
            machine = machine_memory()
            if machine is None:
                raise UserError(
                    "memory: this system does not say how much the machine has. Give it, such as --memory 2GB."
                )
            return max(LEAST_MEMORY, machine // 2)
        parsed = re.fullmatch(r"\s*([\d.]+)\s*([A-Za-z]*)\s*", self.memory)
        try:
            number, unit = (float(parsed[1]), UNITS[parsed[2].upper()]) if parsed else (0.0, 1)
        except (ValueError, KeyError):
            number = 0.0
            unit = 1
        if not number > 0:
            raise UserError(f"memory={self.memory}: invalid size. Give one like 2GB or 500MB.")
        return int(number * unit)


class Engine(Protocol):
    """The interface of an engine for `keyart check` and `keyart prepare`."""

    memory: int
    """Memory of the whole command, in bytes."""
    errors: tuple[type[Exception], ...]
    """Exception classes that the engine raises."""
    folder: Path
    """Folder it spills to; every machine that works for it must see the folder."""
    session: Any
    """Spark's session, for work other than relations; None for other engines."""

    def read(self, files: list[Path], name: str, *, merged: bool = False) -> Relation:
        """Parquet files as one relation, with the column `FILE`; they share a schema, or have it in parts where `merged`."""
        ...

    def file_of(self, value: str) -> Path:
        """The file that a value of the column `FILE` names."""
        ...

    def materialise(self, relation: Relation, name: str) -> Relation:
        """The same rows, worked out once and kept aside (in memory, else spilled) until the engine is closed."""
        ...

    def batches(self, relation: Relation, rows: int) -> Iterator[pa.RecordBatch]:
        """The rows of a relation, in no order, at most so many at a time."""
        ...


@contextmanager
def open_engine(config: EngineConfig | None = None, spill: Path | None = None) -> Iterator[Engine]:
    """An engine that spills into the folder `spill`, by default one of the system's temporary folders.

    The folder is emptied before, so that what a killed call left there goes, and removed after. Raises UserError where
    the engine is not installed or does not start.
    """
    config = config or EngineConfig()
    with ExitStack() as stack:
        folder = spill or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="keyart-"))) / "spill"
        stack.enter_context(exclusive_lock(folder.with_name(f"{folder.name}.lock"), folder))
        yield from _opened(config, folder)


def _opened(config: EngineConfig, folder: Path) -> Iterator[Engine]:
    try:  # from before the folder is made: a signal may come at any moment
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        engine = _DuckDB(config, folder) if config.engine == "duckdb" else _Spark(config, folder)
        try:
            yield engine
        finally:
            engine.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class RecentEngine:
    """An engine that reads only impressions shown at or after a moment, and only their members' plays.

    Impressions without `shown_at` are read too, so that `keyart check` reports them. Both are computed once.
    """

    def __init__(self, engine: Engine, moment: datetime, tables: Sequence[Table] = TABLES) -> None:
        """Narrow the rows that `engine` reads, and the columns to those of `tables`."""
        self.engine, self.moment = engine, moment
        self._columns = {FILE, *(column.name for table in tables for column in table.columns)}
        self.memory, self.errors = engine.memory, engine.errors
        self.folder, self.session = engine.folder, engine.session
        self.file_of, self.materialise, self.batches = engine.file_of, engine.materialise, engine.batches
        self._cached: dict[str, Relation] = {}

    @classmethod
    def of(cls, engine: Engine, moment: datetime | None, tables: Sequence[Table] = TABLES) -> Engine:
        """The engine, narrowed if a moment is given and it is not narrowed to that moment already."""
        same = isinstance(engine, RecentEngine) and engine.moment == moment
        return engine if moment is None or same else cls(engine, moment, tables)

    def read(self, files: list[Path], name: str, *, merged: bool = False) -> Relation:
        """As `Engine.read`, with fewer rows."""
        if name not in self._cached:
            rows: Any = self.engine.read(files, name, merged=merged)
            if name == IMPRESSIONS.name and "shown_at" in rows.columns:
                shown_at = rows.shown_at.cast(ENGINE_TYPES["timestamp"])
                rows = self._materialise(
                    rows.filter((shown_at >= ibis.timestamp(self.moment)) | shown_at.isnull()), name
                )
            elif name == PLAYS.name and IMPRESSIONS.name in self._cached:
                shown = self._cached[IMPRESSIONS.name]
                members = shown.select(keyart_member=id_value(shown.member_id)).distinct()
                same = id_value(rows.member_id) == members.keyart_member
                rows = self._materialise(rows.semi_join(members, same), name)
            self._cached[name] = rows
        return self._cached[name]

    def _materialise(self, rows: Any, name: str) -> Relation:
        return self.engine.materialise(
            rows.select(*(column for column in rows.columns if column in self._columns)), f"{name}_since"
        )


def to_arrow(relation: Relation) -> pa.Table:
    """All rows of a small relation, without Ibis' `to_pyarrow`, which loads pandas; a sum of integers, which DuckDB widens to
    128 bits, must be a count or a sum of floats here."""
    return relation.to_pyarrow_batches().read_all()


def spill_folder(out: Path) -> Path:
    """The folder an engine spills to while `out` is made: beside it, on the same disk."""
    real = real_path(out)
    return real.with_name(f".{real.name}.spill")


class _DuckDB:
    errors: tuple[type[Exception], ...] = (duckdb.Error,)
    session: Any = None

    def __init__(self, config: EngineConfig, folder: Path) -> None:
        self.memory, self.folder = config.bytes, folder
        self._paths: dict[Path, Path] = {}
        # half: the rest is for Arrow batches, the arrays of a shard, and what DuckDB holds outside of its own count
        limit = f"{self.memory // 2_000_000}MB"
        # by default it would spill into the working directory
        self.backend = ibis.duckdb.connect(memory_limit=limit, temp_directory=str(folder))
        # instants, not wall clocks: a session time zone must not move a split
        self.backend.raw_sql("SET TimeZone = 'UTC'")
        self.backend.raw_sql("SET enable_progress_bar = false")
        self.backend.raw_sql("SET preserve_insertion_order = false")

    def read(self, files: list[Path], name: str, *, merged: bool = False) -> Relation:
        self._paths |= {path.resolve(): path for path in files}
        # escaped, and without partitions: a path that holds * or country=NL is a path, not a pattern or a column
        paths = [glob.escape(str(path)) for path in files]
        options = {"filename": FILE, "hive_partitioning": False, "union_by_name": merged}
        return self.backend.read_parquet(paths, table_name=name, **options)

    def file_of(self, value: str) -> Path:
        return self._paths[Path(value).resolve()]  # as it was given, which may have been relative

    def materialise(self, relation: Relation, name: str) -> Relation:
        self.backend.raw_sql(f"CREATE OR REPLACE TEMP TABLE {name} AS {self.backend.compile(relation)}")
        return self.backend.table(name)

    def batches(self, relation: Relation, rows: int) -> Iterator[pa.RecordBatch]:
        yield from relation.to_pyarrow_batches(chunk_size=rows)

    def close(self) -> None:
        self.backend.disconnect()


class _Spark:
    """A Spark session. Rows come back through Parquet, which the executors write: never through the driver's heap."""

    def __init__(self, config: EngineConfig, folder: Path) -> None:
        try:
            from py4j.protocol import Py4JError  # pyright: ignore[reportMissingImports]
            from pyspark.errors import PySparkException  # pyright: ignore[reportMissingImports]
            from pyspark.sql import SparkSession  # pyright: ignore[reportMissingImports]
            from pyspark.sql.functions import expr, input_file_name  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError(
                f"engine=pyspark: {error.name or 'pyspark'} is not installed. Install the extra: uv sync --extra spark."
            ) from None
        self.memory, self.folder = config.bytes, folder
        self.errors: tuple[type[Exception], ...] = (PySparkException, Py4JError)
        (folder / "log4j2.properties").write_text(ERRORS_ALONE, encoding="utf-8")
        self._file, self._expr = input_file_name, expr
        self._paths: dict[Path, Path] = {}
        settings = {
            "spark.app.name": "keyart",
            "spark.master": "local[*]",
            "spark.driver.memory": f"{max(512, self.memory // 2 // 2**20)}m",
            "spark.local.dir": str(folder / "local"),
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile=file:{folder.resolve() / 'log4j2.properties'}",
        }
        settings |= dict(setting.split("=", 1) for setting in config.spark)
        # settings that the result depends on cannot be changed by the user
        settings |= {
            "spark.sql.session.timeZone": "UTC",
            "spark.sql.ansi.enabled": "false",  # a list's element past its end is null, as in DuckDB
            "spark.sql.legacy.sizeOfNull": "false",  # and a null list's length null, not -1
            "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
            "spark.sql.legacy.parquet.nanosAsLong": "true",  # else nanoseconds cannot be read at all
            "spark.sql.caseSensitive": "true",
        }
        builder = SparkSession.builder
        for key, value in settings.items():
            builder = builder.config(key, value)
        try:
            self.session: Any = builder.getOrCreate()
        except Exception as error:  # no Java, no master, a wrong setting: each has its own class, some of py4j
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"engine=pyspark: Spark does not start ({reason}). It needs Java 17 or newer.") from None
        context = self.session.sparkContext
        context.setLogLevel("ERROR")
        if python := settings.get("spark.pyspark.python"):  # which only spark-submit would read
            context.pythonExec = python
        elif context.master.startswith("local") and "PYSPARK_PYTHON" not in os.environ:
            context.pythonExec = sys.executable  # not the first python3 of the path, which need not have keyart
        self.backend = ibis.pyspark.connect(self.session)
        self.batches_written = 0

    def read(self, files: list[Path], name: str, *, merged: bool = False) -> Relation:
        # escaped, and without partitions, as above; Hadoop's escape is the backslash
        self._paths |= {path.resolve(): path for path in files}
        paths = [re.sub(r"([\\*?\[\]{}])", r"\\\1", f"file://{path.resolve()}") for path in files]
        reader = self.session.read.option("recursiveFileLookup", "true").option("mergeSchema", str(merged).lower())
        frame = reader.parquet(*paths)
        instants = int96_columns(pq.read_metadata(files[0]))
        for column in pq.read_schema(files[0]):
            nanoseconds = pa.types.is_timestamp(column.type) and column.type.unit == "ns"
            if nanoseconds and column.name not in instants:  # read as integers: Spark has no such type
                frame = frame.withColumn(column.name, self._expr(f"timestamp_micros(`{column.name}` div 1000)"))
        frame.withColumn(FILE, self._file()).createOrReplaceTempView(name)
        return self.backend.table(name)

    def file_of(self, value: str) -> Path:
        return self._paths[Path(unquote(urlparse(value).path))]

    def materialise(self, relation: Relation, name: str) -> Relation:
        self.session.sql(self.backend.compile(relation)).persist().createOrReplaceTempView(name)
        return self.backend.table(name)

    def batches(self, relation: Relation, rows: int) -> Iterator[pa.RecordBatch]:
        self.batches_written += 1
        folder = self.folder / f"rows-{self.batches_written}"
        self.session.sql(self.backend.compile(relation)).write.parquet(f"file://{folder.resolve()}")
        for path in sorted(folder.glob("*.parquet")):
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(rows)
            path.unlink()

    def close(self) -> None:
        self.session.stop()
