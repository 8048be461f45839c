"""`keyart fit`: shards in, a run folder out.

Called again with the same arguments it goes on where it stopped: every few minutes all that a training consists of is
written aside and renamed (`keeper`, `checkpoint`), so that a training that was cut short ends with the weights of an
undisturbed one.
"""

import json
import shutil
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy
from rich.console import Console
from safetensors.torch import load_file, save_file

from datamodules.artworks import content_hashes
from datamodules.atomic import atomic_file
from datamodules.contract import CONTRACT_VERSION, UserError
from datamodules.datamodule import Place, ShardsModule
from datamodules.plays import PlaysFeed
from datamodules.progress import progress_bar
from datamodules.shards import EMBEDDING, Shards
from models.two_tower import TwoTower
from train.calibrate import calibrate
from train.checkpoint import LAST, load_checkpoint
from train.compiled import compiled, require_compiler
from train.config import FitConfig, run_fingerprint
from train.embed import ENCODER, RECORD, encoder_fingerprint, load_embedding
from train.finetune import ImageTower
from train.keeper import BEST, Keeper, cut_log
from train.posterior import fit_posterior
from train.ranks import World, on_ranks, require_devices
from train.run import CONFIG, METRICS, WEIGHTS, Run, content_of, provenance, read_config, sizes_of, write_config
from train.signals import Signals, Stopped
from train.task import RankerTask
from train.titles import TitleLesson
from train.warm import require_alike, shape_of, take_weights
from train.watch import EventFiles, Watch, quiet


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

    `from_run` names a finished run whose weights it begins with, and whose model it has.
    `restart` throws away what a run of other shards or another config left; without it, that is refused.
    `stop_after` ends the call after so many slices, as a kill would: for tests of resuming. {} is returned then.
    SIGTERM ends the process with 0 when the batch at work is saved, Ctrl-C raises a KeyboardInterrupt likewise.
    """
    config, console = config or FitConfig(), console or Console(stderr=True)
    world = World.of_environment()
    require_devices(config.devices, world)
    if config.compile:
        require_compiler()
    before = None if from_run is None else Run.open(from_run)
    if before is not None:
        config = replace(config, model=shape_of(before, config.model))
    if world.size == 1 and config.devices > 1:
        on_ranks(config.devices, fit_on_rank, shards, run, config, from_run, restart, stop_after)
        return json.loads((run / METRICS).read_text()) if (run / METRICS).is_file() else {}
    with Signals() as signals, world.joined():
        signals.held = world.size > 1  # one that left while they begin would leave the others waiting
        try:
            found = _Fit(shards, run, config, before, world, signals, console).go(restart, stop_after)
            signals.held = False
            signals.act()
            return found
        except SystemExit:
            if signals.came is not None and world.rank == 0:
                held = f" {run / LAST} holds what is done." if (run / LAST).is_file() else ""
                console.print(f"fit: stopped.{held} The same command again goes on.")
            raise


def fit_on_rank(
    shards: Path, run: Path, config: FitConfig, from_run: Path | None, restart: bool, stop_after: int | None
) -> None:
    """What each process of several does."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    fit(shards, run, config, from_run=from_run, restart=restart, stop_after=stop_after, console=console)


