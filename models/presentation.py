"""What adds to a click whatever is shown: the place on the page, the device, the hour, the country; and how many plays."""

import torch
from torch import Tensor, nn

from models.types import Context, Sizes

MAX_PAGE_ROWS = 32
"""Rows and columns of a page past this one share its presentation."""
HOURS = 24
PLAY_COUNT_BINS = 16
"""What a member's number of plays says is learned at 0, 1, 3, 7 ... 2^15 - 1 plays and lies on straight lines between."""


class Presentation(nn.Module):
    """What place, device, hour and country add to the click logit."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        positions, self.devices = MAX_PAGE_ROWS + 2, sizes.devices
        self.at_row = nn.Embedding(positions * sizes.devices, 1)
        self.at_column, self.at_hour = nn.Embedding(positions, 1), nn.Embedding(HOURS, 1)
        self.on_device, self.in_country = nn.Embedding(sizes.devices, 1), nn.Embedding(sizes.countries, 1)
        for embedding in (self.at_row, self.at_column, self.at_hour, self.on_device, self.in_country):
            nn.init.zeros_(embedding.weight)
        self.base = nn.Parameter(torch.zeros(()))
        """The click logit of nothing in particular."""

    def forward(self, context: Context) -> Tensor:
        """(N,)"""
        row, column = context.row.clamp(-1, MAX_PAGE_ROWS) + 1, context.column.clamp(-1, MAX_PAGE_ROWS) + 1
        terms = self.at_row(row * self.devices + context.device) + self.at_column(column) + self.at_hour(context.hour)
        return (terms + self.on_device(context.device) + self.in_country(context.country)).squeeze(-1) + self.base


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
