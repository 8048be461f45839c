"""The posterior is the one that is stated, and the policy's column is what its draws do."""

import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from datamodules.feed.impression_feed import Feed
from datamodules.shards.shard import TRAIN, VALIDATION, Shards
from foundation.errors import UserError
from models.two_tower import TwoTower
from serving.bundle.bundle import Bundle
from serving.scoring.policies import ServingPolicy
from serving.scoring.score import score
from serving.scoring.thompson import Thompson, normals
from tests.test_explain import request_of
from train.posterior import (
    MEANS_OF_BIASES,
    MEANS_OF_PREFERENCES,
    TRAINED,
    Moments,
    appeal_features,
    bias_std_by_moments,
    calibrate_with_posterior,
    evidence_ridge,
    own_biases,
    own_effects,
    posterior_moments,
    set_posterior,
)
from train.run import Run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(run: Path) -> TwoTower:
    return Run.open(run).model


def moments_of(model: TwoTower, shards: Shards, *further: int) -> Moments:
    """Moments of training and further periods."""
    reach = model.config.history.reach
    parts = [posterior_moments(model, shards, split, reach, 500, CPU) for split in (TRAIN, *further)]
    return sum(parts[1:], parts[0])


def posterior_of(model: TwoTower, shards: Shards) -> tuple[dict[str, float], torch.Tensor]:
    """Fill the posterior from training; its metrics and the means of the own biases."""
    moments = moments_of(model, shards)
    own = own_biases(moments)
    return set_posterior(model, moments.curvature_FF, own), own.mean_AU[:, 0]


def features_of(model: TwoTower, shards: Shards) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every training impression by itself: features, the artwork's bias, appeal and click logit."""
    parts: list[list[np.ndarray]] = [[], [], [], []]
    with torch.no_grad():
        for b in Feed(shards.shards, TRAIN, reach=model.config.history.reach, impressions=700, shuffle=True):
            states = model.states(b.play_title, b.play_artwork, b.play_watched)
            state = model.state_at(states, b.member, b.position)
            artwork = model.artworks(b.artworks)
            meet = model.appeal_queries(state, b.context)[:2]
            again = torch.zeros(len(b.title), dtype=torch.bool)
            for n, (member, position, title) in enumerate(zip(b.member, b.position, b.title, strict=True)):
                recent = b.play_title[member, max(0, position - model.config.history.span) : position]
                again[n] = bool(title > 0 and (recent == title).any())
            terms = model.rank(state, b.context, b.title, b.artworks, again)
            features = appeal_features(model, *meet, artwork)
            for part, value in zip(parts, (features, artwork.bias, terms.appeal_NK, terms.click_NK()), strict=True):
                part.append(value[:, 0].numpy().astype(np.float64))
    f, bias, appeal, logit = (np.concatenate(part) for part in parts)
    return f, bias, appeal, logit


def test_the_covariance_is_the_one_stated(model: TwoTower, shards: Path) -> None:
    opened = Shards.open(shards)
    features, bias, appeal, logit = features_of(model, opened)
    np.testing.assert_allclose(features.sum(1) + bias, appeal, atol=1e-5)
    p = 1 / (1 + np.exp(-logit))
    curvature = sum(v * np.outer(f, f) for v, f in zip(p * (1 - p), features, strict=True))
    metrics, mean_A = posterior_of(model, opened)
    root = model.posterior_FF.double().numpy()
    inverse = curvature + metrics["ridge"] * np.eye(len(root))
    np.testing.assert_allclose(root @ root.T @ inverse, np.eye(len(root)), atol=2e-3)
    well_determined = np.trace(curvature @ np.linalg.inv(inverse))
    assert metrics["ridge"] == pytest.approx(well_determined / len(root), rel=1e-3)
    assert mean_A.shape == model.posterior_own_A.shape
    assert mean_A[0] == 0, "of an artwork that is not known, nothing is"


