"""Random features: drawn once from the catalogue, finite for any image, and of the shapes that they state."""

import pytest
import torch

from models.random_features import COLOURS, LAYOUT, SCALES, SIZES, RandomFeatures
from models.resizing import resize


def smooth_images(n: int, seed: int) -> torch.Tensor:
    """float (n, 3, 144, 96) in 0 .. 1: areas of colour."""
    return resize(torch.rand(n, 3, 6, 4, generator=torch.Generator().manual_seed(seed)), 144, 96)


def drawn(images: torch.Tensor, seed: int = 0) -> RandomFeatures:
    features = RandomFeatures()
    features.fit(images, torch.Generator().manual_seed(seed))
    return features


def test_blocks_have_the_stated_widths_and_no_image_is_without_features() -> None:
    features = drawn(smooth_images(20, 0))
    images = torch.cat([smooth_images(3, 1), torch.zeros(1, 3, 144, 96), torch.ones(1, 3, 144, 96)])
    blocks = features(images)
    assert tuple(block.shape[1] for block in blocks) == features.features == (384, 256, 192, 288)
    assert all(torch.isfinite(block).all() for block in blocks)
    torch.testing.assert_close(blocks[3], resize(images, *LAYOUT).flatten(1))


def test_one_seed_and_catalogue_give_one_draw() -> None:
    images = smooth_images(20, 0)
    blocks, again, other = drawn(images)(images), drawn(images)(images), drawn(images, seed=1)(images)
    for one, two, three in zip(blocks[:3], again, other, strict=False):
        assert torch.equal(one, two)
        assert not torch.allclose(one, three)


def test_a_filter_answers_to_a_part_of_the_catalogue() -> None:
    """Its threshold is a quantile, 10 to 90 %, of what it gives of the catalogue's images."""
    images = smooth_images(30, 0)
    features = drawn(images)
    for scale, shape in enumerate(SCALES):
        small = resize(images, *shape) - 0.5
        for size in SIZES:
            active = (features._first(small, scale, size) > 0).float().mean((0, 2, 3))
            assert active.min() > 0.05
            assert active.max() < 0.95


@pytest.mark.parametrize("colour", [(0.9, 0.1, 0.1), (0.2, 0.3, 0.8)])
def test_a_plain_image_lies_in_the_bins_of_its_colour(colour: tuple[float, float, float]) -> None:
    images = smooth_images(30, 0)
    features = drawn(images)
    plain = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 144, 96)
    shares = features(plain)[2][0, :COLOURS]
    distance = (features.get_buffer("colour") - torch.tensor(colour)).norm(dim=1)
    torch.testing.assert_close(shares, torch.exp(-(distance**2) / (2 * 0.1**2)), atol=1e-5, rtol=1e-4)
