"""The training task: the two-tower ranker plus a loss, an optimiser and the validation metrics.

In: `Batch`es of the feed. Out: a moving average of the weights, which is validated, kept and exported. Clicks
are learned by log loss over impressions; engagement by log loss over the clicked ones.
"""

import math
from functools import partial
from typing import cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F

from datamodules.feed.datamodule import Cursor
from datamodules.feed.impression_feed import Batch
from models.own_taste import Past
from models.two_tower import Content, LogitTerms, States, TwoTower
from train.ema import ExponentialMovingAverage
from train.finetune import ImageTower
from train.next_title import NextTitleLoss
from train.optimiser import OptimiserConfig
from train.prior import Prior, PriorConfig
from train.schedule import warmup_cosine

RANK_STRIDE, BATCH_STRIDE = 1_000_003**2, 15_485_863
"""Step between seeds: each rank has dropout of its own, and so has a part of an epoch resumed with another number of ranks."""

IMAGE_BUFFER = "artwork_image_AE"
FUSED = ("cuda", "cpu")
"""Devices whose AdamW is one kernel over all weights."""


def rank_batch(model: TwoTower, batch: Batch, *, everything: bool = True, states: States | None = None) -> LogitTerms:
    """The model's terms for every impression and artwork of a batch.

    `everything`: False computes engagement only where it was logged, of clicked impressions. `states`: those of the batch's
    plays, where they are computed already.
    """
    plays = (batch.play_title, batch.play_artwork, batch.play_watched)
    engagement_known = None if everything else batch.engagement_known
    given = (batch.member, batch.position, batch.context, batch.title, batch.artworks)
    return model(*plays, *given, engagement_known, states, past_of(batch) if model.own_taste.is_read else None)


def past_of(batch: Batch) -> Past:
    """The past impressions of a batch's impressions."""
    return Past(batch.past_artwork, batch.past_clicked, batch.past_hours)


def impression_states(model: TwoTower, batch: Batch, states: States) -> States:
    """The states (N, ...) at a batch's impressions, with the evidence of past ones where they are read, from those of its plays."""
    state = model.state_at(states, batch.member, batch.position)
    return state._replace(evidence=model.evidence(past_of(batch))) if model.own_taste.is_read else state


