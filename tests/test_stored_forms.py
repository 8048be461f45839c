"""One log as Spark, Hive, pandas and warehouses store it: the same shards, or one line that says what is lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import keyart
from datamodules.contract.check import CheckReport, check
from datamodules.contract.engines import open_engine, to_arrow
from datamodules.contract.row_rule import id_value
from datamodules.contract.stored_types import is_blank, with_text_ids
from datamodules.prepare.prepare import PrepareConfig, prepare
from datamodules.shards.shard import MANIFEST, Shards
from evaluation.logs.logged_impressions import read_outcomes
from foundation.errors import UserError
from train.fit import FitConfig, fit

# pyright: reportAttributeAccessIssue=false


@pytest.fixture
def dataset(simulated: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(simulated, tmp_path / "dataset")


def change(path: Path, how: Callable[[pa.Table], pa.Table]) -> None:
    """Every Parquet file of a table, changed."""
    for file in [path] if path.is_file() else sorted(path.rglob("*.parquet")):
        pq.write_table(how(pq.read_table(file)), file)


def column(name: str, how: Callable[[pa.ChunkedArray], pa.ChunkedArray]) -> Callable[[pa.Table], pa.Table]:
    """One column of a table, changed."""
    return lambda table: table.set_column(table.schema.get_field_index(name), name, how(table[name]))


def numbered(values: pa.ChunkedArray, digits: int = 0) -> pa.ChunkedArray:
    """The ids' digits alone, with zeros before them."""
    return pc.utf8_lpad(pc.replace_substring_regex(values, r"\D", ""), digits, "0")


def shards_of(dataset: Path, out: Path) -> dict[str, bytes]:
    """What a preparation writes, but for the manifest, which holds the files' fingerprint."""
    prepare(dataset, out)
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.*") if path.name != MANIFEST}


def warned(report: CheckReport) -> list[str]:
    return [warning.rule for warning in report.warnings]


def test_folders_of_spark_and_hive(simulated: Path, dataset: Path, tmp_path: Path) -> None:
    (dataset / "titles.parquet").rename(dataset / "part-0.parquet")
    (dataset / "titles.parquet").mkdir()
    titles = pq.read_table(dataset / "part-0.parquet")
    (dataset / "part-0.parquet").unlink()
    for part, rows in enumerate((titles.slice(0, 4), titles.slice(4))):
        pq.write_table(rows, dataset / f"titles.parquet/part-{part:05d}-ab.c000.snappy.parquet")
        (dataset / f"titles.parquet/.part-{part:05d}-ab.c000.snappy.parquet.crc").write_bytes(b"crc")
    (dataset / "titles.parquet/_SUCCESS").write_bytes(b"")
    for file in sorted((dataset / "impressions").glob("*.parquet")):
        table = pq.read_table(file)
        file.unlink()
        for part, rows in enumerate((table.slice(0, 100), table.slice(100))):
            folder = dataset / f"impressions/date=2026-01-{part + 1:02d}"
            folder.mkdir(exist_ok=True)
            pq.write_table(rows, folder / file.name)
    (dataset / "impressions/_temporary").mkdir()
    (dataset / "impressions/_temporary/part-0.parquet").write_bytes(b"half")
    report = check(dataset)
    assert [violation.line() for violation in report.violations] == []
    assert report.rows == check(simulated, images=False).rows
    assert shards_of(dataset, tmp_path / "a") == shards_of(simulated, tmp_path / "b")
    log, same = read_outcomes(dataset), read_outcomes(simulated)
    assert log is not None
    assert same is not None
    np.testing.assert_array_equal(np.sort(log.shown_at), np.sort(same.shown_at))


