"""torchvision's ResNet as an image encoder's backbone, its four stages as levels (He et al., *Deep Residual Learning for Image
Recognition*, 2016).

In: float images (n, 3, height, width) in 0 .. 1. Out: the feature maps of the stages. Its parameters have the names that
torchvision's own weights have.
"""

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the channels on ImageNet, by which images were standardised for torchvision's weights."""
LAYERS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}
"""By torchvision's name: the kind of block, and how many of them each stage has."""


class ResNetStages(ResNet):
    """An `ImageBackbone` of any input size, without the classifier."""

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, height: int, width: int) -> None:
        """`name`: a key of `LAYERS`; `height`, `width`: pixels of the images it reads. The weights are random."""
        super().__init__(*LAYERS[name])
        self.input_size = (height, width)
        self.features = self.fc.in_features
        self.fc = nn.Identity()  # type: ignore[assignment]
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """float (n, 3, height, width) in 0 .. 1 -> the maps of the four stages, each (n, C, h, w)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1((x - self.mean) / self.std))))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps
