"""The image encoder: an artwork's pixels -> features of every level, from colour statistics to a backbone's last stage.

In: images as uint8 (n, 3, height, width). Out: blocks of features: colour and edge statistics of a grid and of the whole image,
random features (`models.random_features`), and the backbone's levels, each pooled, where there is one. What makes people click is
visible at every level, so none is left out, and training learns from the log which blocks matter (`train.evidence`).
`Projection` turns the blocks into one embedding of fixed width, each block standardised and reduced by its principal components.
The backbone is whatever keeps the protocol `ImageBackbone`: a ResNet of torchvision, EfficientNet-Lite0, or a class of the user's.

Legend: n images, C channels, F features of a block, E embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.efficientnet_lite import EfficientNetLite0
from models.random_features import RandomFeatures
from models.resizing import resize
from models.resnet import LAYERS, ResNetStages

GRID = (4, 3)
"""Rows and columns of cells for the pixel statistics."""
NO_BACKBONE = "none"
"""In place of a backbone's name."""
HUES, DIRECTIONS = 8, 6
"""Length of the block of whole-image statistics."""


@runtime_checkable
class ImageBackbone(Protocol):
    """What an image encoder needs of a network: an `nn.Module` made by `Backbone(height, width)` that has these three members.

    It scales pixels to what its weights were trained under by itself. It is traced to ONNX, so it must be exportable, and its
    state dict is what `keyart embed --weights FILE` loads.
    """

    input_size: tuple[int, int]
    """Height and width of the images it is given, pixels: those it was made with, or its own where it has one size."""
    features: int
    """Channels of the last level, by which the network learns where it is trained on the catalogue."""

    def forward(self, images_nCHW: Tensor, /) -> Sequence[Tensor]:
        """float (n, 3, *input_size) in 0 .. 1 -> levels from shallow to deep: maps (n, C, h, w), or vectors (n, C)."""
        ...


EFFICIENTNET = "efficientnet-lite0"
BACKBONES: dict[str, Callable[[int, int], nn.Module]] = {
    **{name: partial(ResNetStages, name) for name in LAYERS},
    EFFICIENTNET: EfficientNetLite0,
}
"""By name: a function of height and width, in pixels, that makes a backbone. Other backbones are given by class path."""


