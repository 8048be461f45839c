"""What members' own past impressions tell, fitted after training: variances of own taste, and fatigue.

Every impression of the training period is predicted by the ranker and by the evidence of the impressions before it: the sum of
these log losses is, by the chain rule, the likelihood of a member's clicks under the prior (prequential; Dawid, 1984), and the
variances that make it least are its empirical Bayes estimates. L-BFGS finds them; the ranker's weights stay as they are.

Own taste, and then fatigue, are kept where the log loss of validation is lower with them by more than a standard error: in a log
whose members have no taste of their own, or are never shown the same again, nothing changes.

Legend: N impressions, S components of own taste, R = S - 1 of the artwork tower, H half lives.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from datamodules.feed.impression_feed import Batch, Feed
from datamodules.shards.shard import TRAIN, VALIDATION, Shards
from models.own_taste import HALF_LIVES, own_components, unclicked_counts, unclicked_weights
from models.two_tower import TwoTower
from train.task import past_of, rank_batch

MAX_IMPRESSIONS = 600_000
"""Impressions that are read at most: some 20 numbers are fitted."""
PRIOR_IMPRESSIONS = 20.0
"""Impressions by the log's click rate that every artwork's own rate is shrunk with."""
FIRST_VARIANCE = 0.2
"""What the variances begin with, in logits squared of an average artwork."""
STEPS = 40
NEGLIGIBLE = 1e-6
"""Ridge that keeps the logarithm of a variance finite where the likelihood falls towards 0."""


@dataclass(frozen=True)
class Sample:
    """Impressions, as the ranker predicts them, and what is known of each from before."""

    logit_N: Tensor
    clicked_N: Tensor
    evidence_Nx: Tensor
    """(N, S + 1): see `models.types.States`."""
    query_NR: Tensor
    """The shared query in the components."""
    features_NS: Tensor
    """Those of the artwork shown."""
    unclicked_NH2: Tensor
    """Unclicked impressions of the artwork and of its title, by half life."""


@torch.no_grad()
def fit_own_taste(
    model: TwoTower, shards: Shards, reach: int, batch: int, device: torch.device, console: Console
) -> dict[str, Any]:
    """Set the model's own taste and fatigue; returns the metrics: log losses of validation, what was taken, and its sizes."""
    taste = model.own_taste
    taste.clear()
    if not any(len(shard.past_time) for shard in shards.shards):
        return {"taken": "none"}
    _set_expected(model, shards)
    _set_components(model)
    training = _sample(model, shards, TRAIN, reach, batch, device)
    taste.mean_query_R.copy_(training.query_NR.mean(0))
    weight_N1 = _variance(training.logit_N)[:, None]
    spread_S = (weight_N1 * training.features_NS.square()).sum(0) / weight_N1.sum()
    taste.spread_S.copy_(spread_S)
    validation = _sample(model, shards, VALIDATION, reach, batch, device)
    mean_R = taste.mean_query_R.to(training.query_NR)
    by_half_life = [_fitted(training, spread_S, mean_R, half_life=index) for index in range(len(HALF_LIVES))]
    fits = {
        "none": _Fit.none(spread_S),
        "own taste": _fitted(training, spread_S, mean_R, half_life=None),
        "own taste and fatigue": min(by_half_life, key=lambda fit: fit.loss),
    }
    loss_of = {name: _losses(validation, fit, spread_S, mean_R) for name, fit in fits.items()}
    taken = "none"
    for name in fits:
        gain_N = loss_of[taken] - loss_of[name]
        if gain_N.mean() > gain_N.std() / len(gain_N) ** 0.5:
            taken = name
    fit = fits[taken]
    taste.variance_S.copy_(fit.variance_S)
    taste.fatigue_2.copy_(fit.fatigue_2)
    taste.half_life.fill_(HALF_LIVES[fit.half_life or 0])
    taste.shift.copy_(fit.shift)
    spread = float((fit.variance_S * spread_S)[:-1].sum().sqrt())
    console.print(
        f"fit: past impressions: {taken}; standard deviation of own taste {spread:.2f} logits, fatigue of an artwork "
        f"{float(fit.fatigue_2[0]):.2f}, of a title {float(fit.fatigue_2[1]):.2f}"
    )
    return {
        "taken": taken,
        "validation_log_loss": {name: float(loss_N.mean()) for name, loss_N in loss_of.items()},
        "own_taste_std": spread,
        "fatigue_of_artwork": float(fit.fatigue_2[0]),
        "fatigue_of_title": float(fit.fatigue_2[1]),
        "half_life_hours": float(taste.half_life),
    }


@dataclass(frozen=True)
class _Fit:
    variance_S: Tensor
    fatigue_2: Tensor
    shift: Tensor
    half_life: int | None
    """Index among `HALF_LIVES`; None: no fatigue."""
    loss: float

    @classmethod
    def none(cls, like_S: Tensor) -> "_Fit":
        return cls(torch.zeros_like(like_S), torch.zeros(2), torch.zeros(()), None, float("inf"))


