"""`keyart fit`: shards in, a run folder out.

Called again with the same arguments it resumes where it stopped: checkpoints are written aside and renamed at the end
of every slice of a pass, and everything random follows from the seed and the slice's number, so that a resumed run ends
with the weights of an undisturbed one.
"""

import csv
import json
import logging
import shutil
import time
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from datamodules.atomic import atomic_file
from datamodules.contract import CONTRACT_VERSION, UserError
from datamodules.datamodule import ShardsModule
from datamodules.feed import Feed
from datamodules.fingerprint import fingerprint
from datamodules.progress import progress_bar
from datamodules.shards import VALIDATION, Shards
from models.two_tower import TwoTower, TwoTowerConfig
from train.embed import encoder_fingerprint, load_embedding
from train.run import METRICS, WEIGHTS, Run, content_of, provenance, read_config, sizes_of, write_config
from train.task import OptimiserConfig, RankerTask, rank_batch
from train.warm import require_alike, shape_of, take_weights

LAST = Path("checkpoints") / "last.ckpt"
BEST = "best.safetensors"


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """One training."""

    model: TwoTowerConfig = field(default_factory=TwoTowerConfig)
    """The ranker."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """How it learns."""
    passes: int = 5
    """Passes over the training impressions, at most."""
    slices: int = 2
    """Validations and checkpoints per pass."""
    patience: int = 4
    """Validations without a better log loss after which training ends."""
    batch: int = 2048
    """Impressions per step."""
    seed: int = 0
    """Of the initial weights, the order and the dropout."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("passes", "slices", "patience", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1.")


