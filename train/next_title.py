"""Learning which title a member plays next: softmax over titles, at every play of every member at once.

In: plays, and the state after each number of them. Out: a loss. `RankerTask` adds it to that of clicks (`weight`), and
`fit_titles` minimises it alone, for logs that have plays and nothing else. For a large catalogue the softmax is over a
sample of titles, drawn by how often they are played and corrected by the logarithm of the expected number of draws (Bengio and
Senecal, 2008; sampled softmax as in eSASRec, 2025, with one draw for all plays of a batch).

Legend: M members, T plays, P plays to predict, K titles drawn, W width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.feed.impression_feed import Batch
from datamodules.feed.play_feed import PlayBatch, PlaysFeed
from foundation.errors import UserError
from models.two_tower import States, TwoTower
from train.ema import ExponentialMovingAverage
from train.optimiser import OptimiserConfig
from train.schedule import warmup_cosine

UNIFORM_SHARE = 0.5
"""Share of the draws that are uniform over titles."""
POPULARITY_POWER = 0.5
"""A title's bias starts as this times log(1 + number of its plays)."""


@dataclass(frozen=True, kw_only=True)
class TitlesConfig:
    """Learning which title is played next."""

    weight: float = 0.02
    """Weight of this loss per play, beside the loss of clicks per impression; 0 leaves it out."""
    negatives: int = 256
    """Titles drawn per batch as negatives; 0: all titles, whose cost grows with the catalogue."""
    smoothing: float = 0.0
    """Label smoothing: share of the probability that is spread evenly over the titles (Szegedy et al., 2016)."""
    epochs: int = 30
    """In training on plays alone: epochs."""
    plays: int = 100
    """In training on plays alone: plays per sequence, a stretch of one member's history."""
    batch: int = 16
    """In training on plays alone: sequences per step."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.weight < float("inf"):
            raise UserError(f"titles.weight={self.weight}: must be at least 0.")
        if self.negatives < 0:
            raise UserError(f"titles.negatives={self.negatives}: must be at least 0.")
        if not 0 <= self.smoothing < 1:
            raise UserError(f"titles.smoothing={self.smoothing}: must lie in [0, 1).")
        for name in ("epochs", "plays", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"titles.{name}={getattr(self, name)}: must be at least 1.")


def proposal_distribution(title_P: Tensor, titles: int) -> Tensor:
    """Probability that one draw is a title, float32 (titles,), from the titles played; 0 for the unknown row."""
    count = torch.bincount(title_P[title_P < titles], minlength=titles).float()
    count[0] = 0
    uniform = torch.ones(titles)
    uniform[0] = 0
    return UNIFORM_SHARE * uniform / max(1, titles - 1) + (1 - UNIFORM_SHARE) * count / count.sum().clamp(min=1)


def title_loss(
    model: TwoTower, states: States, play_title_MT: Tensor, target_MT: Tensor, config: TitlesConfig, proposal: Tensor
) -> tuple[Tensor, Tensor]:
    """Summed log loss of predicting the titles of the plays `target_MT` (bool), each from the state before it; and their number.

    Plays of titles without a trained row, the unknown row included, are not predicted. `proposal`: the result of
    `proposal_distribution`. The next-item regression is left out: it was fitted to the same plays, and would leave too little
    to learn.
    """
    rows = model.sizes.titles
    valid_MT = target_MT & (play_title_MT > 0) & (play_title_MT < rows)
    title_P, states_PW = play_title_MT[valid_MT], states.learned[:, :-1][valid_MT]
    member_PW = model.sequence_tower.member_next(states_PW)
    if not config.negatives or config.negatives >= rows - 1:
        vector, bias = model.next_titles(torch.arange(1, rows, device=title_P.device))
        logit_PI = member_PW @ vector.T + bias.squeeze(-1)
        loss = F.cross_entropy(logit_PI, title_P - 1, reduction="sum", label_smoothing=config.smoothing)
        return loss, torch.tensor(len(title_P), device=title_P.device)
    negative_K = torch.multinomial(proposal.cpu(), config.negatives, replacement=True).to(title_P.device)
    sampled, index = torch.unique(torch.cat([negative_K, title_P]), return_inverse=True)
    vector, bias = model.next_titles(sampled)
    negative_index, target_index = index[: len(negative_K)], index[len(negative_K) :]
    # log of the expected number of draws; a draw of the title that was played is not a negative
    log_expected_K = torch.log(proposal.to(title_P.device)[negative_K] * config.negatives)
    negative_logit_PK = (
        member_PW @ F.embedding(negative_index, vector).T + F.embedding(negative_index, bias)[:, 0] - log_expected_K
    )
    negative_logit_PK = negative_logit_PK.masked_fill(negative_K == title_P[:, None], float("-inf"))
    target_logit_P = (member_PW * F.embedding(target_index, vector)).sum(-1) + F.embedding(target_index, bias)[:, 0]
    logits = torch.cat([target_logit_P[:, None], negative_logit_PK], dim=1)
    loss = logits.logsumexp(-1).sum() - target_logit_P.sum()
    if config.smoothing:
        spread = torch.where(negative_logit_PK.isinf(), 0.0, negative_logit_PK).mean(-1).sum()
        loss = (1 - config.smoothing) * loss + config.smoothing * (logits.logsumexp(-1).sum() - spread)
    return loss, torch.tensor(len(title_P), device=title_P.device)


def target_mask(batch: PlayBatch | Batch) -> Tensor:
    """The plays of a batch that are to be predicted, bool (M, T): all but the first of a sequence whose member played before it.

    Padding has title row 0, which is never predicted.
    """
    index = torch.arange(batch.play_title.shape[1], device=batch.first.device)
    return (index > 0) | batch.first[:, None]


@dataclass(frozen=True)
class NextTitleLoss:
    """The loss on the next title as a training on clicks adds it."""

    config: TitlesConfig
    proposal: Tensor
    """The result of `proposal_distribution`."""

    def loss(self, model: TwoTower, states: States, batch: Batch) -> Tensor:
        """Weighted mean log loss over the plays of a batch; 0 where it has none."""
        total, count = title_loss(model, states, batch.play_title, target_mask(batch), self.config, self.proposal)
        return total * (self.config.weight / count.clamp(min=1))

    @classmethod
    def prepare(
        cls, model: TwoTower, feed: PlaysFeed, config: TitlesConfig, seed: int, *, warm: bool = False
    ) -> "NextTitleLoss | None":
        """Prepare the loss from the plays of the feed; None where titles are not learned.

        Fits the model's co-play, its next-item regression and its title popularity, unless it is `warm`, with those of former
        plays.
        """
        if not config.weight and model.coplay is None and model.next_item is None:
            return None
        members, titles = feed.played()
        if not len(titles):
            return None
        if not warm:
            if model.coplay is not None:
                model.coplay.fit(members, titles, seed)
            if model.next_item is not None:
                model.next_item.fit(members, titles, seed)
            with torch.no_grad():  # start from how often each is played
                count = torch.bincount(titles[titles < model.sizes.titles], minlength=model.sizes.titles)
                model.sequence_tower.next_bias.weight[1:, 0] = torch.log1p(count[1:].float()) * POPULARITY_POWER
        return cls(config, proposal_distribution(titles, model.sizes.titles)) if config.weight else None


def fit_titles(
    model: TwoTower,
    feed: PlaysFeed,
    config: TitlesConfig,
    optimiser: OptimiserConfig,
    *,
    seed: int = 0,
    on_epoch_end: Callable[[int, float, TwoTower], None] | None = None,
) -> TwoTower:
    """Learn titles alone, from all plays of the feed; returns the moving average of the model, ready to rank.

    `on_epoch_end` is called with the epoch (from 1), its mean log loss and the average so far. UserError where the feed has
    no play or the loss is not finite.
    """
    torch.manual_seed(seed)
    next_title_loss = NextTitleLoss.prepare(model, feed, replace(config, weight=1.0), seed)
    if next_title_loss is None:
        raise UserError("titles: no play to learn from. Give a longer log.")
    average = ExponentialMovingAverage(model, optimiser.average)
    total = len(feed) * config.epochs
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": optimiser.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, optimiser.learning_rate, (0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: warmup_cosine(step, total, optimiser.warmup))
    for epoch in range(config.epochs):
        feed.epoch, sums = epoch, torch.zeros(2)
        model.train()
        for batch in feed:
            states = model.states(batch.play_title, batch.play_artwork, batch.play_watched)
            loss, count = title_loss(
                model, states, batch.play_title, target_mask(batch), config, next_title_loss.proposal
            )
            if not torch.isfinite(loss):
                raise UserError(
                    f"titles: the loss is {loss.item()} in epoch {epoch + 1}. "
                    f"Lower optimiser.learning_rate ({optimiser.learning_rate})."
                )
            if not count:
                continue
            (loss / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), optimiser.clip)
            adamw.step()
            adamw.zero_grad()
            schedule.step()
            average.update(model)
            sums += torch.stack([loss.detach(), count.float()])
        if on_epoch_end is not None:
            assert isinstance(average.module, TwoTower)
            on_epoch_end(epoch + 1, float(sums[0] / sums[1].clamp(min=1)), average.module.eval())
    assert isinstance(average.module, TwoTower)
    return average.module.eval()
