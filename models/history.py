"""The member's history encoder: reads each member's plays once, causally.

In: one token per play. Out: one state per position, position 0 being the learned state of a member without history;
and, by `RecentMean`, the mean of the recent plays' content.
Attention is banded: a state sees the last `span` plays, a layer deeper `span` more, so that it depends on the last
`reach = layers * span` plays and on nothing else. Whatever window of the history is cut out around them, the state is
the same: training on windows and serving on the last `reach` plays agree by construction.
What matters between two plays is how many plays and, where `time` is on, how many hours lie between them: never where
in the history or when in history they were.

Legend: M members, T plays, D width, H heads.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.dropout import Dropout

SESSION_GAP_HOURS = 24.0
"""Plays much closer than this count as one sitting: where the logarithm of the time between two plays bends."""

RECENCY_SLOPE = 0.03
"""How much less a play's logit is than the next one's, before training, in gated layers."""


@dataclass(frozen=True, kw_only=True)
class HistoryConfig:
    """The history encoder's shape."""

    encoder: Literal["attention", "mean"] = "mean"
    """`mean`: of the recent plays, by learned weights of distance; `attention` asks each play what it looks for, costs
    many times as much, and bought nothing on the logs tried (docs/experiments.md): for logs where order tells more.
    `layers` and `heads` are attention's alone."""
    span: int = 200
    """How many plays back one layer looks."""
    layers: int = 1
    """Attention layers; each adds `span` plays to what a state depends on."""
    heads: int = 4
    """Attention heads; must divide the width."""
    time: bool = False
    """Whether weights also depend on the time between plays, by a learned power of it."""
    gated: bool = False
    """Attention layers as in LiGR (From Features to Transformers, 2025): what a layer adds passes a learned gate, and the
    last play stays in the state. For logs whose titles are ranked, where the last plays tell most about the next."""
    dropout: float = 0.1
    """Of attention's and the feed-forward's output, while training."""

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
        if self.encoder == "mean" and self.gated:
            raise ValueError("gated=true: encoder=mean has no layers to gate. Take attention.")
        if self.heads < 1:
            raise ValueError(f"heads={self.heads}: must be at least 1.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: must lie in [0, 1).")

    @property
    def reach(self) -> int:
        """How many plays back a state depends on."""
        return self.span * self.layers


def log_time_gap(time_MT: Tensor) -> Tensor:
    """Logarithm of the time from one play to another, float32 (M, T, T), from int64 seconds (M, T); 0 = the same time."""
    seconds_MTT = (time_MT.unsqueeze(-1) - time_MT.unsqueeze(-2)).clamp(min=0)
    return torch.log1p(seconds_MTT.to(torch.float32) / (3600 * SESSION_GAP_HOURS))


class RelativePositionBias(nn.Module):
    """Logits by which plays look back: learned by distance in plays for each head (Raffel et al., T5, 2020), and falling
    with a learned power of the time between (as HSTU has it in buckets; Zhai et al., 2024); -inf outside the band."""

    def __init__(self, heads: int, span: int, time: bool) -> None:
        super().__init__()
        self.span = span
        self.bias_HS = nn.Parameter(torch.zeros(heads, span))
        self.slope_H = nn.Parameter(torch.zeros(heads)) if time else None

    def forward(self, T: int, log_gap_MTT: Tensor | None) -> Tensor:
        """(1, H, T, T), or (M, H, T, T) with time: from a play (next to last) to one before it (last)."""
        index = torch.arange(T, device=self.bias_HS.device)
        distance_TT = index[:, None] - index[None, :]
        outside_TT = (distance_TT < 0) | (distance_TT >= self.span)
        band_HTT = self.bias_HS[:, distance_TT.clamp(0, self.span - 1)].masked_fill(outside_TT, float("-inf"))
        if self.slope_H is None:
            return band_HTT[None]
        assert log_gap_MTT is not None, "the times of the plays are needed"
        return torch.addcmul(band_HTT[None], self.slope_H[:, None, None], log_gap_MTT[:, None], value=-1)


