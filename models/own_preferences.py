"""What an artwork adds by itself in a context: one number for each value of a category that appeal reads, such as a device.

Appeal then has, beside the artwork's own bias, the bias of this artwork on this device. The numbers stand at the end of the
artwork's vector and the values, as 0 and 1, at the end of the artwork query, so that appeal remains one dot product and
every graph serves them without an operator more. No gradient trains them: `train.posterior` computes them after training.

Legend: A artworks, N impressions, P values of such categories.
"""

import torch
from torch import Tensor, nn

from foundation.context import ContextFeature
from models.context import Context
from models.types import Sizes

MAX_VALUES = 8
"""P, at most: features with the fewest values come first, and those past it have no part in this. While they are computed every
artwork needs P x P numbers."""


class OwnPreferences(nn.Module):
    """The numbers of every trained artwork, 0 until they are computed, and the values that select among them."""

    weight_AP: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.features: dict[str, tuple[int, int]] = {}
        """By feature, the first of its columns in P and their number: one for each trained value, none for the unknown row."""
        total = 0
        eligible = [feature.name for feature in sizes.context if _eligible(feature)]
        for name in sorted(eligible, key=lambda name: sizes.categories[name]):
            values = sizes.categories[name] - 1
            if 2 <= values <= MAX_VALUES - total:
                self.features[name] = (total, values)
                total += values
        self.width = total
        """P."""
        self.register_buffer("weight_AP", torch.zeros(sizes.artworks, total))

    def forward(self, rows: Tensor) -> Tensor:
        """Rows of artworks (...,) -> (..., P); 0 for an artwork that was not trained."""
        return self.weight_AP[torch.where(rows < len(self.weight_AP), rows, 0)]

    def indicators(self, context: Context) -> Tensor:
        """1 for the values of a context, else 0, float32 (N, P)."""
        parts = [
            (context[name].unsqueeze(-1) == torch.arange(1, values + 1, device=context[name].device)).float()
            for name, (_, values) in self.features.items()
        ]
        empty_N0 = torch.zeros(*context["play_count"].shape, 0, device=context["play_count"].device)
        return torch.cat(parts, dim=-1) if parts else empty_N0

    def rows_by_value(self, feature: ContextFeature, rows: int) -> Tensor:
        """`indicators` of every row of a feature's table, (rows, P)."""
        table = torch.zeros(rows, self.width)
        if feature.name in self.features:
            begin, values = self.features[feature.name]
            table[1 : values + 1, begin : begin + values] = torch.eye(values)
        return table


def _eligible(feature: ContextFeature) -> bool:
    return feature.kind == "category" and "appeal" in feature.read_by
