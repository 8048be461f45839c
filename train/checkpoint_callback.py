"""The keeper of a training: it counts, keeps the best weights and the checkpoints, and ends it.

A checkpoint is written after every slice and, within one, every few minutes; SIGTERM and Ctrl-C are held back until the
batch at work is done and saved. What is random goes on where it stood, so that a training ends with the weights of an
undisturbed one wherever it was stopped. The trainer itself restores nothing: it is given what is left to do.
Every process of a training has a keeper; process 0 decides and writes.
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
from train.checkpoint import save_checkpoint
from train.distributed import World
from train.embed_config import ENCODER
from train.memory import release_memory
from train.signals import Interrupted, Signals
from train.task import RankerTask, generator_states

BEST_WEIGHTS, LOG = "best.safetensors", "log.csv"
LOG_COLUMNS = ["slice", "step", "train_loss", "validation_log_loss", "seconds"]
NOTHING, SAVE, STOP = 0, 1, 2
SYNC_EVERY = 16
"""Batches between two questions to process 0, where there are several: each makes all of them wait."""


@dataclass(kw_only=True, eq=False)
class CheckpointCallback(pl.Callback):
    """Counts the place, saves what is worth it, stops where nothing gets better."""

    run: Path
    cursor: Cursor
    patience: int
    """Slices without a better validation after which training ends."""
    minutes: float
    """Between checkpoints."""
    signals: Signals
    world: World
    stop_after: int | None = None
    """Slices after which to stop, for tests."""
    best: float = float("inf")
    best_slice: int = 0
    optimiser: dict[str, Any] | None = None
    """States to go on with."""
    schedule: dict[str, Any] | None = None
    seconds: float = 0.0
    """What former calls took."""
    started_at: float = field(default_factory=time.monotonic)
    saved_at: float = field(default_factory=time.monotonic)
    saved_step: int = 0

    def resume(self, state: dict[str, Any], task: RankerTask) -> None:
        """Go on from what `load_checkpoint` gave."""
        self.cursor.validations, self.cursor.batch, self.cursor.step = state["cursor"]
        self.saved_step = self.cursor.step
        self.best, self.best_slice, self.seconds = state["best"], state["best_slice"], state["seconds"]
        self.optimiser, self.schedule = state["optimiser"], state["schedule"]
        task.load(state["task"])
        task.sums = state["sums"]
        if self.cursor.batch and len(state["generators"]) == self.world.size:
            task.generators = state["generators"][self.world.rank]

    def out_of_patience(self) -> bool:
        """Whether validation has not got better for long enough."""
        return self.cursor.validations - self.best_slice >= self.patience

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the optimiser."""
        if self.optimiser is not None and self.schedule is not None:
            trainer.optimizers[0].load_state_dict(self.optimiser)
            trainer.lr_scheduler_configs[0].scheduler.load_state_dict(self.schedule)
            self.optimiser = self.schedule = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Count, and save where it is time."""
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
        """The place stands at the slice's end meanwhile: what resumes there validates it anew."""
        self._save_if_due(trainer, pl_module, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A slice is finished, or what a warm start begins with was judged: keep it if it is the best, and save."""
        assert isinstance(pl_module, RankerTask)
        train_loss = pl_module.train_loss() if self.cursor.batch else None
        if self.cursor.batch:
            self.cursor.validations += 1
            self.cursor.batch = 0
        loss = pl_module.validation_log_loss
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the validation log loss is {loss} after slice {self.cursor.validations}, and the training's {train_loss}. "
                "Something that only the validation shows has no finite embedding: remove the embedding of the shards and "
                "embed them again."
            )
        if loss < self.best:
            self.best, self.best_slice = loss, self.cursor.validations
            if self.world.rank == 0:
                kept = pl_module.ema.module.state_dict()
                if pl_module.tower is not None:
                    with atomic_file(self.run / ENCODER) as partial:
                        save_file(pl_module.tower.saved(), partial)
                with atomic_file(self.run / BEST_WEIGHTS) as partial:
                    save_file({k: v.cpu().contiguous() for k, v in kept.items()}, partial)
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
                "best_slice": self.best_slice,
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
    """Bring `log.csv` to a place: slices that will be made again leave it, so that each stands in it once."""
    path = run / LOG
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines())) if resumed and path.is_file() else []
    kept = [row for row in rows[1:] if len(row) == len(LOG_COLUMNS) and int(row[0]) <= cursor.validations]
    text = io.StringIO()
    csv.writer(text).writerows([LOG_COLUMNS, *kept])
    with atomic_file(path) as partial:
        partial.write_text(text.getvalue(), newline="", encoding="utf-8")
