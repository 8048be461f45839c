"""`keyart import` of what cannot be read: one line that names file, line or column, value and remedy, and nothing written."""

import gzip
import re
import shlex
from pathlib import Path

import pytest

from tests.exported_files import NAMES, RATINGS, run

LATIN = "userId,movieId,timestamp\nzoë,1,964982703\n".encode("latin-1")
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
        {"a.jsonl": '{"userId": 1}\n{"userId"'},
        f"a.jsonl D --map {NAMES}",
        r"a\.jsonl: cannot be read \(.*Malformed JSON",
    ),
    ({"a.jsonl": "[1]\n[2]\n"}, f"a.jsonl D --map {NAMES}", r"a\.jsonl: 2 lines are no JSON object"),
    (
        {"a.csv": RATINGS},
        f"a.csv D --map {NAMES} --plays-from clicked",
        r"plays_from=clicked: no file holds impressions",
    ),
    ({"a.csv": RATINGS}, f"a.csv D --map {NAMES} --images nowhere", r"images=nowhere: is no folder"),
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
