"""The member's history encoder: reads each member's plays once, causally.

In: one token per play. Out: one state per position, position 0 being the learned state of a member without history;
and, by `RecentMean`, the mean of the recent plays' content.
Attention is banded: a state sees the last `span` plays, a layer deeper `span` more, so that it depends on the last
`reach = layers * span` plays and on nothing else. Whatever window of the history is cut out around them, the state is
the same: training on windows and serving on the last `reach` plays agree by construction.
What matters between two plays is how many plays lie between them: never where in the history or when they were.

Legend: M members, N requests, T plays, D width, S span.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.dropout import Dropout

RECENCY_SLOPE = 0.03
"""By how much attention's initial logit falls from a play to the one before it."""


def given_plays(length_N: Tensor, title_NT: Tensor) -> Tensor:
    """The number of plays (N,) that a request says to have, clamped to 0 .. T, those that it has: no other can be read."""
    return length_N.clamp(0, title_NT.shape[1])


def is_rewatch(play_title_NT: Tensor, length_N: Tensor, title_N: Tensor, span: int) -> Tensor:
    """Whether one of the last `span` of the first `length_N` plays was of the title, bool (N,)."""
    ago_NT = length_N[:, None] - torch.arange(play_title_NT.shape[1], device=title_N.device)
    recent_NT = (ago_NT > 0) & (ago_NT <= span)
    return ((play_title_NT == title_N[:, None]) & recent_NT & (title_N > 0)[:, None]).any(1)


