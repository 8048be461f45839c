"""Lightning loggers and callbacks by class path: every logger is given the same, and what cannot be used is named."""

import csv
import json
import re
from argparse import Namespace
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import yaml
from pytorch_lightning.loggers import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import keyart
from configs.arguments import parse
from foundation.errors import UserError
from train.config import FitConfig, run_fingerprint
from train.fit import fit
from train.plugins import ClassSpec

SHORT = FitConfig(epochs=1, validations_per_epoch=3, batch=512, patience=9, evidence=False)
METRICS = {"train_loss", "learning_rate", "impressions_per_second", "validation_log_loss"}


class LinesLogger(Logger):
    """A logger as a user would write one: a line of JSON for each call."""

    def __init__(self, file: str, fail_at_step: int | None = None) -> None:
        super().__init__()
        self.file, self.fail_at_step = Path(file), fail_at_step

    @property
    def name(self) -> str:
        return "lines"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if step is not None and self.fail_at_step is not None and step >= self.fail_at_step:
            raise LookupError("the tracking server is gone")
        self._write({"step": step, **metrics})

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        self._write({"hyperparameters": params})

    def _write(self, line: dict[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class CountingCallback(pl.Callback):
    """A callback as a user would write one."""

    def __init__(self, file: str) -> None:
        self.file, self.batches = Path(file), 0

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.batches += 1

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.file.write_text(str(self.batches), encoding="utf-8")


class LeavingCallback(pl.Callback):
    """A callback that ends the process, as code that was written for a script may."""

    def __init__(self, code: int) -> None:
        self.code = code

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        raise SystemExit(self.code)


def lines_logger(file: Path, **arguments: Any) -> ClassSpec:
    return {"class_path": f"{__name__}.LinesLogger", "init_args": {"file": str(file), **arguments}}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def logged_validations(run: Path) -> list[tuple[int, float]]:
    """Step and log loss of every validation, by the run's own log."""
    rows = csv.DictReader((run / "log.csv").read_text(encoding="utf-8").splitlines())
    return [(int(row["step"]), float(row["validation_log_loss"])) for row in rows]


def validations(points: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(int(p["step"]), round(float(p["validation_log_loss"]), 6)) for p in points if p.get("validation_log_loss")]


def test_every_logger_is_given_the_metrics_and_the_config(shards: Path, tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "lines.jsonl"
    words = f"fit {shards} {run} --epochs 1 --validations-per-epoch 3 --batch 512"
    words += f" --logger pytorch_lightning.loggers.CSVLogger --logger.init_args.save_dir {tmp_path / 'csv'}"
    words += f" --logger {__name__}.LinesLogger --logger.file {file}"
    assert keyart.main(words.split()) == 0
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    (version,) = (tmp_path / "csv" / "lightning_logs").iterdir()
    # digests of files that training writes are not known when it begins
    known = config | {"files": {name: config["files"][name] for name in ("vocabularies.json", "context.json")}}
    assert yaml.safe_load((version / "hparams.yaml").read_text(encoding="utf-8")) == known
    hyperparameters, *points = lines(file)
    assert hyperparameters == {"hyperparameters": known}
    rows = list(csv.DictReader((version / "metrics.csv").read_text(encoding="utf-8").splitlines()))
    assert validations(rows) == validations(points) == logged_validations(run)
    assert len(logged_validations(run)) == 3
    assert set().union(*points) == METRICS | {"step"} == set(rows[0])
    assert not (run / "tensorboard").exists(), "named loggers replace the default"


def test_tensorboard_is_the_default_and_shows_the_config(shards: Path, tmp_path: Path) -> None:
    fit(shards, tmp_path / "run", SHORT)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == METRICS
    (text,) = events.Tensors("config/text_summary")
    config = (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8").partition("\nfiles:")[0]
    assert config in text.tensor_proto.string_val[0].decode()
    fit(shards, tmp_path / "without", replace(SHORT, logger=False))
    assert not (tmp_path / "without" / "tensorboard").exists()
    assert logged_validations(tmp_path / "without") == logged_validations(tmp_path / "run")


def test_a_resumed_run_logs_what_is_left(shards: Path, tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "lines.jsonl"
    config = replace(SHORT, logger=[lines_logger(file)])
    fit(shards, run, config, stop_after=1)
    assert len(validations(lines(file))) == 1
    fit(shards, run, config)
    assert validations(lines(file)) == logged_validations(run)
    count = len(lines(file))
    other = replace(config, logger=[lines_logger(tmp_path / "other.jsonl")])
    assert fit(shards, run, other) == fit(shards, run, config), "another logger does not change the training"
    assert len(lines(file)) == count, "a finished run logs no more"
    assert not (tmp_path / "other.jsonl").exists()


def test_a_run_can_be_made_again_from_its_config(shards: Path, tmp_path: Path) -> None:
    run, recipe = tmp_path / "run", tmp_path / "again.yaml"
    callbacks: list[ClassSpec] = [
        {"class_path": f"{__name__}.CountingCallback", "init_args": {"file": str(tmp_path / "count.txt")}}
    ]
    config = replace(SHORT, logger=[lines_logger(tmp_path / "lines.jsonl")], callbacks=callbacks)
    fit(shards, run, config, stop_after=1)
    recipe.write_text(
        yaml.safe_dump({"fit": yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["fit"]}),
        encoding="utf-8",
    )
    assert parse("fit", keyart.fit, "fit", ["s", "r", "--config", str(recipe)], None)["settings"] == config
    for words, logger in (
        (["--logger", "false"], False),
        ([f"--logger={__name__}.CountingCallback"], [{"class_path": f"{__name__}.CountingCallback"}]),
        (["--logger", "false", f"--logger+={__name__}.LinesLogger"], [{"class_path": f"{__name__}.LinesLogger"}]),
        (["--logger.init_args.fail-at-step", "7"], [lines_logger(tmp_path / "lines.jsonl", fail_at_step=7)]),
    ):
        changed = parse("fit", keyart.fit, "fit", ["s", "r", "--config", str(recipe), *words], None)["settings"]
        assert changed == replace(config, logger=logger), words
        assert run_fingerprint(shards, changed) == run_fingerprint(shards, config)
    recipe_read = parse("pipeline", keyart.pipeline, "recipe", ["d", "o", "--config", str(recipe)], None)["settings"]
    assert recipe_read.fit == config


def test_a_recipe_may_name_classes_in_short(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    path = "pytorch_lightning.loggers.CSVLogger"
    for text, expected in (
        (f"logger: {path}", [{"class_path": path}]),
        (f"logger: [{path}, {path}]", [{"class_path": path}] * 2),
        (f"logger: {{class_path: {path}}}", [{"class_path": path}]),
        ("logger: true", True),
    ):
        recipe.write_text(f"fit:\n  {text}\n", encoding="utf-8")
        settings = parse("fit", keyart.fit, "fit", ["s", "r", "--config", str(recipe)], None)["settings"]
        assert settings.logger == expected, text


def test_callbacks_take_part(shards: Path, tmp_path: Path) -> None:
    stopping = {"monitor": "validation_log_loss", "min_delta": 10, "patience": 1}
    callbacks: list[ClassSpec] = [
        {"class_path": "pytorch_lightning.callbacks.EarlyStopping", "init_args": stopping},
        {"class_path": f"{__name__}.CountingCallback", "init_args": {"file": str(tmp_path / "count.txt")}},
    ]
    metrics = fit(shards, tmp_path / "run", replace(SHORT, callbacks=callbacks))
    assert metrics["validations"] == len(logged_validations(tmp_path / "run")) == 2, "the second is not better by 10"
    assert int((tmp_path / "count.txt").read_text(encoding="utf-8")) == logged_validations(tmp_path / "run")[-1][0]
    with pytest.raises(UserError, match="another config"):
        fit(shards, tmp_path / "run", SHORT)  # a callback may change what is learned


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--logger nowhere.at.All", r"logger=nowhere\.at\.All: cannot be imported .*uv run --with nowhere keyart fit"),
        ("--logger CSVLogger", r"logger=CSVLogger: give the whole path"),
        ("--logger pytorch_lightning.loggers.CsvLogger", r"has no CsvLogger\. Did you mean CSVLogger\?"),
        ("--logger pytorch_lightning.loggers.CSVLogger", r"CSVLogger: cannot be constructed with \{\} .*save_dir"),
        ("--logger pytorch_lightning.callbacks.Timer", r"Timer: must be a subclass of pytorch_lightning.*Logger"),
        ("--logger.save_dir logs", r"--logger\.save_dir=logs: name a class with --logger first"),
        ("--logger 3", r"--logger=3: give the path of a class"),
        ('--logger {"class":"x"}', r"--logger=.*: give the path of a class"),
        ("--logger x.Y --logger.init_args 3", r"--logger\.init_args=3: must be a mapping"),
        ("--callbacks true", "callbacks"),
        (
            "--callbacks pytorch_lightning.callbacks.ModelCheckpoint",
            r"callbacks: refused by Lightning .*ModelCheckpoint",
        ),
        (
            "--callbacks pytorch_lightning.callbacks.EarlyStopping --callbacks.monitor loss",
            r"EarlyStopping: failed .*`loss` which is not available.*validation_log_loss",
        ),
        (
            f"--logger {__name__}.LinesLogger --logger.file FILE --logger.fail_at_step 2",
            r"LinesLogger: failed .*is gone.*so does one with another --logger\.$",
        ),
        (
            f"--callbacks {__name__}.LeavingCallback --callbacks.code 3",
            r"LeavingCallback: failed \(SystemExit: 3\).*The same command resumes\.$",
        ),
        (f"--callbacks {__name__}.LeavingCallback --callbacks.code 0", r"LeavingCallback: failed \(SystemExit: 0\)"),
        ("--callbacks tests.", r"callbacks=tests\.: give the whole path of a class"),
    ],
)
def test_what_cannot_be_used_ends_in_one_line(
    shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: str, named: str
) -> None:
    given = words.replace("FILE", str(tmp_path / "lines.jsonl")).split()
    short = ["--epochs", "1", "--evidence", "false"]
    assert keyart.main(["fit", str(shards), str(tmp_path / "run"), *short, *given]) == 1
    error = capfd.readouterr().err
    assert re.search(named, error.strip().splitlines()[-1]), error
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize(("name", "package"), [("MLFlowLogger", "mlflow"), ("WandbLogger", "wandb")])
def test_a_logger_without_its_package_says_how_to_install_it(
    shards: Path, tmp_path: Path, name: str, package: str
) -> None:
    if find_spec(package):
        pytest.skip(f"{package} is installed here")
    with pytest.raises(UserError, match=rf"{name}: needs a package .* uv run --with {package} keyart fit"):
        fit(shards, tmp_path / "run", replace(SHORT, logger=[{"class_path": f"pytorch_lightning.loggers.{name}"}]))
    assert not (tmp_path / "run").exists()
