"""The training task: the two-tower ranker plus a loss, an optimiser and the validation figures.

In: `Batch`es of the feed. Out: a running average of the weights, which is what is validated, kept and exported. Clicks
are learned by log loss over impressions; engagement by log loss over the clicked ones.
"""

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
from datamodules.feed import Batch
from models.two_tower import Context, Terms, TwoTower
from train.schedule import warm_cosine


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
    """Mean log loss of clicks; summed log loss of engagement over logged clicks, and how many those are."""
    click = F.binary_cross_entropy_with_logits(_of_shown(terms.click_NK(), batch), batch.clicked)
    known = (batch.clicked > 0) & ~torch.isnan(batch.engaged)
    engaged = _of_shown(terms.engaged_NK, batch)[known]
    return click, F.binary_cross_entropy_with_logits(engaged, batch.engaged[known], reduction="sum"), known.sum()


def _of_shown(logit_NK: Tensor, batch: Batch) -> Tensor:
    return logit_NK.gather(1, batch.shown[:, None]).squeeze(1)


class RankerTask(pl.LightningModule):
    """Loss, optimiser and validation around a `TwoTower`."""

    def __init__(self, model: TwoTower, optimiser: OptimiserConfig, *, total_steps: int, seed: int) -> None:
        super().__init__()
        self.model, self.optimiser_config = model, optimiser
        self.total_steps, self.seed = max(1, total_steps), seed
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(optimiser.average), use_buffers=False)
        self._seen = torch.zeros(4, dtype=torch.float64)

    def on_train_epoch_start(self) -> None:
        """Seed from the epoch alone: a resumed run draws the dropout that the undisturbed one draws."""
        torch.manual_seed(self.seed * 1_000_003 + self.current_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Log loss of clicks, plus that of engagement, per impression."""
        click, engaged, _ = losses(rank_batch(self.model, batch), batch)
        loss = click + engaged / len(batch.clicked)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} in slice {self.current_epoch + 1}, batch {batch_idx} "
                f"(click {click.item()}, engaged {engaged.item()}). Lower the learning rate."
            )
        self.log("train_loss", loss.detach(), prog_bar=True, batch_size=len(batch.clicked))
        return loss

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Before each step: move the average to the weights of the step before, so that it trails by one."""
        self.average.update_parameters(self.model)

    def on_validation_epoch_start(self) -> None:
        """Start the sums."""
        self._seen = torch.zeros(4, dtype=torch.float64)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Sum the losses of the averaged model."""
        click, engaged, clicks = losses(rank_batch(cast(TwoTower, self.average.module), batch), batch)
        count = len(batch.clicked)
        self._seen += torch.stack([click.cpu() * count, torch.tensor(count), engaged.cpu(), clicks.cpu()]).double()

    def on_validation_epoch_end(self) -> None:
        """Report the means over the split."""
        click, count, engaged, clicks = self._seen
        self.log("validation_log_loss", (click / count).float(), prog_bar=True)
        self.log("validation_engaged_log_loss", (engaged / clicks.clamp(min=1)).float())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW under warm-up and cosine."""
        config = self.optimiser_config
        fused = next(self.model.parameters()).is_cuda
        # Decay pulls vectors to zero, where an id nobody trained lies; biases and norms have no such home
        groups = [
            {"params": [p for p in self.model.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in self.model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimiser = torch.optim.AdamW(groups, config.learning_rate, (0.9, 0.99), fused=fused)
        course = partial(warm_cosine, total=self.total_steps, warmup=config.warmup)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, course)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
