"""The uncertainty of appeal: a Laplace posterior of the ranker's last layer, from one pass over the training impressions.

Appeal is a sum of features (`appeal_features`) and of each artwork's own bias. The features' weights, all 1 after
training, get a normal posterior with full covariance (H + ridge)^-1, H = sum p (1 - p) f f' over what was shown: the
Laplace approximation at the trained weights (MacKay, 1992; Daxberger and others, Laplace Redux, 2021). The ridge is the one
that makes the log most likely, by MacKay's fixed point ridge = (well-determined weights) / (squared norm of the weights).

A bias has a posterior of its own, 1 / (1 / spread^2 + sum p (1 - p)) over the artwork's impressions, so that one that was
seldom or never shown is less certain. `spread` is the standard deviation of artworks beyond what their content predicts:
the part of the click rates' deviations from the model without those biases that sampling noise does not explain. That a bias
and the weights overlap in what they explain is ignored. The mean of that posterior takes the place of the trained biases where
validation says so (`calibrate_with_posterior`): the prior under which they are trained is set by hand, and tight.

Legend: F features, A trained artworks.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datamodules.feed.impression_feed import Feed
from datamodules.shards.shard import TRAIN, VALIDATION, Shards
from models.two_tower import TwoTower
from models.types import ArtworkEncoding
from train.calibration import calibrate
from train.task import rank_batch

MIN_BIAS_STD = 0.01
"""Lower bound of the standard deviation of artworks' biases, as logits, for logs in which sampling noise explains everything."""
STEPS = 200


@dataclass(frozen=True)
class Moments:
    """Sums over what was shown in one period; those of several periods add up."""

    curvature_FF: Tensor
    """Sum of p (1 - p) f f'."""
    residual_A: Tensor
    """Clicks minus those that the model without own biases expects, by artwork."""
    information_A: Tensor
    """Sum of p (1 - p) of the model without own biases."""

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.curvature_FF + other.curvature_FF,
            self.residual_A + other.residual_A,
            self.information_A + other.information_A,
        )


@torch.no_grad()
def posterior_moments(
    model: TwoTower, shards: Shards, split: int, reach: int, batch: int, device: torch.device
) -> Moments:
    """The sums over the impressions of one period, `TRAIN` or `VALIDATION`; 0 for the unknown row."""
    width = model.posterior_FF.shape[0]
    curvature_FF = torch.zeros(width, width, dtype=torch.float64)
    residual_A, information_A = (torch.zeros(model.sizes.artworks, dtype=torch.float64) for _ in range(2))
    for item in Feed(shards.shards, split, reach=reach, impressions=2 * batch, shuffle=False):
        b = item.to(device)
        states = model.states(b.play_title, b.play_artwork, b.play_watched)
        state = model.state_at(states, b.member, b.position)
        artwork = model.artworks(b.artworks)
        features_NF = appeal_features(model, *model.appeal_queries(state, b.context), artwork).squeeze(1)
        logit_N = rank_batch(model, b, states=states).click_NK().squeeze(1)
        rows_N = torch.where(b.artworks < model.sizes.artworks, b.artworks, 0).squeeze(1)
        root_N1 = _variance(logit_N).sqrt().unsqueeze(1)
        weighted_NF = (features_NF * root_N1).double().cpu()
        curvature_FF += weighted_NF.T @ weighted_NF
        logit_without_bias_N = logit_N - model.own_bias(rows_N).squeeze(-1)
        residual_A.index_add_(0, rows_N.cpu(), (b.clicked - torch.sigmoid(logit_without_bias_N)).double().cpu())
        information_A.index_add_(0, rows_N.cpu(), _variance(logit_without_bias_N).double().cpu())
    # the unknown row is that of artworks that were never shown in the training period
    residual_A[0] = information_A[0] = 0
    return Moments(curvature_FF, residual_A, information_A)


