"""What the tables of a dataset know of each other: images of what is shown, and ids in one form."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import keyart
from datamodules.contract.check import check, require_valid
from datamodules.contract.check_files import printable
from datamodules.contract.id_forms import normal_form
from foundation.errors import UserError


@pytest.fixture
def dataset(simulated: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(simulated, tmp_path / "dataset")


def candidates_of(dataset: Path) -> Counter[str]:
    """In how many impressions each artwork is a candidate."""
    lists = pq.read_table(dataset / "impressions", columns=["candidates"])["candidates"].to_pylist()
    return Counter(artwork for candidates in lists for artwork in candidates)


def test_candidates_without_an_image_are_counted(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is not there, one that does not decode, one that is not named."""
    counts, path = candidates_of(dataset), dataset / "artworks.parquet"
    artworks = pq.read_table(path).to_pylist()
    images = {row["artwork_id"]: row["image"] for row in artworks}
    one, other, third = sorted(counts, key=lambda artwork: (-counts[artwork], artwork))[:3]
    (dataset / images[one]).unlink()
    (dataset / images[other]).write_bytes(b"no image")
    for row in artworks:
        row["image"] = None if row["artwork_id"] == third else row["image"]
    pq.write_table(pa.Table.from_pylist(artworks, pq.read_schema(path)), path)
    report = check(dataset)
    assert [violation.rule for violation in report.violations] == ["null-image", "missing-image", "unreadable-image"]
    (warning,) = report.warnings
    assert warning.rule == "candidates-without-image"
    assert warning.count == counts[one] + counts[other] + counts[third]
    assert f"{warning.count:,} of {counts.total():,} candidates have no readable image" in warning.what
    assert warning.first[0] == f"{one}, {images[one]}, {counts[one]:,} candidates"
    assert warning.first[2] == f"{third}, no image named, {counts[third]:,} candidates"
    assert keyart.main(["check", str(dataset)]) == 1
    share = 100 * warning.count / counts.total()
    printed = " ".join(capsys.readouterr().out.split())
    assert f"of artworks and {share:.1f} % of candidates have no readable image" in printed


