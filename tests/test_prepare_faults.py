"""Preparing broken, truncated, huge or odd logs: reported in one line, or dropped and counted; never half-written."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from random_logs import ARTWORKS, START, TITLES, RandomLog

import keyart
from datamodules.contract.engines import EngineConfig, open_engine, spill_folder
from datamodules.contract.tables import ARTWORKS as ARTWORKS_TABLE
from datamodules.contract.tables import IMPRESSIONS, PLAYS
from datamodules.prepare.prepare import PrepareConfig, prepare
from datamodules.prepare.shard_size import in_parallel
from datamodules.shards.shard import MANIFEST, Shard, Shards
from foundation.errors import UserError
from tests import small_dataset
from tests.dataset_edits import PART_0, PART_1, Break, cast_column, put, shown
from tests.row_breaks import ROW_BREAKS
from tests.schema_breaks import SCHEMA_BREAKS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """The smallest dataset with every table."""
    return small_dataset.write(tmp_path)


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder: when it was written and what it holds."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by what it holds."""
    return {name: held for name, (_, held) in state(folder).items()}


NAMED = (
    "unreadable-file",
    "wrong-type",
    "schema-mismatch",
    "timestamp-without-zone",
    "null-impression-id",
    "null-member-id",
    "propensities-length",
    "propensities-sum",
    "shown-propensity-zero",
)


