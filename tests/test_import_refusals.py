"""`keyart import` of what cannot be read: one line that names file, line or column, value and remedy, and nothing written."""

import gzip
import os
import re
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.exported_files import NAMES, RATINGS, run

LATIN = "userId,movieId,timestamp\nzoë,1,964982703\n".encode("latin-1")
ROWS = """\
impression_id,member_id,title_id,artwork_id,shown_at,propensity,shown,clicked
i1,m1,t1,a1,2024-03-02T20:15:00Z,0.25,0,0
i1,m1,t1,a2,2024-03-02T20:15:00Z,0.75,1,1
i2,m2,t1,a1,2024-03-02T20:16:00Z,0.5,1,0
i2,m2,t1,a2,2024-03-02T20:16:00Z,0.5,0,0
"""
EVENT = '{"member_id": {"id": "m1"}, "title_id": "t1", "played_at": "2024-03-02T20:15:00Z"}'
SLATE = (
    '{"impression_id": "i1", "member_id": "m1", "title_id": "t1", "artwork_id": "a1", "shown_at": "2024-03-02T20:15:00Z", '
    '"slate": [{"id": "a1", "p": 1.0}], "clicked": true}'
)
REFUSED: list[tuple[dict[str, str | bytes], str, str]] = [
    ({}, f"none.csv D --map {NAMES}", r"none\.csv: does not exist\."),
    ({"a.csv": RATINGS}, "a.csv", r"a\.csv: give FILES \.\.\. DATASET"),
    ({"a.csv": RATINGS, "b.csv": RATINGS}, f"a.csv b.csv --map {NAMES}", r"b\.csv: is a file\. The last word"),
    ({"a.csv": RATINGS}, f"a.csv a.csv D --map {NAMES}", r"a\.csv: is named twice"),
    (
        {"a.csv": RATINGS},
        "a.csv D --map member_id=userid,title_id=movieId",
        r"no column userid\. Did you mean userId\?",
    ),
    ({"a.csv": RATINGS}, "a.csv D --map userId=member_id", r"Turn it round: member_id=userId\."),
    ({"a.csv": RATINGS}, "a.csv D --map membr_id=userId", r"Did you mean member_id\?"),
    ({"a.csv": RATINGS}, f"a.csv D --map {NAMES},member_id=movieId", r"member_id is mapped twice"),
    ({"a.csv": RATINGS}, "a.csv D --map member_id", r"give TARGET=COLUMN"),
    ({"a.csv": RATINGS}, "a.csv D", r"no column shows which table it is: .* Columns: userId, movieId, timestamp\."),
    ({"a.csv": RATINGS}, "a.csv D --table plays", r"plays need member_id, .* --map member_id=userId"),
    ({"a.csv": RATINGS}, "a.csv D --table play", r"table=play: no table"),
    ({"a.csv": RATINGS}, f"a.csv D --map {NAMES} --zone Mars", r"zone=Mars: no time zone"),
    ({"a.csv": RATINGS}, f"a.csv D --map {NAMES} --encoding utf-9", r"encoding=utf-9: no encoding"),
    ({"a.csv": ""}, f"a.csv D --map {NAMES}", r"a\.csv: is empty"),
    ({"a.csv": "\ufeff\r\n"}, f"a.csv D --map {NAMES}", r"a\.csv: is empty"),
    ({"a.csv": "userId,movieId,timestamp\n"}, f"a.csv D --map {NAMES}", r"a\.csv: holds a header and no rows"),
    (
        {"a.csv": "7,1,964982703\n"},
        f"a.csv D --map {NAMES}",
        r"line 1 has no names of columns \(7, 1, 964982703\)\. .*--header",
    ),
    ({"a.csv": "a,a,b\n1,2,3\n"}, f"a.csv D --map {NAMES}", r"two columns are called a"),
    ({"a.csv": RATINGS + "9,1\n"}, f"a.csv D --map {NAMES}", r"a\.csv: line 4 has 2 columns, and the header has 3"),
    ({"a.csv": RATINGS + "9,1,2,3\n"}, f"a.csv D --map {NAMES}", r"a\.csv: line 4 has 4 columns, and the header has 3"),
    (
        {"a.csv": RATINGS + '"9,1,2\n'},
        f"a.csv D --map {NAMES}",
        r"a\.csv: line 4 cannot be read \(.*unterminated quote",
    ),
    (
        {"a.csv": RATINGS + "9,1,x\n9,2,y\n"},
        f"a.csv D --map {NAMES}",
        r"column timestamp: 2 values that are no timestamp \(first: 'x', row 3\)",
    ),
    ({"a.csv": RATINGS + "9,1,0\n"}, f"a.csv D --map {NAMES}", r"numbers from 0 to 964982704 are in no single unit"),
    ({"a.csv": RATINGS + "9,1,964982703000\n"}, f"a.csv D --map {NAMES}", r"are in no single unit since 1970"),
    (
        {"a.csv": "userId,movieId,timestamp\n9,1,202403022015\n"},
        f"a.csv D --map {NAMES}",
        r"look like dates without marks",
    ),
    (
        {"a.csv": "userId,movieId,timestamp\n9,1,2024-03-02 20:15\n"},
        f"a.csv D --map {NAMES}",
        r"1 times without a zone \(first: 2024-03-02 20:15\)\. .*--zone UTC",
    ),
    (
        {"a.csv": "userId,movieId,timestamp\n9,1,02/03/2024\n"},
        f"a.csv D --map {NAMES}",
        r"no timestamp \(first: '02/03/2024', row 1\)\. .*--time-format",
    ),
    (
        {"a.csv": "userId;movieId;timestamp;watched\n9;1;964982703;0,5\n"},
        f"a.csv D --map {NAMES}",
        r"column watched: 1 value that is no float \(first: '0,5', row 1\)\. .*--decimal ,",
    ),
    (
        {"a.csv": LATIN},
        f"a.csv D --map {NAMES}",
        r"a\.csv: line 2 is not in utf-8 \(byte 0xEB\)\. .*--encoding ISO-8859-1 it reads 'zoë,1",
    ),
    ({"a.csv": LATIN.replace(b"\xeb", b"\x80")}, f"a.csv D --map {NAMES}", r"--encoding windows-1252 it reads '€,|zo€"),
    (
        {"a.csv": RATINGS.replace("007", "zoë")},
        f"a.csv D --map {NAMES} --encoding latin-1",
        r"is UTF-8, and iso8859-1 would garble it",
    ),
    ({"a.csv": RATINGS.encode("utf-16-le")}, f"a.csv D --map {NAMES}", r"a\.csv: line 1 holds a zero byte"),
    ({"a.csv.gz": gzip.compress(RATINGS.encode())[:40]}, f"a.csv.gz D --map {NAMES}", r"the gzip file is damaged"),
    ({"a.xlsx": b"PK\x03\x04"}, f"a.xlsx D --map {NAMES}", r"is a zip archive or a spreadsheet"),
    ({"a.doc": "x"}, f"a.doc D --map {NAMES}", r"a\.doc: of no known kind"),
    ({"a.parquet": "x"}, f"a.parquet D --map {NAMES}", r"a\.parquet: cannot be read as Parquet"),
    (
        {"a.csv": RATINGS, "b.csv": RATINGS.replace("Id,t", "Id,x,t").replace("1,9", "1,5,9")},
        f"a.csv b.csv D --map {NAMES}",
        r"b\.csv: has x, unlike a\.csv, and both hold plays",
    ),
    ({"a.csv": RATINGS, "b.csv": "x,y\n1,2\n"}, f"a.csv b.csv D --map {NAMES}", r"b\.csv: no column shows which table"),
    (
        {"a.jsonl": '{"userId": 1}\n\n{"userId"\n{"userId": 2}\n'},
        f"a.jsonl D --map {NAMES}",
        r"a\.jsonl: line 3 is no JSON \(Expecting ':' delimiter: .*\): {\"userId\"\. Fix the line",
    ),
    (
        {"a.jsonl": "{'userId': 1}\n"},
        f"a.jsonl D --map {NAMES}",
        r"a\.jsonl: line 1 is no JSON \(Expecting property name enclosed in double quotes",
    ),
    (
        {"a.json": '{"rows": [\n{"userId": 1},\n{"userId"}\n]}'},
        f"a.json D --map {NAMES}",
        r"a\.json: cannot be read \(.*Malformed JSON",
    ),
    (
        {"a.csv": RATINGS.replace("007", "zoë").encode("utf-16-le")},
        f"a.csv D --map {NAMES}",
        r"a\.csv: line 2 holds zero bytes, so it is no text in utf-8\. Give --encoding, such as UTF-16-LE",
    ),
    ({"a.csv": "sep=;\n" + RATINGS}, f"a.csv D --map {NAMES}", r"a\.csv: line 1 is 'sep=;', .* Remove the line\."),
    ({"a.jsonl": "[1]\n[2]\n"}, f"a.jsonl D --map {NAMES}", r"a\.jsonl: 2 lines are no JSON object"),
    (
        {"a.csv": RATINGS},
        f"a.csv D --map {NAMES} --plays-from clicked",
        r"plays_from=clicked: no file holds impressions",
    ),
    ({"a.csv": RATINGS}, f"a.csv D --map {NAMES} --images nowhere", r"images=nowhere: is no folder"),
    (
        {"a.csv": ROWS.replace(",1,0\n", ",0,0\n")},
        "a.csv D",
        r"1 of 2 impressions have candidates, none .*\(first: i2\)\.",
    ),
    ({"a.csv": ROWS.replace(",0,0\n", ",1,0\n")}, "a.csv D", r"2 of 2 impressions have several .*\(first: i1\)\."),
    (
        {"a.csv": ROWS.replace("i1,m1,t1,a1", "i1,m9,t1,a1")},
        "a.csv D",
        r"1 of 2 impressions have rows that differ in member_id",
    ),
    (
        {"a.csv": ROWS.replace("a2,2024-03-02T20:16:00Z,0.5,0,0", "a2,2024-03-02T20:16:00Z,0.5,0,1")},
        "a.csv D",
        r"1 of 2 impressions have a click on a candidate that was not shown \(first: i2\)",
    ),
    ({"a.csv": ROWS.replace("i1,m1,t1,a1", ",m1,t1,a1")}, "a.csv D", r"a\.csv: candidates without an impression_id\."),
    (
        {"a.csv": "".join(ROWS.splitlines(keepends=True)[:4:2])},
        "a.csv D",
        r"every impression has one row, .*--map candidates=COLUMN",
    ),
    ({"a.csv": ROWS}, "a.csv D --map impression_id=@row", r"has a row for each candidate, .*Name a column"),
    (
        {"a.csv": ROWS},
        "a.csv D --map candidates=artwork_id,shown=shown",
        r"map=shown=shown: shown is of logs with one row per candidate, .*Leave one out",
    ),
    ({"a.csv": ROWS.replace(",shown,", ",was,")}, "a.csv D", r"need candidates, .*the shown one: --map shown=COLUMN"),
    (
        {"a.csv": ROWS.replace(",propensity,", ",p,")},
        "a.csv D",
        r"have neither propensities, .*--map propensity=COLUMN",
    ),
    (
        {"a.csv": "impression_id,member_id,title_id\ni1,m1,t1\n", "b.csv": "impression_id,artwork_id,p\ni1,a1,1\n"},
        "a.csv b.csv D",
        r"b\.csv: has artwork_id, p, unlike a\.csv, .*join them by impression_id first\.",
    ),
    (
        {"a.jsonl": EVENT},
        "a.jsonl D --map member_id=member_id.idd",
        r"no column member_id\.idd\. Did you mean member_id\.id\?",
    ),
    (
        {"a.jsonl": EVENT},
        "a.jsonl D",
        r"column member_id: 1 value that is no string \(first: '{\"id\":\"m1\"}', row 1\)\. .*COLUMN\.FIELD",
    ),
    (
        {"a.jsonl": SLATE},
        "a.jsonl D --map candidates=slate,propensities=slate.p",
        r"column slate: 1 value that is no list of string .*name a field: --map TARGET=COLUMN\.FIELD",
    ),
    (
        {"a.jsonl": SLATE.replace('"slate": [{"id": "a1", "p": 1.0}]', '"slate": {"a1": 0.5, "a2": 0.5}')},
        "a.jsonl D --map candidates=slate,propensities=slate",
        r"column slate: 1 value that is no list of string",
    ),
    ({"a.orc": b"ORC\x08"}, "a.orc D", r"a\.orc: is an ORC file\. Export it as CSV, JSON lines or Parquet"),
    ({"a.avro": b"Obj\x01\x04"}, "a.avro D", r"a\.avro: is an Avro file\. Export it"),
    ({"a.feather": b"ARROW1\0\0"}, "a.feather D", r"a\.feather: is an Arrow file \(Feather\)\. Export it"),
    ({"a.csv.bz2": b"BZh91AY"}, "a.csv.bz2 D", r"a\.csv\.bz2: is compressed by bzip2\. .*bunzip2 -k a\.csv\.bz2"),
]


