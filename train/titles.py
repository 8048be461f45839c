"""Learning which title a member plays next: softmax over titles, at every play of every member at once.

In: plays, and the state after each number of them. Out: a loss: `RankerTask` adds it to that of clicks (`weight`), and
`fit_titles` learns it alone, for logs that have plays and nothing else. Where a catalogue is large, some titles stand
for all: drawn by how often they are played, corrected for by the logarithm of how often they are drawn (Bengio and
Senecal, 2008; sampled softmax as in eSASRec, 2025, with one draw for all plays of a batch).

Legend: M members, T plays, P plays to tell, K titles drawn, W width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.contract import UserError
from datamodules.feed import Batch
from datamodules.plays import PlayBatch, PlaysFeed
from models.two_tower import States, TwoTower
from train.average import Average
from train.optimiser import OptimiserConfig
from train.schedule import warm_cosine

UNIFORM = 0.5
"""Share of the titles drawn without regard to how often they are played."""
POPULARITY = 0.5
"""What a title's bias begins as, times the logarithm of how often it was played."""


@dataclass(frozen=True, kw_only=True)
class TitlesConfig:
    """Learning which title is played next."""

    weight: float = 0.02
    """Of this loss per play, beside the loss of clicks per impression; 0 leaves it out."""
    negatives: int = 256
    """Titles drawn for each batch that stand for all; 0: all titles, whose cost grows with the catalogue."""
    smoothing: float = 0.0
    """Share of the probability that is spread evenly over the titles (Szegedy et al., 2016)."""
    passes: int = 30
    """Where it is learned alone: passes over the plays."""
    plays: int = 100
    """Where it is learned alone: plays of a stretch of history that is read at once."""
    batch: int = 16
    """Where it is learned alone: stretches per step."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.weight < float("inf"):
            raise UserError(f"titles.weight={self.weight}: must be at least 0.")
        if self.negatives < 0:
            raise UserError(f"titles.negatives={self.negatives}: must be at least 0.")
        if not 0 <= self.smoothing < 1:
            raise UserError(f"titles.smoothing={self.smoothing}: must lie in [0, 1).")
        for name in ("passes", "plays", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"titles.{name}={getattr(self, name)}: must be at least 1.")


def chances_of(title_P: Tensor, titles: int) -> Tensor:
    """How likely one draw is each trained title, float32 (titles,), from the titles played; never the unknown row."""
    count = torch.bincount(title_P[title_P < titles], minlength=titles).float()
    count[0] = 0
    even = torch.ones(titles)
    even[0] = 0
    return UNIFORM * even / max(1, titles - 1) + (1 - UNIFORM) * count / count.sum().clamp(min=1)


def title_loss(
    model: TwoTower, states: States, play_title_MT: Tensor, told_MT: Tensor, config: TitlesConfig, chances: Tensor
) -> tuple[Tensor, Tensor]:
    """Summed log loss of the titles of the plays `told_MT` (bool), each from the state before it; and how many.

    Titles without a trained row, the unknown one among them, are not told. `chances` is what `chances_of` gives.
    What is played next is left out: it was fitted to these very plays, and would leave too little to learn.
    """
    rows = model.sizes.titles
    wanted_MT = told_MT & (play_title_MT > 0) & (play_title_MT < rows)
    title_P, states_PW = play_title_MT[wanted_MT], states.learned[:, :-1][wanted_MT]
    member_PW = model.reading.member_next(states_PW)
    if not config.negatives or config.negatives >= rows - 1:
        vector, bias = model.next_titles(torch.arange(1, rows, device=title_P.device))
        logit_PI = member_PW @ vector.T + bias.squeeze(-1)
        loss = F.cross_entropy(logit_PI, title_P - 1, reduction="sum", label_smoothing=config.smoothing)
        return loss, torch.tensor(len(title_P), device=title_P.device)
    drawn_K = torch.multinomial(chances.cpu(), config.negatives, replacement=True).to(title_P.device)
    asked, place_of = torch.unique(torch.cat([drawn_K, title_P]), return_inverse=True)
    vector, bias = model.next_titles(asked)
    of_drawn, of_title = place_of[: len(drawn_K)], place_of[len(drawn_K) :]
    # log of the expected number of draws; a draw of the very title that was played is no other
    log_K = torch.log(chances.to(title_P.device)[drawn_K] * config.negatives)
    other_PK = member_PW @ F.embedding(of_drawn, vector).T + F.embedding(of_drawn, bias)[:, 0] - log_K
    other_PK = other_PK.masked_fill(drawn_K == title_P[:, None], float("-inf"))
    own_P = (member_PW * F.embedding(of_title, vector)).sum(-1) + F.embedding(of_title, bias)[:, 0]
    together = torch.cat([own_P[:, None], other_PK], dim=1)
    loss = together.logsumexp(-1).sum() - own_P.sum()
    if config.smoothing:
        spread = torch.where(other_PK.isinf(), 0.0, other_PK).mean(-1).sum()
        loss = (1 - config.smoothing) * loss + config.smoothing * (together.logsumexp(-1).sum() - spread)
    return loss, torch.tensor(len(title_P), device=title_P.device)


def told_in(batch: PlayBatch | Batch) -> Tensor:
    """The plays of a batch that are to be told, bool (M, T): all but a stretch's first, where the member played before.

    Padding is of title row 0, which is never told.
    """
    place = torch.arange(batch.play_title.shape[1], device=batch.first.device)
    return (place > 0) | batch.first[:, None]


@dataclass(frozen=True)
class TitleLesson:
    """What a training of clicks needs to learn titles beside them."""

    config: TitlesConfig
    chances: Tensor
    """As `chances_of` gives them."""

    def loss(self, model: TwoTower, states: States, batch: Batch) -> Tensor:
        """Weighted mean log loss of the plays of a batch, 0 of none."""
        total, count = title_loss(model, states, batch.play_title, told_in(batch), self.config, self.chances)
        return total * (self.config.weight / count.clamp(min=1))

    @classmethod
    def prepare(
        cls, model: TwoTower, feed: PlaysFeed, config: TitlesConfig, seed: int, *, warm: bool = False
    ) -> "TitleLesson | None":
        """From the plays of the feed; None where titles are not learned.

        What is played together, what next, and how often, goes into the model, unless it is `warm` and has it from former plays.
        """
        if not config.weight and model.coplay is None and model.order is None:
            return None
        members, titles = feed.played()
        if not len(titles):
            return None
        if not warm:
            if model.coplay is not None:
                model.coplay.fit(members, titles, seed)
            if model.order is not None:
                model.order.fit(members, titles, seed)
            with torch.no_grad():  # begin with how often each is played
                count = torch.bincount(titles[titles < model.sizes.titles], minlength=model.sizes.titles)
                model.reading.next_bias.weight[1:, 0] = torch.log1p(count[1:].float()) * POPULARITY
        return cls(config, chances_of(titles, model.sizes.titles)) if config.weight else None


def fit_titles(
    model: TwoTower,
    feed: PlaysFeed,
    config: TitlesConfig,
    optimiser: OptimiserConfig,
    *,
    seed: int = 0,
    after_pass: Callable[[int, float, TwoTower], None] | None = None,
) -> TwoTower:
    """Learn titles alone, from all plays of the feed; the running average of the model is returned, ready to rank.

    `after_pass` is told the pass (from 1), its mean log loss and the average so far.
    """
    torch.manual_seed(seed)
    lesson = TitleLesson.prepare(model, feed, replace(config, weight=1.0), seed)
    if lesson is None:
        raise UserError("titles: no play to learn from. Give a longer log.")
    average = Average(model, optimiser.average)
    total = len(feed) * config.passes
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": optimiser.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, optimiser.learning_rate, (0.9, 0.99), fused=True)
    course = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: warm_cosine(step, total, optimiser.warmup))
    for epoch in range(config.passes):
        feed.epoch, sums = epoch, torch.zeros(2)
        model.train()
        for batch in feed:
            states = model.states(batch.play_title, batch.play_artwork, batch.play_watched, batch.play_time)
            loss, count = title_loss(model, states, batch.play_title, told_in(batch), config, lesson.chances)
            if not torch.isfinite(loss):
                raise UserError(
                    f"titles: the loss is {loss.item()} in pass {epoch + 1}. "
                    f"Lower optimiser.learning_rate ({optimiser.learning_rate})."
                )
            if not count:
                continue
            (loss / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), optimiser.clip)
            adamw.step()
            adamw.zero_grad()
            course.step()
            average.update(model)
            sums += torch.stack([loss.detach(), count.float()])
        if after_pass is not None:
            assert isinstance(average.module, TwoTower)
            after_pass(epoch + 1, float(sums[0] / sums[1].clamp(min=1)), average.module.eval())
    assert isinstance(average.module, TwoTower)
    return average.module.eval()
