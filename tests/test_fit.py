"""Training: resumed = uninterrupted, bit for bit; and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from datamodules.shards.shard import Shards
from foundation.errors import UserError
from models.types import piecewise_linear_calibration
from train.calibration import fit_line
from train.config import FitConfig
from train.fit import fit
from train.run import Run


@pytest.fixture(scope="module")
def short() -> FitConfig:
    return FitConfig(epochs=1, validations_per_epoch=3, batch=512, patience=9)


@pytest.fixture(scope="module")
def undisturbed(shards: Path, short: FitConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("fit") / "run"
    fit(shards, run, short)
    return run


@pytest.mark.parametrize("stops", [[1], [2, 3]])
def test_resumed_is_uninterrupted(
    shards: Path, short: FitConfig, undisturbed: Path, tmp_path: Path, stops: list[int]
) -> None:
    for stop in stops:
        fit(shards, tmp_path / "run", short, stop_after=stop)
        assert not (tmp_path / "run" / "metrics.json").exists()
        with pytest.raises(UserError, match="not finished"):
            Run.open(tmp_path / "run")
    fit(shards, tmp_path / "run", short)
    expected, resumed = (load_file(run / "weights.safetensors") for run in (undisturbed, tmp_path / "run"))
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        assert torch.equal(value, resumed[name]), name


def test_another_seed_gives_other_weights(shards: Path, short: FitConfig, undisturbed: Path, tmp_path: Path) -> None:
    fit(shards, tmp_path / "run", replace(short, seed=1))
    one, two = (load_file(run / "weights.safetensors") for run in (undisturbed, tmp_path / "run"))
    assert not torch.equal(one["artwork_vector.weight"], two["artwork_vector.weight"])


def test_a_finished_run_is_left_alone(shards: Path, short: FitConfig, undisturbed: Path) -> None:
    before = (undisturbed / "weights.safetensors").stat().st_mtime_ns
    assert fit(shards, undisturbed, short) == json.loads((undisturbed / "metrics.json").read_text(encoding="utf-8"))
    assert (undisturbed / "weights.safetensors").stat().st_mtime_ns == before


def test_a_run_says_what_it_was_made_of(shards: Path, undisturbed: Path) -> None:
    config = yaml.safe_load((undisturbed / "config.yaml").read_text(encoding="utf-8"))
    assert config["shards_fingerprint"] == Shards.open(shards).fingerprint
    assert config["fit"]["batch"] == 512
    assert config["provenance"]["torch"]
    assert not list(undisturbed.rglob("*.pkl"))


def test_runs_that_do_not_fit_are_refused(shards: Path, short: FitConfig, undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="other shards, another config or another --from"):
        fit(shards, undisturbed, replace(short, seed=9))
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(UserError, match="holds files"):
        fit(shards, tmp_path, short)
    copied = tmp_path / "copied"
    shutil.copytree(undisturbed, copied)
    config = yaml.safe_load((copied / "config.yaml").read_text(encoding="utf-8"))
    (copied / "config.yaml").write_text(yaml.safe_dump(config | {"contract_version": 7}), encoding="utf-8")
    with pytest.raises(UserError, match="contract version 7"):
        Run.open(copied)
    shutil.copy(undisturbed / "config.yaml", copied / "config.yaml")
    (copied / "weights.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"weights\.safetensors: is missing or is not the file of this run"):
        Run.open(copied)
    # as of before files had digests
    (copied / "config.yaml").write_text(yaml.safe_dump(config | {"files": {}}), encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read"):
        Run.open(copied)


def test_a_run_of_before_the_history_encoder_lost_its_options(undisturbed: Path, tmp_path: Path) -> None:
    """The default's opens and is the same; one whose encoder is gone is refused by the names of what it has."""
    old = shutil.copytree(undisturbed, tmp_path / "old")
    config = yaml.safe_load((old / "config.yaml").read_text(encoding="utf-8")) | {"files": {}}
    history = config["fit"]["model"]["history"]

    def written_with(**fields: object) -> None:
        config["fit"]["model"]["history"] = history | fields
        (old / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    written_with(heads=4, time=False, gated=False)
    config["fit"]["optimiser"]["rows"] = 100_000
    weights = load_file(old / "weights.safetensors")
    renamed = {name.replace(".band.bias_1S", ".band.bias_HS"): value for name, value in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, old / "weights.safetensors")
    expected = Run.open(undisturbed).model.state_dict()
    for name, value in Run.open(old).model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    for fields, named in (
        ({"time": True}, r"time=True"),
        ({"encoder": "attention", "heads": 4, "gated": False}, r"heads=4, gated=False"),
        ({"encoder": "attention", "heads": 1, "time": True, "gated": True}, r"time=True"),
    ):
        written_with(**fields)
        with pytest.raises(UserError, match=rf"config\.yaml: its history encoder has {named}, which .* Train again"):
            Run.open(old)


def test_a_loss_that_is_no_number_is_named(shards: Path, short: FitConfig, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "shards")
    path = tmp_path / "shards" / "embedding" / "embedding.npy"
    np.save(path, np.load(path) * np.nan)
    record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    path.with_suffix(".json").write_text(json.dumps(record | {"files": {}}), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"run: the loss is nan before validation 1, batch 0 .*optimiser\.learning_rate \(0\.005\)"
    ):
        fit(tmp_path / "shards", tmp_path / "run", short)


def test_a_log_without_clicks_is_refused(shards: Path, short: FitConfig, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "shards")
    path = tmp_path / "shards" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["splits"]["validation"]["clicks"] = 0
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match="the validation period has no click"):
        fit(tmp_path / "shards", tmp_path / "run", short)


@pytest.mark.parametrize(
    "bad", [{"epochs": 0}, {"batch": 0}, {"validations_per_epoch": -1}, {"devices": 0}, {"checkpoint_minutes": 0.0}]
)
def test_a_bad_value_is_named(bad: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        FitConfig(**bad)  # pyright: ignore[reportArgumentType]


def test_calibration_undoes_a_known_distortion() -> None:
    torch.manual_seed(0)
    logit = torch.randn(60_000, dtype=torch.float64) - 1
    label = (torch.rand(60_000, dtype=torch.float64) < torch.sigmoid(logit)).double()
    line, metrics = fit_line(2 * logit + 0.7, label, torch.arange(60_000) % 2 > 0)
    assert float(line[0]) == pytest.approx(0.5, abs=0.02)
    assert float(line[1]) == pytest.approx(-0.35, abs=0.04)
    assert metrics["calibration"] == "platt", "nothing needs a bend"
    assert float(metrics["log_loss_after"]) < float(metrics["log_loss_before"])


def test_a_bend_is_taken_where_both_halves_ask_for_it() -> None:
    torch.manual_seed(0)
    logit = 1.5 * torch.randn(60_000, dtype=torch.float64) - 1
    bent = logit - 0.7 * (logit + 1).clamp(min=0)
    label = (torch.rand(60_000, dtype=torch.float64) < torch.sigmoid(bent)).double()
    line, metrics = fit_line(logit, label, torch.arange(60_000) % 2 > 0)
    assert metrics["calibration"] == "piecewise"
    assert (torch.sigmoid(piecewise_linear_calibration(logit, line)) - torch.sigmoid(bent)).abs().mean() < 0.01
    rising = piecewise_linear_calibration(torch.linspace(-6, 6, 500, dtype=torch.float64), line)
    assert (rising.diff() > 0).all(), "an order of artworks is never turned round"
