"""`keyart fit`: shards in, a run folder out.

Called again with the same arguments it resumes where it stopped: every few minutes its whole state is written aside and
renamed (`train.checkpoint_callback`, `train.checkpoint`), so that an interrupted training ends with the weights of an
uninterrupted one.
"""

import shutil
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.loggers.logger import DummyLogger
from rich.console import Console
from safetensors.torch import save_file

from datamodules.contract.tables import CONTRACT_VERSION
from datamodules.feed.datamodule import Cursor, ShardsModule
from datamodules.feed.play_feed import PlaysFeed
from datamodules.shards.artwork_images import content_hashes
from datamodules.shards.shard import EMBEDDING, Shards
from foundation.atomic import atomic_file, claimed_folder
from foundation.context import CONTEXT_FILE
from foundation.errors import UserError
from foundation.output_path import require_folder
from foundation.progress import progress_bar
from foundation.shell import shell_word
from foundation.stored import files_beside, read_json, warn_unverified
from models.two_tower import TwoTower
from train.checkpoint import BEST_WEIGHTS, LAST, load_best, load_checkpoint
from train.checkpoint_callback import CheckpointCallback, truncate_log
from train.compilation import compiled, require_compiler
from train.config import FitConfig, run_fingerprint
from train.distributed import World, require_devices, run_on_ranks
from train.embed import MADE_AGAIN, describe_origin, describe_sources, encoder_fingerprint, load_embedding
from train.embed_config import EMBEDDING_RECORD, ENCODER
from train.evidence import scale_by_evidence
from train.finetune import ImageTower
from train.next_title import NextTitleLoss
from train.own_taste import fit_own_taste
from train.plugins import construct, faults_named
from train.posterior import calibrate_with_posterior
from train.progress_callback import ProgressCallback, TensorBoardEvents, silence_lightning
from train.run import (
    METRICS,
    VOCABULARIES,
    WEIGHTS,
    Run,
    content_of,
    finished_metrics,
    provenance,
    read_config,
    sizes_of,
    write_config,
    write_metrics,
)
from train.signals import Interrupted, Signals
from train.task import RankerTask
from train.warm_start import copy_weights, inherited_model_config, require_compatible


