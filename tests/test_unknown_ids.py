"""A bundle over a dataset whose ids it does not know: counted, named, and refused where nothing is left to rank by."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import keyart
from foundation.errors import UserError
from serving.bundle.bundle import Bundle
from serving.scoring.score import score

ALL_IDS = {"title_id", "artwork_id", "candidates"}


def renamed(service: Path, folder: Path, columns: set[str], keep: int = 0, files: str = "**/*.parquet") -> Path:
    """The dataset with a prefix on every id of the columns of some files, but for the first `keep` rows of each."""
    shutil.copytree(service, folder, ignore=shutil.ignore_patterns("truth", "images"))
    (folder / "images").symlink_to(service / "images")

    def put(values: list[str | None]) -> list[str | None]:
        return [value and f"other-{value}" for value in values]

    for path in sorted(folder.glob(files)):
        table = pq.read_table(path)
        for name in columns & set(table.column_names):
            values = table[name].to_pylist()
            rest = [put(row) for row in values[keep:]] if name == "candidates" else put(values[keep:])
            column = pa.array(values[:keep] + rest, table.schema.field(name).type)
            table = table.set_column(table.schema.get_field_index(name), name, column)
        pq.write_table(table, path)
    return folder


def printed(bundle: Path, dataset: Path, out: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """What scoring the dataset prints, on one line."""
    score(Bundle.open(bundle), dataset, out)
    return " ".join(capfd.readouterr().err.split())


def test_another_catalogue_is_refused_before_any_score(service: Path, bundle: Path, tmp_path: Path) -> None:
    dataset, out = renamed(service, tmp_path / "dataset", ALL_IDS), tmp_path / "scores"
    with pytest.raises(
        UserError, match=r"impressions\.title_id are not known to .* \(first: other-.*; it knows .* more\)"
    ):
        score(Bundle.open(bundle), dataset, out)
    assert not out.exists()


def test_it_is_said_in_one_line_and_may_be_allowed(
    service: Path, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset, out = renamed(service, tmp_path / "dataset", ALL_IDS), tmp_path / "scores"
    assert keyart.main(["score", str(bundle), str(dataset), str(out)]) == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("keyart score: ")]
    assert "keyart score --allow-unknown" in line
    assert keyart.main(["score", str(bundle), str(dataset), str(out), "--allow-unknown"]) == 0
    said = capfd.readouterr().err
    for column in ("impressions.title_id", "impressions.candidates", "plays.title_id"):
        assert f"values of {column} are not known" in said
    table = pq.read_table(out / "part-00000.parquet", columns=["click_probability"])
    row = table["click_probability"][0].as_py()
    assert max(row) == min(row), "they are ties"


def test_plays_of_another_catalogue_are_refused_too(service: Path, bundle: Path, tmp_path: Path) -> None:
    """Its histories say nothing, however well candidates are known."""
    dataset = renamed(service, tmp_path / "dataset", {"title_id"}, files="plays/*.parquet")
    with pytest.raises(UserError, match=r"plays\.title_id are not known"):
        score(Bundle.open(bundle), dataset, tmp_path / "scores")


def test_many_unknown_ids_are_a_warning(
    service: Path, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = sum(pq.read_metadata(path).num_rows for path in (service / "impressions").glob("*.parquet"))
    files = len(list((service / "impressions").glob("*.parquet")))
    dataset = renamed(service, tmp_path / "dataset", {"candidates"}, keep=rows // files // 2)
    said = printed(bundle, dataset, tmp_path / "scores", capfd)
    assert "values of impressions.candidates are not known" in said
    assert "plays.title_id" not in said


def test_a_category_is_said_where_its_values_are_unknown_not_where_they_are_missing(
    service: Path, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = renamed(service, tmp_path / "dataset", {"country"})
    for path in sorted((dataset / "impressions").glob("*.parquet")):
        table = pq.read_table(path)
        nothing = pa.nulls(len(table), pa.string())
        pq.write_table(table.set_column(table.schema.get_field_index("device"), "device", nothing), path)
    said = printed(bundle, dataset, tmp_path / "scores", capfd)
    assert "values of impressions.country are not known" in said
    assert "impressions.device" not in said


def test_its_own_dataset_says_nothing(
    service: Path, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "not known" not in printed(bundle, service, tmp_path / "scores", capfd)