def make_backbone(name: str, height: int, width: int) -> nn.Module:
    """A backbone with random weights; ValueError where the name is unknown or the class does not keep `ImageBackbone`.

    `name`: a key of `BACKBONES`, or the path of a class, `package.module.Class`.
    """
    make = BACKBONES.get(name)
    if make is None:
        module, _, attribute = name.rpartition(".")
        if not module:
            raise ValueError(
                f"backbone={name}: unknown. Give {', '.join(BACKBONES)}, or the path of a class, package.module.Class."
            )
        try:
            make = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"backbone={name}: cannot be imported ({error}). Install it, or set PYTHONPATH.") from None
    if not callable(make):
        raise ValueError(f"backbone={name}: is not a class. Give the path of one, package.module.Class.")
    backbone = cast(Callable[[int, int], nn.Module], make)(height, width)
    if not isinstance(backbone, nn.Module) or not isinstance(backbone, ImageBackbone):
        raise ValueError(
            f"backbone={name}: must be a torch module with input_size and features, as models.image_encoder.ImageBackbone says."
        )
    return backbone


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig:
    """Which backbone reads the images, and how wide their embedding is."""

    backbone: str = NO_BACKBONE
    """none: statistics and random features alone; beside them resnet18, resnet34 or resnet50 of torchvision, efficientnet-lite0
    (extra `efficientnet`), or a class of your own by its path, package.module.Class, that keeps
    models.image_encoder.ImageBackbone: a ViT, say."""
    height: int = 96
    """Images are resized to this height before the backbone reads them, pixels; a backbone of fixed input size uses its own."""
    width: int = 64
    """Images are resized to this width before the backbone reads them, pixels."""
    stage_width: int = 24
    """Principal components kept per level of the backbone."""
    filter_width: int = 64
    """Principal components kept per layer of random filters."""
    colour_width: int = 32
    """Principal components kept of the soft colour bins."""
    layout_width: int = 48
    """Principal components kept of the image in few pixels."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.backbone not in (NO_BACKBONE, *BACKBONES) and "." not in self.backbone:
            raise ValueError(
                f"backbone={self.backbone}: unknown. Give {NO_BACKBONE}, {', '.join(BACKBONES)}, or a class path, "
                "package.module.Class."
            )
        for name, size in (("height", self.height), ("width", self.width)):
            if not 32 <= size <= 1024:
                raise ValueError(f"{name}={size}: must lie in 32 .. 1024 pixels.")
        for name in ("stage_width", "filter_width", "colour_width", "layout_width"):
            if not 1 <= getattr(self, name) <= 512:
                raise ValueError(f"{name}={getattr(self, name)}: must lie in 1 .. 512.")


class PixelStatistics(nn.Module):
    """Colour and edges of a grid of cells: means of luma, red-green and blue-yellow, deviation of luma, edge energy."""

    features = GRID[0] * GRID[1] * 6

    def forward(self, images_nCHW: Tensor) -> Tensor:
        """float (n, 3, H, W) in 0 .. 1 -> (n, 72)."""
        red, green, blue = images_nCHW.unbind(1)
        luma = 0.299 * red + 0.587 * green + 0.114 * blue
        across = F.pad((luma[:, :, 1:] - luma[:, :, :-1]).abs(), (0, 1))
        down = F.pad((luma[:, 1:] - luma[:, :-1]).abs(), (0, 0, 0, 1))
        maps = torch.stack([luma, red - green, blue - (red + green) / 2, luma * luma, across, down], dim=1)
        cells = F.adaptive_avg_pool2d(maps, GRID)
        deviation = (cells[:, 3] - cells[:, 0] ** 2).clamp(min=0).sqrt()
        return torch.stack([*cells[:, :3].unbind(1), deviation, *cells[:, 4:].unbind(1)], dim=1).flatten(1)


class WholeStatistics(nn.Module):
    """The image as a whole: how colourful, bright, busy and regular it is.

    Means, deviations and shares of saturation, brightness and luma; colourfulness (Hasler and Suesstrunk, 2003) and distance
    from grey; saturation by hue; edges by direction; how far it is from its mirror image; the share of skin tones (a rule of
    thumb on red, green and blue, which fails for dark skin) and how much the centre differs from the rest.
    """

    features = 16 + HUES + DIRECTIONS

    def forward(self, images_nCHW: Tensor) -> Tensor:
        """float (n, 3, H, W) in 0 .. 1 -> (n, 30)."""
        red, green, blue = images_nCHW.unbind(1)
        brightest, darkest = images_nCHW.amax(1), images_nCHW.amin(1)
        saturation = (brightest - darkest) / (brightest + 1e-3)
        luma = 0.299 * red + 0.587 * green + 0.114 * blue
        reds, yellows = red - green, blue - (red + green) / 2
        hue = _angle(3**0.5 * (green - blue), 2 * red - green - blue) / (2 * torch.pi) + 0.5
        across = luma[:, 1:-1, 2:] - luma[:, 1:-1, :-2]
        down = luma[:, 2:, 1:-1] - luma[:, :-2, 1:-1]
        edge = (across.square() + down.square() + 1e-12).sqrt()
        direction = _angle(down, across) / torch.pi % 1
        tones = (
            (red > 0.35) & (green > 0.2) & (blue > 0.1) & (red > blue) & (brightest - darkest > 0.06) & (reds > 0.03)
        )
        skin, height, width = tones.float(), luma.shape[1], luma.shape[2]
        centre = (slice(height // 4, height - height // 4), slice(width // 4, width - width // 4))

        def mean(map_nHW: Tensor) -> Tensor:
            return map_nHW.mean((1, 2))

        def inner(map_nHW: Tensor) -> Tensor:
            return mean(map_nHW[:, *centre])

        def spread(map_nHW: Tensor) -> Tensor:
            return map_nHW.std((1, 2), correction=0)

        statistics = [
            *(mean(saturation), spread(saturation), mean((saturation > 0.5).float())),
            *(mean(brightest), spread(luma), mean((luma < 0.2).float()), mean((luma > 0.8).float())),
            (spread(reds).square() + spread(yellows).square()).sqrt(),
            (mean(reds).square() + mean(yellows).square() + 1e-12).sqrt(),
            *_weighted_histogram(hue, HUES, saturation),
            *_weighted_histogram(direction, DIRECTIONS, edge),
            *(mean(edge), mean((edge > 0.2).float()), mean((luma - luma.flip(2)).abs())),
            *(mean(skin), inner(skin), inner(luma) - mean(luma), inner(saturation) - mean(saturation)),
        ]
        return torch.stack(statistics, dim=1)


def _angle(y: Tensor, x: Tensor) -> Tensor:
    """atan2, -pi .. pi."""
    if not torch.compiler.is_exporting():
        return torch.atan2(y, x)
    # the exporter's own takes a half turn as -pi where y is 0, which is another hue
    slope = torch.atan(y / torch.where(x == 0, 1.0, x))
    turned = torch.where(y >= 0, slope + torch.pi, slope - torch.pi)
    return torch.where(x < 0, turned, torch.where(x > 0, slope, torch.sign(y) * (torch.pi / 2)))


def _weighted_histogram(share_nHW: Tensor, kinds: int, weight_nHW: Tensor) -> list[Tensor]:
    """Per bin, the mean over all pixels of the weight of those whose share lies in it: `kinds` equal bins of 0 .. 1, (n,)
    each."""
    kind_nHW = (share_nHW * kinds).long().clamp(0, kinds - 1)
    return [((kind_nHW == k) * weight_nHW).mean((1, 2)) for k in range(kinds)]


class ImageEncoder(nn.Module):
    """Pixel statistics and the pooled levels of a backbone; weights are random until they are loaded or trained."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        """ValueError where the backbone that the config names cannot be made."""
        super().__init__()
        self.config = config
        self.statistics = PixelStatistics()
        self.whole = WholeStatistics()
        self.random = RandomFeatures()
        self.backbone = (
            None if config.backbone == NO_BACKBONE else make_backbone(config.backbone, config.height, config.width)
        )

    @property
    def features(self) -> int:
        """Channels of the backbone's last level."""
        return cast(ImageBackbone, self.backbone).features

    def components(self, levels: int) -> list[int]:
        """How many numbers of each block an embedding keeps; `levels`: those of the backbone."""
        config = self.config
        statistics = [self.statistics.features, self.whole.features]
        of_random = [config.filter_width, config.filter_width, config.colour_width, config.layout_width]
        return [*statistics, *of_random, *[config.stage_width] * levels]

    def levels(self, images_nCHW: Tensor) -> Sequence[Tensor]:
        """The backbone's levels of float images in 0 .. 1, of any size: maps (n, C, h, w) or vectors (n, C)."""
        if self.backbone is None:
            return []
        size = cast(ImageBackbone, self.backbone).input_size
        if torch.compiler.is_exporting():  # ONNX Runtime's own antialiasing is off by some levels at edges
            return self.backbone(resize(images_nCHW, *size))
        return self.backbone(F.interpolate(images_nCHW, size, mode="bilinear", antialias=True))

    def deepest(self, images_nCHW: Tensor) -> Tensor:
        """The last level of float images in 0 .. 1, a map averaged over its pixels; (n, features)."""
        level = self.levels(images_nCHW)[-1]
        return level.mean((2, 3)) if level.ndim == 4 else level

    def forward(self, images_nCHW: Tensor) -> list[Tensor]:
        """uint8 (n, 3, H, W) -> blocks [(n, 72), (n, 30), (n, F1), ...]: statistics of cells and of the whole image, random
        features, then each level of the backbone: mean and standard deviation of a map, a vector unchanged."""
        return self.blocks(images_nCHW.float() / 255)

    def blocks(self, pixels: Tensor) -> list[Tensor]:
        """The blocks of `forward` from float images in 0 .. 1."""
        blocks = [self.statistics(pixels), self.whole(pixels), *self.random(pixels)]
        for level in self.levels(pixels):
            if level.ndim == 4:
                level = torch.cat([level.mean((2, 3)), level.std((2, 3), correction=0)], dim=1)
            blocks.append(level)
        return blocks


