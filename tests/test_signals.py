"""A signal in the middle of any command: one line, the signal's exit code, nothing half-written; what was there stays as it was."""

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import real_process

from tests.exported_files import write_log

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
Sources = dict[str, Path]
"""Fixtures by name."""
COMMANDS: dict[str, tuple[int, Callable[[Path, Sources], list[str]]]] = {
    "import": (3, lambda work, of: ["import", str(of["log"]), str(work / "dataset")]),
}
"""By name: how many signals, and the words; they read fixtures and write into the folder `work`."""


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_at_any_moment_leaves_earlier_output(
    name: str, simulated: Path, service: Path, tmp_path: Path
) -> None:
    sources: Sources = {"simulated": simulated, "service": service, "log": tmp_path / "log.csv"}
    if name == "import":
        write_log(service, tmp_path)
    signals, words_in = COMMANDS[name]
    work, output = tmp_path / "work", tmp_path / "said"
    work.mkdir()
    rng, ended = random.Random(name), 0
    for number in rng.sample(list(STATUS), signals):
        shutil.rmtree(work)
        work.mkdir()
        output.unlink(missing_ok=True)
        words, cpu_seconds = words_in(work, sources), rng.uniform(0.02, 0.4)
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
