"""A training that is killed, stopped or finds its checkpoint damaged ends with the weights of an undisturbed one."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import real_process
from rich.console import Console
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from train.checkpoint import LAST, PREVIOUS
from train.config import FitConfig
from train.fit import fit
from train.run import METRICS, WEIGHTS
from train.task import RankerTask

ALWAYS = FitConfig(epochs=2, validations_per_epoch=2, batch=512, patience=9, checkpoint_minutes=1e-9, evidence=False)
"""A checkpoint after every batch; 12 batches, a validation after every 3. Trainings in processes of their own have evidence."""


class Fault(Exception):
    """Nothing anybody expects."""


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("faults") / "run"
    fit(shards, out, replace(ALWAYS, checkpoint_minutes=5))
    return out


def same(one: Path, other: Path) -> bool:
    return (one / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes() and logged_rows(one) == logged_rows(other)


def logged_rows(run: Path) -> list[list[str]]:
    """The rows of log.csv, seconds left out."""
    return [line.split(",")[:-1] for line in (run / "log.csv").read_text(encoding="utf-8").splitlines()]


def fail_at(monkeypatch: pytest.MonkeyPatch, step: int, method: str) -> None:
    """Raise in the batch after `step` steps, in training or in the validation behind it."""
    sound = getattr(RankerTask, method)

    def faulty(self: RankerTask, batch: object, batch_idx: int) -> Tensor:
        if self.cursor.step == step:
            raise Fault
        return sound(self, batch, batch_idx)

    monkeypatch.setattr(RankerTask, method, faulty)


@pytest.mark.parametrize(
    ("step", "method"), [(0, "training_step"), (1, "training_step"), (5, "training_step"), (6, "validation_step")]
)
def test_a_fault_anywhere_changes_nothing(
    shards: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, method: str
) -> None:
    with monkeypatch.context() as patched:
        fail_at(patched, step, method)
        with pytest.raises(Fault):
            fit(shards, tmp_path / "run", ALWAYS)
    fit(shards, tmp_path / "run", ALWAYS)
    assert same(tmp_path / "run", undisturbed)


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ({LAST}, "the one before it is taken"),
        ({PREVIOUS}, "resumes before validation"),
        ({LAST, PREVIOUS}, "starts over"),
    ],
)
def test_a_damaged_checkpoint(
    shards: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damaged: set[Path],
    message: str,
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        fail_at(patched, 8, "training_step")
        with pytest.raises(Fault):
            fit(shards, run, ALWAYS)
    for cursor, path in enumerate(sorted(damaged)):
        if cursor:  # cut short
            os.truncate(run / path, (run / path).stat().st_size // 2)
        else:  # garbage in the midst of it
            with (run / path).open("r+b") as file:
                file.seek((run / path).stat().st_size // 2)
                file.write(b"garbage")
    fit(shards, run, ALWAYS, console=Console(stderr=True, width=1000))
    heard = capsys.readouterr().err
    assert message in heard
    assert all(str(run / path) in heard for path in damaged - {PREVIOUS})
    assert same(run, undisturbed)


def test_points_are_logged_once(
    shards: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard shows of a resumed run what it shows of an undisturbed one."""
    run = tmp_path / "run"
    seldom = replace(ALWAYS, checkpoint_minutes=5)
    with monkeypatch.context() as patched:
        fail_at(patched, 8, "training_step")
        with pytest.raises(Fault):
            fit(shards, run, seldom)
    fit(shards, run, seldom)
    shown = []
    for folder in (run, undisturbed):
        events = EventAccumulator(str(folder / "tensorboard")).Reload()
        assert set(events.Tags()["scalars"]) == {
            "train_loss",
            "learning_rate",
            "impressions_per_second",
            "validation_log_loss",
        }
        shown.append([(e.step, e.value) for e in events.Scalars("validation_log_loss")])
        assert np.isfinite([e.value for e in events.Scalars("train_loss")]).all()
    assert shown[0] == shown[1]
    assert [step for step, _ in shown[0]] == [int(row[1]) for row in logged_rows(run)[1:]]


def words(shards: Path, run: Path, minutes: float) -> list[str]:
    options = {"epochs": 4, "validations_per_epoch": 2, "batch": 256, "patience": 99, "checkpoint-minutes": minutes}
    return ["fit", str(shards), str(run), *(w for name, value in options.items() for w in (f"--{name}", str(value)))]


@pytest.fixture(scope="module")
def in_a_process(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("process")
    assert real_process.run(words(shards, folder / "run", 5), folder / "said") == 0
    return folder / "run"


def test_killed_again_and_again(shards: Path, in_a_process: Path, tmp_path: Path) -> None:
    run, output = tmp_path / "run", tmp_path / "said"
    command = words(shards, run, 1e-6)
    for wait in (0.0, 0.23):
        before = (run / LAST).stat().st_mtime_ns if (run / LAST).is_file() else 0
        process = real_process.start(command, output)
        real_process.wait_for(run / LAST, before, process)
        time.sleep(wait)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (run / METRICS).is_file()
    assert real_process.run(command, output) == 0
    assert same(run, in_a_process)
    assert output.read_text(encoding="utf-8").count("resumes before validation") == 2


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves(shards: Path, in_a_process: Path, tmp_path: Path, number: signal.Signals, status: int) -> None:
    run, output = tmp_path / "run", tmp_path / "output"
    process = real_process.start(words(shards, run, 5), output)
    real_process.wait_for(run / LAST, 0, process)  # the first validation
    time.sleep(0.1)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == status, output.read_text(encoding="utf-8")
    assert "Re-run the same command to resume" in output.read_text(encoding="utf-8")
    assert not (run / METRICS).is_file()
    if number == signal.SIGTERM:
        assert real_process.run(words(shards, run, 5), output) == 0
        assert ", batch " in output.read_text(encoding="utf-8"), "it resumed between two validations"
        assert same(run, in_a_process)


def test_weights_are_safetensors_and_nothing_is_pickled(undisturbed: Path) -> None:
    assert load_file(undisturbed / WEIGHTS)
    assert not list(undisturbed.rglob("*.partial"))