def fit(
    shards: Path,
    run: Path,
    config: FitConfig | None = None,
    *,
    from_run: Path | None = None,
    restart: bool = False,
    stop_after: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train a ranker and return its metrics; resumes an unfinished run, leaves a finished one alone.

    `from_run`: a finished run whose weights and model config the training starts from.
    `restart`: remove a run of other shards or another config from the folder; without it, such a folder is a UserError, as is
    one that another process trains in.
    `stop_after`: end the call after so many validations, as a kill would, and return {}; for tests of resuming.
    SIGTERM ends the process with status 0 once the current batch is saved, SIGHUP with 129, Ctrl-C raises a KeyboardInterrupt.
    """
    config, console = config or FitConfig(), console or Console(stderr=True)
    world = World.from_environment()
    require_devices(config.devices, world)
    if config.compile:
        require_compiler()
    base_run = None if from_run is None else Run.open(from_run)
    if base_run is not None:
        config = replace(config, model=inherited_model_config(base_run, config.model))
    if world.size == 1 and config.devices > 1:
        require_folder(run)
        run_on_ranks(config.devices, fit_on_rank, shards, run, config, from_run, restart, stop_after)
        metrics = run / METRICS
        return read_json(metrics, f"Remove {shell_word(run)} and train again.") if metrics.is_file() else {}
    with Signals() as signals, world.process_group(), ExitStack() as claim:
        signals.deferred = world.size > 1  # a process that left during the start would leave the others waiting
        try:
            world.broadcast(lambda: claim.enter_context(claimed_folder(run)))
            metrics = _Fit(shards, run, config, base_run, world, signals, console).execute(restart, stop_after)
            signals.deferred = False
            signals.raise_deferred()
            return metrics
        except SystemExit:
            if signals.received is not None and world.rank == 0:
                saved_hint = f" {run / LAST} holds the progress." if (run / LAST).is_file() else ""
                console.print(f"fit: stopped.{saved_hint} Re-run the same command to resume.")
            raise


def fit_on_rank(
    shards: Path, run: Path, config: FitConfig, from_run: Path | None, restart: bool, stop_after: int | None
) -> None:
    """`fit` in one of several processes, with a console of its own."""
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    fit(shards, run, config, from_run=from_run, restart=restart, stop_after=stop_after, console=console)


class _Fit:
    """One call of `fit` in one process."""

    def __init__(
        self,
        shards: Path,
        run: Path,
        config: FitConfig,
        base_run: Run | None,
        world: World,
        signals: Signals,
        console: Console,
    ) -> None:
        self.shards, self.run, self.config, self.base_run = shards, run, config, base_run
        self.world, self.signals, self.console = world, signals, console
        self.gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", world.local_rank) if self.gpu else torch.device("cpu")
        self.cursor = Cursor()
        self.loggers: list[Logger] = []
        self.callbacks: list[pl.Callback] = []

    def execute(self, restart: bool, stop_after: int | None) -> dict[str, Any]:
        """Bring the run's folder from its present state to a finished run."""
        opened = Shards.open(self.shards)
        embedding, embedding_record = load_embedding(self.shards)
        base_run = None if self.base_run is None else self.base_run.config["fingerprint"]
        fingerprint = run_fingerprint(self.shards, self.config, base_run)
        finished = self.world.broadcast(lambda: finished_metrics(self.run, fingerprint, restart, self.console))
        if finished is not None:
            return finished
        self.world.broadcast(lambda: opened.verify(self.console))
        self.world.broadcast(self._construct_loggers)
        self.callbacks = construct("callbacks", self.config.callbacks, pl.Callback)
        model = self._model(opened, embedding)
        state = self.world.broadcast(lambda: load_checkpoint(self.run, self.console))
        # otherwise the weights that are loaded hold the scales
        if self.config.evidence and self.base_run is None and state is None:
            scale_by_evidence(model, opened, embedding_record["blocks"], self.config, self.console)
        tower, titles, data = self._tower(), self._titles(model, opened), self._data(opened)
        if self.world.rank == 0:
            self._write_record(opened, embedding_record, fingerprint)
        task = RankerTask(
            model,
            self.config.optimiser,
            self.config.prior,
            impressions=data.train_feed.size,
            total_steps=len(data.train_feed) * self.config.epochs,
            seed=self.config.seed,
            cursor=self.cursor,
            tower=tower,
            titles=titles,
        )
        checkpoints = CheckpointCallback(
            run=self.run,
            cursor=self.cursor,
            patience=self.config.patience,
            minutes=self.config.checkpoint_minutes,
            signals=self.signals,
            world=self.world,
            stop_after=stop_after,
        )
        with faults_named([*self.loggers, *self.callbacks]):
            self._train(task, data, checkpoints, state)
        if stop_after is not None and self.cursor.validations >= stop_after:
            return {}
        return self._finish(model, opened, data, checkpoints) if self.world.rank == 0 else {}

    def _construct_loggers(self) -> None:
        """Construct the loggers that the config names: in process 0 alone, and before anything that takes long."""
        if isinstance(self.config.logger, list):
            self.loggers = construct("logger", self.config.logger, Logger)

    def _model(self, opened: Shards, embedding: torch.Tensor) -> TwoTower:
        splits = opened.manifest["splits"]
        for split in ("train", "validation"):
            clicks, impressions = splits[split]["clicks"], splits[split]["impressions"]
            if not clicks:
                raise UserError(f"{self.shards}: the {split} period has no click to learn from. Prepare a longer log.")
            if clicks == impressions:
                raise UserError(
                    f"{self.shards}: all {impressions:,} impressions of the {split} period were clicked, and nothing is to be "
                    "learned from clicks alone. Log what was shown and not clicked too."
                )
        torch.manual_seed(self.config.seed)
        sizes = sizes_of(opened.vocabularies, opened.context)
        model = TwoTower(self.config.model, sizes, content_of(opened, embedding))
        rate = splits["train"]["clicks"] / splits["train"]["impressions"]
        with torch.no_grad():
            model.presentation.base.fill_(torch.logit(torch.tensor(rate)).item())
        if self.base_run is not None:
            require_compatible(self.base_run, opened, encoder_fingerprint(self.shards))
            copy_weights(model, self.base_run)
        return model

    def _titles(self, model: TwoTower, opened: Shards) -> NextTitleLoss | None:
        """The next-title loss, prepared from the plays before the validation period; None where titles are not learned."""
        begins = datetime.fromisoformat(opened.manifest["validation_from"])
        plays = PlaysFeed(opened.shards, before=round(begins.timestamp() * 1_000_000))
        next_title_loss = NextTitleLoss.prepare(
            model, plays, self.config.titles, self.config.seed, warm=self.base_run is not None
        )
        if next_title_loss is None and self.config.titles.weight and self.world.rank == 0:
            self.console.print("fit: no plays before the validation period: titles are not learned")
        return next_title_loss

    def _tower(self) -> ImageTower | None:
        if not self.config.finetune.learning_rate:
            return None
        if self.world.size > 1:
            raise UserError(
                f"finetune.learning_rate={self.config.finetune.learning_rate}: the image encoder is trained on one device. "
                "Leave devices out, or the rate."
            )
        return ImageTower(self.shards, self.config.finetune, self.config.optimiser.average)

    def _data(self, opened: Shards) -> ShardsModule:
        config = self.config
        data = ShardsModule(
            opened,
            reach=config.model.history.reach,
            batch=config.batch,
            validations_per_epoch=config.validations_per_epoch,
            window=config.window,
            seed=config.seed,
            cursor=self.cursor,
            pin=self.gpu,
            rank=self.world.rank,
            ranks=self.world.size,
        )
        size, batches = data.train_feed.size, len(data.train_feed)
        if config.batch > size:
            raise UserError(
                f"batch={config.batch}: more than the {size} training impressions of {self.shards}. "
                f"With validations_per_epoch={config.validations_per_epoch}, at most "
                f"{max(1, size // config.validations_per_epoch)} fit."
            )
        if batches < config.validations_per_epoch:
            raise UserError(
                f"validations_per_epoch={config.validations_per_epoch}: more than the {batches} batches of an epoch. "
                f"Give at most {batches}, or a batch of at most {max(1, size // config.validations_per_epoch)}."
            )
        return data

    def _write_record(self, opened: Shards, embedding_record: dict[str, Any], fingerprint: str) -> None:
        """Write what the run is made of; config.yaml first, because it marks the folder as a run's."""
        warn_unverified(self.shards / EMBEDDING / EMBEDDING_RECORD, embedding_record, MADE_AGAIN, self.console)
        base = self.base_run
        origin = {} if base is None else {"from": base.config["fingerprint"], "from_run": str(base.folder.resolve())}
        record = {
            "contract_version": CONTRACT_VERSION,
            "fingerprint": fingerprint,
            **origin,
            "shards": str(self.shards.resolve()),
            "shards_fingerprint": opened.fingerprint,
            "log_fingerprint": opened.manifest["log_fingerprint"],
            **{name: opened.manifest[name] for name in ("outcome_delay", "validation_from", "test_from")},
            "embedding": describe_sources(embedding_record),
            "image_encoder": describe_origin(embedding_record),
            "image_encoder_fingerprint": encoder_fingerprint(self.shards),
            "files": files_beside(self.shards, (VOCABULARIES, CONTEXT_FILE)),
            "provenance": provenance(),
            "fit": asdict(self.config),
        }
        write_config(self.run, record)
        for name in (VOCABULARIES, CONTEXT_FILE):
            shutil.copy(self.shards / name, self.run / name)

    def _train(
        self, task: RankerTask, data: ShardsModule, checkpoints: CheckpointCallback, state: dict[str, Any] | None
    ) -> None:
        """Train the remaining batches, from the checkpoint `state` if there is one."""
        if state is not None:
            checkpoints.resume(state, task)
        if self.world.rank == 0:
            self._print_position(task, resumed=state is not None)
        with silence_lightning(), compiled(task.model, self.config.compile), progress_bar(self.console) as progress:
            remaining = self.config.epochs * self.config.validations_per_epoch - self.cursor.validations
            # the user's callbacks come first: what they change after a batch is in the checkpoint of that batch
            callbacks = [*self.callbacks, checkpoints, ProgressCallback(progress, self.cursor, task.total_steps)]
            trainer = self._trainer(remaining, callbacks)
            if self.world.rank == 0:
                for logger in trainer.loggers:
                    logger.log_hyperparams(read_config(self.run))
            self.signals.deferred = True
            try:
                # the weights a warm start begins with, and a training that was stopped during a validation
                if (self.base_run is not None and state is None) or (
                    self.cursor.batch and not len(data.train_dataloader())
                ):
                    trainer.validate(task, data, verbose=False)
                    trainer.fit_loop.max_epochs = (
                        self.config.epochs * self.config.validations_per_epoch - self.cursor.validations
                    )
                if trainer.fit_loop.max_epochs and not checkpoints.out_of_patience():
                    trainer.fit(task, data)
            except Interrupted:
                self.signals.deferred = False
                self.signals.raise_deferred()
                raise SystemExit(0) from None  # another rank's signal
            except SystemExit:  # how the trainer ends on Ctrl-C, after its own clean-up
                self.signals.raise_deferred()
                raise
            except FloatingPointError as error:
                raise UserError(f"{self.run}: {error}") from None
            self.signals.deferred = False
            self.signals.raise_deferred()

    def _print_position(self, task: RankerTask, *, resumed: bool) -> None:
        truncate_log(self.run, self.cursor, resumed=resumed)
        if resumed:
            inside = f", batch {self.cursor.batch + 1}" if self.cursor.batch else ""
            self.console.print(f"fit: {self.run} resumes before validation {self.cursor.validations + 1}{inside}")
            if inside and task.generators is None:
                self.console.print("fit: it was started with another number of processes: dropout is drawn anew")
        elif self.base_run is not None:
            self.console.print(f"fit: starts from the weights and the model config of {self.base_run.folder}")

    def _trainer(self, epochs: int, callbacks: list[pl.Callback]) -> pl.Trainer:
        bf16 = self.config.precision == "bf16" or (
            self.config.precision == "auto" and self.gpu and torch.cuda.is_bf16_supported()
        )
        loggers: list[Logger] = self.loggers
        if self.world.rank:  # process 0 logs; callbacks that need a logger have one everywhere
            loggers = [DummyLogger()] if self.config.logger else []
        elif self.config.logger is True:
            loggers = [TensorBoardEvents(self.run, self.cursor)]
        trainer = pl.Trainer(
            accelerator="gpu" if self.gpu else "cpu",
            devices=self.world.local_size,
            num_nodes=self.world.nodes,
            strategy=self.world.strategy(),
            precision="bf16-mixed" if bf16 else "32-true",
            max_epochs=epochs,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            logger=loggers,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=self.run,
            callbacks=callbacks,
        )
        # The trainer's own handler of SIGTERM communicates with the other ranks from within the signal, in the middle of
        # another exchange; ours only records the signal
        trainer._signal_connector.register_signal_handlers = lambda: None
        return trainer

    def _finish(
        self, model: TwoTower, opened: Shards, data: ShardsModule, checkpoints: CheckpointCallback
    ) -> dict[str, Any]:
        """Calibrate the best weights and write them."""
        run, config = self.run, self.config
        model.load_state_dict(load_best(run))
        model, reach = model.to(self.device).eval(), config.model.history.reach
        metrics = {
            "past_impressions": fit_own_taste(model, opened, reach, config.batch, self.device, self.console),
            **calibrate_with_posterior(model, opened, reach, config.batch, self.device),
            "best_validation": checkpoints.best_validation,
            "validations": self.cursor.validations,
            "padding": round(data.train_feed.padding(), 4),
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        with atomic_file(run / WEIGHTS) as partial:
            weights = {k: v.cpu().contiguous() for k, v in model.state_dict().items()}
            save_file(weights, partial, {"run": read_config(run)["fingerprint"]})
        record = read_config(run)
        if config.finetune.learning_rate:
            record["image_encoder"] += ", fine-tuned on clicks"
            record["image_encoder_fingerprint"] = content_hashes([run / ENCODER])[0]
        # a bundle needs these to embed artworks that the shards do not hold
        for name in (EMBEDDING_RECORD,) if config.finetune.learning_rate else (EMBEDDING_RECORD, ENCODER):
            with atomic_file(run / name) as partial:
                shutil.copyfile(self.shards / EMBEDDING / name, partial)
        write_metrics(run, record, metrics)
        (run / BEST_WEIGHTS).unlink()
        self.console.print(
            f"fit: best log loss {checkpoints.best:.5f}, at validation {checkpoints.best_validation} "
            f"of {self.cursor.validations}; artworks' own biases: {metrics['own_biases']}, {metrics['validation_log_loss']:.5f}"
        )
        return metrics
