"""The training task: the two-tower ranker plus a loss, an optimiser and the validation figures.

In: `Batch`es of the feed. Out: a running average of the weights, which is what is validated, kept and exported. Clicks
are learned by log loss over impressions; engagement by log loss over the clicked ones.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from datamodules.contract import UserError
from datamodules.datamodule import Place
from datamodules.feed import Batch
from models.two_tower import Content, Context, Terms, TwoTower
from train.schedule import warm_cosine

RANK_STRIDE, BATCH_STRIDE = 1_000_003**2, 15_485_863
"""Between seeds: each rank draws dropout of its own, and so does a slice gone on with by another number of ranks."""

FUSED = ("cuda",)
"""Devices whose AdamW is one kernel over all weights."""


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """AdamW (Loshchilov and Hutter, 2019), linear warm-up and cosine decay, averaged weights."""

    learning_rate: float = 2e-3
    """Peak rate."""
    weight_decay: float = 0.3
    """Decoupled weight decay."""
    warmup: float = 0.1
    """Share of all steps during which the rate rises."""
    clip: float = 1.0
    """Largest norm of a step's gradient."""
    average: float = 0.99
    """Decay of the running average of the weights, per step; 0 keeps the last weights."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, value, low, high in (
            ("learning_rate", self.learning_rate, 0.0, 1.0),
            ("weight_decay", self.weight_decay, 0.0, 100.0),
            ("warmup", self.warmup, 0.0, 0.9),
            ("average", self.average, 0.0, 0.99999),
        ):
            if not low <= value <= high:
                raise UserError(f"optimiser.{name}={value}: must lie in {low} .. {high}.")
        if self.clip <= 0:
            raise UserError(f"optimiser.clip={self.clip}: must be above 0.")


def rank_batch(model: TwoTower, batch: Batch) -> Terms:
    """The model's terms for every impression and artwork of a batch."""
    context = Context(batch.country, batch.device, batch.hour, batch.row, batch.column)
    plays = (batch.play_title, batch.play_artwork, batch.play_watched)
    return model(*plays, batch.member, batch.position, context, batch.title, batch.artworks)


