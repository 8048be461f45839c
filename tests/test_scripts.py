"""Names in any script, and with marks that libraries read as their own, go through evaluation to the report without a word."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.simulator.simulate import SimulateConfig, simulate
from evaluation.report.charts import chart

ROOT = Path(__file__).parents[1]
SUFFIXES = ("电影", "مسلسل", "🎬", "$5 a_b^{ $6", "<b>&\"'", "เรื่อง", "हिन्दी", "עברית", "한국어", "a\u0301\u202e", "_x")
TEXTS = {"impression_id", "member_id", "title_id", "artwork_id", "policy", "country", "device", "name"}
LISTS = {"candidates", "genres", "cast", "depicts"}
QUICK = ["--fit.epochs", "1", "--fit.batch", "64", "--embed.views", "64", "--embed.batch", "32"]


def suffixed(word: str) -> str:
    return f"{word} {SUFFIXES[sum(word.encode()) % len(SUFFIXES)]}"


def changed(table: pa.Table) -> pa.Table:
    for index, name in enumerate(table.column_names):
        values = table[name].to_pylist()
        if name in TEXTS:
            renamed: list = [value if value is None else suffixed(value) for value in values]
        elif name in LISTS:
            renamed = [words if words is None else [suffixed(word) for word in words] for words in values]
        else:
            continue
        table = table.set_column(index, name, pa.array(renamed, table.schema.field(name).type))
    return table


def command(*words: object, **variables: str) -> str:
    """What a command writes to standard error; it must succeed."""
    call = [sys.executable, "-m", "keyart", *map(str, words)]
    done = subprocess.run(call, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_every_command_is_quiet_about_names_in_any_script(tmp_path: Path) -> None:
    dataset, out = tmp_path / "dataset", tmp_path / "out"
    simulate(dataset, SimulateConfig(seed=1, members=80, titles=10, people=8, mean_plays=12, mean_impressions=12))
    shutil.rmtree(dataset / "truth")
    for path in dataset.rglob("*.parquet"):
        pq.write_table(changed(pq.read_table(path)), path)
    unwritable = {"MPLCONFIGDIR": "/proc/nowhere"}
    errors = command("pipeline", dataset, out, *QUICK, **unwritable)
    errors += command("value", dataset, out / "scores", tmp_path / "value", **unwritable)
    for word in ("glyph", "font", "matplotlib", "Warning", "Traceback"):
        assert word not in errors, errors
    for page in (out / "report/report.html", tmp_path / "value/value.html"):
        assert "<svg" in page.read_text(encoding="utf-8")


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