def _set_expected(model: TwoTower, shards: Shards) -> None:
    """Click rates of artworks in the training period, shrunk to that of all."""
    rows = len(model.own_taste.expected_A)
    shown, clicked = np.zeros(rows), np.zeros(rows)
    for shard in shards.shards:
        at = np.flatnonzero(shard.split == TRAIN)
        artwork = shard.candidate[shard.candidate_start[at] + shard.shown[at]]
        artwork = np.where(artwork < rows, artwork, 0)
        shown += np.bincount(artwork, minlength=rows)
        clicked += np.bincount(artwork, shard.clicked[at], minlength=rows)
    rate = clicked.sum() / max(1.0, shown.sum())
    expected = (clicked + PRIOR_IMPRESSIONS * rate) / (shown + PRIOR_IMPRESSIONS)
    expected[0] = rate
    model.own_taste.expected_A.copy_(torch.from_numpy(expected))


def _set_components(model: TwoTower) -> None:
    """Leading principal components of the trained artworks' vectors."""
    taste = model.own_taste
    rows = torch.arange(1, model.sizes.artworks, device=taste.centre_D.device)
    vectors_AD = model.artworks(rows).vector[:, : model.config.width]
    centre_D = vectors_AD.mean(0)
    taste.centre_D.copy_(centre_D)
    covariance_DD = (vectors_AD - centre_D).double().cpu().mT @ (vectors_AD - centre_D).double().cpu()
    # ascending, of unit norm; the sign is arbitrary, and fixed so that equal runs have equal weights
    leading_DR = torch.linalg.eigh(covariance_DD).eigenvectors.flip(1)[:, : taste.basis_DR.shape[1]]
    sign_R = leading_DR.gather(0, leading_DR.abs().argmax(0, keepdim=True)).sign()
    taste.basis_DR.copy_(leading_DR * sign_R)


def _sample(model: TwoTower, shards: Shards, split: int, reach: int, batch: int, device: torch.device) -> Sample:
    """Every impression of a period, or evenly spread ones where they are more than `MAX_IMPRESSIONS`."""
    feed = Feed(shards.shards, split, reach=reach, impressions=batch, shuffle=False)
    stride = max(1, -(-feed.size // MAX_IMPRESSIONS))
    parts = [_of_batch(model, item.to(device)) for index, item in enumerate(feed) if index % stride == 0]
    return Sample(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _of_batch(model: TwoTower, b: Batch) -> tuple[Tensor, ...]:
    taste, width = model.own_taste, model.config.width
    states = model.states(b.play_title, b.play_artwork, b.play_watched)
    past = past_of(b)
    logit_N = rank_batch(model, b, everything=False, states=states).click_NK().squeeze(1)
    query_ND = model.appeal_queries(model.state_at(states, b.member, b.position), b.context)[0][:, :width]
    features_NS = taste.features(model.artworks(b.artworks.squeeze(1)).vector[:, :width])
    past_title_NJ = model.artwork_title_A[past.artwork_NJ]
    counts = []
    for hours in HALF_LIVES:
        weight_NJ = unclicked_weights(past, hours)
        of_both = unclicked_counts(weight_NJ, past.artwork_NJ, past_title_NJ, b.title, b.artworks)
        counts.append(torch.cat(of_both, dim=1))
    return (
        logit_N.cpu(),
        b.clicked.cpu(),
        model.evidence(past).cpu(),
        (query_ND @ taste.basis_DR).cpu(),
        features_NS.cpu(),
        torch.stack(counts, dim=1).log1p().cpu(),
    )


def _logits(
    sample: Sample, variance_S: Tensor, fatigue_2: Tensor, half_life: int | None, spread_S: Tensor, mean_R: Tensor
) -> Tensor:
    """The logits with own taste and fatigue, without the shift."""
    own_NS = own_components(sample.evidence_Nx, sample.query_NR - mean_R, variance_S, spread_S)
    logit_N = sample.logit_N + (own_NS * sample.features_NS).sum(1)
    return logit_N if half_life is None else logit_N - sample.unclicked_NH2[:, half_life] @ fatigue_2


@torch.enable_grad()
def _fitted(sample: Sample, spread_S: Tensor, mean_R: Tensor, half_life: int | None) -> _Fit:
    log_S = torch.zeros_like(spread_S, requires_grad=True)
    fatigue_2, shift = torch.zeros(2, requires_grad=True), torch.zeros((), requires_grad=True)
    first_S = FIRST_VARIANCE / spread_S.clamp(min=1e-6) / len(spread_S)
    weights = [log_S, shift] if half_life is None else [log_S, shift, fatigue_2]
    optimiser = torch.optim.LBFGS(weights, max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        logit_N = _logits(sample, first_S * log_S.exp(), fatigue_2, half_life, spread_S, mean_R) + shift
        loss = F.binary_cross_entropy_with_logits(logit_N, sample.clicked_N) + NEGLIGIBLE * log_S.square().sum()
        loss.backward()
        return loss.item()

    optimiser.step(closure)
    loss = closure()
    return _Fit((first_S * log_S.exp()).detach(), fatigue_2.detach(), shift.detach(), half_life, loss)


def _losses(sample: Sample, fit: _Fit, spread_S: Tensor, mean_R: Tensor) -> Tensor:
    logit_N = _logits(sample, fit.variance_S, fit.fatigue_2, fit.half_life, spread_S, mean_R) + fit.shift
    return F.binary_cross_entropy_with_logits(logit_N, sample.clicked_N, reduction="none")


def _variance(logit_N: Tensor) -> Tensor:
    p_N = torch.sigmoid(logit_N)
    return p_N * (1 - p_N)