def test_int96_is_utc(simulated: Path, dataset: Path, tmp_path: Path) -> None:
    for name, time in (("plays", "played_at"), ("impressions", "shown_at")):
        for file in (dataset / name).glob("*.parquet"):
            table = column(time, lambda values: values.cast(pa.timestamp("us")))(pq.read_table(file))
            pq.write_table(table, file, use_deprecated_int96_timestamps=True, store_schema=False)
    report = check(dataset)
    assert [violation.line() for violation in report.violations] == []
    assert [remark for remark in report.remarks if "INT96" in remark] == list(report.remarks)
    assert len(report.remarks) == 2
    assert shards_of(dataset, tmp_path / "a") == shards_of(simulated, tmp_path / "b")
    log, same = read_outcomes(dataset), read_outcomes(simulated)
    assert log is not None
    assert same is not None
    np.testing.assert_array_equal(log.shown_at, same.shown_at)


@pytest.mark.parametrize(
    "type_", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_every_type_of_text(simulated: Path, dataset: Path, tmp_path: Path, type_: pa.DataType) -> None:
    for name in ("titles.parquet", "artworks.parquet", "plays", "impressions"):
        for text in ("title_id", "artwork_id", "member_id", "impression_id", "policy", "country"):
            has = text in pq.read_schema(next(iter((dataset / name).glob("*")), dataset / name)).names
            if has:
                change(dataset / name, column(text, lambda values: values.cast(type_)))
    assert [violation.line() for violation in check(dataset).violations] == []
    assert shards_of(dataset, tmp_path / "a") == shards_of(simulated, tmp_path / "b")
    assert read_outcomes(dataset) is not None


def test_ids_as_whole_numbers_are_their_digits(dataset: Path, tmp_path: Path) -> None:
    """Compared with the same log whose ids are those digits as text."""

    def ids(type_: pa.DataType, folder: Path) -> Path:
        for name in ("titles.parquet", "artworks.parquet", "plays", "impressions"):
            for one in ("title_id", "artwork_id", "member_id", "impression_id"):
                files = [folder / name] if name.endswith("parquet") else list((folder / name).glob("*.parquet"))
                if one in pq.read_schema(files[0]).names:
                    change(folder / name, column(one, lambda values: number(values).cast(type_)))
        change(folder / "impressions", column("candidates", lambda values: in_lists(values, type_)))
        return folder

    def in_lists(lists: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
        whole = pa.concat_arrays(lists.chunks)
        flat = number(pa.chunked_array([pc.list_flatten(whole)])).cast(type_).combine_chunks()
        offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(whole))])
        return pa.chunked_array([pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)])

    def number(values: pa.ChunkedArray) -> pa.ChunkedArray:
        return pc.replace_substring_regex(pc.replace_substring_regex(values, r"\D", "7"), "^", "1")

    text = ids(pa.string(), shutil.copytree(dataset, tmp_path / "text"))
    whole = ids(pa.int64(), dataset)
    report = check(whole)
    assert [violation.line() for violation in report.violations] == []
    assert any("member_id holds whole numbers (int64); their digits are the ids" in remark for remark in report.remarks)
    assert shards_of(whole, tmp_path / "a") == shards_of(text, tmp_path / "b")
    log, same = read_outcomes(whole), read_outcomes(text)
    assert log is not None
    assert same is not None
    assert log.artworks.to_pylist() == same.artworks.to_pylist()


