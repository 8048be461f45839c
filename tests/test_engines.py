"""Both engines give the same shards and the same scores, byte for byte."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import keyart
from benchmarks.subprocess_usage import measure
from datamodules.contract.check import check
from datamodules.contract.engines import Engine, EngineConfig, RecentEngine, open_engine
from datamodules.contract.row_rules import EMBEDDING_RULES
from datamodules.prepare.prepare import PrepareConfig, prepare
from datamodules.shards.shard import Shard, Shards
from foundation.context import ContextFeature
from foundation.errors import UserError
from serving.bundle.bundle import Bundle
from serving.scoring.score import score
from serving.scoring.score_spark import ScoringTask, task_result
from tests import small_dataset
from tests.dataset_edits import PART_0, PART_1, Break, cast_column, put, shown, with_embeddings
from tests.row_breaks import ROW_BREAKS

POSTERWORLD = Path(__file__).parents[2] / "shared/data/posterworld"


def missing() -> str:
    """Why Spark cannot be tried here; empty where it can."""
    if importlib.util.find_spec("pyspark") is None:
        return "the extra spark is not installed: uv run --extra spark pytest -m spark"
    if shutil.which("java") is None or subprocess.run(["java", "-version"], capture_output=True).returncode:
        return "there is no Java to run Spark"
    return ""


def files_of(folder: Path) -> dict[str, bytes]:
    """What a folder's files hold, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