def losses(terms: Terms, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Mean log loss of clicks, 0 of none; summed log loss of engagement over logged clicks, and how many those are."""
    mean = "mean" if len(batch.clicked) else "sum"
    click = F.binary_cross_entropy_with_logits(_of_shown(terms.click_NK(), batch), batch.clicked, reduction=mean)
    known = (batch.clicked > 0) & ~torch.isnan(batch.engaged)
    engaged = _of_shown(terms.engaged_NK, batch)[known]
    return click, F.binary_cross_entropy_with_logits(engaged, batch.engaged[known], reduction="sum"), known.sum()


def _of_shown(logit_NK: Tensor, batch: Batch) -> Tensor:
    return logit_NK.gather(1, batch.shown[:, None]).squeeze(1)


def generator_states() -> dict[str, Tensor]:
    """Where this process's generators stand, by device."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_generator_states(states: dict[str, Tensor]) -> None:
    """Go on from what `generator_states` gave; on another kind of device, from there on the draws are others."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


class RankerTask(pl.LightningModule):
    """Loss, optimiser and validation around a `TwoTower`. Its loss is a sum over the impressions of all ranks."""

    def __init__(
        self, model: TwoTower, optimiser: OptimiserConfig, *, total_steps: int, seed: int, place: Place
    ) -> None:
        """`place`: how far the training has come, moved by the keeper."""
        super().__init__()
        self.model, self.optimiser_config = model, optimiser
        self.total_steps, self.seed, self.place = max(1, total_steps), seed, place
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(optimiser.average), use_buffers=False)
        self.average.requires_grad_(False)
        self.generators: dict[str, Tensor] | None = None
        """Generator states to go on with in the middle of a slice."""
        self.sums = torch.zeros(2, dtype=torch.float64)
        """Of this slice so far: summed loss, impressions."""
        self.validation_log_loss = self.validation_engaged_log_loss = math.nan
        self._validated = torch.zeros(4, dtype=torch.float64)
        self._broken = torch.full((4,), math.nan)

    def state(self) -> dict[str, Tensor]:
        """Everything trained, and the average of it. The catalogue is not: it comes from the shards."""
        return {name: value for name, value in self.state_dict().items() if name.split(".")[-1] not in Content._fields}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take what `state` gave."""
        missing, unexpected = self.load_state_dict(state, strict=False)
        assert not unexpected
        assert {name.split(".")[-1] for name in missing} <= set(Content._fields)

    def on_train_epoch_start(self) -> None:
        """Seed from the slice alone, or go on where the generators stood: a resumed run draws the same dropout."""
        states, self.generators = self.generators, None
        if states is not None and self.place.batch:
            set_generator_states(states)
        else:
            place = self.place.slice + self.place.batch * BATCH_STRIDE + self.global_rank * RANK_STRIDE
            torch.manual_seed(self.seed * 1_000_003 + place)
            if self.place.batch == 0:
                self.sums = torch.zeros(2, dtype=torch.float64)
        self.sums = self.sums.to(self.device)
        self._broken = torch.full((4,), math.nan, device=self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Log loss of clicks, plus that of engagement, per impression of the whole batch."""
        click, engaged, _ = losses(rank_batch(self.model, batch), batch)
        count = len(batch.clicked)
        loss = click * (count / batch.whole) + engaged / batch.whole
        with torch.no_grad():
            self.sums += torch.stack([click * count + engaged, torch.full_like(click, count)])
            told = torch.stack([loss, click, engaged, torch.full_like(loss, self.place.batch)]).float()
            self._broken = torch.where(torch.isfinite(loss) | ~torch.isnan(self._broken[3]), self._broken, told)
        # asking a GPU for a number makes it wait: there, now and then, and before each checkpoint
        if not loss.is_cuda or batch_idx % 32 == 31:
            self.require_finite()
        return loss * self.trainer.world_size  # the ranks' gradients are averaged, and the loss is a sum over them

    def require_finite(self) -> None:
        """Raise a FloatingPointError that names the first batch whose loss was no number, if any was."""
        loss, click, engaged, batch = self._broken.tolist()
        if not math.isnan(batch):
            raise FloatingPointError(
                f"the loss is {loss} in slice {self.place.slice + 1}, batch {batch:.0f} (click {click}, engaged {engaged}). "
                f"Lower optimiser.learning_rate ({self.optimiser_config.learning_rate}); "
                "where the first batch is the one, embed the shards again."
            )

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Before each step: move the average to the weights of the step before, so that it trails by one."""
        self.average.update_parameters(self.model)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm here: the trainer refuses to where AdamW is fused and the precision is mixed, bfloat16 or not."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.optimiser_config.clip)

    def on_validation_epoch_start(self) -> None:
        """Start the sums."""
        self._validated = torch.zeros(4, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Sum the losses of the averaged model, in the precision it will be served in."""
        with torch.autocast(self.device.type, enabled=False):
            click, engaged, clicks = losses(rank_batch(cast(TwoTower, self.average.module), batch), batch)
        count = len(batch.clicked)
        self._validated += torch.stack([click * count, torch.full_like(click, count), engaged, clicks])

    def on_validation_epoch_end(self) -> None:
        """Means over the split, of all ranks."""
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(self._validated)
        click, count, engaged, clicks = self._validated.tolist()
        self.validation_log_loss, self.validation_engaged_log_loss = click / count, engaged / max(1.0, clicks)

    def train_loss(self) -> float:
        """Mean loss per impression of this slice so far, of all ranks: every rank must ask."""
        sums = self.sums.clone()
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(sums)
        loss, count = sums.tolist()
        return loss / count if count else math.nan

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW under warm-up and cosine."""
        config = self.optimiser_config
        fused = self.device.type in FUSED
        # Decay pulls vectors to zero, where an id nobody trained lies; biases and norms have no such home
        groups = [
            {"params": [p for p in self.model.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in self.model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimiser = torch.optim.AdamW(groups, config.learning_rate, (0.9, 0.99), fused=fused)
        course = partial(warm_cosine, total=self.total_steps, warmup=config.warmup)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, course)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
