"""Everything keyart writes and reads is UTF-8 whatever the locale; names in any script, and with marks that libraries read as
their own, go from the dataset to the report without a word, and no character ends a command."""

import ast
import codecs
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.terminal import plain_characters
from datamodules.simulator.simulate import SimulateConfig, simulate
from evaluation.report.charts import chart

ROOT = Path(__file__).parents[1]
LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
UNWRITABLE = {"MPLCONFIGDIR": "/proc/nowhere"}
QUICK = ["--fit.epochs", "1", "--fit.batch", "64", "--fit.validations_per_epoch", "1"]
QUICK += ["--embed.views", "64", "--embed.batch", "32"]
SUFFIXES = (
    "电影",
    "مسلسل",
    "🎬",
    "$5 a_b^{ $6",
    "<b>&\"'",
    "เรื่อง",
    "हिन्दी",
    "עברית",
    "한국어",
    "a\u0301\u202e",
    "_x",
    "é本",
)
TEXTS = {"impression_id", "member_id", "title_id", "artwork_id", "policy", "country", "device", "name"}
LISTS = {"candidates", "genres", "cast", "depicts"}
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


def suffixed(word: str) -> str:
    return f"{word} {SUFFIXES[sum(word.encode()) % len(SUFFIXES)]}"


def changed(table: pa.Table) -> pa.Table:
    """The table with a suffix at the end of every id and name, and an accent in every image's."""
    for index, name in enumerate(table.column_names):
        values = table[name].to_pylist()
        if name in TEXTS:
            renamed: list = [value if value is None else suffixed(value) for value in values]
        elif name in LISTS:
            renamed = [words if words is None else [suffixed(word) for word in words] for words in values]
        elif name == "image":
            renamed = [value.replace("images/", "images/ü-") for value in values]
        else:
            continue
        table = table.set_column(index, name, pa.array(renamed, table.schema.field(name).type))
    return table


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated service whose names are in many scripts, and whose image names are not ASCII."""
    folder = tmp_path_factory.mktemp("locale") / "dataset"
    simulate(folder, SimulateConfig(seed=1, members=80, titles=10, people=8, mean_plays=12, mean_impressions=12))
    shutil.rmtree(folder / "truth")
    for path in folder.rglob("*.parquet"):
        pq.write_table(changed(pq.read_table(path)), path)
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


def test_the_same_bytes_under_any_locale_and_no_word_about_names(dataset: Path, tmp_path: Path) -> None:
    """Where the charts' library can write no settings of its own, either."""
    utf8 = {"LC_ALL": "C.UTF-8"}
    # checks, prepares, embeds, fits, exports, scores, evaluates
    said = keyart("pipeline", dataset, tmp_path / "out", *QUICK, locale=LOCALE | UNWRITABLE)
    said += keyart("value", dataset, tmp_path / "out/scores", tmp_path / "value", locale=LOCALE | UNWRITABLE)
    for word in ("glyph", "font", "matplotlib", "Warning", "Traceback"):
        assert word not in said, said
    for page in (tmp_path / "out/report/report.html", tmp_path / "value/value.html"):
        assert "<svg" in page.read_text(encoding="utf-8")
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
    without = table["artwork_id"].to_pylist().index(next(a for a in table["artwork_id"].to_pylist() if "é本" in a))
    pq.write_table(pa.concat_tables([table[:without], table[without + 1 :]]), folder / "artworks.parquet")
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


def labelled(labels: tuple[str, ...]) -> Callable:
    def draw(axes) -> None:
        axes.barh(range(len(labels)), range(len(labels)))
        axes.set_yticks(range(len(labels)), labels)

    return draw


@pytest.mark.filterwarnings("error")
def test_a_chart_has_names_as_they_are() -> None:
    drawn = chart(400, "names", labelled(SUFFIXES))
    for name in SUFFIXES:
        escaped = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        assert f">{escaped}<" in drawn, name
