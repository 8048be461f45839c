"""`keyart score --engine pyspark`: shards ranked by Spark's executors, to the files that one process would write.

In: shards on a file system that this process and every executor see. A task is a shard: it is ranked by the same function
as in this process and written beside the output under a name of the task's own; only a receipt goes through Spark. Where a shard
was tried twice, or by two tasks at once, Spark returns one receipt, and the file it names is moved to the output.

Executors need numpy, pyarrow, onnxruntime, safetensors and rich, and keyart itself; neither torch nor an engine.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pyarrow as pa
from rich.console import Console

from foundation.errors import UserError
from foundation.fingerprint import fingerprint
from foundation.progress import progress_bar
from serving.bundle.bundle import Bundle
from serving.scoring.scorer import Scorer

if TYPE_CHECKING:  # executors load this module, and need no engine
    from datamodules.contract.engines import Engine

COLUMNS = {"shard": pa.int64(), "part": pa.string(), "impressions": pa.int64(), "reasons": pa.string()}
RESULT_SCHEMA = pa.schema(COLUMNS | {"refused": pa.string()})
"""Receipt of a task: its shard, the file it wrote, its number of impressions and explanations; or a user's error."""
SHARED_PATHS_HINT = "The bundle, the dataset and OUT must lie where every executor sees them, by the same paths."
INSTALL_HINT = (
    "Install keyart there, torch is not needed: pip install numpy pyarrow onnxruntime safetensors rich; "
    "pip install --no-deps KEYART; --spark spark.pyspark.python=PATH names the Python that has them."
)


@dataclass(frozen=True, kw_only=True)
class ScoringTask:
    """The input of a task; the paths are absolute, because an executor has its own working directory."""

    bundle: str
    digest: str
    """SHA-256 of the bundle's files, as this process sees them."""
    shards: str
    """The folder of shards."""
    parts: str
    """The folder that tasks write to."""
    policy: str
    reward: str
    max_explained: int
    """Impressions of a shard whose choice is explained."""

    @classmethod
    def of(
        cls, bundle: Bundle, shards: Path, spill: Path, *, policy: str, reward: str, max_explained: int
    ) -> "ScoringTask":
        """Work by a bundle on the shards in a folder, written within `spill`."""
        folders = {"bundle": bundle.folder, "shards": shards, "parts": spill / f"scores-{uuid4().hex}"}
        digest = fingerprint(bundle.metadata["sha256"])
        paths = {name: str(folder.resolve()) for name, folder in folders.items()}
        return cls(**paths, digest=digest, policy=policy, reward=reward, max_explained=max_explained)


def score_on_executors(
    engine: "Engine", work: ScoringTask, shards: int, impressions: int, folder: Path, console: Console
) -> list[dict[str, Any]]:
    """Write `part-00000.parquet` and so on into `folder`; returns explanations of some impressions, in the shards' order.

    Raises a UserError where an executor has no keyart, does not see the files, or fails more often than Spark allows.
    """
    parts = Path(work.parts)
    parts.mkdir()
    frame = engine.session.range(0, shards, 1, shards)
    schema = "shard bigint, part string, impressions bigint, reasons string, refused string"
    try:
        with _progress(parts, shards, console):
            rows = sorted(frame.mapInArrow(_task(work), schema).collect(), key=lambda row: row.shard)
    except engine.errors as error:
        raise UserError(
            f"engine=pyspark: an executor fails ({_error_line(error)}). Nothing was written; --engine duckdb needs none."
        ) from None
    for row in rows:
        if row.refused:
            raise UserError(row.refused)
        if row.impressions:
            if not (parts / row.part).is_file():
                raise UserError(f"{parts / row.part}: an executor wrote it and it is missing. {SHARED_PATHS_HINT}")
            shutil.move(parts / row.part, folder / f"part-{row.shard:05d}.parquet")
    scored = [row.shard for row in rows], sum(row.impressions for row in rows)
    assert scored == (list(range(shards)), impressions), "every shard once, and every impression"
    shutil.rmtree(parts, ignore_errors=True)  # files of tasks that Spark gave up
    return [reason for row in rows for reason in json.loads(row.reasons)]


def _task(work: ScoringTask) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """The function that an executor applies to numbers of shards. Spark sends it by value, because it is not a function of a
    module, so that it can report that keyart cannot be imported."""
    task_fields, remedy, schema = vars(work), INSTALL_HINT, RESULT_SCHEMA

    def rank(batches):  # without annotations, which would refer to this module
        try:
            from serving.scoring.score_spark import ScoringTask, task_result
        except ImportError as error:
            message = f"engine=pyspark: an executor cannot import keyart ({error}). {remedy}"
            for _ in batches:
                pass
            rows = [{"shard": -1, "impressions": 0, "refused": message}]
            yield pa.RecordBatch.from_pylist(rows, schema)
            return
        for batch in batches:
            for shard in batch.column(0).to_pylist():
                yield pa.RecordBatch.from_pylist([task_result(ScoringTask(**task_fields), shard)], schema)

    return rank


def task_result(work: ScoringTask, shard: int) -> dict[str, Any]:
    """Rank a shard, on an executor; returns a row of the receipts. It holds a user's error, which must not be retried."""
    source, name = Path(work.shards, f"shard-{shard:05d}"), f"part-{shard:05d}.{uuid4().hex}.parquet"
    try:
        for folder in (source, Path(work.bundle), Path(work.parts)):
            if not folder.is_dir():
                raise UserError(f"{folder}: an executor does not see it. {SHARED_PATHS_HINT}")
        impressions, reasons = _scorer(work).score_shard(source, Path(work.parts, name), work.max_explained)
    except UserError as error:
        return {"shard": shard, "impressions": 0, "refused": str(error)}
    return {"shard": shard, "part": name, "impressions": impressions, "reasons": json.dumps(reasons)}


@lru_cache(maxsize=1)
def _scorer(work: ScoringTask) -> Scorer:
    """The scorer, opened once for all the shards that a Python worker ranks."""
    bundle = Bundle.open(Path(work.bundle))
    if fingerprint(bundle.metadata["sha256"]) != work.digest:
        raise UserError(f"{work.bundle}: an executor sees another bundle there. {SHARED_PATHS_HINT}")
    return Scorer(bundle, work.policy, work.reward)


@contextmanager
def _progress(parts: Path, shards: int, console: Console) -> Iterator[None]:
    """A bar that counts what the tasks have written."""
    over = Event()

    def watch() -> None:
        with progress_bar(console) as progress:
            task = progress.add_task("score: shards", total=shards)
            while not over.wait(0.5):
                progress.update(task, completed=len({path.name[:10] for path in parts.glob("part-*")}))

    watching = Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


def _error_line(error: Exception) -> str:
    """The relevant line of Spark's error: the end of Python's traceback, or the reason of the last failure."""
    text = str(error)
    patterns = (
        r"Traceback \(most recent call last\):\n(?:[ \t].*\n)+(\S.*)",
        r"most recent failure: .*?executor [^)]*\): (.+)",
        r"^: (.+)",  # below a call through py4j
        r"^\s*(\S.*)",
    )
    match = next(filter(None, (re.search(pattern, text, re.MULTILINE) for pattern in patterns)), None)
    return " ".join(match[1].split())[:300] if match else type(error).__name__
