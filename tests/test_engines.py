"""Both engines give the same shards, byte for byte."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import keyart
from benchmarks.process import measure
from datamodules.check import check
from datamodules.engines import Engine, EngineConfig, Since, open_engine
from datamodules.prepare import PrepareConfig, prepare
from datamodules.shards import Shards
from tests import small_dataset
from tests.dataset_breaks import PART_0, PART_1, cast_column, put, shown

POSTERWORLD = Path(__file__).parents[2] / "shared/data/posterworld"


def missing() -> str:
    """Why Spark cannot be tried here; empty where it can."""
    if importlib.util.find_spec("pyspark") is None:
        return "the extra spark is not installed: uv run --extra spark pytest -m spark"
    if shutil.which("java") is None or subprocess.run(["java", "-version"], capture_output=True).returncode:
        return "there is no Java to run Spark"
    return ""


spark_alone = [pytest.mark.spark, pytest.mark.skipif(bool(missing()), reason=missing() or "never")]


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One session for all tests: it takes seconds to start."""
    config = EngineConfig(engine="pyspark", memory="2GB", spark=["spark.sql.shuffle.partitions=4"])
    with open_engine(config, tmp_path_factory.mktemp("spark") / "spill") as engine:
        yield engine


def assert_same(one: Path, other: Path) -> None:
    """Element by element: every column of every shard, catalogue, vocabularies, manifest."""
    a, b = Shards.open(one), Shards.open(other)
    assert a.manifest == b.manifest
    assert a.vocabularies == b.vocabularies
    for mine, theirs in zip([*a.shards, a.catalogue], [*b.shards, b.catalogue], strict=True):
        for field in fields(mine):
            left, right = getattr(mine, field.name), getattr(theirs, field.name)
            assert left.dtype == right.dtype, field.name
            np.testing.assert_array_equal(left, right, field.name)


class TestSpark:
    """The same expressions on the other engine."""

    pytestmark = spark_alone

    def test_the_same_shards(self, service: Path, spark: Engine, tmp_path: Path) -> None:
        config = PrepareConfig(shards=3)
        prepare(service, tmp_path / "duckdb", config)
        assert check(service, images=False, engine=spark).ok
        prepare(service, tmp_path / "pyspark", config, engine=spark)
        assert_same(tmp_path / "duckdb", tmp_path / "pyspark")

    def test_the_same_new_day(self, service: Path, shards: Path, spark: Engine, tmp_path: Path) -> None:
        since = datetime.fromisoformat(Shards.open(shards).manifest["test_from"])
        assert check(service, images=False, engine=Since.of(spark, since)).ok
        for name, engine in (("duckdb", None), ("pyspark", spark)):
            prepare(service, tmp_path / name, like=shards, since=since, engine=engine)
        assert_same(tmp_path / "duckdb", tmp_path / "pyspark")

    def test_the_same_rows_are_dropped(self, spark: Engine, tmp_path: Path) -> None:
        dataset = small_dataset.write(tmp_path)
        put(dataset / PART_0, 0, member_id=None)
        put(dataset / PART_0, 1, candidates=["a3", "a9"])
        put(dataset / PART_0, 2, propensities=None)
        shown(propensities=[0.0, 0.5, 0.5])(dataset)
        put(dataset / "plays/part-0.parquet", 0, title_id="t9")
        told = [violation.line() for violation in check(dataset, images=False).violations]
        assert [violation.line() for violation in check(dataset, images=False, engine=spark).violations] == told
        assert len(told) >= 5
        config = PrepareConfig(drop_invalid=True)
        prepare(dataset, tmp_path / "duckdb", config)
        prepare(dataset, tmp_path / "pyspark", config, engine=spark)
        assert_same(tmp_path / "duckdb", tmp_path / "pyspark")
        dropped = Shards.open(tmp_path / "pyspark").manifest["rows"]["impressions"]["dropped"]
        assert sum(dropped.values()) >= 4

    def test_nanoseconds(self, spark: Engine, tmp_path: Path) -> None:
        dataset = small_dataset.write(tmp_path)
        prepare(dataset, tmp_path / "duckdb")
        for part in (PART_0, PART_1):
            cast_column(dataset / part, "shown_at", pa.timestamp("ns", "UTC"))
        assert check(dataset, images=False, engine=spark).ok
        prepare(dataset, tmp_path / "pyspark", engine=spark)
        a, b = Shards.open(tmp_path / "duckdb").shards, Shards.open(tmp_path / "pyspark").shards
        assert all((x.shown_at == y.shown_at).all() for x, y in zip(a, b, strict=True))

    def test_the_command(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        dataset = small_dataset.write(tmp_path)
        words = ["--engine", "pyspark", "--spark", "spark.sql.shuffle.partitions=2", "--spark", "spark.master=local[1]"]
        assert keyart.main(["prepare", str(dataset), str(tmp_path / "pyspark"), *words]) == 0
        assert keyart.main(["prepare", str(dataset), str(tmp_path / "duckdb")]) == 0
        assert_same(tmp_path / "duckdb", tmp_path / "pyspark")
        assert "8" in capfd.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("pyspark") is not None, reason="pyspark is installed")
def test_without_the_extra_the_command_says_how_to_get_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = small_dataset.write(tmp_path)
    assert keyart.main(["prepare", str(dataset), str(tmp_path / "out"), "--engine", "pyspark"]) == 1
    assert "uv sync --extra spark" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.shared_data
@pytest.mark.skipif(not POSTERWORLD.is_dir(), reason="shared/data/posterworld is not beside the checkout")
def test_a_real_log_within_little_memory(tmp_path: Path) -> None:
    call = [sys.executable, "-m", "keyart", "prepare", str(POSTERWORLD), str(tmp_path / "shards"), "--memory", "500MB"]
    assert measure(call).peak_bytes < 600_000_000
    manifest = Shards.open(tmp_path / "shards").manifest
    assert (manifest["impressions"], manifest["plays"], manifest["members"]) == (600_000, 181_690, 5302)