@pytest.mark.parametrize(("files", "words", "says"), REFUSED, ids=[says[:40] for _, _, says in REFUSED])
def test_what_cannot_be_read_ends_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    files: dict[str, str | bytes],
    words: str,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert run(*shlex.split(words)) == 1
    error = capsys.readouterr().err
    assert error.startswith("keyart import: ")
    assert error.count("\n") == 1, error
    assert re.search(says, error), error
    assert {path.name for path in tmp_path.iterdir()} == set(files), "nothing half-written"


def test_a_pipe_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its content can be read once, and opening it waits for a writer."""
    os.mkfifo(tmp_path / "a.csv")
    (tmp_path / "b.csv").symlink_to("nowhere")
    for file, says in (("a.csv", "is a pipe or a device"), ("b.csv", "does not exist")):
        assert run(tmp_path / file, tmp_path / "d", "--map", NAMES) == 1
        assert says in capsys.readouterr().err
    assert run(tmp_path, tmp_path / "d", "--map", NAMES) == 1
    assert "a.csv: is a pipe or a device. Save what it gives as a file" in capsys.readouterr().err
    (tmp_path / "a.csv").unlink()
    assert run(tmp_path, tmp_path / "d", "--map", NAMES) == 1
    assert "b.csv: is a link that leads to no file" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("breaks", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("blank", [0, 1, 3])
def test_blank_lines_before_the_header(tmp_path: Path, blank: int, breaks: str) -> None:
    """Where every column is text, the header was once read as a row."""
    lines = [*[""] * blank, "title_id,name,genres", "t1,Night,drama", "t2,Day,comedy", ""]
    (tmp_path / "a.csv").write_bytes(breaks.join(lines).encode())
    assert run(tmp_path / "a.csv", tmp_path / "d") == 0
    assert pq.read_table(tmp_path / "d/titles.parquet")["title_id"].to_pylist() == ["t1", "t2"]


def test_a_table_of_delta_is_no_folder_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log/_delta_log").mkdir(parents=True)
    (tmp_path / "log/a.csv").write_text(RATINGS, encoding="utf-8")
    assert run(tmp_path / "log", tmp_path / "d", "--map", NAMES) == 1
    assert "is a table of Delta or Iceberg" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
