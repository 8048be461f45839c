"""The member's history encoder: reads each member's plays once, causally.

In: one token per play. Out: one state per position, position 0 being the learned state of a member without history;
and, by `RecentMean`, the mean of the recent plays' content.
Attention is banded: a state sees the last `span` plays, a layer deeper `span` more, so that it depends on the last
`reach = layers * span` plays and on nothing else. Whatever window of the history is cut out around them, the state is
the same: training on windows and serving on the last `reach` plays agree by construction.

Legend: M members, T plays, D width, H heads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class HistoryConfig:
    """The history encoder's shape."""

    span: int = 50
    """How many plays back one layer looks."""
    layers: int = 1
    """Attention layers; each adds `span` plays to what a state depends on."""
    heads: int = 4
    """Attention heads; must divide the width."""
    dropout: float = 0.1
    """Of attention's and the feed-forward's output, while training."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 1 <= self.span <= 4096:
            raise ValueError(f"span={self.span}: must lie in 1 .. 4096 plays.")
        if not 1 <= self.layers <= 24:
            raise ValueError(f"layers={self.layers}: must lie in 1 .. 24.")
        if self.heads < 1:
            raise ValueError(f"heads={self.heads}: must be at least 1.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: must lie in [0, 1).")

    @property
    def reach(self) -> int:
        """How many plays back a state depends on."""
        return self.span * self.layers


class BandedAttention(nn.Module):
    """Causal self-attention over the last `span` positions, with a learned bias by distance (Raffel et al., T5, 2020).

    Keys start at zero and values as they are, so that attention starts as the mean of the recent plays and learns where
    to look.
    """

    def __init__(self, width: int, config: HistoryConfig) -> None:
        super().__init__()
        if width % config.heads:
            raise ValueError(f"heads={config.heads}: must divide the width, {width}.")
        self.span, self.heads = config.span, config.heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.bias_HS = nn.Parameter(torch.zeros(config.heads, config.span))
        nn.init.zeros_(self.key.weight)
        for square in (self.value, self.out):
            nn.init.eye_(square.weight)
            nn.init.zeros_(square.bias)

    def forward(self, tokens_MTD: Tensor) -> Tensor:
        """Attend; (M, T, D) -> (M, T, D). Positions right of the end never reach those left of it."""
        M, T, D = tokens_MTD.shape

        def split(x_MTD: Tensor) -> Tensor:
            return x_MTD.reshape(M, T, self.heads, D // self.heads).transpose(1, 2)

        place = torch.arange(T, device=tokens_MTD.device)
        distance_TT = place[:, None] - place[None, :]
        outside_TT = (distance_TT < 0) | (distance_TT >= self.span)
        mask_HTT = self.bias_HS[:, distance_TT.clamp(0, self.span - 1)].masked_fill(outside_TT, float("-inf"))
        seen_MHTd = F.scaled_dot_product_attention(
            split(self.query(tokens_MTD)), split(self.key(tokens_MTD)), split(self.value(tokens_MTD)), mask_HTT[None]
        )
        # cat, not transpose and reshape: the ONNX exporter of torch 2.15 gets the strides of that view wrong
        return self.out(torch.cat(seen_MHTd.unbind(1), dim=-1))


class HistoryLayer(nn.Module):
    """Pre-norm attention and feed-forward, each added to its input.

    In the last layer what attention gathers stands alone: added to the last play, the mean of fifty plays would be the
    smaller part of the state, and a taste spread over them would drown.
    """

    def __init__(self, width: int, config: HistoryConfig, last: bool) -> None:
        super().__init__()
        self.last = last
        self.attention_norm, self.attention = nn.LayerNorm(width), BandedAttention(width, config)
        self.forward_norm = nn.LayerNorm(width)
        narrow = nn.Linear(2 * width, width)
        nn.init.zeros_(narrow.weight)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), narrow)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_MTD: Tensor) -> Tensor:
        """(M, T, D) -> (M, T, D)."""
        gathered_MTD = self.dropout(self.attention(self.attention_norm(x_MTD)))
        x_MTD = gathered_MTD if self.last else x_MTD + gathered_MTD
        return x_MTD + self.dropout(self.feed_forward(self.forward_norm(x_MTD)))


class HistoryEncoder(nn.Module):
    """Play tokens -> a state after every number of plays."""

    def __init__(self, width: int, config: HistoryConfig) -> None:
        super().__init__()
        self.no_history_D = nn.Parameter(torch.zeros(width))
        self.layers = nn.ModuleList(
            [HistoryLayer(width, config, last=place == config.layers - 1) for place in range(config.layers)]
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens_MTD: Tensor) -> Tensor:
        """(M, T, D) -> (M, T + 1, D): the state at position p has read the first p plays."""
        x_MTD = tokens_MTD
        for layer in self.layers:
            x_MTD = layer(x_MTD)
        first_M1D = self.no_history_D.expand(x_MTD.shape[0], 1, -1)
        return torch.cat([first_M1D, self.norm(x_MTD)], dim=1)


class RecentMean(nn.Module):
    """Mean of the last `span` plays' content, by learned weights of distance, shrunk where plays are few.

    n plays count n / (n + prior): three romances are less of a taste than thirty. `prior` is learned.
    """

    def __init__(self, span: int) -> None:
        super().__init__()
        self.span = span
        self.bias_S = nn.Parameter(torch.zeros(span))
        self.log_prior = nn.Parameter(torch.tensor(1.0))

    def forward(self, content_MTC: Tensor) -> Tensor:
        """(M, T, C) -> (M, T + 1, C): after every number of plays, zero after none."""
        M, T, C = content_MTC.shape
        place = torch.arange(T, device=content_MTC.device)
        distance_TT = place[:, None] - place[None, :]
        outside_TT = (distance_TT < 0) | (distance_TT >= self.span)
        weight_TT = self.bias_S[distance_TT.clamp(0, self.span - 1)].masked_fill(outside_TT, float("-inf")).softmax(-1)
        count_T1 = (place + 1).clamp(max=self.span).to(content_MTC.dtype).unsqueeze(-1)
        mean_MTC = (weight_TT @ content_MTC) * (count_T1 / (count_T1 + self.log_prior.exp()))
        return torch.cat([content_MTC.new_zeros(M, 1, C), mean_MTC], dim=1)
