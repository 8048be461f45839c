"""A bundle is replaced while it is served: every answer is one bundle's, and none is lost."""

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.request_generator import RequestGenerator
from benchmarks.serve_attacks import Config, replaced_bundles
from benchmarks.serve_load import Served, serving
from foundation.errors import UserError
from serving.bundle.bundle import Bundle
from serving.http.answers import ArtworkRanker
from serving.http.choice_log import ChoiceLog
from serving.http.config import ServeConfig
from serving.http.generation import Generation
from serving.http.requests import RequestReader
from tests.served import GOOD, WITHOUT_TORCH, ask, ranked


def command(folder: Path, *options: str) -> list[str]:
    words = ["serve", str(folder), "--port", "0", "--deadline", "20", *options]
    return [sys.executable, "-c", f"{WITHOUT_TORCH}import keyart; sys.exit(keyart.main({words!r}))"]


def until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


def digest(at: Served) -> str:
    return ask(at, None, "/health")[1]["bundle"]


def test_no_answer_is_lost_or_mixed(bundle: Path, refreshed: Path, tmp_path: Path) -> None:
    """And the log of choices, which is moved away meanwhile, has a line of each."""
    live = shutil.copytree(bundle, tmp_path / "live")
    generator = RequestGenerator(Bundle.open(bundle), 4)
    log = tmp_path / "choices.jsonl"
    with serving(command(live, "--log", str(log))) as at:
        ranked(at, GOOD | {"member": "m", "seed": 5, "policy": "epsilon:1"})
        log.rename(tmp_path / "moved.jsonl")
        seen = asyncio.run(replaced_bundles(at, live, refreshed, generator, Config(reloads=3, clients=4)))
    assert (seen.reloads, seen.lost, seen.mixed) == (3, 0, 0)
    assert seen.answers > 20
    lines = [
        json.loads(line) for file in ("moved.jsonl", log.name) for line in (tmp_path / file).open(encoding="ascii")
    ]
    assert len(lines) >= 1 + seen.answers
    assert {line["bundle"] for line in lines} == {Bundle.open(folder).digest for folder in (bundle, refreshed)}
    expected = {
        "member": "m",
        "title": "t",
        "candidates": ["a", "b"],
        "propensity": 0.5,
        "policy": "epsilon:1",
        "seed": 5,
    }
    assert {name: lines[0][name] for name in expected} == expected
    assert lines[0]["chosen"] in expected["candidates"]


def test_a_log_that_cannot_be_written_is_named(bundle: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a pipe"):
        ChoiceLog(tmp_path / "pipe", print)
    with pytest.raises(UserError, match="log="):
        ChoiceLog(tmp_path / "nowhere" / "log", print)
    said: list[str] = []
    log, opened = ChoiceLog(tmp_path / "log", said.append), Bundle.open(bundle)
    requests, _ = RequestReader(opened).read(json.dumps(GOOD).encode(), 0)
    answers = ArtworkRanker(opened).answer(requests)
    log.file.close()
    for _ in range(3):
        log.add(requests, answers)
    assert (log.lost, len(said)) == (3, 1)
    assert "cannot be written" in said[0]
    log.path.unlink()
    log.reopen()
    log.add(requests, answers)
    assert json.loads(log.path.read_text(encoding="ascii"))["chosen"] == answers[0]["chosen"]["artwork"]
    assert said[1:] == [f"serve: log={log.path}: is written again; 3 choices are not in it"]


def test_workers_have_one_bundle_and_one_page_of_metrics(bundle: Path, refreshed: Path, tmp_path: Path) -> None:
    """With a look every second; a bundle that cannot be read changes nothing, and a killed worker is replaced."""
    live = shutil.copytree(bundle, tmp_path / "live")
    before, after = Bundle.open(bundle).digest, Bundle.open(refreshed).digest
    with serving(command(live, "--workers", "2", "--reload")) as at:
        assert at.process.stdout is not None
        assert {ranked(at, GOOD)["bundle"] for _ in range(10)} == {before}
        assert counted(at, 'keyart_http_requests_total{path="/rank",status="200"}') == 10
        assert counted(at, "keyart_workers") == 2
        exchange(live, shutil.copytree(refreshed, tmp_path / "new"))
        assert until(lambda: {digest(at) for _ in range(10)} == {after})
        assert {ranked(at, GOOD)["bundle"] for _ in range(10)} == {after}
        (broken := tmp_path / "broken").mkdir()
        (broken / "bundle.json").write_text("{", encoding="utf-8")
        exchange(live, broken)
        at.process.stdout.readline()  # the command to try
        assert before[:12] in at.process.stdout.readline()
        line = at.process.stdout.readline()
        assert "not reloaded" in line
        assert after[:12] in line
        assert ranked(at, GOOD)["bundle"] == after
        # beside a broken bundle a worker that was killed cannot be replaced, and the other goes on
        children = Path(f"/proc/{at.process.pid}/task/{at.process.pid}/children").read_text(encoding="utf-8").split()
        workers = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        assert "a worker ended with exit code -9" in at.process.stdout.readline()
        assert "a worker does not start" in at.process.stdout.readline()
        assert ranked(at, GOOD)["bundle"] == after
        at.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert at.process.wait(15) == 0
        assert time.monotonic() - began < 10
        assert at.process.stdout.read() == "Stopped.\n"


def exchange(live: Path, new: Path) -> None:
    away = live.with_name(f"away-{time.monotonic_ns()}")
    live.rename(away)
    new.rename(live)


def counted(at: Served, name: str) -> float:
    lines = ask(at, None, "/metrics")[1].splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " "))


def test_a_bundle_that_is_replaced_while_it_is_read_is_read_again(
    bundle: Path, refreshed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, new = shutil.copytree(bundle, tmp_path / "live"), shutil.copytree(refreshed, tmp_path / "new")
    original: Any = Bundle.open
    opened: list[Bundle] = []

    def open_and_replace(folder: Path, threads: int = 0) -> Bundle:
        opened.append(original(folder, threads))
        if len(opened) == 1:
            exchange(live, new)
        return opened[-1]

    monkeypatch.setattr(Bundle, "open", open_and_replace)
    generation = Generation.load(live, ServeConfig(port=0))
    assert opened[0].digest != generation.digest == original(live).digest
    assert json.loads(generation.openapi)["info"]["title"] == "keyart"
    with pytest.raises(UserError, match="is not a bundle"):
        Generation.load(tmp_path, ServeConfig(port=0))