def run_fingerprint(shards: Path, config: FitConfig, before: str | None = None) -> str:
    """What a run of these shards and embeddings under this config, begun from the run `before`, carries as its own."""
    _, embedding = load_embedding(shards)
    return fingerprint(
        Shards.open(shards).fingerprint, embedding["fingerprint"], config, *([] if before is None else [before])
    )


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
    `stop_after` ends the call after so many slices, as a kill would: for tests of resuming.
    """
    config, console = config or FitConfig(), console or Console(stderr=True)
    opened = Shards.open(shards)
    embedding, embedded = load_embedding(shards)
    before = None if from_run is None else Run.open(from_run)
    if before is not None:
        config = replace(config, model=shape_of(before, config.model))
    wanted = run_fingerprint(shards, config, None if before is None else before.config["fingerprint"])
    if (run / "config.yaml").is_file():
        if restart and _fingerprint_of(run) != wanted:
            shutil.rmtree(run)
        elif read_config(run)["fingerprint"] != wanted:
            raise UserError(
                f"{run}: holds a run of other shards or another config, or of another run than it began from. "
                "Name a new folder, or remove it."
            )
        elif (run / METRICS).is_file():
            console.print(f"fit: {run} is up to date")
            return json.loads((run / METRICS).read_text())
    elif run.is_dir() and any(run.iterdir()):
        raise UserError(
            f"{run}: holds files, but no config.yaml, so keyart did not write it. Name a new or empty folder."
        )
    splits = opened.manifest["splits"]
    for split in ("train", "validation"):
        if not splits[split]["clicks"]:
            raise UserError(f"{shards}: the {split} period has no click to learn from. Prepare a longer log.")

    torch.manual_seed(config.seed)
    model = TwoTower(config.model, sizes_of(opened.vocabularies), content_of(opened, embedding))
    rate = splits["train"]["clicks"] / splits["train"]["impressions"]
    with torch.no_grad():
        model.base.fill_(torch.logit(torch.tensor(rate)).item())
    encoder = encoder_fingerprint(shards)
    if before is not None:
        require_alike(before, opened, encoder)
        take_weights(model, before)
        console.print(f"fit: begins from {before.folder}, with its weights and its model")
    gpu = torch.cuda.is_available()
    reach = config.model.history.reach
    data = ShardsModule(opened, reach=reach, batch=config.batch, slices=config.slices, seed=config.seed, pin=gpu)
    total = len(data.train_feed) * config.passes
    if len(data.train_feed) < config.slices:
        raise UserError(
            f"slices={config.slices}: more than the {len(data.train_feed)} batches of a pass. Lower it, or batch."
        )

    (run / LAST).parent.mkdir(parents=True, exist_ok=True)
    record = {
        "contract_version": CONTRACT_VERSION,
        "fingerprint": wanted,
        "shards": str(shards.resolve()),
        "shards_fingerprint": opened.fingerprint,
        "log_fingerprint": opened.manifest["log_fingerprint"],
        "test_from": opened.manifest["test_from"],
        "image_encoder": embedded["weights"],
        "image_encoder_fingerprint": encoder,
        **({} if before is None else {"from": before.config["fingerprint"], "from_run": str(before.folder.resolve())}),
        "provenance": provenance(),
        "fit": asdict(config),
    }
    write_config(run, record)
    shutil.copy(shards / "vocabularies.json", run / "vocabularies.json")
    task = RankerTask(model, config.optimiser, total_steps=total, seed=config.seed)
    keeper = _Keeper(run, config.patience, stop_after)
    with (
        _quiet(),
        progress_bar(console) as progress,
    ):
        trainer = pl.Trainer(
            accelerator="gpu" if gpu else "cpu",
            devices=1,
            max_epochs=config.passes * config.slices,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            gradient_clip_val=config.optimiser.clip,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=run,
            callbacks=[keeper, _Bar(progress, total)],
        )
        resume = run / LAST if (run / LAST).is_file() else None
        if resume is not None:
            console.print(f"fit: goes on from {resume}")
        try:
            trainer.fit(task, data, ckpt_path=resume, weights_only=True)
        except SystemExit:  # how the trainer ends on Ctrl-C, after its own clean-up
            raise KeyboardInterrupt from None
        except FloatingPointError as error:
            raise UserError(f"{run}: {error}") from None
    if stop_after is not None and keeper.slices_done >= stop_after:
        return {}

    model.load_state_dict(load_file(run / BEST))
    device = torch.device("cuda" if gpu else "cpu")
    metrics = {
        "validation_log_loss": keeper.best,
        "validation": _calibrate(model.to(device).eval(), opened, reach, config.batch, device),
        "best_slice": keeper.best_slice,
        "slices": keeper.slices_done,
        "padding": round(data.train_feed.padding(), 4),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    with atomic_file(run / WEIGHTS) as partial:
        save_file({k: v.cpu().contiguous() for k, v in model.state_dict().items()}, partial)
    with atomic_file(run / METRICS) as partial:
        partial.write_text(json.dumps(metrics, indent=1))
    (run / BEST).unlink()
    console.print(
        f"fit: best validation log loss {keeper.best:.5f} after slice {keeper.best_slice} of {keeper.slices_done}"
    )
    return metrics


def _fingerprint_of(run: Path) -> str | None:
    """The fingerprint a run carries; None where this keyart cannot read it."""
    try:
        return read_config(run)["fingerprint"]
    except (UserError, KeyError):
        return None


@torch.no_grad()
def _calibrate(model: TwoTower, shards: Shards, reach: int, batch: int, device: torch.device) -> dict[str, float]:
    """Fit scale and shift of both logits on validation (Platt, 1999), into the model; log losses before and after."""
    logits: list[tuple[Tensor, ...]] = []
    for item in Feed(shards.shards, VALIDATION, reach=reach, impressions=2 * batch, shuffle=False):
        moved = item.to(device)
        terms = rank_batch(model, moved)
        click = terms.click_NK().gather(1, moved.shown[:, None])[:, 0]
        engaged = terms.engaged_NK.gather(1, moved.shown[:, None])[:, 0]
        logits.append(tuple(t.cpu().double() for t in (click, moved.clicked, engaged, moved.engaged)))
    click, clicked, engaged, was_engaged = (torch.cat(parts) for parts in zip(*logits, strict=True))
    known = (clicked > 0) & ~torch.isnan(was_engaged)
    click_scale, click_shift, before, after = _platt(click, clicked)
    said = {"click_log_loss_before": before, "click_log_loss_after": after}
    engaged_scale, engaged_shift = 1.0, 0.0
    # one kind of answer alone has no slope: the head is then left as it is
    if known.any() and 0 < was_engaged[known].mean() < 1:
        engaged_scale, engaged_shift, before, after = _platt(engaged[known], was_engaged[known])
        said |= {"engaged_log_loss_before": before, "engaged_log_loss_after": after}
    model.calibration.copy_(torch.tensor([click_scale, click_shift, engaged_scale, engaged_shift]))
    return said


def _platt(logit_N: Tensor, label_N: Tensor) -> tuple[float, float, float, float]:
    """Scale and shift of least log loss by Newton's method, and the log loss before and after."""
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64)
    design = torch.stack([logit_N, torch.ones_like(logit_N)], dim=1)

    def loss() -> float:
        return F.binary_cross_entropy_with_logits(design @ weights, label_N).item()

    before = loss()
    for _ in range(25):
        p = torch.sigmoid(design @ weights)
        slope = design.T @ (p - label_N) + 1e-3 * (weights - torch.tensor([1.0, 0.0], dtype=torch.float64))
        curve = (design * (p * (1 - p))[:, None]).T @ design + 1e-3 * torch.eye(2, dtype=torch.float64)
        step = torch.linalg.solve(curve, slope)
        weights = weights - step
        if step.abs().max() < 1e-9:
            break
    return float(weights[0]), float(weights[1]), before, loss()