EMBEDDING_NAMES = {rule.name for rule in EMBEDDING_RULES}
spark_alone = [pytest.mark.spark, pytest.mark.skipif(bool(missing()), reason=missing() or "never")]


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One session for all tests: it takes seconds to start, and Java's second compiler would take more than it gives back."""
    config = EngineConfig(engine="pyspark", memory="2GB", spark=["spark.sql.shuffle.partitions=2"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
        with open_engine(config, tmp_path_factory.mktemp("spark") / "spill") as engine:
            yield engine


def assert_same(one: Path, other: Path) -> None:
    """Element by element: every column of every shard, catalogue, vocabularies, manifest."""
    a, b = Shards.open(one), Shards.open(other)
    assert a.manifest == b.manifest
    assert a.vocabularies == b.vocabularies
    assert a.context == b.context
    for mine, theirs in zip([*a.shards, a.catalogue], [*b.shards, b.catalogue], strict=True):
        columns, others = (
            part.columns() if isinstance(part, Shard) else {f.name: getattr(part, f.name) for f in fields(part)}
            for part in (mine, theirs)
        )
        assert columns.keys() == others.keys()
        for name, left in columns.items():
            assert left.dtype == others[name].dtype, name
            np.testing.assert_array_equal(left, others[name], name)


def with_numbers_and_int96(dataset: Path) -> None:
    """Ids as whole numbers, and times as Spark stores them by default."""
    with_whole_number_ids(dataset)
    with_int96(dataset)


def with_int96(dataset: Path) -> None:
    """Times as Spark stores them by default."""
    for name, time in (("plays", "played_at"), ("impressions", "shown_at")):
        for path in (dataset / name).glob("*.parquet"):
            cast_column(path, time, pa.timestamp("us"))
            pq.write_table(pq.read_table(path), path, use_deprecated_int96_timestamps=True, store_schema=False)


def with_whole_number_ids(dataset: Path) -> None:
    """Ids as numbers, candidates too, as a database has them."""
    lists = pa.list_(pa.int64())
    for name in ("titles.parquet", "artworks.parquet", "plays", "impressions"):
        for path in sorted((dataset / name).glob("*.parquet")) or [dataset / name]:
            table = pq.read_table(path)
            for column in {"title_id", "artwork_id", "member_id", "impression_id", "candidates"} & {
                *table.column_names
            }:
                cells = [
                    [whole_number(one) for one in cell] if isinstance(cell, list) else cell and whole_number(cell)
                    for cell in table[column].to_pylist()
                ]
                values = pa.array(cells, lists if column == "candidates" else pa.int64())
                table = table.set_column(table.column_names.index(column), column, values)
            pq.write_table(table, path)


def whole_number(id_: str) -> int:
    """A number of its own for every id."""
    return int("1" + "".join(character if character.isdigit() else "7" for character in id_))


class TestSpark:
    """The same expressions on the other engine."""

    pytestmark = spark_alone

    def test_the_same_shards(self, service: Path, spark: Engine, tmp_path: Path) -> None:
        config = PrepareConfig(shards=3)
        prepare(service, tmp_path / "duckdb", config)
        assert check(service, images=False, engine=spark).ok
        prepare(service, tmp_path / "pyspark", config, engine=spark)
        assert_same(tmp_path / "duckdb", tmp_path / "pyspark")

    def test_the_same_ratings(self, simulated: Path, spark: Engine, tmp_path: Path) -> None:
        """Stars that no power of two divides, and ratings that are no numbers."""
        rng = np.random.default_rng(1)
        dataset = shutil.copytree(simulated, tmp_path / "rated")
        for path in sorted((dataset / "plays").glob("*.parquet")):
            plays = pq.read_table(path)
            stars = 0.1 * rng.integers(1, 101, len(plays))
            rating = pa.array(np.where(rng.random(len(plays)) < 0.02, np.nan, stars), mask=rng.random(len(plays)) < 0.3)
            pq.write_table(plays.append_column("rating", rating), path)
        (one,), (other,) = (check(dataset, images=False, engine=engine).violations for engine in (None, spark))
        assert one.count == other.count
        config = PrepareConfig(shards=3, drop_invalid=True)
        prepare(dataset, tmp_path / "duckdb", config)
        manifest = prepare(dataset, tmp_path / "pyspark", config, engine=spark)
        assert manifest["rating_scale"]["mean"] == pytest.approx(5, abs=1)
        assert_same(tmp_path / "duckdb", tmp_path / "pyspark")

    def test_the_same_new_day(self, service: Path, shards: Path, spark: Engine, tmp_path: Path) -> None:
        since = datetime.fromisoformat(Shards.open(shards).manifest["test_from"])
        assert check(service, images=False, engine=RecentEngine.of(spark, since)).ok
        for name, engine in (("duckdb", None), ("pyspark", spark)):
            prepare(service, tmp_path / name, like=shards, since=since, engine=engine)
        assert_same(tmp_path / "duckdb", tmp_path / "pyspark")

    @pytest.mark.parametrize(
        "case", [case for case in ROW_BREAKS if case.rule in EMBEDDING_NAMES], ids=lambda c: c.rule
    )
    def test_the_same_embeddings_are_judged(self, case: Break, spark: Engine, tmp_path: Path) -> None:
        dataset = small_dataset.write(tmp_path)
        case.by(dataset)
        (violation,) = check(dataset, images=False, engine=spark).violations
        assert (violation.rule, violation.where, violation.count) == (case.rule, case.where, case.count)
        # engines spell NaN and infinity in their own ways
        assert [one.split(",")[0] for one in violation.first] == [one.split(",")[0] for one in case.first]

    def test_the_same_artworks_are_dropped(self, spark: Engine, tmp_path: Path) -> None:
        dataset = small_dataset.write(tmp_path)
        with_embeddings([1.0, 2.0])(dataset)
        for name, engine in (("duckdb", None), ("pyspark", spark)):
            prepare(dataset, tmp_path / name, PrepareConfig(drop_invalid=True), engine=engine)
            assert "a4" not in Shards.open(tmp_path / name).vocabularies["artworks"].values
        assert_same(tmp_path / "duckdb", tmp_path / "pyspark")

    def test_the_same_rows_are_dropped(self, spark: Engine, tmp_path: Path) -> None:
        dataset = small_dataset.write(tmp_path)
        put(dataset / PART_0, 0, member_id=None)
        put(dataset / PART_0, 1, candidates=["a3", "a9"])
        put(dataset / PART_0, 2, propensities=None)
        shown(propensities=[0.0, 0.5, 0.5])(dataset)
        put(dataset / "plays/part-0.parquet", 0, title_id="t9")
        expected = [violation.line() for violation in check(dataset, images=False).violations]
        assert [violation.line() for violation in check(dataset, images=False, engine=spark).violations] == expected
        assert len(expected) >= 5
        config = PrepareConfig(drop_invalid=True)
        prepare(dataset, tmp_path / "duckdb", config)
        prepare(dataset, tmp_path / "pyspark", config, engine=spark)
        assert_same(tmp_path / "duckdb", tmp_path / "pyspark")
        dropped = Shards.open(tmp_path / "pyspark").manifest["rows"]["impressions"]["dropped"]
        assert sum(dropped.values()) >= 4

    def test_context_columns_that_some_files_lack(self, spark: Engine, tmp_path: Path) -> None:
        """A feature of each kind; one file has none of their columns, another has them all null."""
        dataset = small_dataset.write(tmp_path)
        first, second = (pq.read_table(dataset / part) for part in (PART_0, PART_1))
        rows = second.num_rows
        columns = {
            "language": pa.array([None if i % 3 == 0 else f"l{i % 2}" for i in range(rows)], pa.string()),
            "kids": pa.array([i % 2 == 0 for i in range(rows)]),
            "price": pa.array([f"{i}.25" for i in range(rows)]).cast(pa.decimal128(8, 2)),
            "local_hour": pa.array([i % 24 for i in range(rows)], pa.int8()),
            "shelf": pa.array([None if i == 0 else i for i in range(rows)], pa.int32()),
        }
        nulls, values = second, second
        for name, column in columns.items():
            nulls = nulls.append_column(name, pa.nulls(rows, column.type))
            values = values.append_column(name, column)
        ids = pa.array(
            [f"{i}-null" for i in second["impression_id"].to_pylist()], second.schema.field("impression_id").type
        )
        nulls = nulls.set_column(nulls.column_names.index("impression_id"), "impression_id", ids)
        pq.write_table(values, dataset / PART_1)
        pq.write_table(nulls, (dataset / PART_1).with_name("part-2.parquet"))
        assert not set(columns) & set(first.column_names)
        kinds = {
            "language": "category",
            "kids": "category",
            "price": "number",
            "local_hour": "hour",
            "shelf": "position",
        }
        features = [ContextFeature(name=name, kind=kind) for name, kind in kinds.items()]  # pyright: ignore[reportArgumentType]
        config = PrepareConfig(context=features)
        for name, engine in (("duckdb", None), ("pyspark", spark)):
            prepare(dataset, tmp_path / name, config, engine=engine)
        assert_same(tmp_path / "duckdb", tmp_path / "pyspark")
        price = np.concatenate([shard.columns()["context_price"] for shard in Shards.open(tmp_path / "pyspark").shards])
        assert np.isnan(price).sum() == first.num_rows + rows
        assert set(price[~np.isnan(price)]) == {np.float32(i + 0.25) for i in range(rows)}

    def test_nanoseconds(self, spark: Engine, tmp_path: Path) -> None:
        dataset = small_dataset.write(tmp_path)
        prepare(dataset, tmp_path / "duckdb")
        for part in (PART_0, PART_1):
            cast_column(dataset / part, "shown_at", pa.timestamp("ns", "UTC"))
        assert check(dataset, images=False, engine=spark).ok
        prepare(dataset, tmp_path / "pyspark", engine=spark)
        a, b = Shards.open(tmp_path / "duckdb").shards, Shards.open(tmp_path / "pyspark").shards
        assert all((x.shown_at == y.shown_at).all() for x, y in zip(a, b, strict=True))

    def test_the_same_stored_forms(self, service: Path, spark: Engine, tmp_path: Path) -> None:
        """As DuckDB reads them; INT96 as the times that they stand for."""
        dataset = shutil.copytree(service, tmp_path / "dataset")
        with_numbers_and_int96(dataset)
        reports = [check(dataset, images=False, engine=engine) for engine in (None, spark)]
        assert [violation.line() for violation in reports[1].violations] == []
        assert reports[0].remarks == reports[1].remarks
        assert reports[0].coverage == reports[1].coverage
        assert len(reports[0].remarks) >= 2
        config = PrepareConfig(shards=3)
        for name, engine in (("duckdb", None), ("pyspark", spark)):
            prepare(dataset, tmp_path / name, config, engine=engine)
        assert_same(tmp_path / "duckdb", tmp_path / "pyspark")
        prepare(service, tmp_path / "as-microseconds", config)
        one, other = (Shards.open(tmp_path / name).shards for name in ("as-microseconds", "pyspark"))
        # members lie in other shards and orders where their ids are numbers
        for column in ("shown_at", "play_time"):
            times, same = (np.sort(np.concatenate([getattr(s, column) for s in shards])) for shards in (one, other))
            np.testing.assert_array_equal(times, same)

    def test_the_same_likely_ids_and_images(self, spark: Engine, tmp_path: Path) -> None:
        dataset = small_dataset.write(tmp_path)
        put(dataset / PART_0, 0, title_id="\u00a0T0.0")
        put(dataset / PART_0, 1, artwork_id="artwork-3")
        put(dataset / PART_1, 2, candidates=["a0", '"A1"', "a2"])
        put(dataset / "artworks.parquet", 4, image=None)
        expected = check(dataset, images=False)
        assert sum("is listed)" in violation.line() for violation in expected.violations) == 3
        assert [warning.rule for warning in expected.warnings] == ["candidates-without-image"]
        report = check(dataset, images=False, engine=spark)
        assert [violation.line() for violation in report.violations] == [v.line() for v in expected.violations]
        assert report.warnings == expected.warnings
        assert report.coverage == expected.coverage

    @pytest.mark.parametrize(
        ("options", "new"),
        [
            ({"policy": "greedy"}, True),
            ({"policy": "thompson:16"}, False),
            ({"policy": "epsilon:0.2", "reward": "engaged"}, True),
        ],
        ids=["greedy", "thompson", "engaged"],
    )
    def test_the_same_scores(
        self,
        service: Path,
        bundle: Path,
        spark: Engine,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        options: dict[str, Any],
        new: bool,
    ) -> None:
        """Byte for byte: the same requests are in the same batches."""
        monkeypatch.setattr("datamodules.prepare.shard_size.SHARD_BYTES", 30_000 if new else 150_000)
        opened = Bundle.open(bundle)
        since = opened.test_from if new else None
        for name, engine in (("duckdb", None), ("pyspark", spark)):
            score(opened, service, tmp_path / name, **options, since=since, engine=engine)
        one, other = (files_of(tmp_path / name) for name in ("duckdb", "pyspark"))
        assert one == other
        assert len(json.loads(one["_reasons.json"])) > 3
        assert len(one) > 4, "several shards"
        assert not list(spark.folder.glob("scores-*"))

    @pytest.mark.parametrize(
        ("python", "message"),
        [
            (
                "#!/bin/sh\nPYTHONSAFEPATH=1 PYTHONPATH={without}:$PYTHONPATH exec {python} $@\n",
                r"cannot import keyart \(No module.*pip ",
            ),
            ("#!/bin/sh\nexit 3\n", r"an executor fails \(.*pyspark\.daemon.*\)\. Nothing was written"),
        ],
        ids=["without keyart", "that dies"],
    )
    def test_an_executor_that_cannot_rank(
        self,
        service: Path,
        bundle: Path,
        spark: Engine,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        python: str,
        message: str,
    ) -> None:
        (tmp_path / "without").mkdir()
        (tmp_path / "without/serving.py").write_text(
            'raise ModuleNotFoundError("No module named serving")', encoding="utf-8"
        )
        executable = tmp_path / f"python-{len(python)}"  # Spark keeps a daemon for each path of an interpreter
        executable.write_text(python.format(without=tmp_path / "without", python=sys.executable), encoding="utf-8")
        executable.chmod(0o755)
        monkeypatch.setattr(spark.session.sparkContext, "pythonExec", str(executable))
        opened = Bundle.open(bundle)
        late = opened.test_from
        score(opened, service, tmp_path / "scores", since=late)
        kept = files_of(tmp_path / "scores")
        with pytest.raises(UserError, match=message) as raised:
            score(opened, service, tmp_path / "scores", policy="epsilon:0.5", since=late, engine=spark)
        assert "\n" not in str(raised.value)
        assert files_of(tmp_path / "scores") == kept
        assert {path.name for path in tmp_path.iterdir()} == {"without", executable.name, "scores"}

    def test_the_command(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        dataset = small_dataset.write(tmp_path)
        words = ["--engine", "pyspark", "--spark", "spark.sql.shuffle.partitions=2", "--spark", "spark.master=local[1]"]
        assert keyart.main(["prepare", str(dataset), str(tmp_path / "pyspark"), *words]) == 0
        assert keyart.main(["prepare", str(dataset), str(tmp_path / "duckdb")]) == 0
        assert_same(tmp_path / "duckdb", tmp_path / "pyspark")
        assert "8" in capfd.readouterr().out


def test_a_shard_that_is_tried_twice_is_written_aside_twice(service: Path, bundle: Path, tmp_path: Path) -> None:
    """An error that the user can correct is reported, not retried."""
    opened = Bundle.open(bundle)
    prepare(service, tmp_path / "shards", vocabularies=opened.vocabularies, keep_requests=True)
    words: dict[str, Any] = {"policy": "softmax:0.5", "reward": "clicked"}
    work = ScoringTask.of(opened, tmp_path / "shards", tmp_path, **words, max_explained=3)
    assert "an executor does not see it" in task_result(work, 0)["refused"]
    Path(work.parts).mkdir()
    one, other = task_result(work, 0), task_result(work, 0)
    assert one["part"] != other["part"]
    assert one | {"part": ""} == other | {"part": ""}
    assert files_of(Path(work.parts))[one["part"]] == files_of(Path(work.parts))[other["part"]]
    assert "another bundle" in task_result(replace(work, digest="of before"), 0)["refused"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--spark", "spark.master=local"], "Add --engine pyspark"),
        (["--engine", "pyspark", "--spark", "local"], "give KEY=VALUE"),
        (["--engine", "pyspark", "--policy", "best"], "policy=best"),
        (["--memory", "some"], "memory=some"),
    ],
)
def test_bad_words_of_scoring(
    service: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert keyart.main(["score", str(bundle), str(service), str(tmp_path / "out"), *words]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


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
