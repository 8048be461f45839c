"""A signal in the middle of any command: one line, the signal's exit code, nothing half-written; what was there stays as it was."""

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import real_process

from tests.exported_files import write_log
from tests.small_recipe import small_recipe
from train.checkpoint import LAST

SEED = os.environ.get("KEYART_SIGNALS", "")
"""Any text: other moments."""
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
Sources = dict[str, Path]
"""Fixtures by name."""
Words = Callable[[Path, Sources], list[str]]
COMMANDS: dict[str, tuple[int, float, Words]] = {
    "import": (3, 0.4, lambda work, of: ["import", str(of["log"]), str(work / "dataset")]),
    "embed": (1, 1.5, lambda work, of: ["embed", str(of["service"]), str(work / "shards"), "--views", "320"]),
    "export": (1, 3.0, lambda work, of: ["export", str(of["run"]), str(work / "bundle")]),
    "score": (1, 0.5, lambda work, of: ["score", str(of["bundle"]), str(of["service"]), str(work / "scores")]),
    "value": (2, 0.6, lambda work, of: ["value", str(of["service"]), str(of["scores"]), str(work / "value")]),
    "bench": (2, 0.6, lambda work, of: ["bench", "value", "--json", str(work / "rows.json"), "--work", str(work)]),
}
"""By name: how many signals, how many seconds of the processor until the last may come, and the words; they read fixtures and
write into the folder `work`."""
EARLIER = {"embed": "shards", "export": "bundle", "score": "scores"}
"""By command: the fixture that its output begins as."""


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_at_any_moment_leaves_earlier_output(
    name: str, service: Path, shards: Path, run: Path, bundle: Path, scores: Path, tmp_path: Path
) -> None:
    sources: Sources = {"service": service, "shards": shards, "run": run, "bundle": bundle, "scores": scores}
    sources["log"] = tmp_path / "log.csv"
    if name == "import":
        write_log(service, tmp_path)
    signals, seconds, words_in = COMMANDS[name]
    work, output = tmp_path / "work", tmp_path / "said"
    work.mkdir()
    rng, ended = random.Random(f"{name}{SEED}"), 0
    for number in rng.sample(list(STATUS), signals):
        shutil.rmtree(work)
        work.mkdir()
        if earlier := EARLIER.get(name):
            shutil.copytree(sources[earlier], work / earlier)
        output.unlink(missing_ok=True)
        words, cpu_seconds = words_in(work, sources), rng.uniform(0.02, seconds)
        before = state(work)
        status = real_process.signalled(words, output, number, cpu_seconds)
        said = output.read_text(encoding="utf-8")
        where = f"{number.name} after {cpu_seconds:.2f} s: {said}"
        if status == 0:
            continue  # it was over before
        ended += 1
        assert status == STATUS[number], where
        assert "Traceback" not in said, where
        assert "ignored in" not in said, where
        assert said.splitlines()[-1].startswith(f"keyart {name}: "), where
        assert said.endswith("no partial output. Run the command again.\n"), where
        assert state(work) == before, where
    assert ended > 0


TRAINING = ("--embed.views", "64", "--fit.batch", "100", "--fit.epochs", "500", "--fit.patience", "500")
"""Options by which a training on a few hundred impressions begins soon and goes on for long."""


@pytest.mark.slow
def test_a_pipeline_that_sigterm_ends_is_not_done(simulated: Path, tmp_path: Path) -> None:
    """The training saves its progress and ends with 0, as `fit` does; what was to come after it is not there."""
    words = ["pipeline", str(simulated), str(tmp_path / "out"), "--config", small_recipe(tmp_path)]
    process = real_process.start([*words, *TRAINING], tmp_path / "said")
    real_process.wait_for(tmp_path / "out/run" / LAST, 0, process)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    said = (tmp_path / "said").read_text(encoding="utf-8")
    assert process.exitcode == STATUS[signal.SIGTERM], said
    assert said.endswith("holds the progress. Re-run the same command to resume.\n")
