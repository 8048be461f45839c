"""Features meant for GPUs, as far as a CPU can test them: bfloat16 arithmetic, one kernel for AdamW, compiled towers."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import keyart
from configs.arguments import parse
from foundation.errors import UserError
from models.history import HistoryConfig
from models.two_tower import TwoTowerConfig
from train.config import FitConfig
from train.fit import fit
from train.run import WEIGHTS, Run

SHORT = FitConfig(epochs=1, validations_per_epoch=1, batch=512, evidence=False)
NO_COMPILER = not any(shutil.which(name) for name in ("g++", "c++", "clang++"))


@pytest.fixture(scope="module")
def full(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("precision") / "run"
    fit(shards, out, replace(SHORT, precision="32"))
    return out


def test_without_a_gpu_auto_is_32_bits(shards: Path, full: Path, tmp_path: Path) -> None:
    fit(shards, tmp_path / "run", SHORT)
    one, other = (load_file(folder / WEIGHTS) for folder in (tmp_path / "run", full))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one), "but for the config that the file names"


def test_bfloat16_with_the_optimiser_of_gpus(
    shards: Path, full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autocast, fused AdamW and clipping together, which the trainer by itself refuses."""
    fit(shards, tmp_path / "run", replace(SHORT, precision="bf16"))
    one, two = Run.open(full), Run.open(tmp_path / "run")
    assert two.metrics["validation_log_loss"] == pytest.approx(one.metrics["validation_log_loss"], abs=1e-3)
    assert not torch.equal(one.model.artwork_vector.weight, two.model.artwork_vector.weight)
    assert two.model.artwork_vector.weight.dtype == torch.float32


@pytest.mark.parametrize(
    "backend",
    [
        "eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.skipif(NO_COMPILER, reason="there is no C++ compiler"),
                pytest.mark.slow,
            ],
        ),
    ],
)
def test_compiled_towers_train(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """`eager` traces as `inductor` does, and writes no C++: attention, which takes twice as long to compile, is traced alone."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    history = HistoryConfig(encoder="attention" if backend == "eager" else "mean", dropout=0)
    small = TwoTowerConfig(width=8, dropout=0, id_dropout=0, history=history)
    config = replace(SHORT, model=small)
    eager = fit(shards, tmp_path / "eager", config)
    compiled = fit(shards, tmp_path / "compiled", replace(config, compile=True))
    assert compiled["validation_log_loss"] == pytest.approx(eager["validation_log_loss"], abs=1e-4)


def test_no_compiler_is_said(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"compile=true: there is no C\+\+ compiler"):
        fit(shards, tmp_path / "run", replace(SHORT, compile=True))
    assert not (tmp_path / "run").exists()
    fit(shards, tmp_path / "run", SHORT)  # nor is git needed


@pytest.mark.parametrize("word", ["32", "bf16", "auto"])
def test_precision_on_the_command_line(word: str) -> None:
    words = ["shards", "run", "--precision", word, "--compile"]
    settings = parse("fit", keyart.fit, "fit", words, None)["settings"]
    assert (settings.precision, settings.compile) == (word, True)
    with pytest.raises(UserError, match="precision"):
        parse("fit", keyart.fit, "fit", ["shards", "run", "--precision", "16"], None)
