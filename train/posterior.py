"""The uncertainty of appeal: a Laplace posterior of the ranker's last layer, from one pass over the training impressions.

Appeal is a sum of features (`appeal_features`) and of each artwork's own bias. The features' weights, all 1 after
training, get a normal posterior with full covariance (H + ridge)^-1, H = sum p (1 - p) f f' over what was shown: the
Laplace approximation at the trained weights (MacKay, 1992; Daxberger and others, Laplace Redux, 2021). The ridge is the one
that makes the log most likely, by MacKay's fixed point ridge = (well-determined weights) / (squared norm of the weights).

A bias has a posterior of its own, 1 / (1 / spread^2 + sum p (1 - p)) over the artwork's impressions, so that one that was
seldom or never shown is less certain. `spread` is the standard deviation of artworks beyond what their content predicts:
the part of the click rates' deviations from the model without those biases that sampling noise does not explain. That a bias
and the weights overlap in what they explain is ignored. The mean of that posterior takes the place of the trained biases where
validation says so (`calibrate_with_posterior`): the prior under which they are trained is set by hand, and tight. So do, with a
variance for each feature, an artwork's own preferences: what it adds on a device beside what it adds everywhere.

Legend: F features, A trained artworks, P own preferences, U = 1 + P: the own bias and those.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.feed.impression_feed import Feed
from datamodules.shards.shard import TRAIN, VALIDATION, Shards
from models.own_preferences import OwnPreferences
from models.two_tower import TwoTower
from models.types import ArtworkEncoding
from train.calibration import calibrate, validation_losses
from train.task import impression_states, rank_batch

MIN_BIAS_STD = 0.01
"""Lower bound of the standard deviation of artworks' biases, as logits, for logs in which sampling noise explains everything."""
MAX_BIAS_VARIANCE = 30.0
STEPS, EFFECT_STEPS = 200, 100
TRAINED, MEANS_OF_BIASES, MEANS_OF_PREFERENCES = "trained", "posterior means", "posterior means, by context"
"""Where the own biases of a run's artworks come from."""


@dataclass(frozen=True)
class Moments:
    """Sums over what was shown in one period; those of several periods add up."""

    curvature_FF: Tensor
    """Sum of p (1 - p) f f'."""
    residual_AU: Tensor
    """Clicks minus those that the model without own effects expects, by artwork: all, and those in each context."""
    information_AUU: Tensor
    """Sum of p (1 - p) u u' of the model without own effects; u is 1, then 1 for the values of the context and else 0."""

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.curvature_FF + other.curvature_FF,
            self.residual_AU + other.residual_AU,
            self.information_AUU + other.information_AUU,
        )


@torch.no_grad()
def posterior_moments(
    model: TwoTower, shards: Shards, split: int, reach: int, batch: int, device: torch.device
) -> Moments:
    """The sums over the impressions of one period, `TRAIN` or `VALIDATION`; 0 for the unknown row."""
    width = model.posterior_FF.shape[0]
    curvature_FF = torch.zeros(width, width, dtype=torch.float64)
    artworks, effects = model.sizes.artworks, 1 + model.own_preferences.width
    residual_AU = torch.zeros(artworks, effects, dtype=torch.float64)
    information_AUU = torch.zeros(artworks, effects, effects, dtype=torch.float64)
    for item in Feed(shards.shards, split, reach=reach, impressions=2 * batch, shuffle=False):
        b = item.to(device)
        states = model.states(b.play_title, b.play_artwork, b.play_watched)
        state = impression_states(model, b, states)
        artwork = model.artworks(b.artworks)
        features_NF = appeal_features(model, *model.appeal_queries(state, b.context)[:2], artwork).squeeze(1)
        logit_N = rank_batch(model, b, states=states).click_NK().squeeze(1)
        rows_N = torch.where(b.artworks < model.sizes.artworks, b.artworks, 0).squeeze(1)
        root_N1 = _variance(logit_N).sqrt().unsqueeze(1)
        weighted_NF = (features_NF * root_N1).double().cpu()
        curvature_FF += weighted_NF.T @ weighted_NF
        indicators_NP = model.own_preferences.indicators(b.context)
        preference_N = (model.own_preferences(rows_N) * indicators_NP).sum(-1)
        logit_without_own_N = logit_N - model.own_bias(rows_N).squeeze(-1) - preference_N
        u_NU = F.pad(indicators_NP, (1, 0), value=1.0).double().cpu()
        residual_N = (b.clicked - torch.sigmoid(logit_without_own_N)).double().cpu()
        residual_AU.index_add_(0, rows_N.cpu(), residual_N[:, None] * u_NU)
        variance_N = _variance(logit_without_own_N).double().cpu()
        information_AUU.index_add_(0, rows_N.cpu(), (variance_N[:, None] * u_NU)[:, :, None] * u_NU[:, None])
    # the unknown row is that of artworks that were never shown in the training period
    residual_AU[0], information_AUU[0] = 0, 0
    return Moments(curvature_FF, residual_AU, information_AUU)