@pytest.mark.parametrize("trained_badly", [True, False])
def test_own_effects_are_those_of_the_posterior_where_validation_is_better_so(
    model: TwoTower, shards: Path, trained_badly: bool
) -> None:
    opened, reach = Shards.open(shards), model.config.history.reach
    other = deepcopy(model)
    with torch.no_grad():
        if trained_badly:
            other.artwork_bias.weight.normal_(0, 1.5, generator=torch.Generator().manual_seed(1))
        else:  # nothing is then to be gained
            other.artwork_bias.weight.copy_(own_biases(moments_of(model, opened)).mean_AU[:, :1])
    trained = other.artwork_bias.weight.clone().detach()
    metrics = calibrate_with_posterior(other, opened, reach, 500, CPU)
    losses, adopted = metrics["own_biases_log_loss"], metrics["own_biases"]
    assert list(losses) == [TRAINED, MEANS_OF_BIASES, MEANS_OF_PREFERENCES]
    assert (adopted != TRAINED) == trained_badly
    assert metrics["validation_log_loss"] == losses[adopted] <= losses[TRAINED]
    assert metrics["validation"]["click_log_loss_before"] == pytest.approx(losses[adopted], rel=1e-6)
    moments = moments_of(deepcopy(model), opened, VALIDATION)
    expected_AU = torch.cat([trained, torch.zeros_like(model.own_preferences.weight_AP)], dim=1)
    if adopted == MEANS_OF_BIASES:
        expected_AU = own_biases(moments).mean_AU.float()
    elif adopted == MEANS_OF_PREFERENCES:
        expected_AU = own_effects(moments, model.own_preferences).mean_AU.float()
    actual_AU = torch.cat([other.artwork_bias.weight.detach(), other.own_preferences.weight_AP], dim=1)
    torch.testing.assert_close(actual_AU, expected_AU, atol=1e-6, rtol=1e-4)


def drawn_moments(
    rng: np.random.Generator, own: tuple[float, float], artworks: int = 1500
) -> tuple[Moments, torch.Tensor]:
    """Moments of a model that knows nothing, of normal residuals; and the effects that made them, (A, 4), of spreads `own`."""
    effect_AU = torch.from_numpy(rng.normal(0, [own[0], *[own[1]] * 3], (artworks, 4)))
    known_AP = torch.from_numpy(rng.uniform(1, 30, (artworks, 3)) * [0.5, 0.35, 0.15])
    information_AUU = torch.zeros(artworks, 4, 4, dtype=torch.float64)
    information_AUU[:, 0, 0] = known_AP.sum(1)
    information_AUU[:, 0, 1:] = information_AUU[:, 1:, 0] = known_AP
    information_AUU[:, 1:, 1:] = torch.diag_embed(known_AP)
    noise_AP = known_AP.sqrt() * torch.from_numpy(rng.normal(0, 1, (artworks, 3)))
    residual_AP = known_AP * (effect_AU[:, :1] + effect_AU[:, 1:]) + noise_AP
    residual_AU = torch.cat([residual_AP.sum(1, keepdim=True), residual_AP], dim=1)
    return Moments(torch.eye(3, dtype=torch.float64), residual_AU, information_AUU), effect_AU


@pytest.mark.parametrize("own", [(0.4, 0.3), (0.4, 0.0), (0.0, 0.5)])
def test_own_preferences_are_recovered_with_their_spread(model: TwoTower, own: tuple[float, float]) -> None:
    assert model.own_preferences.features == {"device": (0, 3), "country": (3, 5)}, "the one with fewer values first"
    preferences = deepcopy(model.own_preferences)
    del preferences.features["country"]
    moments, effect_AU = drawn_moments(np.random.default_rng(5), own)
    effects = own_effects(moments, preferences)
    assert effects.spread_by_name["artworks"] ** 2 == pytest.approx(own[0] ** 2, abs=0.03)
    assert effects.spread_by_name["device"] ** 2 == pytest.approx(own[1] ** 2, abs=0.03)
    # what counts is the effect in each context, against that of the biases alone
    actual_AP, expected_AP = (x[:, :1] + x[:, 1:] for x in (effects.mean_AU, effect_AU))
    biases_A1 = own_biases(moments).mean_AU[:, :1]
    error, error_of_biases = ((x - expected_AP).square().mean().item() for x in (actual_AP, biases_A1))
    assert error < error_of_biases * (0.95 if own[1] else 1.02)
    within = ((actual_AP @ SHARES - expected_AP @ SHARES).abs() < 2 * effects.std_A).double().mean()
    assert within > 0.93