@pytest.mark.parametrize("rule", NAMED)
def test_bad_input_stops_the_work_before_it_starts(
    dataset: Path, tmp_path: Path, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    case = next(case for case in SCHEMA_BREAKS + ROW_BREAKS if case.rule == rule)
    case.by(dataset)
    before = state(dataset)
    assert keyart.main(["prepare", str(dataset), str(tmp_path / "shards")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"keyart prepare: {case.where}: ")
    assert state(dataset) == before
    assert not (tmp_path / "shards").exists()
    assert [path.name for path in tmp_path.iterdir()] == [dataset.name]


DROPPABLE = [case for case in ROW_BREAKS if case.rule != "duplicate-member-id"]
TABLES = {"titles": "titles", "artworks": "artworks", "plays": "plays", "impressions": "impressions"}


@pytest.mark.parametrize("case", DROPPABLE, ids=lambda case: f"{case.rule}-{case.where.split('/')[0]}")
def test_invalid_rows_are_dropped_and_counted(dataset: Path, tmp_path: Path, case: Break) -> None:
    case.by(dataset)
    before = state(dataset)
    table = case.where.split("/")[0].split(".")[0]
    config = PrepareConfig(drop_invalid=True)
    if case.rule in ("duplicate-title-id", "duplicate-artwork-id") or (table == "artworks" and case.count >= 3):
        with pytest.raises(UserError, match=r"no impression is left after rows were dropped: [48] by unknown-"):
            prepare(dataset, tmp_path / "shards", config)
        return
    rows = prepare(dataset, tmp_path / "shards", config)["rows"]
    if case.rule in ("release-year-range", "rating-finite"):  # of which the row is kept
        assert rows[table]["made_null"] == {case.rule: case.count}
        assert rows[table]["dropped"] == {}
        assert rows[table]["out"] == rows[table]["in"]
        return
    assert rows[table]["dropped"] == {case.rule: case.count}
    assert rows[table]["out"] == rows[table]["in"] - case.count
    assert state(dataset) == before


def test_the_command_says_what_it_dropped(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown(propensities=[0.33, 0.3, 0.3])(dataset)
    put(dataset / PART_0, 1, member_id=None)
    assert keyart.main(["prepare", str(dataset), str(tmp_path / "shards"), "--drop-invalid"]) == 0
    printed = capsys.readouterr().out
    assert "dropped of impressions: 1 by null-member-id" in printed
    assert "dropped of impressions: 1 by propensities-sum" in printed
    assert keyart.main(["prepare", str(dataset), str(tmp_path / "strict")]) == 1
    assert not (tmp_path / "strict").exists()


def test_what_is_left_is_as_if_the_bad_rows_had_never_been(dataset: Path, tmp_path: Path) -> None:
    table = pq.read_table(dataset / PART_1)
    pq.write_table(table.take([0, 1, 3]), dataset / PART_1)
    prepare(dataset, tmp_path / "clean")
    pq.write_table(table, dataset / PART_1)
    shown(propensities=[0.33, 0.3, 0.3])(dataset)
    prepare(dataset, tmp_path / "dropped", PrepareConfig(drop_invalid=True))
    clean, dropped = content(tmp_path / "clean"), content(tmp_path / "dropped")
    assert {n: b for n, b in clean.items() if n != MANIFEST} == {n: b for n, b in dropped.items() if n != MANIFEST}


def test_rows_that_lose_what_they_refer_to_go_too(dataset: Path, tmp_path: Path) -> None:
    put(dataset / "titles.parquet", 1, title_id=None)
    prepare(dataset, tmp_path / "shards", PrepareConfig(drop_invalid=True))
    rows = Shards.open(tmp_path / "shards").manifest["rows"]
    assert rows["titles"]["dropped"] == {"null-title-id": 1}
    assert rows["artworks"]["dropped"] == {"unknown-title": 2}
    assert rows["plays"]["dropped"] == {"unknown-title": 2}
    assert rows["impressions"]["dropped"] == {"unknown-title": 4}


def test_nanoseconds_are_cut_to_microseconds(dataset: Path, tmp_path: Path) -> None:
    prepare(dataset, tmp_path / "micro")
    for part in (PART_0, PART_1):
        cast_column(dataset / part, "shown_at", pa.timestamp("ns", "UTC"))
    cast_column(dataset / "plays/part-0.parquet", "played_at", pa.timestamp("ns", "Europe/Berlin"))
    prepare(dataset, tmp_path / "nano")
    micro, nano = content(tmp_path / "micro"), content(tmp_path / "nano")
    assert {n: b for n, b in micro.items() if n != MANIFEST} == {n: b for n, b in nano.items() if n != MANIFEST}


def test_ids_may_hold_any_character(tmp_path: Path) -> None:
    odd = ["a\nb", "it's", 'say "x"', "\N{GRINNING FACE}", "back\\slash", "nul-\x00-inside", " padded "]
    log = RandomLog([(member, 0, 0) for member in odd], [(member, 1, 0, 1 + n, n == 0) for n, member in enumerate(odd)])
    log.ids = [f"{member}/{n}" for n, member in enumerate(odd)]
    log.write(tmp_path / "log")
    prepare(tmp_path / "log", tmp_path / "shards", PrepareConfig(shards=2))
    ids = [i.decode() for shard in Shards.open(tmp_path / "shards").shards for i in shard.ids()]
    assert sorted(ids) == sorted(log.ids)
    lengths = [shard.history_end - shard.history_start for shard in Shards.open(tmp_path / "shards").shards]
    assert np.concatenate(lengths).tolist() == [1] * len(odd)


def test_one_member_with_a_million_plays(tmp_path: Path) -> None:
    log = RandomLog([("a", 0, 0)], [(member, 0, 0, minute, False) for minute in range(10) for member in "ab"])
    log.write(tmp_path / "log")
    rng = np.random.default_rng(0)
    at = int(START.timestamp() * 1e6) + rng.integers(0, 9 * 60_000_000, 1_000_000)
    plays = {
        "member_id": pa.array(["a"]).take(pa.array(np.zeros(1_000_000, np.int8))),
        "title_id": pa.array(TITLES).take(pa.array(rng.integers(0, 3, 1_000_000))),
        "played_at": pa.array(at).cast(pa.timestamp("us", "UTC")),
    }
    pq.write_table(pa.table(plays), tmp_path / "log" / "plays" / "part-0.parquet")
    manifest = prepare(tmp_path / "log", tmp_path / "shards")
    assert manifest["plays"] == 1_000_000
    (shard,) = Shards.open(tmp_path / "shards").shards
    assert (np.diff(shard.play_time) >= 0).all()
    for n in range(20):
        member = np.searchsorted(shard.member_impressions, n, side="right") - 1
        expected = (at < shard.shown_at[n]).sum() if member == 0 else 0
        assert shard.history_end[n] - shard.history_start[n] == expected


def test_a_title_of_one_candidate_is_kept_and_counted(tmp_path: Path) -> None:
    log = RandomLog([], [("a", title, 0, minute, minute == 3) for minute in range(10) for title in (0, 1)])
    log.write(tmp_path / "log")
    table = pq.read_table(tmp_path / "log" / "impressions" / "part-0.parquet")
    alone = [
        [c[s]] if t == TITLES[0] else c
        for t, c, s in zip(
            table["title_id"].to_pylist(), table["candidates"].to_pylist(), [0] * len(table), strict=True
        )
    ]
    even = pa.array([[1 / len(c)] * len(c) for c in alone], pa.list_(pa.float32()))
    table = table.set_column(5, "candidates", pa.array(alone)).set_column(6, "propensities", even)
    pq.write_table(table, tmp_path / "log" / "impressions" / "part-0.parquet")
    assert ARTWORKS[TITLES[0]][0] == alone[0][0]
    manifest = prepare(tmp_path / "log", tmp_path / "shards")
    assert manifest["impressions"] == 20
    assert manifest["one_candidate"] == 10
    assert sum(split["randomised"] for split in manifest["splits"].values()) == 10


@pytest.fixture(scope="module")
def undisturbed(service: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Eight shards of the service, by file."""
    out = tmp_path_factory.mktemp("undisturbed") / "shards"
    prepare(service, out, PrepareConfig(shards=8))
    return content(out)


@pytest.mark.parametrize("moment", [".shards.spill", "spill/plays.arrow", "shard-00000", "shard-00005", "catalogue"])
def test_killed_at_any_moment_the_next_call_gives_the_same_shards(
    service: Path, tmp_path: Path, moment: str, undisturbed: dict[str, bytes]
) -> None:
    """And the old shards stay until the new ones are complete."""
    out = tmp_path / "shards"
    prepare(service, out, PrepareConfig(shards=3))
    old = content(out)
    call = [sys.executable, "-m", "keyart", "prepare", str(service), str(out), "--shards", "8"]
    awaited = tmp_path / moment if moment.startswith(".") else tmp_path / ".shards.partial" / moment
    process = subprocess.Popen(call, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if awaited.exists():
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.0005)
    killed = process.wait() == -signal.SIGKILL
    if moment in (".shards.spill", "spill/plays.arrow"):  # the later ones may be over before they are seen
        assert killed
        assert content(out) == old
    assert keyart.main(call[3:]) == 0
    assert content(out) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGHUP, 129, "hung up: the terminal or connection closed"),
    ],
)
@pytest.mark.parametrize("moment", [".shards.spill", "shard-00000"])
def test_ended_by_a_signal_it_says_so_and_leaves_nothing(
    service: Path, tmp_path: Path, moment: str, number: signal.Signals, status: int, word: str
) -> None:
    """As a cluster's scheduler and a user end it."""
    out = tmp_path / "shards"
    call = [sys.executable, "-m", "keyart", "prepare", str(service), str(out), "--shards", "500"]
    awaited = tmp_path / moment if moment.startswith(".") else tmp_path / ".shards.partial" / moment
    process = subprocess.Popen(
        call, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    while process.poll() is None and not awaited.exists():
        time.sleep(0.0005)
    process.send_signal(number)
    _, printed = process.communicate()
    assert process.returncode == status, printed
    assert printed.splitlines()[-1] == f"keyart prepare: {word}; no partial output. Run the command again."
    assert list(tmp_path.iterdir()) == []


def test_no_thread_writes_a_shard_after_a_signal_in_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal between a thread's start and the executor's note of it: the executor would not wait for that thread."""
    begun, ended = [], []

    def make(shard: int) -> Any:
        begun.append(shard)
        time.sleep(0.2)
        ended.append(shard)

    class Interrupted(threading.Thread):
        def start(self) -> None:
            super().start()
            time.sleep(0.05)
            raise KeyboardInterrupt

    monkeypatch.setattr(threading, "Thread", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(in_parallel(make, 3, 2))
    assert begun == ended == [0]


@pytest.mark.parametrize("limit", [20_000, 400_000])
def test_a_full_disk_leaves_the_old_shards(service: Path, tmp_path: Path, limit: int) -> None:
    """A file size limit stands in for the disk: writing past it fails as writing to a full disk does."""
    prepare(service, tmp_path / "shards", PrepareConfig(shards=2))
    before = state(tmp_path)
    program = (
        "import resource, signal, sys, keyart; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        f"sys.exit(keyart.main(['prepare', {str(service)!r}, {str(tmp_path / 'shards')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, encoding="utf-8")
    assert done.returncode == 1, done.stderr
    assert "The disk is full" in done.stderr.splitlines()[-1]
    assert state(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--memory", "much"], "memory=much: invalid size"),
        (["--memory", "10MB"], "memory=10MB: too little"),
        (["--shards", "5000"], "shards=5000: must lie in 0 .. 4096"),
        (["--spark", "spark.master=local"], "is a setting of Spark. Add --engine pyspark"),
        (["--engine", "pyspark", "--spark", "nonsense"], "spark=nonsense: give KEY=VALUE"),
        (["--engine", "flink"], "flink"),
        (["--since", "yesterday"], "since=yesterday: invalid date"),
        (["--since", "2090-01-01"], "no impression since 2090-01-01"),
        (["--like", "nowhere"], "nowhere: has no manifest.json"),
        (["--validation-from", "2026-01-01"], "give both dates"),
        (["--validation-from", "2026-01-02", "--test-from", "2026-01-01"], "validation must begin before test"),
        (["--validation-from", "1999-01-02", "--test-from", "2026-01-01"], "no impression before it"),
        (
            ["--validation-from", "2089-01-01", "--test-from", "2090-01-01"],
            "the validation and the test period would be",
        ),
    ],
)
def test_words_that_cannot_be_meant(
    service: Path, tmp_path: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keyart.main(["prepare", str(service), str(tmp_path / "shards"), *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert list(tmp_path.iterdir()) == []


def test_two_calls_do_not_write_the_same_shards(service: Path, tmp_path: Path) -> None:
    with open_engine(spill=spill_folder(tmp_path / "shards")) as engine:
        with pytest.raises(UserError, match="another keyart process writes to it"):
            prepare(service, tmp_path / "shards")
        prepare(service, tmp_path / "shards", engine=engine)
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


@pytest.mark.parametrize("folder", [".", "inside", ".."])
def test_the_source_is_never_written_over(dataset: Path, folder: str) -> None:
    (dataset / "manifest.json").write_text("{}", encoding="utf-8")
    (dataset.parent / "manifest.json").write_text("{}", encoding="utf-8")
    before = state(dataset.parent)
    with pytest.raises(UserError, match="the source is only read"):
        prepare(dataset, dataset / folder)
    assert state(dataset.parent) == before


def test_a_manifest_of_somebody_else_is_not_replaced(service: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"exported_by": "warehouse"}', encoding="utf-8")
    with pytest.raises(UserError, match="is not a manifest of shards"):
        prepare(service, tmp_path)


def test_a_log_that_changes_meanwhile_is_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Shard.save

    def save_late(shard: Shard, folder: Path) -> None:
        pq.write_table(pq.read_table(dataset / "plays/part-0.parquet"), dataset / "plays/part-1.parquet")
        save(shard, folder)

    monkeypatch.setattr(Shard, "save", save_late)
    with pytest.raises(UserError, match="changed while it was read"):
        prepare(dataset, tmp_path / "shards")
    assert [path.name for path in tmp_path.iterdir()] == [dataset.name]


def test_ctrl_c_in_a_query_is_no_defect(service: Path, tmp_path: Path) -> None:
    call = [sys.executable, "-m", "keyart", "prepare", str(service), str(tmp_path / "shards")]
    process = subprocess.Popen(
        call, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    while not (tmp_path / ".shards.spill").exists():
        time.sleep(0.0005)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate()
    assert process.returncode == 130, printed
    assert printed.splitlines()[-1].startswith("keyart prepare: interrupted")
    assert list(tmp_path.iterdir()) == []


def test_shards_too_large_for_the_memory_are_refused(service: Path, tmp_path: Path) -> None:
    with open_engine(EngineConfig(memory="500MB")) as engine:
        engine.memory = 100_000
        with pytest.raises(UserError, match=r"shards=1: one of them would take about .* Give --shards"):
            prepare(service, tmp_path / "shards", PrepareConfig(shards=1), engine=engine)
    assert list(tmp_path.iterdir()) == []


def test_the_tables_of_the_drop_tests_are_the_contracts() -> None:
    assert {case.where.split("/")[0].split(".")[0] for case in DROPPABLE} <= set(TABLES)
    assert {t.name for t in (ARTWORKS_TABLE, PLAYS, IMPRESSIONS)} <= set(TABLES)


def test_the_manifest_is_json(service: Path, tmp_path: Path) -> None:
    prepare(service, tmp_path / "shards")
    manifest = json.loads((tmp_path / "shards" / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["rows"]["impressions"]["in"] == manifest["impressions"] == manifest["rows"]["impressions"]["out"]
