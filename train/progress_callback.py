"""Reports of a running training: a progress bar, the metrics for every logger, and TensorBoard's event files."""

import logging
import time
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from pytorch_lightning.loggers import TensorBoardLogger
from rich.progress import Progress

from datamodules.feed.datamodule import Cursor
from datamodules.feed.impression_feed import Batch
from train.task import RankerTask

LOG_EVERY = 10
"""Batches between two reports."""


class TensorBoardEvents(TensorBoardLogger):
    """The default logger: RUN/tensorboard. Points past the training's cursor, which will be repeated, are hidden."""

    def __init__(self, run: Path, cursor: Cursor) -> None:
        super().__init__(run, name="tensorboard", version="", default_hp_metric=False, purge_step=cursor.step + 1)
        self.cursor = cursor

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, metrics: dict[str, Any] | None = None, step: int | None = None
    ) -> None:
        """Show config.yaml among TensorBoard's texts."""
        text = yaml.safe_dump(params, sort_keys=False)
        self.experiment.add_text("config", f"```yaml\n{text}```", self.cursor.step)

    def save(self) -> None:
        """Flush the points to disk, without the YAML file that Lightning would write: the run has its own config.yaml."""
        self.experiment.flush()


class ProgressCallback(pl.Callback):
    """Reports every few batches the mean loss since the last report, the learning rate and the impressions per second."""

    def __init__(self, progress: Progress, cursor: Cursor, total: int) -> None:
        """`total`: steps of the whole training."""
        self.progress, self.cursor = progress, cursor
        self.task = progress.add_task("fit", total=total, completed=cursor.step)
        self.impressions, self.last_time = 0, time.monotonic()
        self.sums = (0.0, 0.0)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restart the clock, so that validation does not count in the rate."""
        assert isinstance(pl_module, RankerTask)
        self.impressions, self.last_time = 0, time.monotonic()
        loss, count = pl_module.sums.tolist() if self.cursor.batch else (0.0, 0.0)
        self.sums = (loss, count)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        """Sum the loss, and report every few batches."""
        assert isinstance(pl_module, RankerTask)
        self.impressions += batch.global_impressions
        if batch_idx % LOG_EVERY:
            return
        now = time.monotonic()
        loss, count = pl_module.sums.tolist()
        metrics = {
            "train_loss": (loss - self.sums[0]) / max(1.0, count - self.sums[1]),
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "impressions_per_second": self.impressions / max(1e-9, now - self.last_time),
        }
        self.impressions, self.last_time, self.sums = 0, now, (loss, count)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, self.cursor.step)
        description = f"fit: loss {metrics['train_loss']:.4f}"
        if pl_module.validation_log_loss == pl_module.validation_log_loss:
            description += f", validation {pl_module.validation_log_loss:.5f}"
        description += f", {metrics['impressions_per_second']:,.0f} impressions/s"
        self.progress.update(self.task, completed=self.cursor.step, description=description)


class silence_lightning:
    """Silence the trainer's advice about loggers, loaders and devices: keyart gives it itself, or it does not apply."""

    def __enter__(self) -> None:
        self.logger = logging.getLogger("pytorch_lightning")
        self.level = self.logger.level
        self.logger.setLevel(logging.ERROR)
        self.caught = warnings.catch_warnings()
        self.caught.__enter__()
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", category=UserWarning, message=".*lr_scheduler.step.*")

    def __exit__(self, *exc: object) -> None:
        self.caught.__exit__(None, None, None)
        self.logger.setLevel(self.level)
