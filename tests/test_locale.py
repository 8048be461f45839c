"""Everything keyart writes and reads is UTF-8 whatever the locale, and no character ends a command."""

import ast
import codecs
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from configs.terminal import plain_characters
from datamodules.simulator.simulate import SimulateConfig, simulate

ROOT = Path(__file__).parents[1]
LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
QUICK = ["--fit.passes", "1", "--fit.batch", "64", "--fit.slices", "1", "--embed.views", "64", "--embed.batch", "32"]
TEXT_MODES = {"r", "w", "a", "x", "r+", "w+", "a+", "rt", "wt", "at"}


def calls_without_encoding(source: str) -> list[int]:
    """Lines that open text in the locale's encoding; PLW1514 knows of a path only where it sees it made."""
    lines = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or any(keyword.arg in ("encoding", None) for keyword in call.keywords):
            continue
        keywords = {keyword.arg for keyword in call.keywords}
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        modes = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
        reads = name == "read_text" and not call.args
        writes = name == "write_text" and len(call.args) == 1
        opens = name == "open" and (isinstance(call.func, ast.Name) or bool(set(modes) & TEXT_MODES))
        binary = any(isinstance(mode, str) and "b" in mode and len(mode) < 4 for mode in modes)
        runs = name in ("run", "Popen", "check_output") and bool(keywords & {"text", "universal_newlines"})
        if reads or writes or (opens and not binary) or runs:
            lines.append(call.lineno)
    return lines


def test_every_text_file_names_its_encoding() -> None:
    paths = [path for path in ROOT.rglob("*.py") if not set(path.relative_to(ROOT).parts) & {".venv", "build"}]
    lines_of = {path: calls_without_encoding(path.read_text(encoding="utf-8")) for path in paths}
    assert {path: lines for path, lines in lines_of.items() if lines} == {}
    assert len(paths) > 150


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("(folder / NAME).read_text()", [1]),
        ("path.write_text(text)", [1]),
        ("open(path)", [1]),
        ("path.open('a', newline='')", [1]),
        ("subprocess.run(words, text=True)", [1]),
        ("path.read_text('utf-8'); path.write_text(text, encoding='utf-8'); path.open('rb'); Shards.open(path)", []),
    ],
)
def test_calls_without_encoding_are_seen(source: str, lines: list[int]) -> None:
    assert calls_without_encoding(source) == lines


def accented(table: pa.Table) -> pa.Table:
    """The table with an accent at the end of every id and every image's name."""

    def put(column: pa.ChunkedArray) -> pa.ChunkedArray:
        return pc.binary_join_element_wise(column, "é本", "")  # pyright: ignore[reportAttributeAccessIssue]

    for name in ("impression_id", "member_id", "title_id", "artwork_id"):
        if name in table.column_names:
            table = table.set_column(table.schema.get_field_index(name), name, put(table[name]))
    if "candidates" in table.column_names:
        lists = pa.array([[f"{value}é本" for value in row] for row in table["candidates"].to_pylist()])
        table = table.set_column(table.schema.get_field_index("candidates"), "candidates", lists)
    if "image" in table.column_names:
        names = pa.array([name.replace("images/", "images/ü-") for name in table["image"].to_pylist()])
        table = table.set_column(table.schema.get_field_index("image"), "image", names)
    return table


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated service whose ids and image names are not ASCII."""
    folder = tmp_path_factory.mktemp("locale") / "dataset"
    simulate(folder, SimulateConfig(seed=1, members=60, titles=10, people=8, mean_plays=12, mean_impressions=12))
    shutil.rmtree(folder / "truth")
    for path in folder.rglob("*.parquet"):
        pq.write_table(accented(pq.read_table(path)), path)
    for path in list((folder / "images").iterdir()):
        path.rename(path.with_name(f"ü-{path.name}"))
    return folder


def keyart(*words: object, locale: dict[str, str]) -> str:
    """What a command writes to both streams; it must succeed."""
    call = [sys.executable, "-m", "keyart", *map(str, words)]
    done = subprocess.run(call, cwd=ROOT, env=os.environ | locale, capture_output=True, check=False)
    said = (done.stdout + done.stderr).decode("utf-8", "backslashreplace")
    assert done.returncode == 0, said
    return said


def test_the_same_bytes_under_any_locale(dataset: Path, tmp_path: Path) -> None:
    utf8 = {"LC_ALL": "C.UTF-8"}
    keyart(
        "pipeline", dataset, tmp_path / "out", *QUICK, locale=LOCALE
    )  # checks, prepares, embeds, fits, exports, evaluates
    bundle = tmp_path / "out/bundle"
    for name, locale in (("a", utf8), ("b", LOCALE)):
        keyart("score", bundle, dataset, tmp_path / name, locale=locale)
    assert (tmp_path / "a/part-00000.parquet").read_bytes() == (tmp_path / "b/part-00000.parquet").read_bytes()
    keyart("verify", bundle, locale=LOCALE)
    keyart("prepare", dataset, tmp_path / "shards", locale=utf8)
    names = "vocabularies.json"
    assert (tmp_path / "shards" / names).read_bytes() == (tmp_path / "out/shards" / names).read_bytes()
    call = [sys.executable, "-I", str(bundle / "example.py")]
    done = subprocess.run(call, env=os.environ | LOCALE, capture_output=True, check=True)
    assert b"max_abs_difference" in done.stdout


def test_a_name_that_the_terminal_cannot_show_is_escaped(dataset: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dataset, tmp_path / "dataset")
    table = pq.read_table(folder / "artworks.parquet")
    pq.write_table(table.slice(1), folder / "artworks.parquet")
    call = [sys.executable, "-m", "keyart", "check", str(folder)]
    done = subprocess.run(call, cwd=ROOT, env=os.environ | LOCALE, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr == b""
    assert rb"\xe9\u672c" in done.stdout.replace(b"\n", b"")


def test_what_tables_hold_beyond_ascii_is_plain_where_a_terminal_has_no_such_character() -> None:
    codecs.register_error("plain", plain_characters)
    assert "\u2014 1\u20132 \u2026 3\u00d7".encode("ascii", "plain") == b"- 1-2 ... 3x"
    assert "3\u00d7 \u2014 \u6771".encode("latin-1", "plain") == b"3\xd7 - \\u6771"
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("utf-8", "plain")


def test_a_folder_that_the_locale_cannot_name_is_refused(dataset: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dataset, tmp_path / "datasét")
    call = [sys.executable, "-m", "keyart", "check", str(folder)]
    done = subprocess.run(call, cwd=ROOT, env=os.environ | LOCALE, capture_output=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(b"keyart: ")
    assert b"is not UTF-8" in line
    assert b"PYTHONUTF8=1" in line
    keyart("check", folder, locale=LOCALE | {"PYTHONUTF8": "1"})
