"""`check`: a dataset by the contract passes; every way to break it is named, counted and located."""

import os
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from datamodules.contract.check import CheckReport, check, print_check_report, require_valid
from foundation.errors import UserError
from tests import small_dataset
from tests.dataset_edits import PART_0, PART_1, Break, add, cast_column, cut, drop, put, scribble, with_embeddings
from tests.image_breaks import IMAGE_BREAKS
from tests.row_breaks import ROW_BREAKS
from tests.schema_breaks import SCHEMA_BREAKS

POSTERWORLD = Path(__file__).parents[2] / "shared/data/posterworld"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """The smallest dataset with every table."""
    return small_dataset.write(tmp_path)


def only(check_report: CheckReport, rule: str) -> Any:
    """The only violation."""
    assert [violation.rule for violation in check_report.violations] == [rule], [
        v.line() for v in check_report.violations
    ]
    return check_report.violations[0]


def test_a_dataset_by_the_contract_passes(dataset: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    check_report = require_valid(dataset)
    assert check_report.ok
    assert check_report.rows == {"titles": 2, "artworks": 5, "plays": 3, "impressions": 8}
    assert check_report.files == {"titles": 1, "artworks": 1, "plays": 1, "impressions": 2}
    assert check_report.images == 5
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before


@pytest.mark.parametrize("log", ["_delta_log", ".hoodie", "metadata"])
def test_former_versions_of_a_table_are_warned_of(dataset: Path, log: str) -> None:
    """Every Parquet file of such a folder is read, those of deleted rows too."""
    (dataset / "impressions" / log).mkdir()
    (warning,) = check(dataset, images=False).warnings
    assert (warning.rule, warning.where) == ("versioned-table", "impressions/")
    assert log in warning.line()


def test_what_tools_leave_beside_their_files_is_no_fault(dataset: Path) -> None:
    names = ("_SUCCESS", ".part-0.parquet.crc", "_metadata", "_common_metadata", "._part-0.parquet", ".DS_Store")
    for name in (*names, "Thumbs.db", "README.md", "notes.txt"):
        (dataset / "impressions" / name).write_bytes(b"no Parquet")
    os.mkfifo(dataset / "impressions/pipe")
    check_report = check(dataset)
    assert check_report.ok
    assert check_report.files["impressions"] == 2
    assert not check_report.warnings


@pytest.mark.parametrize("case", SCHEMA_BREAKS + ROW_BREAKS + IMAGE_BREAKS, ids=lambda case: case.rule)
def test_each_break_is_named_counted_and_located(dataset: Path, case: Break) -> None:
    case.by(dataset)
    violation = only(check(dataset), case.rule)
    assert violation.count == case.count
    assert violation.where == case.where
    assert violation.line().startswith(f"{case.where}: ")
    assert violation.line().endswith(f". {violation.remedy}.")
    assert "\n" not in violation.line()
    assert case.says in violation.line()
    if case.first:
        assert violation.first == case.first
        assert case.first[0] in violation.line()


@pytest.mark.parametrize(
    ("table", "column", "name"),
    [
        ("titles.parquet", "release_year", "year"),
        ("titles.parquet", "cast", "cast_names"),
        ("artworks.parquet", "depicts", "depict"),
        ("plays/part-0.parquet", "artwork_id", "artworkIds"),
    ],
)
def test_an_optional_column_of_a_similar_name_is_a_warning(dataset: Path, table: str, column: str, name: str) -> None:
    """The column itself, where it is there, is no reason to warn."""
    original = pq.read_table(dataset / table)
    has = column in original.column_names
    add(dataset / table, name, pa.nulls(len(original), pa.string()))
    if has:
        assert check(dataset).warnings == ()
        drop(dataset / table, column)
    report = check(dataset)
    assert report.ok
    (warning,) = report.warnings
    assert warning.rule == "unread-column"
    assert f"has no column {column}; {name} is there, which is not read. Rename it to {column}" in warning.line()


def test_columns_of_other_names_are_no_warning(dataset: Path) -> None:
    add(dataset / "titles.parquet", "studio", pa.array(["x", "y"]))
    add(dataset / "artworks.parquet", "licence_id", pa.array(["x"] * 5))
    add(dataset / "plays/part-0.parquet", "device_id", pa.array(["x"] * 3))
    assert check(dataset).warnings == ()


def test_a_table_at_two_paths_is_a_warning(dataset: Path) -> None:
    shutil.copy(dataset / "plays/part-0.parquet", dataset / "plays.parquet")
    report = check(dataset)
    assert report.ok
    (warning,) = report.warnings
    assert warning.line().startswith("plays.parquet: holds Parquet, but is not read: plays/ is there too.")


@pytest.mark.parametrize(
    "name",
    ["plays.csv", "titles.csv", "impressions.md", "plays/part-0.parquet.md5", "plays/part-9.parquet.tmp", "plays/_x"],
)
def test_files_that_are_no_parquet_are_no_finding_beside_a_table(dataset: Path, name: str) -> None:
    (dataset / name).write_text("", encoding="utf-8")
    report = check(dataset)
    assert (report.violations, report.warnings) == ((), ())


def test_an_old_copy_of_a_table_is_a_warning(dataset: Path) -> None:
    shutil.copy(dataset / "titles.parquet", dataset / "titles.parquet.bak")
    report = check(dataset)
    assert report.ok
    (warning,) = report.warnings
    assert "titles.parquet.bak: holds Parquet, but is not read: titles.parquet is there too. Join" in warning.line()


def test_an_unknown_shown_artwork(dataset: Path) -> None:
    put(dataset / PART_1, 2, artwork_id="a9", candidates=["a9", "a1", "a2"])
    violation_of = {violation.rule: violation for violation in check(dataset).violations}
    assert set(violation_of) == {"unknown-artwork", "unknown-candidate"}
    assert violation_of["unknown-artwork"].first == ("i6, artwork a9",)


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_no_dataset(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    violation = only(check(tmp_path / name), "no-dataset")
    assert violation.where == str(tmp_path / name)


def test_an_empty_folder_lacks_every_table(tmp_path: Path) -> None:
    tables = ["titles.parquet", "artworks.parquet", "plays/", "impressions/"]
    assert [violation.where for violation in check(tmp_path).violations] == tables


def test_other_spellings_of_the_types_are_accepted(dataset: Path) -> None:
    dictionary = pa.dictionary(pa.int32(), pa.string())
    cast_column(dataset / "titles.parquet", "release_year", pa.uint64())
    cast_column(dataset / "titles.parquet", "genres", pa.large_list(pa.large_string()))
    cast_column(dataset / "artworks.parquet", "title_id", dictionary)
    for unit in ("ns", "ms", "s"):
        cast_column(dataset / "plays/part-0.parquet", "played_at", pa.timestamp(unit, "Europe/Berlin"))
        assert check(dataset, images=False).ok
    for part in (PART_0, PART_1):
        # the impressions of t0 alone, all of three candidates: a list of fixed size
        table = pq.read_table(dataset / part).take([0, 2])
        index = table.schema.get_field_index("candidates")
        fixed = pa.array(table["candidates"].to_pylist(), pa.list_(pa.string(), 3))
        pq.write_table(table.set_column(index, "candidates", fixed), dataset / part)
        cast_column(dataset / part, "shown_at", pa.timestamp("ns", "UTC"))
        cast_column(dataset / part, "title_id", pa.string_view())
        cast_column(dataset / part, "propensities", pa.large_list(pa.float64()))
        cast_column(dataset / part, "policy", dictionary)
    # one writer's large_string is another's string: the same column in Parquet
    cast_column(dataset / PART_1, "country", pa.large_string())
    # and columns the contract does not know may come and go
    add(dataset / PART_0, "weather", pa.array(["rain", "sun"]))
    assert [violation.line() for violation in check(dataset).violations] == []


@pytest.mark.parametrize(
    "type_",
    [pa.list_(pa.float32()), pa.list_(pa.float64()), pa.list_(pa.float32(), 3), pa.large_list(pa.float64())],
    ids=str,
)
def test_embeddings_beside_images_or_instead_of_them(dataset: Path, type_: pa.DataType) -> None:
    with_embeddings(type_=type_)(dataset)
    assert require_valid(dataset).images == 5
    put(dataset / "artworks.parquet", 1, image=None)
    assert require_valid(dataset).images == 4
    drop(dataset / "artworks.parquet", "image")
    assert require_valid(dataset).images == 0


def test_all_violations_are_reported(dataset: Path) -> None:
    drop(dataset / "titles.parquet", "name")
    put(dataset / PART_0, 0, propensities=[0.5, 0.5, 0.5], title_id="t9")
    put(dataset / PART_0, 1, propensities=[0.5, 0.1])
    put(dataset / PART_1, 0, propensities=[0.5, 0.1, 0.1], clicked=None)
    put(dataset / "plays/part-0.parquet", 0, watched=-0.5)
    cut(dataset / "images/a0.png")
    check_report = check(dataset)
    assert not check_report.ok
    violations = [(violation.rule, violation.where, violation.count) for violation in check_report.violations]
    assert violations == [
        ("missing-column", "titles.parquet", 1),
        ("watched-range", "plays/part-0.parquet", 1),
        ("null-clicked", PART_1, 1),
        ("propensities-sum", f"{PART_0} and 1 more file", 3),
        ("unreadable-image", "images/a0.png", 1),
    ], "and no unknown title, for the titles cannot be judged"
    assert check_report.violations[3].first == ("i0, sum 1.5", "i1, sum 0.6", "i4, sum 0.7")
    console = Console(record=True, quiet=False, file=StringIO(), width=60)
    with pytest.raises(UserError, match=r"^titles\.parquet: column name is missing.* And 4 more, printed above"):
        require_valid(dataset, console=console)
    printed = [line for line in console.export_text().splitlines() if line.startswith("violation ")]
    assert printed == [f"violation {violation.line()}" for violation in check_report.violations]


def test_damage_in_one_table_leaves_the_others_judged(dataset: Path) -> None:
    scribble(dataset / "artworks.parquet")
    put(dataset / PART_1, 2, title_id="t9")
    rules = [(violation.rule, violation.where) for violation in check(dataset).violations]
    assert rules == [("unreadable-file", "artworks.parquet"), ("unknown-title", PART_1)]


def test_images_can_be_left_out(dataset: Path) -> None:
    (dataset / "images/a0.png").unlink()
    assert not check(dataset).ok
    check_report = check(dataset, images=False)
    assert check_report.ok
    assert check_report.images == 0


def test_ids_may_hold_any_character(dataset: Path) -> None:
    put(dataset / PART_1, 2, impression_id="i'6\"\n\N{GRINNING FACE}[red]", member_id="\N{GRINNING FACE}")
    assert check(dataset).ok
    put(dataset / PART_1, 2, clicked=None)
    assert only(check(dataset), "null-clicked").first == ("i'6\"\\n\N{GRINNING FACE}[red]",)


def test_findings_can_be_read_in_100_columns(dataset: Path) -> None:
    console = Console(
        width=100, record=True, quiet=False, file=(dataset.parent / "out.txt").open("w", encoding="utf-8")
    )
    print_check_report(check(dataset), console)
    text = console.export_text()
    assert "dataset holds contract 1: 8 impressions, 3 plays, 2 titles, 5 artworks" in text
    put(dataset / PART_1, 2, clicked=None, impression_id="[bold]")
    print_check_report(check(dataset), console)
    text = console.export_text()
    assert f"violation {PART_1}: 1 row where clicked is null (first: [bold])." in text
    assert "1 violation of contract 1" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.shared_data
@pytest.mark.skipif(not POSTERWORLD.is_dir(), reason="shared/data/posterworld is not beside the checkout")
def test_posterworld_passes() -> None:
    check_report = check(POSTERWORLD)
    assert [violation.line() for violation in check_report.violations] == []
    assert check_report.rows["impressions"] == 600_000


def test_a_relative_dataset_with_a_broken_row(service: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(service, tmp_path / "here")
    table = pq.read_table(folder / "titles.parquet")
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), folder / "titles.parquet")
    monkeypatch.chdir(tmp_path)
    (violation,) = check(Path("here"), images=False).violations
    assert violation.where == "titles.parquet"
