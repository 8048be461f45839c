"""Prior variances of blocks of image features, against what made the clicks and against an exact Gaussian process."""

import pytest
import torch

from train.evidence import Sample, additive_logit, fit_variances, solve, unit_scale

ARTWORKS, IMPRESSIONS, WIDTHS = 400, 60_000, [6, 6, 6]


def clicks(main_block: int, taste_block: int, seed: int) -> tuple[Sample, torch.Tensor]:
    """Impressions of random members, clicked by one block's main effect and another's taste."""
    rng = torch.Generator().manual_seed(seed)
    unit_AE = torch.randn(ARTWORKS, sum(WIDTHS), generator=rng, dtype=torch.float64) / WIDTHS[0] ** 0.5
    member_NH = torch.randn(IMPRESSIONS, 3, generator=rng)
    artwork_N = torch.randint(0, ARTWORKS, (IMPRESSIONS,), generator=rng).sort().values
    blocks = unit_AE.split(WIDTHS, dim=1)
    main_A = blocks[main_block] @ torch.randn(6, generator=rng, dtype=torch.float64) * 0.5
    taste_AH = blocks[taste_block] @ torch.randn(6, 3, generator=rng, dtype=torch.float64) * 0.5
    logit_N = -2 + main_A[artwork_N] + (taste_AH[artwork_N] * member_NH).sum(1)
    clicked_N = (torch.rand(IMPRESSIONS, generator=rng, dtype=torch.float64) < torch.sigmoid(logit_N)).double()
    member_NC = torch.cat([torch.ones(IMPRESSIONS, 1), member_NH], dim=1)
    share_H = torch.full((3,), 1 / 3, dtype=torch.float64)
    additive_N = torch.full((IMPRESSIONS,), -2.0, dtype=torch.float64)
    return Sample(artwork_N, clicked_N, member_NC, share_H, additive_N, torch.arange(ARTWORKS)), unit_AE


@pytest.mark.parametrize(("main_block", "taste_block"), [(0, 1), (2, 0), (1, 1)])
def test_the_blocks_that_made_the_clicks_have_the_variance(main_block: int, taste_block: int) -> None:
    variances = fit_variances(*clicks(main_block, taste_block, seed=3), WIDTHS)
    for fitted_B, block in ((variances.main_B, main_block), (variances.taste_B, taste_block)):
        others_B = fitted_B[torch.arange(3) != block]
        assert fitted_B[block] > 20 * others_B.max()
    # 0.5^2, and taste in units of components whose variances sum to 1
    assert 0.08 < variances.main_B[main_block] < 0.8
    assert 0.25 < variances.taste_B[taste_block] < 2.2


def test_the_weights_are_those_of_an_exact_gaussian_process() -> None:
    """Weights of the linear model, against the kernel form over artworks and member components with the same data."""
    rng = torch.Generator().manual_seed(5)
    artworks, wide, columns = 30, 5, 3
    unit_AE = torch.randn(artworks, wide, generator=rng, dtype=torch.float64)
    rows_ARC = torch.randn(artworks, 8, columns, generator=rng, dtype=torch.float64)
    information_ACC = rows_ARC.transpose(1, 2) @ rows_ARC
    target_AC = torch.randn(artworks, columns, generator=rng, dtype=torch.float64)
    root_EC = torch.rand(wide, columns, generator=rng, dtype=torch.float64) + 0.2
    own_root = 0.7
    eye = torch.eye(wide, dtype=torch.float64)
    weight_EC, own_A = solve(
        *(unit_AE, information_ACC, target_AC, root_EC, own_root, eye.expand(columns, wide, wide)),
        *(torch.zeros(wide, columns, dtype=torch.float64), torch.zeros(artworks, dtype=torch.float64)),
        steps=400,
        tolerance=1e-24,
    )
    score_AC = unit_AE @ weight_EC
    score_AC[:, 0] += own_A
    # prior covariance of the scores, (A, C, A, C): a product kernel a column, and own biases on the first
    kernel = torch.zeros(artworks, columns, artworks, columns, dtype=torch.float64)
    for c in range(columns):
        kernel[:, c, :, c] = (unit_AE * root_EC[:, c] ** 2) @ unit_AE.T
    kernel[:, 0, :, 0] += own_root**2 * torch.eye(artworks, dtype=torch.float64)
    kernel = kernel.reshape(artworks * columns, -1)
    information = torch.block_diag(*information_ACC)
    identity = torch.eye(len(kernel), dtype=torch.float64)
    exact = torch.linalg.solve(identity + kernel @ information, kernel @ target_AC.flatten())
    torch.testing.assert_close(score_AC.flatten(), exact, atol=1e-6, rtol=1e-6)


def test_additive_effects_are_taken_out() -> None:
    rng = torch.Generator().manual_seed(1)
    title_N, device_N = torch.randint(0, 5, (200_000,), generator=rng), torch.randint(0, 2, (200_000,), generator=rng)
    logit_N = torch.linspace(-3, -1, 5, dtype=torch.float64)[title_N] + 0.7 * device_N
    clicked_N = (torch.rand(200_000, generator=rng) < torch.sigmoid(logit_N)).double()
    fitted_N = additive_logit(clicked_N, [(title_N, 1.0), (device_N, 1.0)])
    assert (fitted_N - logit_N).abs().max() < 0.1


def test_a_block_without_spread_has_no_scale() -> None:
    image_AE = torch.cat([torch.randn(20, 2, dtype=torch.float64), torch.zeros(20, 3, dtype=torch.float64)], dim=1)
    scale_E = unit_scale(image_AE, [2, 3])
    assert (scale_E[2:] == 0).all()
    assert (image_AE * scale_E)[1:].square().sum(1).mean() == pytest.approx(1.0)