class Projection(nn.Module):
    """Blocks of features -> one embedding: each block standardised; wide ones reduced to leading principal components.

    Components keep their relative size (no whitening): on clicks as few as 30,000 a strong direction is worth more trust
    than a weak one, and whitened features did worse. A block's mean variance per kept feature is one.
    Fitted on a catalogue, then fixed: a new artwork is embedded without moving the old ones.
    """

    def __init__(self, features: list[int], components: list[int]) -> None:
        super().__init__()
        self.blocks = len(features)
        for i, (wide, narrow) in enumerate(zip(features, components, strict=True)):
            self.register_buffer(f"centre_{i}", torch.zeros(wide))
            self.register_buffer(f"turn_{i}", torch.zeros(wide, narrow))

    @classmethod
    def fit(cls, blocks: list[Tensor], components: list[int], least_spread: float = 1e-6) -> "Projection":
        """Fit on the features of a catalogue, blocks (n, F). `components`: how many each block keeps; a block no wider than that
        is standardised and not rotated.

        A feature whose standard deviation is below `least_spread`, or below a millionth of its largest value, is constant but
        for rounding and gets weight zero.
        """
        components = [min(k, b.shape[1]) for b, k in zip(blocks, components, strict=True)]
        projection = cls([b.shape[1] for b in blocks], components)
        for i, (block, k) in enumerate(zip(blocks, components, strict=True)):
            centre, spread = block.double().mean(0), block.double().std(0, correction=0)
            rounding = 1e-6 * block.double().abs().amax(0)
            spread = torch.where(spread < rounding.clamp(min=least_spread), torch.inf, spread)
            turn = torch.eye(len(centre), dtype=torch.float64)
            if k < len(centre):
                values, turn = torch.linalg.eigh(((block.double() - centre) / spread).T.cov(correction=0))
                turn = turn.flip(1)[:, :k]
                # the sign of a component is arbitrary: fix it, so that two machines agree
                turn = turn * torch.sign(turn.gather(0, turn.abs().argmax(0, keepdim=True)))
                turn = turn / values.flip(0)[:k].mean().clamp(min=1e-6).sqrt()
            getattr(projection, f"centre_{i}").copy_(centre)
            getattr(projection, f"turn_{i}").copy_(turn / spread[:, None])
        return projection

    def widths(self) -> list[int]:
        """How many numbers each block keeps; they sum to E."""
        return [self.get_buffer(f"turn_{i}").shape[1] for i in range(self.blocks)]

    def forward(self, blocks: list[Tensor]) -> Tensor:
        """[(n, F0), (n, F1), ...] -> (n, E)."""
        turned = [(b - getattr(self, f"centre_{i}")) @ getattr(self, f"turn_{i}") for i, b in enumerate(blocks)]
        return torch.cat(turned, dim=1)