@torch.no_grad()
def set_posterior(model: TwoTower, moments: Moments) -> tuple[dict[str, float], Tensor]:
    """Fill the model's posterior; returns ridge and spread, for the metrics, and the posterior means of the artworks' own biases,
    float64 (A,), 0 for the unknown row."""
    width = model.posterior_FF.shape[0]
    ridge = evidence_ridge(moments.curvature_FF)
    covariance_FF = torch.linalg.inv(moments.curvature_FF + ridge * torch.eye(width, dtype=torch.float64))
    spread = bias_std_by_moments(moments.residual_A[1:], moments.information_A[1:])
    model.posterior_FF.copy_(torch.linalg.cholesky(covariance_FF))
    variance_A = 1 / (1 / spread**2 + moments.information_A)
    model.posterior_own_A.copy_(variance_A.sqrt())
    metrics = {"ridge": ridge, "well_determined": ridge * width, "spread_of_artworks": spread}
    return metrics, moments.residual_A * variance_A


@torch.no_grad()
def calibrate_with_posterior(
    model: TwoTower, shards: Shards, reach: int, batch: int, device: torch.device, best: float
) -> dict[str, Any]:
    """Fill posterior and calibration; returns the metrics of both. The artworks' own biases become the posterior's means where the
    log loss of validation is then below `best`, that of the trained ones, which are kept otherwise.

    In a log whose artworks differ in ways that no feature tells, trained biases are too small; in one whose logging policy knew
    the members, the means take for the artwork's what is the members', and validation says so.

    Once that is decided and both heads are calibrated, validation has done its work, and its impressions are the newest that are
    known before the test period: the posterior, and its means where they were adopted, are those of both periods together."""
    training = posterior_moments(model, shards, TRAIN, reach, batch, device)
    _, mean_A = set_posterior(model, training)
    weight = model.artwork_bias.weight
    trained = weight.clone()
    weight.copy_(mean_A.to(weight).unsqueeze(1))
    validation = calibrate(model, shards, reach, batch, device)
    adopted = float(validation["click_log_loss_before"]) < best
    if not adopted:
        weight.copy_(trained)
        validation = calibrate(model, shards, reach, batch, device)
    both = training + posterior_moments(model, shards, VALIDATION, reach, batch, device)
    posterior, mean_A = set_posterior(model, both)
    if adopted:
        weight.copy_(mean_A.to(weight).unsqueeze(1))
    return {
        "validation_log_loss": validation["click_log_loss_before"] if adopted else best,
        "validation": validation,
        "posterior": posterior,
        "own_biases": "posterior means" if adopted else "trained",
    }


def appeal_features(
    model: TwoTower, artwork_query_ND: Tensor, content_query_NC: Tensor, artwork: ArtworkEncoding
) -> Tensor:
    """Appeal as a last layer: features (N, K, D + 3) whose sum, with the artwork's bias, is appeal.

    They are the D products of the learned part, and the similarities of images, of people and of moods.
    """
    learned_NKD = artwork.vector * artwork_query_ND.unsqueeze(1)
    similarity_NKC = artwork.content * content_query_NC.unsqueeze(1)
    image, people, genres = similarity_NKC.split(model.content_widths(), dim=-1)
    return torch.cat([learned_NKD, *(part.sum(-1, keepdim=True) for part in (image, people, genres))], dim=-1)


def _variance(logit_N: Tensor) -> Tensor:
    p_N = torch.sigmoid(logit_N)
    return p_N * (1 - p_N)


def evidence_ridge(curvature_FF: Tensor) -> float:
    """MacKay's fixed point for weights that are all 1."""
    values_F = torch.linalg.eigvalsh(curvature_FF).clamp(min=0)
    ridge = 1.0
    for _ in range(STEPS):
        ridge = max(1e-6, float((values_F / (values_F + ridge)).sum()) / len(values_F))
    return ridge


def bias_std_by_moments(residual_A: Tensor, information_A: Tensor) -> float:
    """Standard deviation of biases, as logits, by moments: E[residual^2] = information + information^2 spread^2.

    `residual_A`: clicks minus expected clicks, by artwork; `information_A`: the variance of that difference from sampling.
    """
    squares = float((information_A**2).sum())
    excess = float((residual_A**2 - information_A).sum())
    return max(MIN_BIAS_STD, (excess / squares) ** 0.5 if squares > 0 and excess > 0 else 0.0)
