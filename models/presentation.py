"""Terms of the click logit that do not depend on what is shown: the context, such as the position on the page, and the
member's number of plays."""

import torch
from torch import Tensor, nn

from models.context import Context, ContextSum
from models.types import Sizes

PLAY_COUNT_BINS = 16
"""The effect of a member's number of plays is learned at 0, 1, 3, 7 ... 2^15 - 1 plays and linear in between."""


class Presentation(nn.Module):
    """What the context adds to the click logit, (N,)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.context = ContextSum(sizes, "presentation", 1, 0.0)
        self.base = nn.Parameter(torch.zeros(()))
        """The intercept of the click logit."""

    def forward(self, context: Context) -> Tensor:
        """(N,)"""
        return self.context(context).squeeze(-1) + self.base


class PlayCount(nn.Module):
    """What the number of plays that a member has had adds to the click logit: who plays much clicks more, or less."""

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Embedding(PLAY_COUNT_BINS, 1)
        nn.init.zeros_(self.at.weight)

    def forward(self, play_count_N: Tensor) -> Tensor:
        """(N,), from int64."""
        log2_count_N = torch.log2(1.0 + play_count_N).clamp(max=PLAY_COUNT_BINS - 1.001)
        below_N = log2_count_N.long()
        share_N1 = (log2_count_N - below_N).unsqueeze(-1)
        return torch.lerp(self.at(below_N), self.at(below_N + 1), share_N1).squeeze(-1)