def test_moments_are_those_of_a_model_without_own_effects(model: TwoTower, shards: Path) -> None:
    opened, other = Shards.open(shards), deepcopy(model)
    with torch.no_grad():
        other.artwork_bias.weight.normal_(0, 1, generator=torch.Generator().manual_seed(1))
        other.own_preferences.weight_AP.normal_(0, 1, generator=torch.Generator().manual_seed(2))
    plain, with_effects = moments_of(model, opened), moments_of(other, opened)
    torch.testing.assert_close(plain.residual_AU, with_effects.residual_AU, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(plain.information_AUU, with_effects.information_AUU, atol=1e-4, rtol=1e-4)


SHARES = torch.tensor([0.5, 0.35, 0.15], dtype=torch.float64)


def test_a_model_with_own_preferences_ranks_by_them_on_that_device_alone(run: Path, shards: Path) -> None:
    opened, other = Shards.open(shards), Run.open(run).model
    item = next(iter(Feed(opened.shards, TRAIN, reach=other.config.history.reach, impressions=300, shuffle=False)))
    begin, _ = other.own_preferences.features["device"]

    def appeal_of(device: int) -> torch.Tensor:
        context = item.context | {"device": torch.full_like(item.context["device"], device)}
        states = other.states(item.play_title, item.play_artwork, item.play_watched)
        state = other.state_at(states, item.member, item.position)
        rewatch = torch.zeros(len(item.title), dtype=torch.bool)
        return other.rank(state, context, item.title, item.artworks, rewatch).appeal_NK

    with torch.no_grad():
        before = [appeal_of(device) for device in range(4)]
        other.own_preferences.weight_AP[1:, begin + 1] = 0.7
        after = [appeal_of(device) for device in range(4)]
    known = (item.artworks > 0) & (item.artworks < other.sizes.artworks)
    for device, (x, y) in enumerate(zip(before, after, strict=True)):
        torch.testing.assert_close(y - x, 0.7 * known * (device == 2), atol=1e-5, rtol=0)


def test_own_biases_that_no_feature_tells_are_recovered(model: TwoTower, shards: Path, tmp_path: Path) -> None:
    """Clicks drawn by biases alone, and a model that knows nothing but the click rate: the means are those biases, shrunk."""
    copy = shutil.copytree(shards, tmp_path / "shards")
    rng = np.random.default_rng(4)
    own_A = rng.normal(0, 0.8, model.sizes.artworks)
    for index, shard in enumerate(Shards.open(shards).shards):
        rows = shard.candidate[shard.candidate_start[:-1] + shard.shown]
        logit = -1 + own_A[np.where(rows < len(own_A), rows, 0)]
        clicked = rng.random(len(logit)) < 1 / (1 + np.exp(-logit))
        np.save(copy / f"shard-{index:05}" / "clicked.npy", clicked.astype(shard.clicked.dtype))
    ignorant = deepcopy(model)
    with torch.no_grad():
        for parameter in ignorant.parameters():
            parameter.zero_()
        ignorant.presentation.base.fill_(-1)
    metrics, mean_A = posterior_of(ignorant, Shards.open(copy))
    assert metrics["spread_of_artworks"] == pytest.approx(0.8, abs=0.2)
    error_A, sd_A = mean_A[1:].numpy() - own_A[1:], ignorant.posterior_own_A[1:].numpy()
    assert np.corrcoef(mean_A[1:], own_A[1:])[0, 1] > 0.75
    assert np.abs(error_A).mean() < 0.6 * np.abs(own_A).mean()
    assert (np.abs(error_A) < 2 * sd_A).mean() > 0.85, "as uncertain as it says, but for the curve of the logistic"


def test_what_was_seldom_shown_is_less_sure(model: TwoTower, shards: Path) -> None:
    opened = Shards.open(shards)
    metrics, _ = posterior_of(model, opened)
    shard = opened.shards[0]
    shown = shard.candidate[shard.candidate_start[:-1] + shard.shown][np.asarray(shard.split) == TRAIN]
    count = np.bincount(shown, minlength=model.sizes.artworks)[: model.sizes.artworks]
    own = model.posterior_own_A.numpy()
    assert own[0] == pytest.approx(metrics["spread_of_artworks"])
    assert (own[1:][count[1:] > 0] < own[0]).all()
    often, seldom = count[1:] > np.quantile(count[1:], 0.9), count[1:] < np.quantile(count[1:], 0.1)
    assert own[1:][often].mean() < own[1:][seldom].mean()


def test_the_ridge_and_the_spread_are_recovered() -> None:
    """From residuals simulated with known ones."""
    rng = np.random.default_rng(0)
    known = rng.uniform(2, 40, 4000)
    for spread in (0.0, 0.3):
        residual = known * rng.normal(0, spread, 4000) + np.sqrt(known) * rng.normal(0, 1, 4000)
        estimated = bias_std_by_moments(torch.from_numpy(residual), torch.from_numpy(known))
        assert estimated == pytest.approx(spread, abs=0.05 if spread == 0 else 0.03)
    assert evidence_ridge(torch.zeros(4, 4, dtype=torch.float64)) == pytest.approx(1e-6), "a log that says nothing"
    assert evidence_ridge(1e9 * torch.eye(4, dtype=torch.float64)) == pytest.approx(1, rel=1e-3), "one that says all"


def test_normals_are_normal_and_independent() -> None:
    drawn = normals(np.arange(2000), 300, seed=1)
    assert drawn.mean() == pytest.approx(0, abs=0.005)
    assert drawn.std() == pytest.approx(1, abs=0.005)
    assert np.abs(np.corrcoef(drawn[:40])[~np.eye(40, dtype=bool)]).max() < 0.3
    assert np.abs(np.corrcoef(drawn.T[:40])[~np.eye(40, dtype=bool)]).max() < 0.12
    np.testing.assert_array_equal(normals(np.array([7, 3]), 300, seed=1), drawn[[7, 3]])
    assert (normals(np.arange(5), 300, seed=2) != drawn[:5]).mean() > 0.99


def test_drawn_appeals_have_the_covariance_of_the_posterior(run: Path, bundle: Path) -> None:
    opened, model = Bundle.open(bundle), Run.open(run).model
    request = request_of(opened, n=6)
    ranked = opened.rank(request)
    drawn = Thompson(opened, 20_000).sampled_appeals(
        request["artworks"], ranked["artwork_query"], ranked["content_query"], ranked["appeal"]
    )
    np.testing.assert_allclose(drawn.mean(-1), ranked["appeal"], atol=0.05)
    vector, content = (Thompson(opened, 1).vector, Thompson(opened, 1).content)
    root, own = model.posterior_FF.numpy(), Thompson(opened, 1).own
    for n, rows in enumerate(request["artworks"]):
        products, width = content[rows] * ranked["content_query"][n], model.config.width
        cuts = ((0, width), (width, 2 * width), (2 * width, None))
        three = np.stack([products[:, begin:end].sum(-1) for begin, end in cuts], axis=1)
        learned = (vector[rows] * ranked["artwork_query"][n])[:, :width]
        features = np.concatenate([learned, three], axis=1) @ root
        same = (rows[:, None] == rows).astype(float)  # one artwork listed twice has one bias
        covariance = features @ features.T + np.outer(own[rows], own[rows]) * same
        scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
        assert np.abs(np.cov(drawn[n]) - covariance).max() < 0.05 * scale.max()


def test_the_policy_is_the_share_of_draws(service: Path, bundle: Path, tmp_path: Path) -> None:
    opened = Bundle.open(bundle)
    request = request_of(opened, n=30)
    mask = np.arange(6) < np.random.default_rng(0).integers(1, 7, 30)[:, None]
    ranked = opened.rank(request)
    thompson = Thompson(opened, 64)
    narrow = Thompson(opened, 64, 1e-6)
    drawn = thompson.sampled_appeals(
        request["artworks"], ranked["artwork_query"], ranked["content_query"], ranked["appeal"]
    )
    expected = np.zeros((30, 6))
    for n in range(30):
        for s in range(64):
            expected[n, max(np.flatnonzero(mask[n]), key=lambda k: drawn[n, k, s])] += 1 / 64
    shares = thompson.probabilities(request, ranked, mask)
    np.testing.assert_allclose(shares, expected, atol=1e-6)
    assert 0 < (np.count_nonzero(shares, axis=1) > 1).mean() < 1, "some are sure, some are not"
    certain = narrow.probabilities(request, ranked, mask)
    assert (certain.argmax(1) == np.where(mask, ranked["appeal"], -np.inf).argmax(1)).all(), "of no width it is greedy"
    assert (certain.max(1) == 1).all()

    score(opened, service, tmp_path / "scores", policy="thompson:64")
    table = pq.read_table(tmp_path / "scores" / "part-00000.parquet")
    sums = np.array([sum(row) for row in table["policy"].to_pylist()])
    np.testing.assert_allclose(sums, 1, atol=1e-5)
    least = np.array([len(row) * min(row) for row in table["policy"].to_pylist()])
    np.testing.assert_allclose(least.min(), 0.05, atol=1e-5, err_msg="every candidate has a share of the floor")
    with pytest.raises(UserError, match=r"the posterior is of clicks"):
        score(opened, service, tmp_path / "other", policy="thompson", reward="engaged")


def test_words_for_it() -> None:
    assert (
        ServingPolicy.parse("thompson")
        == replace(ServingPolicy.parse("thompson:3"), strength=256)
        == replace(ServingPolicy.parse("thompson:256:2"), width=0.25)
        == replace(ServingPolicy.parse("thompson:256:.25:0"), floor=0.05)
    )
    for bad in (
        "thompson:0",
        "thompson:2.5",
        "thompson:x",
        "thompson:1000000",
        "thompson:5:0",
        "thompson:5:x",
        "thompson:5:1:2",
        "thompson:5:1:-0.1",
        "thompson:5:1:.1:.1",
        "epsilon:.1:2",
    ):
        with pytest.raises(UserError, match="policy="):
            ServingPolicy.parse(bad)