@dataclass(frozen=True)
class OwnEffects:
    """The posterior of what artworks add by themselves."""

    mean_AU: Tensor
    """Own bias and own preferences, float64; 0 for the unknown row."""
    std_A: Tensor
    """Standard deviation of their sum in a context like those of the log."""
    spread_by_name: dict[str, float]
    """Standard deviations between artworks, as logits: `artworks`, and of each feature the preferences."""


def own_biases(moments: Moments) -> OwnEffects:
    """Own biases alone, by the moments of what the model without them leaves over."""
    residual_A, information_A = moments.residual_AU[:, 0], moments.information_AUU[:, 0, 0]
    spread = bias_std_by_moments(residual_A[1:], information_A[1:])
    variance_A = 1 / (1 / spread**2 + information_A)
    mean_AU = torch.zeros_like(moments.residual_AU)
    mean_AU[:, 0] = residual_A * variance_A
    return OwnEffects(mean_AU, variance_A.sqrt(), {"artworks": spread})


def own_effects(moments: Moments, preferences: OwnPreferences) -> OwnEffects:
    """Own biases and own preferences together, a variance for the biases and one for each feature, by MacKay's fixed point."""
    residual_AU, information_AUU = moments.residual_AU, moments.information_AUU
    groups = [slice(0, 1), *(slice(1 + b, 1 + b + n) for b, n in preferences.features.values())]
    seen_A = information_AUU[:, 0, 0] > 0
    variance_U = torch.full_like(residual_AU[0], 0.01)
    variance_U[0] = own_biases(moments).spread_by_name["artworks"] ** 2

    def solved() -> tuple[Tensor, Tensor]:
        covariance_AUU = torch.linalg.inv(information_AUU + torch.diag(1 / variance_U))
        return covariance_AUU, (covariance_AUU @ residual_AU[..., None]).squeeze(-1)

    for _ in range(EFFECT_STEPS):
        before_U, (covariance_AUU, mean_AU) = variance_U.clone(), solved()
        determined_AU = (1 - covariance_AUU.diagonal(dim1=1, dim2=2) / variance_U)[seen_A]
        for group in groups:
            squares, determined = mean_AU[seen_A][:, group].square().sum(), determined_AU[:, group].sum()
            variance_U[group] = (squares / determined.clamp(min=1e-9)).clamp(MIN_BIAS_STD**2, MAX_BIAS_VARIANCE)
        if torch.allclose(before_U, variance_U, rtol=1e-3):
            break
    covariance_AUU, mean_AU = solved()
    share_U = information_AUU[:, 0].sum(0) / information_AUU[:, 0, 0].sum().clamp(min=1e-9)
    std_A = torch.einsum("auv,u,v->a", covariance_AUU, share_U, share_U).sqrt()
    spreads = [float(variance_U[group.start].sqrt()) for group in groups]
    return OwnEffects(mean_AU, std_A, dict(zip(("artworks", *preferences.features), spreads, strict=True)))


