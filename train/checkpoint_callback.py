"""The checkpoint callback of a training: moves the cursor, keeps the best weights and the checkpoints, and stops early.

A checkpoint is written after every validation and, between two, every few minutes; SIGTERM and Ctrl-C are held back until the
current batch is done and saved. Random generators are restored, so that a training ends with the weights of an
uninterrupted one wherever it was stopped. The trainer itself restores nothing: it is given the remaining batches.
Every process of a training has the callback; process 0 decides and writes.
"""

import csv
import io
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors.torch import save_file

from datamodules.feed.datamodule import Cursor
from foundation.atomic import atomic_file
from train.checkpoint import save_best, save_checkpoint
from train.distributed import World
from train.embed_config import ENCODER
from train.memory import release_memory
from train.signals import Interrupted, Signals
from train.task import RankerTask, generator_states

LOG = "log.csv"
LOG_COLUMNS = ["validation", "step", "train_loss", "validation_log_loss", "seconds"]
NOTHING, SAVE, STOP = 0, 1, 2
SYNC_EVERY = 16
"""Batches between two synchronisations of several processes: each makes all of them wait."""


@dataclass(kw_only=True, eq=False)
class CheckpointCallback(pl.Callback):
    """Moves the cursor, saves checkpoints and the best weights, and stops where validation no longer improves."""

    run: Path
    cursor: Cursor
    patience: int
    """Validations without a better log loss after which training ends."""
    minutes: float
    """Minutes between checkpoints."""
    signals: Signals
    world: World
    stop_after: int | None = None
    """Validations after which to stop, for tests."""
    best: float = float("inf")
    """Lowest validation log loss so far."""
    best_validation: int = 0
    """Which validation it was, counted from 1; 0: that of the weights a warm start began with."""
    optimiser: dict[str, Any] | None = None
    """State of the optimiser to resume from."""
    schedule: dict[str, Any] | None = None
    seconds: float = 0.0
    """Seconds that former calls took."""
    started_at: float = field(default_factory=time.monotonic)
    saved_at: float = field(default_factory=time.monotonic)
    saved_step: int = 0

    def resume(self, state: dict[str, Any], task: RankerTask) -> None:
        """Resume from a state that `train.checkpoint.load_checkpoint` returned."""
        self.cursor.validations, self.cursor.batch, self.cursor.step = state["cursor"]
        self.saved_step = self.cursor.step
        self.best, self.best_validation, self.seconds = state["best"], state["best_validation"], state["seconds"]
        self.optimiser, self.schedule = state["optimiser"], state["schedule"]
        task.load(state["task"])
        task.sums = state["sums"]
        if self.cursor.batch and len(state["generators"]) == self.world.size:
            task.generators = state["generators"][self.world.rank]

    def out_of_patience(self) -> bool:
        """Whether the last `patience` validations brought no better log loss."""
        return self.cursor.validations - self.best_validation >= self.patience

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the optimiser."""
        if self.optimiser is not None and self.schedule is not None:
            trainer.optimizers[0].load_state_dict(self.optimiser)
            trainer.lr_scheduler_configs[0].scheduler.load_state_dict(self.schedule)
            self.optimiser = self.schedule = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Move the cursor, and save where a checkpoint is due."""
        self.cursor.batch += 1
        self.cursor.step += 1
        self._save_if_due(trainer, pl_module, batch_idx)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save where a checkpoint is due; the cursor is before this validation, which a resumed run repeats from its start."""
        self._save_if_due(trainer, pl_module, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the validated weights if they are the best, and save; also for the weights that a warm start begins with."""
        assert isinstance(pl_module, RankerTask)
        train_loss = pl_module.train_loss() if self.cursor.batch else None
        if self.cursor.batch:
            self.cursor.validations += 1
            self.cursor.batch = 0
        loss = pl_module.validation_log_loss
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"log loss {loss} at validation {self.cursor.validations}, in training {train_loss}. An artwork that only the "
                "validation period shows has an embedding that is not finite: remove the embedding of the shards and run "
                "keyart embed again."
            )
        if loss < self.best:
            self.best, self.best_validation = loss, self.cursor.validations
            if self.world.rank == 0:
                kept = pl_module.ema.module.state_dict()
                if pl_module.tower is not None:
                    with atomic_file(self.run / ENCODER) as partial:
                        save_file(pl_module.tower.saved(), partial)
                save_best(self.run, {k: v.cpu().contiguous() for k, v in kept.items()})
        if self.world.rank == 0:
            self._log(train_loss, loss)
            for logger in trainer.loggers:
                logger.log_metrics({"validation_log_loss": loss}, self.cursor.step)
                logger.save()
        self._save(trainer, pl_module)
        release_memory()
        if self.out_of_patience() or (self.stop_after is not None and self.cursor.validations >= self.stop_after):
            trainer.should_stop = True

    def _save_if_due(self, trainer: pl.Trainer, task: pl.LightningModule, batch_idx: int) -> None:
        if self.world.size > 1 and batch_idx % SYNC_EVERY:
            return
        unsaved = self.cursor.step != self.saved_step
        due = unsaved and time.monotonic() - self.saved_at >= 60 * self.minutes
        action = STOP if self.signals.received is not None else SAVE if due and self.world.rank == 0 else NOTHING
        if self.world.size > 1:
            agreed = torch.tensor(action, device=task.device)
            torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX)
            action = int(agreed)
        if action == SAVE or (action == STOP and unsaved):
            self._save(trainer, task)
        if action == STOP:
            raise Interrupted

    def _save(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        assert isinstance(task, RankerTask)
        task.require_finite()
        generators: list[Any] = [generator_states()]
        sums = task.sums.clone()
        if self.world.size > 1:
            generators = [None] * self.world.size
            torch.distributed.all_gather_object(generators, generator_states())
            torch.distributed.all_reduce(sums)
        if self.world.rank == 0:
            optimiser = trainer.optimizers[0].state_dict() if trainer.optimizers else self.optimiser
            schedules = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
            state = {
                "cursor": [self.cursor.validations, self.cursor.batch, self.cursor.step],
                "best": self.best,
                "best_validation": self.best_validation,
                "seconds": self._elapsed(),
                "task": task.state(),
                "sums": sums.cpu() / self.world.size,
                "generators": generators,
                "optimiser": optimiser,
                "schedule": schedules[0] if schedules else self.schedule,
            }
            save_checkpoint(self.run, state)
        self.saved_step, self.saved_at = self.cursor.step, time.monotonic()

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.started_at

    def _log(self, train_loss: float | None, loss: float) -> None:
        loss_text = "" if train_loss is None else f"{train_loss:.6f}"
        row = [self.cursor.validations, self.cursor.step, loss_text, f"{loss:.6f}", f"{self._elapsed():.1f}"]
        with (self.run / LOG).open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(row)


def truncate_log(run: Path, cursor: Cursor, *, resumed: bool) -> None:
    """Remove from `log.csv` the validations past the cursor, which will be repeated, so that each has one row."""
    path = run / LOG
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines())) if resumed and path.is_file() else []
    kept = [row for row in rows[1:] if len(row) == len(LOG_COLUMNS) and int(row[0]) <= cursor.validations]
    text = io.StringIO()
    csv.writer(text).writerows([LOG_COLUMNS, *kept])
    with atomic_file(path) as partial:
        partial.write_text(text.getvalue(), newline="", encoding="utf-8")