def losses(model: TwoTower, batch: Batch, states: States | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean log loss of clicks, 0 without impressions; summed log loss of engagement over clicks that log it, and their number."""
    terms = rank_batch(model, batch, everything=False, states=states)
    mean = "mean" if len(batch.clicked) else "sum"
    click = terms.click_NK().gather(1, batch.shown[:, None]).squeeze(1)
    engaged = terms.engaged_NK.gather(1, batch.shown[batch.engagement_known, None]).squeeze(1)
    return (
        F.binary_cross_entropy_with_logits(click, batch.clicked, reduction=mean),
        F.binary_cross_entropy_with_logits(engaged, batch.engaged[batch.engagement_known], reduction="sum"),
        torch.tensor(len(batch.engagement_known), device=click.device),
    )


def clip_gradients(model: torch.nn.Module, max_norm: float) -> None:
    """Scale all gradients so that their joint norm is at most `max_norm`."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    scale = max_norm / (torch.nn.utils.get_total_norm(gradients) + 1e-6)
    torch._foreach_mul_(gradients, scale.clamp(max=1.0))  # pyright: ignore[reportPrivateImportUsage]


def generator_states() -> dict[str, Tensor]:
    """States of this process's random generators, by device."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_generator_states(states: dict[str, Tensor]) -> None:
    """Restore the result of `generator_states`; on another kind of device the draws differ from then on."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


class RankerTask(pl.LightningModule):
    """Loss, optimiser and validation around a `TwoTower`. Its loss is a sum over the impressions of all ranks."""

    def __init__(
        self,
        model: TwoTower,
        optimiser: OptimiserConfig,
        prior: PriorConfig,
        *,
        impressions: int,
        total_steps: int,
        seed: int,
        cursor: Cursor,
        tower: ImageTower | None = None,
        titles: NextTitleLoss | None = None,
    ) -> None:
        """`impressions`: number in an epoch, over which the prior is spread; `cursor`: the training's progress, moved by the
        checkpoint callback; `tower`: the image encoder, where it is trained too; `titles`: the next-title loss, where there is
        one."""
        super().__init__()
        self.model, self.optimiser_config = model, optimiser
        self.total_steps, self.seed, self.cursor = max(1, total_steps), seed, cursor
        if titles is None:  # ranks that average their gradients would wait for parameters that get none
            model.disable_title_ranking()
        self.ema = ExponentialMovingAverage(model, optimiser.average)
        self.tower, self.titles = tower, titles
        self.prior, self.impressions = Prior(model, prior), impressions
        self.generators: dict[str, Tensor] | None = None
        """Generator states to resume from, between two validations."""
        self.sums = torch.zeros(2, dtype=torch.float64)
        """Summed loss and impressions since the last validation, (2,)."""
        self.validation_log_loss = self.validation_engaged_log_loss = math.nan
        self._validated = torch.zeros(4, dtype=torch.float64)
        self._first_nonfinite = torch.full((4,), math.nan)

    def state(self) -> dict[str, Tensor]:
        """All trained weights and their average. The catalogue is left out: it comes from the shards."""
        fixed = set(Content._fields) - ({IMAGE_BUFFER} if self.tower is not None else set())
        return {name: value for name, value in self.state_dict().items() if name.split(".")[-1] not in fixed}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the result of `state`."""
        missing, unexpected = self.load_state_dict(state, strict=False)
        assert not unexpected
        assert {name.split(".")[-1] for name in missing} <= set(Content._fields)

    def on_train_epoch_start(self) -> None:
        """Seed by the number of validations done, or restore the generators: a resumed run draws the same dropout."""
        states, self.generators = self.generators, None
        if states is not None and self.cursor.batch:
            set_generator_states(states)
        else:
            cursor = self.cursor.validations + self.cursor.batch * BATCH_STRIDE + self.global_rank * RANK_STRIDE
            torch.manual_seed(self.seed * 1_000_003 + cursor)
            if self.cursor.batch == 0:
                self.sums = torch.zeros(2, dtype=torch.float64)
        self.sums = self.sums.to(self.device)
        self._first_nonfinite = torch.full((4,), math.nan, device=self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Log loss of clicks, plus that of engagement, per impression of the whole batch."""
        if self.tower is not None:
            self.model.batch_images = self.tower.batch_images(batch)
        states = None
        if self.titles is not None:
            states = self.model.states(batch.play_title, batch.play_artwork, batch.play_watched)
        click, engaged, _ = losses(self.model, batch, states)
        self.model.batch_images = None
        count = len(batch.clicked)
        loss = click * (count / batch.global_impressions) + engaged / batch.global_impressions
        if self.titles is not None and states is not None:
            loss = loss + self.titles.loss(self.model, states, batch) * (count / batch.global_impressions)
        loss = loss + self.prior.loss() * (count / batch.global_impressions / self.impressions)
        with torch.no_grad():
            self.sums += torch.stack([click * count + engaged, torch.full_like(click, count)])
            status = torch.stack([loss, click, engaged, torch.full_like(loss, self.cursor.batch)]).float()
            self._first_nonfinite = torch.where(
                torch.isfinite(loss) | ~torch.isnan(self._first_nonfinite[3]), self._first_nonfinite, status
            )
        # reading a number from a GPU makes it wait: check every few batches there, and before each checkpoint
        if not loss.is_cuda or batch_idx % 32 == 31:
            self.require_finite()
        return loss * self.trainer.world_size  # the ranks' gradients are averaged, and the loss is a sum over them

    def require_finite(self) -> None:
        """Raise a FloatingPointError that names the first batch whose loss was not finite, if any was."""
        loss, click, engaged, batch = self._first_nonfinite.tolist()
        if not math.isnan(batch):
            raise FloatingPointError(
                f"the loss is {loss} before validation {self.cursor.validations + 1}, batch {batch:.0f} (click {click}, engaged "
                f"{engaged}). "
                f"Lower optimiser.learning_rate ({self.optimiser_config.learning_rate}); "
                "if it is the first batch, embed the shards again."
            )

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Before each step: move the average to the weights of the step before, so that it trails by one."""
        self.ema.update(self.model)
        if self.tower is not None:
            self.tower.ema.update(self.tower.encoder)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm here: the trainer refuses to where AdamW is fused and the precision is mixed, bfloat16 or not."""
        clip_gradients(self, self.optimiser_config.clip)

    def on_validation_epoch_start(self) -> None:
        """Reset the sums."""
        if self.tower is not None and self.cursor.step:
            table = self.tower.table()
            for model in (self.model, cast(TwoTower, self.ema.module)):
                model.artwork_image_AE.copy_(table)
        self._validated = torch.zeros(4, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Sum the losses of the averaged model, in the precision in which it will be served."""
        with torch.autocast(self.device.type, enabled=False):
            click, engaged, clicks = losses(cast(TwoTower, self.ema.module), batch)
        count = len(batch.clicked)
        self._validated += torch.stack([click * count, torch.full_like(click, count), engaged, clicks])

    def on_validation_epoch_end(self) -> None:
        """Average the losses over the split and all ranks."""
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(self._validated)
        click, count, engaged, clicks = self._validated.tolist()
        self.validation_log_loss, self.validation_engaged_log_loss = click / count, engaged / max(1.0, clicks)
        self.log("validation_log_loss", self.validation_log_loss, logger=False)  # for callbacks that monitor it

    def train_loss(self) -> float:
        """Mean loss per impression since the last validation, over all ranks; every rank must call it."""
        sums = self.sums.clone()
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(sums)
        loss, count = sums.tolist()
        return loss / count if count else math.nan

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with linear warm-up and cosine decay."""
        config = self.optimiser_config
        fused = self.device.type in FUSED
        parameters = list(self.model.parameters())
        with_prior = self.prior.parameters()
        # Decay pulls vectors to zero, the vector of an untrained id; for biases and norms zero means nothing, and parameters
        # with a prior have a pull already
        groups = [
            {
                "params": [p for p in parameters if p.ndim > 1 and id(p) not in with_prior],
                "weight_decay": config.weight_decay,
            },
            {"params": [p for p in parameters if p.ndim <= 1 or id(p) in with_prior], "weight_decay": 0.0},
        ]
        if self.tower is not None:
            images, weights = self.tower.config, list(self.tower.encoder.parameters())
            groups.append({"params": weights, "weight_decay": images.weight_decay, "lr": images.learning_rate})
        optimiser = torch.optim.AdamW(groups, config.learning_rate, (0.9, 0.99), fused=fused)
        lr_lambda = partial(warmup_cosine, total=self.total_steps, warmup=config.warmup)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lr_lambda)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
