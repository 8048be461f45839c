"""What an image looks like to nobody in particular: random filters, colours and layout, for click laws that nobody has seen.

In: float images (n, 3, H, W) in 0 .. 1. Out: four blocks of features. Filters with random weights, rectified and averaged over the
image, are features of a kernel on patches (Rahimi and Recht, *Random Features for Large-Scale Kernel Machines*, 2007; Saxe et al.,
*On Random Weights and Unsupervised Feature Learning*, 2011): no task is built into them, so none is left out. A second layer
of them sees what the first gives together; soft colour bins see how much of each colour there is, and few pixels where it is.

Weights are drawn once; thresholds and colours are drawn from a catalogue's images by `fit`, and are kept with the weights.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.resizing import resize

SCALES = ((96, 64), (48, 32), (24, 16))
"""Heights and widths of the images that filters see, pixels."""
SIZES = (1, 3, 5, 9)
"""Heights and widths of the filters, pixels."""
FILTERS, PAIRS = 32, 64
"""Filters of one scale and size; filters of the second layer over them."""
SECOND_LAYER = ((0, 5), (1, 3), (1, 5), (2, 3))
"""Index of the scale and size of the filters that the second layer sees."""
COLOURS, COLOUR_IMAGE = 96, (24, 16)
"""Soft bins, and the size of the image whose pixels fall into them."""
BANDWIDTHS = (0.1, 0.2)
"""Standard deviations of a bin, in shares of a channel's range."""
LAYOUT = (12, 8)
"""Height and width of the image that is given as it is."""
SAMPLE, RESPONSES = 128, 20_000
"""Images by which thresholds are drawn, and how many of a filter's responses to them."""


class RandomFeatures(nn.Module):
    """Blocks: first layer (n, 384), second layer (n, 256), colours (n, 192), layout (n, 288)."""

    features = (
        len(SCALES) * len(SIZES) * FILTERS,
        len(SECOND_LAYER) * PAIRS,
        len(BANDWIDTHS) * COLOURS,
        3 * LAYOUT[0] * LAYOUT[1],
    )
    """Numbers of each block."""

    def __init__(self) -> None:
        """Weights and thresholds are zero until `fit` draws them or a state dict gives them."""
        super().__init__()
        for scale in range(len(SCALES)):
            for size in SIZES:
                self.register_buffer(f"filter_{scale}_{size}", torch.zeros(FILTERS, 3, size, size))
                self.register_buffer(f"threshold_{scale}_{size}", torch.zeros(FILTERS))
        for scale, size in SECOND_LAYER:
            self.register_buffer(f"pair_{scale}_{size}", torch.zeros(PAIRS, FILTERS, 3, 3))
            self.register_buffer(f"pair_threshold_{scale}_{size}", torch.zeros(PAIRS))
        self.register_buffer("colour", torch.zeros(COLOURS, 3))

    @torch.no_grad()
    def fit(self, images_nCHW: Tensor, rng: torch.Generator) -> None:
        """Draw weights; scale them, and draw thresholds and colours, by a catalogue's images, float in 0 .. 1."""
        chosen = torch.randperm(len(images_nCHW), generator=rng)[:SAMPLE]
        images = images_nCHW[chosen]
        for scale, shape in enumerate(SCALES):
            small = resize(images, *shape) - 0.5
            for size in SIZES:
                self._draw(f"filter_{scale}_{size}", f"threshold_{scale}_{size}", small, rng)
                if (scale, size) in SECOND_LAYER:
                    pooled = F.avg_pool2d(self._first(small, scale, size), 2)
                    self._draw(f"pair_{scale}_{size}", f"pair_threshold_{scale}_{size}", pooled, rng)
        pixels = resize(images, *COLOUR_IMAGE).permute(0, 2, 3, 1).reshape(-1, 3)
        self.get_buffer("colour").copy_(pixels[torch.randint(0, len(pixels), (COLOURS,), generator=rng)])

    def _draw(self, weight: str, threshold: str, maps: Tensor, rng: torch.Generator) -> None:
        """Filters of unit spread over these maps, and thresholds at random quantiles of what each gives, 10 to 90 %."""
        filters, thresholds = self.get_buffer(weight), self.get_buffer(threshold)
        filters.copy_(torch.randn(filters.shape, generator=rng))
        response = F.conv2d(maps, filters).permute(1, 0, 2, 3).flatten(1)
        spread = response.std(1, correction=0).clamp(min=1e-6)
        filters.div_(spread[:, None, None, None])
        quantile = 0.1 + 0.8 * torch.rand(len(filters), generator=rng)
        chosen = torch.randint(0, response.shape[1], (RESPONSES,), generator=rng)
        rank = (quantile * (RESPONSES - 1)).long()
        ordered = (response[:, chosen] / spread[:, None]).sort(1).values
        thresholds.copy_(ordered.gather(1, rank[:, None]).squeeze(1))

    def _first(self, small_nCHW: Tensor, scale: int, size: int) -> Tensor:
        weight, threshold = self.get_buffer(f"filter_{scale}_{size}"), self.get_buffer(f"threshold_{scale}_{size}")
        return F.relu(F.conv2d(small_nCHW, weight, -threshold))

    def forward(self, images_nCHW: Tensor) -> list[Tensor]:
        """float (n, 3, H, W) in 0 .. 1 -> the four blocks."""
        first, second = [], []
        for scale, shape in enumerate(SCALES):
            small = resize(images_nCHW, *shape) - 0.5
            for size in SIZES:
                maps = self._first(small, scale, size)
                first.append(maps.mean((2, 3)))
                if (scale, size) in SECOND_LAYER:
                    pair = self.get_buffer(f"pair_{scale}_{size}")
                    threshold = self.get_buffer(f"pair_threshold_{scale}_{size}")
                    pooled = F.avg_pool2d(maps, 2)
                    second.append(F.relu(F.conv2d(pooled, pair, -threshold)).mean((2, 3)))
        return [
            torch.cat(first, 1),
            torch.cat(second, 1),
            self._colours(images_nCHW),
            resize(images_nCHW, *LAYOUT).flatten(1),
        ]

    def _colours(self, images_nCHW: Tensor) -> Tensor:
        """Shares of the image near each colour, (n, 192)."""
        small, colour = resize(images_nCHW, *COLOUR_IMAGE), self.get_buffer("colour")
        product = F.conv2d(small, colour[:, :, None, None])
        square = small.square().sum(1, keepdim=True) + colour.square().sum(1)[:, None, None] - 2 * product
        return torch.cat([torch.exp(square / (-2 * width**2)).mean((2, 3)) for width in BANDWIDTHS], dim=1)