class _Keeper(pl.Callback):
    """After each slice: keep the best averaged weights, write the checkpoint, end when nothing gets better."""

    def __init__(self, run: Path, patience: int, stop_after: int | None) -> None:
        self.run, self.patience, self.stop_after = run, patience, stop_after
        self.best, self.best_slice, self.slices_done = float("inf"), 0, 0
        self.began = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_slice": self.best_slice, "slices_done": self.slices_done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_slice = state_dict["best"], state_dict["best_slice"]
        self.slices_done = state_dict["slices_done"]

    def _over(self) -> bool:
        return self.slices_done - self.best_slice >= self.patience

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._over():  # killed after the last slice, before the weights were written
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RankerTask)
        loss = float(trainer.callback_metrics["validation_log_loss"])
        self.slices_done += 1
        if loss < self.best:
            self.best, self.best_slice = loss, self.slices_done
            kept = pl_module.average.module.state_dict()
            with atomic_file(self.run / BEST) as partial:
                save_file({k: v.cpu().contiguous() for k, v in kept.items()}, partial)
        self._note(trainer, loss)
        with atomic_file(self.run / LAST) as partial:
            trainer.save_checkpoint(partial)
        if self._over() or (self.stop_after is not None and self.slices_done >= self.stop_after):
            trainer.should_stop = True

    def _note(self, trainer: pl.Trainer, loss: float) -> None:
        path = self.run / "log.csv"
        new = not path.is_file()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["slice", "step", "train_loss", "validation_log_loss", "seconds"])
            train = float(trainer.callback_metrics["train_loss"])
            seconds = time.monotonic() - self.began
            writer.writerow([self.slices_done, trainer.global_step, f"{train:.6f}", f"{loss:.6f}", f"{seconds:.1f}"])


class _Bar(pl.Callback):
    """Progress over all passes, with the loss and the rate."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total = progress, total
        self.task = progress.add_task("fit", total=total)
        self.seen, self.began = 0, time.monotonic()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen += len(batch.clicked)
        if batch_idx % 10:
            return
        metrics = trainer.callback_metrics
        rate = self.seen / (time.monotonic() - self.began)
        said = f"fit: loss {float(metrics.get('train_loss', torch.nan)):.4f}"
        if "validation_log_loss" in metrics:
            said += f", validation {float(metrics['validation_log_loss']):.5f}"
        self.progress.update(self.task, completed=trainer.global_step, description=f"{said}, {rate:,.0f} impressions/s")


class _quiet:
    """Silence the trainer's advice about loggers, loaders and devices: what it says is said by us, or does not apply."""

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