@torch.no_grad()
def set_posterior(model: TwoTower, curvature_FF: Tensor, own: OwnEffects) -> dict[str, Any]:
    """Fill the model's posterior; returns ridge and spreads, for the metrics."""
    width = model.posterior_FF.shape[0]
    ridge = evidence_ridge(curvature_FF)
    covariance_FF = torch.linalg.inv(curvature_FF + ridge * torch.eye(width, dtype=torch.float64))
    model.posterior_FF.copy_(torch.linalg.cholesky(covariance_FF))
    model.posterior_own_A.copy_(own.std_A)
    spreads = {f"spread_of_{name}": spread for name, spread in own.spread_by_name.items()}
    return {"ridge": ridge, "well_determined": ridge * width, **spreads}


@torch.no_grad()
def set_own_effects(model: TwoTower, mean_AU: Tensor) -> None:
    """Let the model's artworks have these own biases and preferences."""
    weight = model.artwork_bias.weight
    weight.copy_(mean_AU[:, :1].to(weight))
    model.own_preferences.weight_AP.copy_(mean_AU[:, 1:].to(weight))


@torch.no_grad()
def calibrate_with_posterior(
    model: TwoTower, shards: Shards, reach: int, batch: int, device: torch.device
) -> dict[str, Any]:
    """Fill posterior and calibration; returns the metrics of both. The artworks' own biases become the posterior's means, with or
    without own preferences, where the log loss of validation is then lower by more than a standard error; else the trained ones
    are kept.

    In a log whose artworks differ in ways that no feature tells, trained biases are too small; in one whose logging policy knew
    the members, the means take for the artwork's what is the members', and validation says so.

    Once that is decided and both heads are calibrated, validation has done its work, and its impressions are the newest that are
    known before the test period: the posterior, and its means where they were adopted, are those of both periods together."""
    training = posterior_moments(model, shards, TRAIN, reach, batch, device)
    trained_AU = torch.zeros_like(training.residual_AU)
    trained_AU[:, :1] = model.artwork_bias.weight
    forms: dict[str, Callable[[Moments], OwnEffects]] = {MEANS_OF_BIASES: own_biases}
    if model.own_preferences.width:
        forms[MEANS_OF_PREFERENCES] = partial(own_effects, preferences=model.own_preferences)
    adopted, adopted_N = TRAINED, validation_losses(model, shards, reach, batch, device)
    losses = {TRAINED: float(adopted_N.mean())}
    for name, form in forms.items():
        set_own_effects(model, form(training).mean_AU)
        loss_N = validation_losses(model, shards, reach, batch, device)
        losses[name] = float(loss_N.mean())
        gain_N = adopted_N - loss_N
        if len(gain_N) > 1 and gain_N.mean() > gain_N.std() / len(gain_N) ** 0.5:
            adopted, adopted_N = name, loss_N
    set_own_effects(model, trained_AU if adopted == TRAINED else forms[adopted](training).mean_AU)
    validation = calibrate(model, shards, reach, batch, device)
    both = training + posterior_moments(model, shards, VALIDATION, reach, batch, device)
    own = forms.get(adopted, own_biases)(both)
    posterior = set_posterior(model, both.curvature_FF, own)
    if adopted != TRAINED:
        set_own_effects(model, own.mean_AU)
    return {
        "validation_log_loss": losses[adopted],
        "validation": validation,
        "posterior": posterior,
        "own_biases": adopted,
        "own_biases_log_loss": losses,
    }


def appeal_features(
    model: TwoTower, artwork_query_ND: Tensor, content_query_NC: Tensor, artwork: ArtworkEncoding
) -> Tensor:
    """Appeal as a last layer: features (N, K, D + 3) whose sum, with the artwork's bias, is appeal.

    They are the D products of the learned part, and the similarities of images, of people and of moods.
    """
    width = model.config.width
    learned_NKD = artwork.vector[..., :width] * artwork_query_ND[..., :width].unsqueeze(1)
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