@dataclass(frozen=True, kw_only=True)
class HistoryConfig:
    """The history encoder's shape."""

    encoder: Literal["attention", "mean"] = "mean"
    """`mean`: mean of the recent plays, weighted by a learned function of distance. `attention`: causal self-attention, which
    costs many times as much and gained nothing on the logs tried (docs/experiments.md); for logs where order matters more.
    `layers` is for attention only."""
    span: int = 200
    """How many plays back one layer looks."""
    layers: int = 1
    """Attention layers; each adds `span` plays to what a state depends on."""
    dropout: float = 0.1
    """Dropout rate of the outputs of attention and feed-forward, in training."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.encoder not in ("attention", "mean"):
            raise ValueError(f"encoder={self.encoder}: must be attention or mean.")
        if not 1 <= self.span <= 4096:
            raise ValueError(f"span={self.span}: must lie in 1 .. 4096 plays.")
        if not 1 <= self.layers <= 24:
            raise ValueError(f"layers={self.layers}: must lie in 1 .. 24.")
        if self.encoder == "mean" and self.layers != 1:
            raise ValueError(f"layers={self.layers}: encoder=mean has one. Leave layers out, or take attention.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: must lie in [0, 1).")

    @property
    def reach(self) -> int:
        """How many plays back a state depends on."""
        return self.span * self.layers


class RelativePositionBias(nn.Module):
    """Logits by which plays look back, learned by distance in plays (Raffel et al., T5, 2020); -inf outside the band."""

    def __init__(self, span: int) -> None:
        super().__init__()
        self.span = span
        self.bias_1S = nn.Parameter(torch.zeros(1, span))

    def forward(self, T: int) -> Tensor:
        """Logits (1, T, T), from a play (axis 1) to one before it (axis 2)."""
        index = torch.arange(T, device=self.bias_1S.device)
        distance_TT = index[:, None] - index[None, :]
        outside_TT = (distance_TT < 0) | (distance_TT >= self.span)
        return self.bias_1S[:, distance_TT.clamp(0, self.span - 1)].masked_fill(outside_TT, float("-inf"))


class BandedAttention(nn.Module):
    """Causal self-attention of one head over the last `span` positions; it starts with most weight on the last plays."""

    def __init__(self, width: int, span: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.band = RelativePositionBias(span)
        with torch.no_grad():
            self.band.bias_1S.sub_(RECENCY_SLOPE * torch.arange(span))
        for linear in (self.key, self.value, self.out):
            nn.init.xavier_uniform_(linear.weight)
        for linear in (self.value, self.out):
            nn.init.zeros_(linear.bias)

    def forward(self, tokens_MTD: Tensor) -> Tensor:
        """Attend; (M, T, D) -> (M, T, D). Positions right of the end never reach those left of it."""
        band_1TT = self.band(tokens_MTD.shape[1]).to(tokens_MTD.dtype)
        # the ONNX exporter of torch 2.15 wants an axis for the heads
        query, key, value = (linear(tokens_MTD).unsqueeze(1) for linear in (self.query, self.key, self.value))
        return self.out(F.scaled_dot_product_attention(query, key, value, band_1TT).squeeze(1))


class HistoryLayer(nn.Module):
    """Pre-norm attention and feed-forward (SwiGLU; Shazeer, 2020), each through a gate that its input opens, as in LiGR
    (From Features to Transformers, 2025): the last play stays in the state."""

    def __init__(self, width: int, config: HistoryConfig) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), BandedAttention(width, config.span)
        self.forward_norm = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(2 * width, width)
        self.attention_gate, self.forward_gate = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = Dropout(config.dropout)

    def forward(self, x_MTD: Tensor) -> Tensor:
        """(M, T, D) -> (M, T, D)."""
        update_MTD = self.dropout(self.attention(self.attention_norm(x_MTD)))
        x_MTD = x_MTD + torch.sigmoid(self.attention_gate(x_MTD)) * update_MTD
        value_MTW, gate_MTW = self.wide(self.forward_norm(x_MTD)).chunk(2, dim=-1)
        update_MTD = self.dropout(self.narrow(value_MTW * F.silu(gate_MTW)))
        return x_MTD + torch.sigmoid(self.forward_gate(x_MTD)) * update_MTD


class RecentMean(nn.Module):
    """Mean of the last `span` plays' content, weighted by a learned function of distance, shrunk to zero where plays are few.

    The mean of n plays is scaled by n / (n + prior), the prior learned: three romances are less of a taste than thirty.
    """

    def __init__(self, span: int) -> None:
        super().__init__()
        self.band = RelativePositionBias(span)
        self.log_prior = nn.Parameter(torch.tensor(1.0))

    def forward(self, content_MTC: Tensor) -> Tensor:
        """The mean after every number of plays, (M, T, C) -> (M, T + 1, C); zero before the first play."""
        M, T, _ = content_MTC.shape
        count_T1 = torch.arange(1, T + 1, device=content_MTC.device).clamp(max=self.band.span).unsqueeze(-1)
        shrunk_T1 = count_T1 / (count_T1 + self.log_prior.exp())
        weight_1TT = (self.band(T).softmax(-1) * shrunk_T1).to(content_MTC.dtype)
        # one more row, of zeros, is the mean of no play: cheaper than concatenating it in front of the result
        return torch.bmm(F.pad(weight_1TT, (0, 0, 1, 0)).expand(M, -1, -1), content_MTC)

    def last(self, length_N: Tensor, T: int) -> Tensor:
        """The weights (N, T) of the first `length_N` plays in the mean after the last of them, as serving needs it alone."""
        bias_S, span = self.band.bias_1S[0], self.band.span
        ago_NT = length_N[:, None] - 1 - torch.arange(T, device=length_N.device)
        inside_NT = (ago_NT >= 0) & (ago_NT < span)
        logit_NT = bias_S[ago_NT.clamp(0, span - 1)]
        weight_NT = logit_NT.masked_fill(~inside_NT, -1e9).softmax(-1) * inside_NT
        plays_N1 = length_N[:, None].clamp(max=span).to(weight_NT.dtype)
        return weight_NT * (plays_N1 / (plays_N1 + self.log_prior.exp()))


class HistoryEncoder(nn.Module):
    """Play tokens -> a state after every number of plays."""

    def __init__(self, width: int, config: HistoryConfig) -> None:
        super().__init__()
        self.no_history_D = nn.Parameter(torch.zeros(width))
        attention = config.encoder == "attention"
        self.layers = nn.ModuleList(HistoryLayer(width, config) for _ in range(config.layers) if attention)
        self.mean = None if attention else RecentMean(config.span)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens_MTD: Tensor) -> Tensor:
        """(M, T, D) -> (M, T + 1, D): the state at position p has read the first p plays."""
        x_MTD = tokens_MTD
        for layer in self.layers:
            x_MTD = layer(x_MTD)
        if self.mean is not None:
            x_MTD = self.mean(x_MTD)[:, 1:]
        first_M1D = self.no_history_D.expand(x_MTD.shape[0], 1, -1)
        return torch.cat([first_M1D, self.norm(x_MTD)], dim=1)

    def last(self, tokens_NTD: Tensor, length_N: Tensor) -> Tensor:
        """The state (N, D) after the first `length_N` plays."""
        if self.mean is None:
            return self(tokens_NTD)[torch.arange(length_N.shape[0], device=length_N.device), length_N]
        mean_ND = torch.bmm(self.mean.last(length_N, tokens_NTD.shape[1]).unsqueeze(1), tokens_NTD).squeeze(1)
        return torch.where((length_N > 0)[:, None], self.norm(mean_ND), self.no_history_D)
