"""Titles ranked for members: a member vector and a title vector, whose dot product is the title's affinity.

    affinity = what the towers learned (as in the click logit, in no particular place) + what is played together

What is played together is known in closed form: EASE (Steck, Embarrassingly Shallow Autoencoders, 2019) is a regression
of every title on all others. Its weights from title i to title j are a dot product of two short vectors where the
members x titles matrix is cut to its largest singular values, so that they too fit two towers; plays are weighted by how
long ago they were. It knows no content and learns no order; the towers know both, and less about rare pairs.

Legend: M members, T plays, D width, I titles, R rank, P plays of all members.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

POWER_ITERATIONS = 4
"""Of the randomised decomposition (Halko, Martinsson and Tropp, 2011)."""
COARSE = 16
"""Strongest patterns of co-play that tell of a click by themselves; those beyond tell more of single titles."""
SPARE = 16
"""Singular vectors it looks for beyond those that are kept."""


@dataclass(frozen=True, kw_only=True)
class CoplayConfig:
    """What is played together."""

    rank: int = 64
    """Length of the vectors; 0 leaves it out."""
    ridge: float = 100.0
    """Of the regression: members' worth of evidence that two titles have nothing in common."""
    recent: float = 12.0
    """Plays after which a play counts 1 / e."""
    gain: float = 25.0
    """Of the regression's scores, as logits beside the towers' own. Not learned: on the plays it was fitted to the
    regression looks better than it is."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.rank <= 4096:
            raise ValueError(f"rank={self.rank}: must lie in 0 .. 4096.")
        for name in ("ridge", "recent", "gain"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)}: must be above 0.")


class Coplay(nn.Module):
    """The regression's vectors by title row; zero, which says nothing, until `fit` and for titles nobody played."""

    source_IR: Tensor
    target_IR: Tensor
    spread_2: Tensor

    def __init__(self, titles: int, config: CoplayConfig) -> None:
        """`titles`: trained rows, the unknown row 0 included."""
        super().__init__()
        self.config = config
        for name in ("source_IR", "target_IR"):
            self.register_buffer(name, torch.zeros(titles, config.rank))
        self.register_buffer("spread_2", torch.ones(2))

    @torch.no_grad()
    def fit(self, member_P: Tensor, title_P: Tensor, seed: int = 0) -> None:
        """Learn from who (any numbers from 0) played which title row; plays of the unknown row are left out.

        With the singular vectors V and values s of the members x titles matrix, P = (X'X + ridge)^-1 is
        (1 - V diag(s^2 / (s^2 + ridge)) V') / ridge, and EASE's weights off the diagonal are - P_ij / P_jj.
        """
        known = (title_P > 0) & (title_P < len(self.source_IR))
        if not known.any():
            return
        rows, place_of = torch.unique(title_P[known], return_inverse=True)
        pairs = torch.unique(torch.stack([member_P[known].long(), place_of]), dim=1)
        shape = (int(pairs[0].max()) + 1, len(rows))
        played_MI = torch.sparse_coo_tensor(pairs, torch.ones(pairs.shape[1]), shape, check_invariants=False).coalesce()
        rank = min(self.config.rank, *shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _, s_R, v_IR = torch.svd_lowrank(played_MI, min(rank + SPARE, *shape), niter=POWER_ITERATIONS)
        kept_R = s_R[:rank].square()
        kept_R = kept_R / (kept_R + self.config.ridge)
        v_IR = v_IR[:, :rank] * kept_R.sqrt()
        diagonal_I = 1 - v_IR.square().sum(1)
        self.source_IR.zero_()
        self.target_IR.zero_()
        self.source_IR[rows, :rank] = v_IR
        self.target_IR[rows, :rank] = v_IR / diagonal_I.clamp(min=1e-3).unsqueeze(1)
        self.spread_2.copy_(self._spread(pairs, rows))

    def _spread(self, pairs: Tensor, rows: Tensor) -> Tensor:
        """How far the scores of played titles lie from zero for members who did and did not play them, of both ranks, (2,)."""
        sums_MR = torch.zeros(int(pairs[0].max()) + 1, self.config.rank).index_add_(
            0, pairs[0], self.source_IR[rows[pairs[1]]]
        )
        # each member beside the title that the pair halfway round has: a play is nobody's own there
        of_others = self.target_IR[rows[pairs[1].roll(pairs.shape[1] // 2)]]
        products_PR = sums_MR[pairs[0]] * of_others
        found = torch.stack([products_PR[:, :COARSE].sum(1), products_PR.sum(1)])
        return found.square().mean(1).sqrt().clamp(min=1e-6)

    def likeness(self, together_NR: Tensor, title_NR: Tensor) -> Tensor:
        """How well a title fits what was played, (N, 2): by the strongest COARSE patterns of co-play, and by all.

        Of the dot product, in units of its spread, the inverse hyperbolic sine: as it is near zero, and as its logarithm
        where somebody played a thousand titles. Such a score tells much of a click, and not in proportion.
        """
        products_NR = together_NR * title_NR
        scores_N2 = torch.stack([products_NR[:, :COARSE].sum(1), products_NR.sum(1)], dim=1)
        return torch.asinh(scores_N2 / self.spread_2)

    def states(self, play_title_MT: Tensor, length_M: Tensor, span: int) -> Tensor:
        """What was played, the last `span` of the first `length_M` plays, each by how long ago: (M, R)."""
        place = torch.arange(play_title_MT.shape[1], device=play_title_MT.device)
        ago_MT = length_M[:, None] - 1 - place
        weight_MT = torch.exp(-ago_MT.clamp(min=0) / self.config.recent) * ((ago_MT >= 0) & (ago_MT < span))
        return (weight_MT.unsqueeze(1) @ self.source_IR[self._trained(play_title_MT)]).squeeze(1)

    def targets(self, rows: Tensor) -> Tensor:
        """What a title is found by, its gain included, (...,) -> (..., R)."""
        return self.target_IR[self._trained(rows)] * self.config.gain

    def _trained(self, rows: Tensor) -> Tensor:
        """Rows of trained titles; others become the unknown row, of which nothing is known."""
        return torch.where(rows < len(self.source_IR), rows, 0)