def test_a_log_of_which_no_candidate_has_an_image_is_refused(dataset: Path, tmp_path: Path) -> None:
    for path in (dataset / "images").iterdir():
        path.unlink()
    report = check(dataset)
    assert [violation.rule for violation in report.violations] == ["missing-image", "candidates-without-image"]
    assert report.violations[1].count == candidates_of(dataset).total()
    assert check(dataset, images=False).ok, "no image was opened"
    assert keyart.main(["pipeline", str(dataset), str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out/shards").exists()


def test_images_of_artworks_that_nobody_is_shown_do_not_count(dataset: Path) -> None:
    path = dataset / "artworks.parquet"
    artworks = pq.read_table(path)
    more = [
        {**row, "artwork_id": f"{row['artwork_id']}-new", "image": "images/none.png"} for row in artworks.to_pylist()
    ]
    pq.write_table(pa.concat_tables([artworks, pa.Table.from_pylist(more, artworks.schema)]), path)
    report = check(dataset)
    assert [violation.rule for violation in report.violations] == ["missing-image"]
    assert report.warnings == ()


def test_where_artworks_have_embeddings_images_may_be_left_out(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = dataset / "artworks.parquet"
    artworks = pq.read_table(path)
    vectors = pa.array([[1.0, float(index)] for index in range(len(artworks))], pa.list_(pa.float32()))
    pq.write_table(artworks.drop_columns("image").append_column("embedding", vectors), path)
    report = check(dataset)
    assert report.ok
    assert report.warnings == ()
    assert keyart.main(["prepare", str(dataset), str(tmp_path / "shards")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "100 % of artworks and 100 % of candidates have no image" in said


def test_prepare_counts_candidates_whose_artwork_names_no_image(dataset: Path) -> None:
    """An artwork that nobody is shown names one."""
    path = dataset / "artworks.parquet"
    artworks = pq.read_table(path)
    rows = [{**row, "image": None} for row in artworks.to_pylist()]
    rows.append({**artworks.to_pylist()[0], "artwork_id": "another"})
    pq.write_table(pa.Table.from_pylist(rows, artworks.schema), path)
    rules = [violation.rule for violation in check(dataset, images=False).violations]
    assert rules == ["null-image", "candidates-without-image"]
    with pytest.raises(UserError, match=r"candidates have no image \(first: .*, no image named, [\d,]+ candidates; "):
        require_valid(dataset, images=False, drop_invalid=True)


def parts_of(dataset: Path, table: str) -> list[Path]:
    """The files of a table."""
    return sorted((dataset / table).glob("*.parquet")) or [dataset / table]


def with_ids(dataset: Path, table: str, column: str, how: Callable[[str], str]) -> None:
    """One column of ids, alone or in lists, in another form."""
    for path in parts_of(dataset, table):
        rows = pq.read_table(path)
        values = [
            [how(value) for value in cell] if isinstance(cell, list) else cell and how(cell)
            for cell in rows[column].to_pylist()
        ]
        changed = pa.array(values, rows.schema.field(column).type)
        pq.write_table(rows.set_column(rows.column_names.index(column), column, changed), path)


FORMS: dict[str, Callable[[str], str]] = {
    "case": str.upper,
    "white space": lambda id_: f" {id_}\t",
    "no-break space": lambda id_: f"{id_}\u00a0",
    "quotes": lambda id_: f'"{id_}"',
    "zeros": lambda id_: f"00{id_}",
    "float": lambda id_: f"{id_}.0",
    "prefix": lambda id_: f"catalogue-{id_}",
}


@pytest.fixture(scope="module")
def lettered(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The service with titles `ab100`, `ab101`, ... and artworks likewise. Read it, never write into it."""
    folder = shutil.copytree(simulated, tmp_path_factory.mktemp("coverage") / "lettered")
    for key, catalogue in (("title_id", "titles.parquet"), ("artwork_id", "artworks.parquet")):
        ids = sorted(pq.read_table(folder / catalogue)[key].to_pylist())
        names = {id_: f"ab{100 + index}" for index, id_ in enumerate(ids)}
        for table in ("titles.parquet", "artworks.parquet", "plays", "impressions"):
            for column in {key, "candidates"} if key == "artwork_id" else {key}:
                if column in pq.read_schema(parts_of(folder, table)[0]).names:
                    with_ids(folder, table, column, names.__getitem__)
    return folder


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("table", "column", "rule"),
    [
        ("artworks.parquet", "title_id", "unknown-title"),
        ("plays", "title_id", "unknown-title"),
        ("impressions", "title_id", "unknown-title"),
        ("impressions", "artwork_id", "unknown-artwork"),
        ("impressions", "candidates", "unknown-candidate"),
    ],
)
def test_an_id_that_is_not_listed_is_shown_beside_the_likely_one(
    lettered: Path, tmp_path: Path, table: str, column: str, rule: str, form: str
) -> None:
    folder, how = shutil.copytree(lettered, tmp_path / "dataset"), FORMS[form]
    with_ids(folder, table, column, how)
    (violation,) = [one for one in check(folder, images=False).violations if one.rule == rule]
    key, catalogue = ("title_id", "titles.parquet") if column == "title_id" else ("artwork_id", "artworks.parquet")
    listed = set(pq.read_table(folder / catalogue)[key].to_pylist())
    assert len(violation.first) == 3
    for offender in violation.first:
        shown, likely = offender.removesuffix(" is listed)").rsplit(" (", 1)
        assert likely in listed
        assert shown.endswith(f"{rule.removeprefix('unknown-')} {printable(how(likely))}")
    assert violation.remedy == f"Write {key} in one form in every table"


def test_an_id_like_none_that_is_listed_has_no_hint(lettered: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(lettered, tmp_path / "dataset")
    with_ids(folder, "plays", "title_id", lambda id_: f"{id_}-b")
    (violation,) = [one for one in check(folder, images=False).violations if one.rule == "unknown-title"]
    assert "is listed)" not in violation.line()
    assert violation.remedy.startswith("Add the title to titles.parquet")


def test_members_with_a_prefix_are_shown_beside_each_other(dataset: Path) -> None:
    with_ids(dataset, "plays", "member_id", lambda id_: f"user:{id_}")
    (violation,) = check(dataset, images=False).violations
    assert violation.rule == "no-play-before"
    (pair,) = violation.first
    one, other = pair.split(" beside ")
    assert other == f"user:{one}"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1e6", "1000000"),
        ("1.234567e+06", "1234567"),
        ("1,234", "1234"),
        ("12'345'678", "12345678"),
        ("12\u00a0", "12"),
        ("12\x00", "12"),
        ("Zo\u00eb", "zoe\u0308"),
        ("Nguy\u1ec5n", "Nguye\u0302\u0303n"),
        ("{0e984725-c51c-4bf4-9960-e1c80e27aba0}", "0E984725C51C4BF49960E1C80E27ABA0"),
    ],
)
def test_two_forms_of_one_id(one: str, other: str) -> None:
    assert one != other
    forms = ibis.memtable({"id": [one, other]}).select(form=normal_form(ibis._.id))
    assert len(set(ibis.duckdb.connect().to_pyarrow(forms)["form"].to_pylist())) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [("1e6", "1000001"), ("1,23", "123"), ("1e99", "10"), ("\u6771\u4eac", "\u5927\u962a"), ("Zoe", "Zoo")],
)
def test_two_ids(one: str, other: str) -> None:
    forms = ibis.memtable({"id": [one, other]}).select(form=normal_form(ibis._.id))
    assert len(set(ibis.duckdb.connect().to_pyarrow(forms)["form"].to_pylist())) == 2