def test_ids_in_two_forms_are_an_error(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(dataset / "impressions", column("member_id", lambda values: numbered(values, 8)))
    change(dataset / "plays", column("member_id", lambda values: numbered(numbered(values), 0)))
    change(dataset / "plays", column("member_id", lambda values: values.cast(pa.int64())))
    (violation,) = check(dataset, images=False).violations
    assert violation.rule == "no-play-before"
    assert "share no member_id (first: 0000" in violation.line()
    for words in (["check", str(dataset)], ["prepare", str(dataset), str(tmp_path / "a")]):
        assert keyart.main(words) == 1
    said = "".join(capsys.readouterr())
    assert "0 % of impressions have a play of their member before them" in said.replace("\n", " ")


@pytest.mark.parametrize(
    ("table", "name", "how"),
    [
        ("plays", "member_id", pc.utf8_upper),
        ("plays", "title_id", pc.utf8_upper),
        ("plays", "member_id", lambda values: pc.binary_join_element_wise(values, ".0", "")),
    ],
)
def test_some_ids_in_another_form_are_a_warning(
    dataset: Path, table: str, name: str, how: Callable[[pa.ChunkedArray], pa.ChunkedArray]
) -> None:
    """A fifth of the rows alone, of titles that are listed in both forms."""
    titles = pq.read_table(dataset / "titles.parquet")
    upper = column("title_id", pc.utf8_upper)(titles)
    pq.write_table(pa.concat_tables([titles, upper]), dataset / "titles.parquet")

    def some(table: pa.Table) -> pa.Table:
        changed = how(table[name])
        fifth = pa.array(np.arange(len(table)) % 5 == 0)
        return table.set_column(table.schema.get_field_index(name), name, pc.if_else(fifth, changed, table[name]))

    assert warned(check(dataset, images=False)) == []
    change(dataset / table, some)
    report = check(dataset, images=False)
    assert report.ok
    assert warned(report) == ["ids-in-two-forms"]
    assert " beside " in report.warnings[0].line()


def test_members_without_plays_and_plays_without_impressions_are_no_warning(dataset: Path) -> None:
    """Half of the members cold, and as many who were shown nothing."""
    members = sorted(set(pq.read_table(dataset / "plays")["member_id"].to_pylist()))
    cold, silent = members[::2], members[1::4]
    change(dataset / "plays", lambda table: table.filter(pc.invert(pc.is_in(table["member_id"], pa.array(cold)))))
    change(
        dataset / "impressions", lambda table: table.filter(pc.invert(pc.is_in(table["member_id"], pa.array(silent))))
    )
    report = check(dataset, images=False)
    assert report.ok
    assert warned(report) == []
    assert report.coverage is not None
    shown = pq.read_table(dataset / "impressions").to_pandas()
    first = pq.read_table(dataset / "plays").to_pandas().groupby("member_id").played_at.min()
    assert report.coverage.with_play_before == int((shown.member_id.map(first) < shown.shown_at).sum())


def test_a_file_of_plays_copied_twice(simulated: Path, dataset: Path, tmp_path: Path) -> None:
    file = min((dataset / "plays").glob("*.parquet"))
    shutil.copy(file, file.with_name("part-copy.parquet"))
    report = check(dataset, images=False)
    assert report.ok
    (warning,) = report.warnings
    assert warning.rule == "repeated-play"
    assert warning.count == pq.read_metadata(file).num_rows
    rows = prepare(dataset, tmp_path / "a", PrepareConfig(drop_invalid=True))["rows"]["plays"]
    assert rows["dropped"] == {"repeated-play": warning.count}
    prepare(simulated, tmp_path / "b")
    for one, other in zip(Shards.open(tmp_path / "a").shards, Shards.open(tmp_path / "b").shards, strict=True):
        np.testing.assert_array_equal(one.play_time, other.play_time)
        np.testing.assert_array_equal(one.history_end, other.history_end)


def test_plays_exported_twice_that_are_not_quite_alike(dataset: Path) -> None:
    """A microsecond apart, and with another share watched; where times are dates alone, a title can be played twice."""
    file = min((dataset / "plays").glob("*.parquet"))
    plays = pq.read_table(file)
    times = plays["played_at"].to_numpy().astype("datetime64[s]").astype("datetime64[us]")
    plays = column(
        "played_at", lambda old: pa.chunked_array([pa.array(times, pa.timestamp("us", "UTC")).cast(old.type)])
    )(plays)
    watched = pa.array(np.full(len(plays), 0.123), plays.schema.field("watched").type)
    copies = column("watched", lambda _: pa.chunked_array([watched]))(plays)
    copies = column("played_at", lambda old: pc.add(old, pa.scalar(1, pa.duration("us"))).cast(old.type))(copies)
    pq.write_table(plays, file.with_name("part-first.parquet"))
    pq.write_table(copies, file.with_name("part-second.parquet"))
    file.unlink()
    (warning,) = [one for one in check(dataset, images=False).warnings if "play" in one.rule]
    assert (warning.rule, warning.count, len(warning.first)) == ("near-copies-of-plays", len(plays), 3)
    change(dataset / "plays", column("played_at", lambda old: pc.floor_temporal(old, unit="day")))
    assert not [rule for rule in warned(check(dataset, images=False)) if "play" in rule]


def test_impressions_exported_twice_under_new_ids(dataset: Path) -> None:
    """A title that is shown twice on a page is no copy."""
    file = min((dataset / "impressions").rglob("*.parquet"))
    rows = pq.read_metadata(file).num_rows
    copy = Path(shutil.copy(file, file.with_name("part-copy.parquet")))
    change(copy, column("impression_id", lambda ids: pc.binary_join_element_wise(ids, "copy", "-")))
    (warning,) = check(dataset, images=False).warnings
    assert (warning.rule, warning.count) == ("repeated-impression", rows)
    change(copy, column("row", lambda old: pc.add(old, 1).cast(old.type)))
    assert check(dataset, images=False).warnings == ()


def test_coarse_times_that_empty_a_period_are_refused(dataset: Path, tmp_path: Path) -> None:
    days = pa.array([0, 86_400_000_000], pa.timestamp("us", "UTC"))

    def two_days(table: pa.Table) -> pa.Table:
        late = pa.array(np.arange(len(table)) % 2)
        times = pc.add(days.take(late).cast(pa.int64()), 1_767_225_600_000_000).cast(pa.timestamp("us", "UTC"))
        return table.set_column(table.schema.get_field_index("shown_at"), "shown_at", times)

    change(dataset / "impressions", two_days)
    with pytest.raises(
        UserError, match=r"the validation period would be empty: .* have 2 different shown_at.*Log shown_at"
    ):
        prepare(dataset, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("clicked", "says"), [(True, "were clicked, and nothing"), (False, "has no click to learn")])
def test_only_clicks_or_none(shards: Path, tmp_path: Path, clicked: bool, says: str) -> None:
    folder = shutil.copytree(shards, tmp_path / "shards")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for shard in range(manifest["shards"]):
        path = folder / f"shard-{shard:05d}/clicked.npy"
        np.save(path, np.full_like(np.load(path), int(clicked)))
    for split in manifest["splits"].values():
        split["clicks"] = split["impressions"] * int(clicked)
    (folder / MANIFEST).write_text(json.dumps(manifest | {"files": {}}), encoding="utf-8")
    with pytest.raises(UserError, match=says):
        fit(folder, tmp_path / "run", FitConfig(), console=Console(quiet=True))


def test_years_that_are_none_are_clipped_where_nothing_judged_them(dataset: Path, tmp_path: Path) -> None:
    change(
        dataset / "titles.parquet",
        column("release_year", lambda values: pa.array([19990101, 0, 9999, *values.to_pylist()[3:]])),
    )
    prepare(dataset, tmp_path / "a")
    assert np.abs(Shards.open(tmp_path / "a").catalogue.title_year).max() <= 13
    manifest = prepare(dataset, tmp_path / "b", PrepareConfig(drop_invalid=True))
    assert manifest["rows"]["titles"]["made_null"] == {"release-year-range": 3}
    assert (Shards.open(tmp_path / "b").catalogue.title_year == 0).sum() >= 4


def test_blank_ids_are_the_same_to_python_arrow_and_engine(tmp_path: Path) -> None:
    blank = ["", " ", "\0", "\t\n", "\xa0", "\u200b", "\u3000 ", "\ufeff"]
    texts = [*blank, "x", " x", "\xa0x", "x\n", "é", "日本", "~", "\U0001f3ac"]
    table = pa.table({"title_id": texts})
    pq.write_table(table, tmp_path / "ids.parquet")
    with open_engine() as engine:
        rows: Any = engine.read([tmp_path / "ids.parquet"], "ids")
        by_engine = {
            row["title_id"]: row["id"] for row in to_arrow(rows.mutate(id=id_value(rows.title_id))).to_pylist()
        }
    expected = {text: None if text in blank else text for text in texts}
    assert {text: None if is_blank(text) else text for text in texts} == expected
    assert dict(zip(texts, with_text_ids(table)["title_id"].to_pylist(), strict=True)) == expected
    assert by_engine == expected