class BandedAttention(nn.Module):
    """Causal self-attention over the last `span` positions.

    Keys start at zero and values as they are, so that attention starts as the mean of the recent plays and learns where
    to look.
    """

    def __init__(self, width: int, config: HistoryConfig) -> None:
        super().__init__()
        if width % config.heads:
            raise ValueError(f"heads={config.heads}: must divide the width, {width}.")
        self.heads = config.heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.band = RelativePositionBias(config.heads, config.span, config.time)
        nn.init.zeros_(self.key.weight)
        for square in (self.value, self.out):
            nn.init.eye_(square.weight)
            nn.init.zeros_(square.bias)

    def forward(self, tokens_MTD: Tensor, log_gap_MTT: Tensor | None = None) -> Tensor:
        """Attend; (M, T, D) -> (M, T, D). Positions right of the end never reach those left of it."""
        M, T, D = tokens_MTD.shape

        def split(x_MTD: Tensor) -> Tensor:
            return x_MTD.reshape(M, T, self.heads, D // self.heads).transpose(1, 2)

        attended_MHTd = F.scaled_dot_product_attention(
            split(self.query(tokens_MTD)),
            split(self.key(tokens_MTD)),
            split(self.value(tokens_MTD)),
            self.band(T, log_gap_MTT).to(tokens_MTD.dtype),
        )
        # cat, not transpose and reshape: the ONNX exporter of torch 2.15 gets the strides of that view wrong
        return self.out(torch.cat(attended_MHTd.unbind(1), dim=-1))


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
        self.dropout = Dropout(config.dropout)

    def forward(self, x_MTD: Tensor, log_gap_MTT: Tensor | None) -> Tensor:
        """(M, T, D) -> (M, T, D)."""
        attended_MTD = self.dropout(self.attention(self.attention_norm(x_MTD), log_gap_MTT))
        x_MTD = attended_MTD if self.last else x_MTD + attended_MTD
        return x_MTD + self.dropout(self.feed_forward(self.forward_norm(x_MTD)))


class GatedLayer(nn.Module):
    """Pre-norm attention and feed-forward (SwiGLU; Shazeer, 2020), each through a gate that its input opens."""

    def __init__(self, width: int, config: HistoryConfig) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), BandedAttention(width, config)
        self.forward_norm = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(2 * width, width)
        self.attention_gate, self.forward_gate = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = Dropout(config.dropout)
        with torch.no_grad():  # recent plays first
            self.attention.band.bias_HS.sub_(RECENCY_SLOPE * torch.arange(config.span))
        for linear in (self.attention.key, self.attention.value, self.attention.out):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x_MTD: Tensor, log_gap_MTT: Tensor | None) -> Tensor:
        """(M, T, D) -> (M, T, D)."""
        update_MTD = self.dropout(self.attention(self.attention_norm(x_MTD), log_gap_MTT))
        x_MTD = x_MTD + torch.sigmoid(self.attention_gate(x_MTD)) * update_MTD
        value_MTW, gate_MTW = self.wide(self.forward_norm(x_MTD)).chunk(2, dim=-1)
        update_MTD = self.dropout(self.narrow(value_MTW * F.silu(gate_MTW)))
        return x_MTD + torch.sigmoid(self.forward_gate(x_MTD)) * update_MTD


