"""`keyart import`: what was exported in any form comes back as the same tables; what cannot be read ends in one line."""

import gzip
import json
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import keyart
from datamodules.contract.check import check, require_valid
from foundation.errors import UserError
from tests.exported_files import (
    NAMES,
    RATINGS,
    assert_same_impressions,
    frame,
    log_rows,
    rows_of,
    run,
    write_log,
    write_movielens,
    write_other_parquet,
    write_wide_log,
)

ROOT = Path(__file__).parents[1]
MOVIELENS = ROOT.parent / "shared" / "data" / "movielens-latest-small"
MOMENT = datetime(2024, 3, 2, 20, 15, tzinfo=UTC)


def test_movielens_in_one_command(
    service: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_movielens(service, tmp_path)
    assert run("ratings.csv", "movies.csv", "DATASET", "--map", f"{NAMES},name=title") == 0
    printed = capsys.readouterr().out
    for words in (
        r"userId +plays\.member_id +text +string",
        r"timestamp +plays\.played_at +text, seconds",
        r"rating +plays\.rating +text +double",
        "split at |",
    ):
        assert re.search(words.replace("at |", r"at \|"), printed), printed
    assert "left out" not in printed
    assert printed.endswith("Next: keyart check DATASET\n")
    plays, titles = frame(Path("DATASET"), "plays"), frame(Path("DATASET"), "titles.parquet")
    expected = frame(service, "plays")
    assert plays["member_id"].tolist() == expected["member_id"].tolist()
    assert plays["played_at"].tolist() == expected["played_at"].dt.floor("s").tolist()
    assert plays["rating"].tolist() == [row % 10 / 2 + 0.5 for row in range(len(plays))]
    assert [list(genres) for genres in titles["genres"]] == [
        list(genres) for genres in frame(service, "titles.parquet")["genres"]
    ]
    assert keyart.main(["check", "DATASET"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        f"holds a part of contract 1: {len(plays):,} plays, {len(titles):,} titles; enough for keyart bench" in printed
    )
    assert "every other command also needs artworks.parquet, impressions/" in printed
    for command in ("prepare", "pipeline"):
        assert keyart.main([command, "DATASET", "out"]) == 1
        assert "artworks.parquet: the table is missing" in capsys.readouterr().err.splitlines()[-1]
    assert not Path("out", "shards").exists()


@pytest.mark.shared_data
@pytest.mark.skipif(not MOVIELENS.is_dir(), reason="shared/data/movielens-latest-small is not beside the checkout")
def test_movielens_itself(tmp_path: Path) -> None:
    words = (MOVIELENS / "ratings.csv", MOVIELENS / "movies.csv", tmp_path / "d")
    assert run(*words, "--map", f"{NAMES},name=title") == 0
    report = check(tmp_path / "d")
    assert report.ok
    assert report.rows == {"titles": 9742, "plays": 100836}
    assert report.ratings is not None
    assert report.ratings.line() == "100,836 of 100,836 plays are rated, by stars from 0.5 to 5, 3.5 on average"
    assert [row["genres"] for row in rows_of(tmp_path / "d", "titles.parquet", "title_id")].count(None) == 34


def test_a_log_alone_can_be_valued_and_gives_the_value_of_the_whole_dataset(
    service: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(service, tmp_path)
    dataset = tmp_path / "d"
    assert run(tmp_path / "log.csv", dataset) == 0
    assert_same_impressions(service, dataset)
    assert keyart.main(["check", str(dataset)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"enough for keyart value {dataset} SCORES OUT" in printed
    log = pq.read_table(service / "impressions")
    sizes = [len(candidates) for candidates in log["candidates"].to_pylist()]
    first = pa.array([[1.0] + [0.0] * (size - 1) for size in sizes], pa.list_(pa.float32()))
    scores = {"impression_id": log["impression_id"], "candidates": log["candidates"]}
    pq.write_table(pa.table({**scores, "click_probability": first, "policy": first}), tmp_path / "scores.parquet")
    values = []
    for each in (dataset, service):
        out = tmp_path / f"value-{each.name}"
        assert keyart.main(["value", str(each), str(tmp_path / "scores.parquet"), str(out)]) == 0
        values.append(json.loads((out / "value.json").read_text(encoding="utf-8"))["estimates"])
    assert values[0] == values[1]


def test_a_wide_log_makes_a_whole_dataset(service: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_wide_log(service, tmp_path)
    names = "member_id=user,name=movie_title,impression_id=@row"
    words = ("--map", names, "--plays-from", "engaged", "--images", service)
    assert run(tmp_path / "wide.csv", tmp_path / "d", *words) == 0
    assert "147 of 147 images copied" in capsys.readouterr().out
    report = require_valid(tmp_path / "d")
    assert not report.absent
    for table, key, columns in (
        ("titles.parquet", "title_id", ("title_id", "name", "genres")),
        ("artworks.parquet", "artwork_id", ("artwork_id", "title_id", "image")),
    ):
        rows, expected = rows_of(tmp_path / "d", table, key), rows_of(service, table, key)
        assert [[row[name] for name in columns] for row in rows] == [
            [row[name] for name in columns] for row in expected
        ]
    engaged = [row for row in rows_of(service, "impressions", "impression_id") if row["engaged"]]
    plays = rows_of(tmp_path / "d", "plays", "played_at")
    assert {(row["member_id"], row["title_id"], row["played_at"], row["artwork_id"]) for row in plays} == {
        (row["member_id"], row["title_id"], row["shown_at"], row["artwork_id"]) for row in engaged
    }


def test_candidates_that_were_never_shown_are_artworks_too(service: Path, tmp_path: Path) -> None:
    write_log(service, tmp_path)
    log = pd.read_csv(tmp_path / "log.csv").head(40)
    log.to_csv(tmp_path / "log.csv", index=False)
    words = ("--table", "impressions,titles,artworks", "--map", "image:=images/{artwork_id}.jpg")
    assert run(tmp_path / "log.csv", tmp_path / "d", *words, "--images", service) == 0
    listed = {row["artwork_id"]: row["image"] for row in rows_of(tmp_path / "d", "artworks.parquet", "artwork_id")}
    candidates: set[str] = {artwork for text in log["candidates"] for artwork in json.loads(text)}
    assert listed == {artwork: f"images/{artwork}.jpg" for artwork in candidates}
    assert candidates > set(log["artwork_id"])
    assert all((tmp_path / "d" / image).is_file() for image in listed.values())


def as_numpy_prints(rows: pd.DataFrame, folder: Path) -> Path:
    for column in ("candidates", "propensities"):
        rows[column] = [str(pd.array(json.loads(text)).to_numpy()) for text in rows[column]]
    assert not any("," in text for text in (*rows["candidates"], *rows["propensities"]))
    rows.to_csv(folder / "log.csv", index=False)
    return folder / "log.csv"


def as_python_prints(rows: pd.DataFrame, folder: Path) -> Path:
    rows["candidates"] = [str(json.loads(text)) for text in rows["candidates"]]
    rows.to_csv(folder / "log.tsv", index=False, sep="\t")
    return folder / "log.tsv"


def as_separated(rows: pd.DataFrame, folder: Path) -> Path:
    for column in ("candidates", "propensities"):
        rows[column] = ["|".join(map(str, json.loads(text))) for text in rows[column]]
    rows.to_csv(folder / "log.csv", index=True, encoding="utf-8-sig", lineterminator="\r\n")
    return folder / "log.csv"


def as_postgres_copies(rows: pd.DataFrame, folder: Path) -> Path:
    for column in ("candidates", "propensities"):
        rows[column] = ["{" + ",".join(map(str, json.loads(text))) + "}" for text in rows[column]]
    rows["clicked"] = ["t" if clicked else "f" for clicked in rows["clicked"]]
    rows["shown_at"] = rows["shown_at"].astype(str).str.removesuffix(":00")  # +00
    rows.to_csv(folder / "log.csv", index=False, sep=";")
    return folder / "log.csv"


def as_excel_in_germany(rows: pd.DataFrame, folder: Path) -> Path:
    rows["propensities"] = [
        "; ".join(str(value).replace(".", ",") for value in json.loads(text)) for text in rows["propensities"]
    ]
    rows["candidates"] = [";".join(json.loads(text)) for text in rows["candidates"]]
    rows["note"] = "two\nlines"
    rows.to_csv(folder / "log.csv", index=False, sep=";", encoding="utf-16", lineterminator="\r\n")
    return folder / "log.csv"


def as_json_lines(rows: pd.DataFrame, folder: Path) -> Path:
    for column in ("candidates", "propensities"):
        rows[column] = [json.loads(text) for text in rows[column]]
    rows["shown_at"] = rows["shown_at"].astype("int64").astype(str)
    lines = rows.to_json(orient="records", lines=True)
    (folder / "log.jsonl.gz").write_bytes(gzip.compress(str(lines).encode()))
    return folder / "log.jsonl.gz"


@pytest.mark.parametrize(
    ("export", "words"),
    [
        (as_numpy_prints, ()),
        (as_python_prints, ()),
        (as_separated, ()),
        (as_postgres_copies, ()),
        (as_excel_in_germany, ("--decimal", ",")),
        (as_json_lines, ()),
    ],
)
def test_every_form_of_a_log_gives_the_same_impressions(
    service: Path, tmp_path: Path, export: Callable[[pd.DataFrame, Path], Path], words: tuple[str, ...]
) -> None:
    path = export(log_rows(service), tmp_path)
    assert run(path, tmp_path / "d", *words) == 0
    assert_same_impressions(service, tmp_path / "d")


def test_parquet_with_other_names_in_several_files(service: Path, tmp_path: Path) -> None:
    write_other_parquet(service, tmp_path)
    table = pq.read_table(tmp_path / "log.parquet")
    (tmp_path / "log").mkdir()
    pq.write_table(table.slice(0, 4000), tmp_path / "log" / "part-[0].parquet")
    pq.write_table(table.slice(4000), tmp_path / "log" / "part-1.parquet")
    (tmp_path / "log" / "_SUCCESS").touch()
    names = "member_id=Member,title_id=Title,artwork_id=Shown,shown_at=At"
    assert run(tmp_path / "log", tmp_path / "d", "--map", names) == 0
    assert_same_impressions(service, tmp_path / "d")


def test_ids_stay_what_they_are_and_floats_of_whole_numbers_are_their_digits(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(RATINGS, encoding="utf-8")
    assert run(tmp_path / "a.csv", tmp_path / "d", "--map", NAMES) == 0
    rows = rows_of(tmp_path / "d", "plays", "played_at")
    assert [(row["member_id"], row["title_id"]) for row in rows] == [("007", "01"), ("8", "1")]
    big = 2**63 + 12345
    lines = [
        {"userId": big, "movieId": "01", "timestamp": 964982703},
        {"userId": "x", "movieId": 1, "timestamp": 964982704},
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert run(tmp_path / "b.jsonl", tmp_path / "e", "--map", NAMES) == 0
    rows = rows_of(tmp_path / "e", "plays", "played_at")
    assert [(row["member_id"], row["title_id"]) for row in rows] == [(str(big), "01"), ("x", "1")]
    floats = {"userId": [7.0, 8.0], "movieId": [1, 2], "timestamp": [964982703.0, 964982704.5]}
    pq.write_table(pa.table(floats), tmp_path / "c.parquet")
    assert run(tmp_path / "c.parquet", tmp_path / "f", "--map", NAMES) == 0
    rows = rows_of(tmp_path / "f", "plays", "played_at")
    assert [(row["member_id"], row["title_id"]) for row in rows] == [("7", "1"), ("8", "2")]
    assert rows[1]["played_at"].microsecond == 500000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1709410500", ()),
        ("1709410500.0", ()),
        ("1709410500000", ()),
        ("1709410500000000", ()),
        ("1709410500000000000", ()),
        ("1.7094105E9", ()),
        ("2024-03-02T20:15:00Z", ()),
        ("2024-03-02 20:15:00 UTC", ()),
        ("2024-03-02 21:15:00+01:00", ()),
        ("2024-03-02T21:15:00+0100", ()),
        ("2024-03-02 15:15:00.000000-05", ()),
        ("2024-03-02 20:15:00", ("--zone", "UTC")),
        ("2024-03-02T21:15", ("--zone", "Europe/Berlin")),
        ("02.03.2024 21:15", ("--zone", "Europe/Berlin", "--time-format", "%d.%m.%Y %H:%M")),
        ("20240302201500", ("--zone", "UTC", "--time-format", "%Y%m%d%H%M%S")),
    ],
)
def test_forms_of_a_time(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    (tmp_path / "a.csv").write_text(f"userId,movieId,timestamp\n1,2,{text}\n", encoding="utf-8")
    assert run(tmp_path / "a.csv", tmp_path / "d", "--map", NAMES, *words) == 0
    assert [row["played_at"] for row in rows_of(tmp_path / "d", "plays", "played_at")] == [MOMENT]


def test_what_can_not_be_known_is_null_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "userId,movieId,timestamp,watched\nNA,1,964982703,NA\n2,1,964982704,\n3,1,964982705,N/A\n4,1,964982706,0.5\n"
        "5,1,soon,0.25\n"
    )
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    assert run(tmp_path / "a.csv", tmp_path / "d", "--map", NAMES, "--unparsable", "null") == 0
    rows = rows_of(tmp_path / "d", "plays", "member_id")
    assert [row["watched"] for row in rows] == [None, None, 0.5, 0.25, None]
    assert [row["member_id"] for row in rows] == ["2", "3", "4", "5", "NA"], "an id may be called so"
    printed = " ".join(capsys.readouterr().out.split())
    assert "plays.member_id: 1 row says 'NA', kept as text; --null NA makes it null" in printed
    assert "3 (N/A, NA)" in printed
    assert "1 value that is no timestamp (first: 'soon', row 5); null now" in printed
    assert run(tmp_path / "a.csv", tmp_path / "e", "--map", NAMES, "--unparsable", "null", "--null", "NA") == 0
    assert [row["member_id"] for row in rows_of(tmp_path / "e", "plays", "played_at")].count(None) == 1


def test_countries_and_names_that_look_like_nulls_are_kept(service: Path, tmp_path: Path) -> None:
    log = log_rows(service).head(20)
    log["country"] = "NA"
    log.to_csv(tmp_path / "log.csv", index=False)
    assert run(tmp_path / "log.csv", tmp_path / "d") == 0
    assert {row["country"] for row in rows_of(tmp_path / "d", "impressions", "impression_id")} == {"NA"}


def test_tables_come_one_by_one_and_are_never_replaced(
    service: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_movielens(service, tmp_path)
    write_log(service, tmp_path)
    dataset = tmp_path / "d"
    assert run(tmp_path / "movies.csv", dataset, "--map", "title_id=movieId", "--map", "name=title") == 0
    assert run(tmp_path / "ratings.csv", dataset, "--map", NAMES) == 0
    assert run(tmp_path / "log.csv", dataset) == 0
    artworks = frame(service, "artworks.parquet")
    artworks["depicts"] = [";".join(words) for words in artworks["depicts"]]
    artworks.to_csv(tmp_path / "artworks.csv", index=False)
    assert run(tmp_path / "artworks.csv", dataset, "--images", service) == 0
    expected = check(service).rows
    assert require_valid(dataset).rows == {
        name: expected[name] for name in ("titles", "artworks", "plays", "impressions")
    }
    before = {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(tmp_path / "ratings.csv", tmp_path / "movies.csv", dataset, "--map", f"{NAMES},name=title") == 1
    assert "is there already, and is never overwritten" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()} == before


def test_segments_and_context_features(service: Path, tmp_path: Path) -> None:
    members = {"id": frame(service, "plays")["member_id"].unique(), "plan": "family", "age": "30"}
    pd.DataFrame(members).to_csv(tmp_path / "people.csv", index=False)
    assert run(tmp_path / "people.csv", tmp_path / "d", "--map", "member_id=id", "--table", "members") == 0
    assert pq.read_schema(tmp_path / "d" / "members.parquet").names == ["member_id", "plan", "age"]
    log = log_rows(service).head(20)
    log["lang"], log["login"] = "de", "1.5"
    log.to_csv(tmp_path / "log.csv", index=False)
    words = ("--map", "impressions.language=lang,impressions.login_minutes:number=login")
    assert run(tmp_path / "log.csv", tmp_path / "d", *words) == 0
    row = rows_of(tmp_path / "d", "impressions", "impression_id")[0]
    assert (row["language"], row["login_minutes"]) == ("de", 1.5)


def test_parts_of_a_dataset_pass_and_everything_between_does_not(service: Path, tmp_path: Path) -> None:
    dataset = shutil.copytree(service, tmp_path / "d")
    (dataset / "artworks.parquet").unlink()
    assert [violation.rule for violation in check(dataset, images=False).violations] == ["missing-table"]
    shutil.move(dataset / "impressions", tmp_path / "impressions")
    report = check(dataset)
    assert report.ok
    assert [violation.where for violation in report.absent] == ["artworks.parquet", "impressions/"]
    with pytest.raises(UserError, match=r"^artworks\.parquet: the table is missing"):
        require_valid(dataset)
    pq.write_table(pq.read_table(tmp_path / "impressions"), dataset / "impressions.parquet")
    assert not check(dataset).ok, "the log is there, elsewhere"