class _Fit:
    """One call of `fit` in one process."""

    def __init__(
        self,
        shards: Path,
        run: Path,
        config: FitConfig,
        before: Run | None,
        world: World,
        signals: Signals,
        console: Console,
    ) -> None:
        self.shards, self.run, self.config, self.before = shards, run, config, before
        self.world, self.signals, self.console = world, signals, console
        self.gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", world.local_rank) if self.gpu else torch.device("cpu")
        self.place = Place()

    def go(self, restart: bool, stop_after: int | None) -> dict[str, Any]:
        """From the folder as it is to the finished run."""
        opened = Shards.open(self.shards)
        embedding, embedded = load_embedding(self.shards)
        before = None if self.before is None else self.before.config["fingerprint"]
        wanted = run_fingerprint(self.shards, self.config, before)
        finished = self.world.from_zero(lambda: self._finished(wanted, restart))
        if finished is not None:
            return finished
        model = self._model(opened, embedding)
        tower = self._tower()
        titles = self._titles(model, opened)
        data = self._data(opened)
        if self.world.rank == 0:
            self._write_record(opened, embedded, wanted)
        task = RankerTask(
            model,
            self.config.optimiser,
            self.config.prior,
            impressions=data.train_feed.size,
            total_steps=len(data.train_feed) * self.config.passes,
            seed=self.config.seed,
            place=self.place,
            alone=self.world.size == 1,
            tower=tower,
            titles=titles,
        )
        keeper = Keeper(
            run=self.run,
            place=self.place,
            patience=self.config.patience,
            minutes=self.config.checkpoint_minutes,
            signals=self.signals,
            world=self.world,
            stop_after=stop_after,
        )
        self._train(task, data, keeper)
        if stop_after is not None and self.place.slice >= stop_after:
            return {}
        return self._finish(model, opened, data, keeper) if self.world.rank == 0 else {}

    def _finished(self, wanted: str, restart: bool) -> dict[str, Any] | None:
        """The metrics of a finished run; None where there is something to do. A folder of something else is refused."""
        run = self.run
        if (run / CONFIG).is_file():
            if restart and _fingerprint_of(run) != wanted:
                shutil.rmtree(run)
            elif read_config(run)["fingerprint"] != wanted:
                raise UserError(
                    f"{run}: holds a run of other shards or another config, or of another run than it began from. "
                    "Name a new folder, or remove it."
                )
            elif (run / METRICS).is_file():
                self.console.print(f"fit: {run} is up to date")
                return json.loads((run / METRICS).read_text())
        elif run.is_dir() and any(path.suffix != ".partial" for path in run.iterdir()):
            raise UserError(
                f"{run}: holds files, but no {CONFIG}, so keyart did not write it. Name a new or empty folder."
            )
        return None

    def _model(self, opened: Shards, embedding: torch.Tensor) -> TwoTower:
        splits = opened.manifest["splits"]
        for split in ("train", "validation"):
            if not splits[split]["clicks"]:
                raise UserError(f"{self.shards}: the {split} period has no click to learn from. Prepare a longer log.")
        torch.manual_seed(self.config.seed)
        model = TwoTower(self.config.model, sizes_of(opened.vocabularies), content_of(opened, embedding))
        rate = splits["train"]["clicks"] / splits["train"]["impressions"]
        with torch.no_grad():
            model.presentation.base.fill_(torch.logit(torch.tensor(rate)).item())
        if self.before is not None:
            require_alike(self.before, opened, encoder_fingerprint(self.shards))
            take_weights(model, self.before)
        return model

    def _titles(self, model: TwoTower, opened: Shards) -> TitleLesson | None:
        """How titles are learned, from the plays before the validation period; None where they are not."""
        begins = datetime.fromisoformat(opened.manifest["validation_from"])
        plays = PlaysFeed(opened.shards, before=round(begins.timestamp() * 1_000_000))
        lesson = TitleLesson.prepare(model, plays, self.config.titles, self.config.seed, warm=self.before is not None)
        if lesson is None and self.config.titles.weight and self.world.rank == 0:
            self.console.print("fit: there are no plays before the validation period, so titles are not learned")
        return lesson

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
            slices=config.slices,
            window=config.window,
            seed=config.seed,
            place=self.place,
            pin=self.gpu,
            rank=self.world.rank,
            ranks=self.world.size,
        )
        size, batches = data.train_feed.size, len(data.train_feed)
        if config.batch > size:
            raise UserError(
                f"batch={config.batch}: more than the {size} training impressions of {self.shards}. "
                f"With slices={config.slices}, at most {max(1, size // config.slices)} fit."
            )
        if batches < config.slices:
            raise UserError(
                f"slices={config.slices}: more than the {batches} batches of a pass. "
                f"Give at most {batches}, or a batch of at most {max(1, size // config.slices)}."
            )
        return data

    def _write_record(self, opened: Shards, embedded: dict[str, Any], wanted: str) -> None:
        """What the run is made of; config.yaml first, for it marks the folder as a run's."""
        began = {}
        if self.before is not None:
            began = {"from": self.before.config["fingerprint"], "from_run": str(self.before.folder.resolve())}
        record = {
            "contract_version": CONTRACT_VERSION,
            "fingerprint": wanted,
            **began,
            "shards": str(self.shards.resolve()),
            "shards_fingerprint": opened.fingerprint,
            "log_fingerprint": opened.manifest["log_fingerprint"],
            "test_from": opened.manifest["test_from"],
            "image_encoder": embedded["weights"],
            "image_encoder_fingerprint": encoder_fingerprint(self.shards),
            "provenance": provenance(),
            "fit": asdict(self.config),
        }
        write_config(self.run, record)
        shutil.copy(self.shards / "vocabularies.json", self.run / "vocabularies.json")

    def _train(self, task: RankerTask, data: ShardsModule, keeper: Keeper) -> None:
        """Do what is left to do."""
        state = self.world.from_zero(lambda: load_checkpoint(self.run, self.console))
        if state is not None:
            keeper.resume(state, task)
        if self.world.rank == 0:
            self._say_where(task, resumed=state is not None)
        with quiet(), compiled(task.model, self.config.compile), progress_bar(self.console) as progress:
            left = self.config.passes * self.config.slices - self.place.slice
            trainer = self._trainer(left, [keeper, Watch(progress, self.place, task.total_steps)])
            self.signals.held = True
            try:
                # the weights a warm start begins with, and a slice that was stopped while it was validated
                if (self.before is not None and state is None) or (
                    self.place.batch and not len(data.train_dataloader())
                ):
                    trainer.validate(task, data, verbose=False)
                    trainer.fit_loop.max_epochs = self.config.passes * self.config.slices - self.place.slice
                if trainer.fit_loop.max_epochs and not keeper.over():
                    trainer.fit(task, data)
            except Stopped:
                self.signals.held = False
                self.signals.act()
                raise SystemExit(0) from None  # another rank's signal
            except SystemExit:  # how the trainer ends on Ctrl-C, after its own clean-up
                self.signals.act()
                raise
            except FloatingPointError as error:
                raise UserError(f"{self.run}: {error}") from None
            self.signals.held = False
            self.signals.act()

    def _say_where(self, task: RankerTask, *, resumed: bool) -> None:
        cut_log(self.run, self.place, resumed=resumed)
        if resumed:
            inside = f", batch {self.place.batch + 1}" if self.place.batch else ""
            self.console.print(f"fit: {self.run} goes on from slice {self.place.slice + 1}{inside}")
            if inside and task.generators is None:
                self.console.print("fit: it was begun by another number of processes: dropout is drawn anew")
        elif self.before is not None:
            self.console.print(f"fit: begins from {self.before.folder}, with its weights and its model")

    def _trainer(self, epochs: int, callbacks: list[pl.Callback]) -> pl.Trainer:
        bf16 = self.config.precision == "bf16" or (
            self.config.precision == "auto" and self.gpu and torch.cuda.is_bf16_supported()
        )
        strategy: Any = "auto"
        if self.world.size > 1:
            strategy = DDPStrategy(
                cluster_environment=TorchElasticEnvironment(), broadcast_buffers=False, gradient_as_bucket_view=True
            )
        trainer = pl.Trainer(
            accelerator="gpu" if self.gpu else "cpu",
            devices=self.world.local_size,
            num_nodes=self.world.nodes,
            strategy=strategy,
            precision="bf16-mixed" if bf16 else "32-true",
            max_epochs=epochs,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            logger=EventFiles(self.run, self.place) if self.world.rank == 0 else False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=self.run,
            callbacks=callbacks,
        )
        # The trainer's own handler of SIGTERM talks to the other ranks from within the signal, in the midst of whatever
        # they exchange; ours only notes it
        trainer._signal_connector.register_signal_handlers = lambda: None
        return trainer

    def _finish(self, model: TwoTower, opened: Shards, data: ShardsModule, keeper: Keeper) -> dict[str, Any]:
        """Calibrate the best weights and write them."""
        run, config = self.run, self.config
        try:
            model.load_state_dict(load_file(run / BEST))
        except Exception as error:  # safetensors raises its own class for a damaged file
            raise UserError(f"{run / BEST}: cannot be read ({error}). Remove {run} and train again.") from None
        reach = config.model.history.reach
        metrics = {
            "validation_log_loss": keeper.best,
            "validation": calibrate(model.to(self.device).eval(), opened, reach, config.batch, self.device),
            "posterior": fit_posterior(model, opened, reach, config.batch, self.device),
            "best_slice": keeper.best_slice,
            "slices": self.place.slice,
            "padding": round(data.train_feed.padding(), 4),
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        with atomic_file(run / WEIGHTS) as partial:
            save_file({k: v.cpu().contiguous() for k, v in model.state_dict().items()}, partial)
        if config.finetune.learning_rate:
            record = read_config(run)
            record["image_encoder"] += ", fine-tuned on clicks"
            record["image_encoder_fingerprint"] = content_hashes([run / ENCODER])[0]
            write_config(run, record)
        # what a bundle needs to place artworks that the shards do not hold
        for name in (RECORD,) if config.finetune.learning_rate else (RECORD, ENCODER):
            with atomic_file(run / name) as partial:
                shutil.copyfile(self.shards / EMBEDDING / name, partial)
        with atomic_file(run / METRICS) as partial:
            partial.write_text(json.dumps(metrics, indent=1))
        (run / BEST).unlink()
        self.console.print(
            f"fit: best validation log loss {keeper.best:.5f} after slice {keeper.best_slice} of {self.place.slice}"
        )
        return metrics


def _fingerprint_of(run: Path) -> str | None:
    """The fingerprint a run carries; None where this keyart cannot read it."""
    try:
        return read_config(run)["fingerprint"]
    except (UserError, KeyError):
        return None