class RecentMean(nn.Module):
    """Mean of the last `span` plays' content, by learned weights of distance, shrunk where plays are few.

    n plays count n / (n + prior): three romances are less of a taste than thirty. `prior` is learned.
    """

    def __init__(self, span: int, time: bool = False) -> None:
        super().__init__()
        self.band = RelativePositionBias(1, span, time)
        self.log_prior = nn.Parameter(torch.tensor(1.0))

    def forward(self, content_MTC: Tensor, log_gap_MTT: Tensor | None = None) -> Tensor:
        """(M, T, C) -> (M, T + 1, C): after every number of plays, zero after none."""
        M, T, _ = content_MTC.shape
        count_T1 = torch.arange(1, T + 1, device=content_MTC.device).clamp(max=self.band.span).unsqueeze(-1)
        shrunk_T1 = count_T1 / (count_T1 + self.log_prior.exp())
        weight_xTT = (self.band(T, log_gap_MTT)[:, 0].softmax(-1) * shrunk_T1).to(content_MTC.dtype)
        # one more row, of zeros, is the mean of no play: cheaper than to put it before the result
        return torch.bmm(F.pad(weight_xTT, (0, 0, 1, 0)).expand(M, -1, -1), content_MTC)

    def last(self, length_N: Tensor, time_NT: Tensor) -> Tensor:
        """The weights (N, T) of the first `length_N` plays in the mean after the last of them, as serving needs it alone."""
        bias_S, span = self.band.bias_HS[0], self.band.span
        ago_NT = length_N[:, None] - 1 - torch.arange(time_NT.shape[1], device=time_NT.device)
        inside_NT = (ago_NT >= 0) & (ago_NT < span)
        logit_NT = bias_S[ago_NT.clamp(0, span - 1)]
        if self.band.slope_H is not None:
            end_N1 = time_NT.gather(1, (length_N[:, None] - 1).clamp(min=0))
            seconds_NT = (end_N1 - time_NT).clamp(min=0)
            logit_NT = logit_NT - self.band.slope_H * torch.log1p(
                seconds_NT.to(torch.float32) / (3600 * SESSION_GAP_HOURS)
            )
        weight_NT = logit_NT.masked_fill(~inside_NT, -1e9).softmax(-1) * inside_NT
        plays_N1 = length_N[:, None].clamp(max=span).to(weight_NT.dtype)
        return weight_NT * (plays_N1 / (plays_N1 + self.log_prior.exp()))


class HistoryEncoder(nn.Module):
    """Play tokens -> a state after every number of plays."""

    def __init__(self, width: int, config: HistoryConfig) -> None:
        super().__init__()
        self.no_history_D, self.time = nn.Parameter(torch.zeros(width)), config.time
        attention = config.encoder == "attention"
        self.layers = nn.ModuleList(
            [
                GatedLayer(width, config)
                if config.gated
                else HistoryLayer(width, config, last=index == config.layers - 1)
                for index in range(config.layers)
            ]
            if attention
            else []
        )
        self.mean = None if attention else RecentMean(config.span, config.time)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens_MTD: Tensor, log_gap_MTT: Tensor | None = None) -> Tensor:
        """(M, T, D) -> (M, T + 1, D): the state at position p has read the first p plays."""
        x_MTD = tokens_MTD
        for layer in self.layers:
            x_MTD = layer(x_MTD, log_gap_MTT)
        if self.mean is not None:
            x_MTD = self.mean(x_MTD, log_gap_MTT)[:, 1:]
        first_M1D = self.no_history_D.expand(x_MTD.shape[0], 1, -1)
        return torch.cat([first_M1D, self.norm(x_MTD)], dim=1)

    def last(self, tokens_NTD: Tensor, length_N: Tensor, time_NT: Tensor) -> Tensor:
        """The state (N, D) after the first `length_N` plays; time in seconds."""
        if self.mean is None:
            log_gap_NTT = log_time_gap(time_NT) if self.time else None
            return self(tokens_NTD, log_gap_NTT)[torch.arange(length_N.shape[0], device=length_N.device), length_N]
        mean_ND = torch.bmm(self.mean.last(length_N, time_NT).unsqueeze(1), tokens_NTD).squeeze(1)
        return torch.where((length_N > 0)[:, None], self.norm(mean_ND), self.no_history_D)
