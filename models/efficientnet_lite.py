"""EfficientNet-Lite0 as an image encoder's backbone: five levels, the two shallow ones by their means over a grid of cells.

EfficientNet is by Tan and Le (*EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks*, 2019); Lite is its form
for small devices: no squeeze-and-excite, ReLU6 in place of swish, stem and head of fixed width.

In: float images (n, 3, 144, 96) in 0 .. 1. Out: levels of vectors and maps. Its parameters have the names of the package
efficientnet-lite-pytorch, which converted TensorFlow's weights, so that its files fit; the classifier `_fc` is left out.
"""

from torch import Tensor, nn
from torch.nn import functional as F

SIZE = (144, 96)
"""Height and width of the images it reads, pixels: those that keyart keeps of an image. All strides but the last divide it."""
CELLS = (6, 4)
"""Rows and columns of cells over which the shallow levels are averaged."""
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""By stage: blocks, kernel size, stride of the first block, expansion, channels."""
STEM, HEAD = 32, 1280
"""Channels of the first and the last convolution."""
CELL_STAGES, MAP_STAGES = (1, 2), (4, 6)
"""Stages, from 0, that are levels, by the means of their cells or as maps. The last level is the head's mean."""
EPSILON = 1e-3
"""TensorFlow's, added to the variances of batch normalisation."""


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's `same`: ceil(size / stride) positions, the odd pixel of padding right and below."""

    def forward(self, input: Tensor) -> Tensor:
        """(n, C, h, w) -> (n, C', ceil(h / stride), ceil(w / stride))."""
        padding: list[int] = []
        for axis in (1, 0):
            size, stride, kernel = input.shape[2 + axis], self.stride[axis], self.kernel_size[axis]
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(input, padding) if any(padding) else input)


class MobileBlock(nn.Module):
    """A mobile inverted bottleneck: wider by a pointwise convolution, one convolution per channel, narrower again; its input is
    added where it has the same shape."""

    def __init__(self, channels: int, kernel: int, stride: int, expansion: int, out: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and channels == out
        if self.expands:
            self._expand_conv = nn.Conv2d(channels, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, EPSILON)
        self._depthwise_conv = SameConv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, EPSILON)
        self._project_conv = nn.Conv2d(wide, out, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(out, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, out, h', w')."""
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """An `ImageBackbone` of one input size, without the classifier."""

    def __init__(self, height: int, width: int) -> None:
        """`height`, `width`: the requested size, which is ignored: images are read at `SIZE`. The weights are random."""
        super().__init__()
        self.input_size, self.features = SIZE, HEAD
        self._conv_stem = SameConv2d(3, STEM, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(STEM, EPSILON)
        blocks: list[nn.Module] = []
        self.stage_ends: list[int] = []
        channels = STEM
        for repeats, kernel, stride, expansion, out in STAGES:
            for index in range(repeats):
                blocks.append(MobileBlock(channels, kernel, 1 if index else stride, expansion, out))
                channels = out
            self.stage_ends.append(len(blocks))
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(channels, HEAD, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(HEAD, EPSILON)

    def stages(self, images_nCHW: Tensor) -> list[Tensor]:
        """float (n, 3, height, width) in 0 .. 1, of any size -> the maps of the seven stages and of the head, (n, C, h, w) each."""
        x = F.relu6(self._bn0(self._conv_stem((images_nCHW * 255 - 127) / 128)))
        maps: list[Tensor] = []
        for index, block in enumerate(self._blocks, start=1):
            x = block(x)
            if index in self.stage_ends:
                maps.append(x)
        return [*maps, F.relu6(self._bn1(self._conv_head(x)))]

    def forward(self, images_nCHW: Tensor) -> list[Tensor]:
        """float (n, 3, 144, 96) in 0 .. 1 -> means of cells (n, 576) and (n, 960), maps (n, 112, 9, 6) and (n, 320, 5, 3), and the
        head's mean (n, 1280)."""
        *maps, head = self.stages(images_nCHW)
        cells = [F.adaptive_avg_pool2d(maps[stage], CELLS).flatten(1) for stage in CELL_STAGES]
        return [*cells, *(maps[stage] for stage in MAP_STAGES), head.mean((2, 3))]
