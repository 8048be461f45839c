"""The running average of a model's weights: what is validated, kept and exported."""

from collections.abc import Collection
from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn


class ExponentialMovingAverage(nn.Module):
    """Exponential moving average (as in Polyak and Juditsky's averaging, 1992, with a window that slides)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """`decay`: what a step leaves of the average; 0 keeps the last weights."""
        super().__init__()
        self.module = deepcopy(model)
        self.module.requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, exclude: Collection[nn.Parameter] = ()) -> None:
        """Take in the weights as they stand, but those of `exclude`."""
        left_out = {id(parameter) for parameter in exclude}
        pairs = [
            (mean, present)
            for mean, present in zip(self.module.parameters(), model.parameters(), strict=True)
            if id(present) not in left_out
        ]
        mean, present = cast(tuple[list[Tensor], list[Tensor]], tuple(map(list, zip(*pairs, strict=True))))
        torch._foreach_lerp_(mean, present, 1 - self.decay)  # pyright: ignore[reportPrivateImportUsage]
