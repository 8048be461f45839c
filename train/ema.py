"""The exponential moving average of a model's weights, which is validated, kept and exported."""

from copy import deepcopy

import torch
from torch import Tensor, nn


class ExponentialMovingAverage(nn.Module):
    """Exponential moving average (as in Polyak and Juditsky's averaging, 1992, with a window that slides)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """`decay`: factor of the old average in a step's update, 0 .. 1; 0 keeps the last weights."""
        super().__init__()
        self.module = deepcopy(model)
        self.module.requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the model's current weights."""
        mean: list[Tensor] = list(self.module.parameters())
        present: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(mean, present, 1 - self.decay)  # pyright: ignore[reportPrivateImportUsage]
