"""A vision transformer as a user would bring one: a single class, which keyart reaches by its path."""

import torch
from torch import Tensor, nn

SIZE, PATCH, WIDTH = 32, 8, 24


class TinyViT(nn.Module):
    """Patches of one size of image, a layer of attention, and the class token; see `models.image_encoder.ImageBackbone`."""

    def __init__(self, height: int, width: int) -> None:
        """`height`, `width`: the requested size, which is ignored: this network reads images of one size."""
        super().__init__()
        self.input_size, self.features = (SIZE, SIZE), WIDTH
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.position_embedding = nn.Parameter(torch.randn(1, (SIZE // PATCH) ** 2 + 1, WIDTH) / 10)
        self.fc = nn.TransformerEncoderLayer(WIDTH, 2, 48, 0.0, batch_first=True)
        """Named as a classifier of torchvision is, whose weights are left out of files."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """float (n, 3, 32, 32) in 0 .. 1 -> the map of patches, and the class token."""
        maps = self.patches(images * 2 - 1)
        tokens = torch.cat([self.token.expand(maps.shape[0], -1, -1), maps.flatten(2).transpose(1, 2)], dim=1)
        return [maps, self.fc(tokens + self.position_embedding)[:, 0]]
