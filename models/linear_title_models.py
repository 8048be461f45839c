"""Two linear title models learned from plays alone, in closed form, each reduced to vectors whose dot products are its scores.

`LowRankEase`: co-play, whatever the order. EASE (Steck, Embarrassingly Shallow Autoencoders, 2019) is a regression
of every title on all others. It predicts clicks on a title, as a part of affinity.

`NextItemRegression`: the next play. A regression of the next title on the titles before it, weighted by how many plays ago they
were (SLIST: Choi et al., Session-aware Linear Item-Item Models, 2021; TALE: Park et al., 2025). It ranks titles, beside
what the towers learned of them:

    score = score of the towers + gain * score of the regression

It knows no content; the towers do, and less about rare pairs. The order of plays is the strongest signal
(docs/experiments.md).

Legend: M members, T plays, D width, I titles, R rank, P plays of all members, B plays of a block.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

POWER_ITERATIONS = 4
"""Power iterations of the randomised decomposition (Halko, Martinsson and Tropp, 2011)."""
COARSE_RANK = 16
"""Leading patterns of co-play that have a score of their own; patterns beyond them are more about single titles."""
OVERSAMPLING = 16
"""Singular vectors computed beyond those that are kept."""
MAX_PAIRS = 2_000_000
"""About how many plays the scores' spread is computed from; where there are more, from every n-th member's."""
BLOCK = 512
"""Plays of a history that are counted at once; a play looks back between one and two such blocks."""
MAX_MEMBERS = 50_000
"""Members whose plays the regression is fitted to; where there are more, so many are drawn: beyond them it gains nothing."""


@dataclass(frozen=True, kw_only=True)
class LowRankEaseConfig:
    """The model of co-play: which titles the same members play."""

    rank: int = 64
    """Length of the vectors; 0 leaves it out."""
    ridge: float = 100.0
    """Ridge of the regression: members' worth of evidence that two titles have nothing in common."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.rank <= 4096:
            raise ValueError(f"rank={self.rank}: must lie in 0 .. 4096.")
        if not 0 < self.ridge < float("inf"):
            raise ValueError(f"ridge={self.ridge}: must be above 0.")


class LowRankEase(nn.Module):
    """Vectors of the EASE regression by title row; zero, which scores 0, before `fit` and for titles without plays."""

    source_IR: Tensor
    target_IR: Tensor
    score_std_2: Tensor

    def __init__(self, titles: int, config: LowRankEaseConfig) -> None:
        """`titles`: trained rows, the unknown row 0 included."""
        super().__init__()
        self.config = config
        for name in ("source_IR", "target_IR"):
            self.register_buffer(name, torch.zeros(titles, config.rank))
        self.register_buffer("score_std_2", torch.ones(2))

    @torch.no_grad()
    def fit(self, member_P: Tensor, title_P: Tensor, seed: int = 0) -> None:
        """Learn from who (any numbers from 0) played which title row; plays of the unknown row are left out.

        With the singular vectors V and values s of the members x titles matrix, P = (X'X + ridge)^-1 is
        (1 - V diag(s^2 / (s^2 + ridge)) V') / ridge, and EASE's weights off the diagonal are - P_ij / P_jj.
        """
        known = (title_P > 0) & (title_P < len(self.source_IR))
        if not known.any():
            return
        rows, index = torch.unique(title_P[known], return_inverse=True)
        pairs = torch.unique(torch.stack([member_P[known].long(), index]), dim=1)
        shape = (int(pairs[0].max()) + 1, len(rows))
        rank = min(self.config.rank, *shape)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # of torch 2.11, which does not read check_invariants
            warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")
            ones = torch.ones(pairs.shape[1])
            played_MI = torch.sparse_coo_tensor(pairs, ones, shape, check_invariants=False).coalesce()
            torch.manual_seed(seed)
            _, s_R, v_IR = torch.svd_lowrank(played_MI, min(rank + OVERSAMPLING, *shape), niter=POWER_ITERATIONS)
        shrinkage_R = s_R[:rank].square()
        shrinkage_R = shrinkage_R / (shrinkage_R + self.config.ridge)
        v_IR = v_IR[:, :rank] * shrinkage_R.sqrt()
        diagonal_I = 1 - v_IR.square().sum(1)
        self.source_IR.zero_()
        self.target_IR.zero_()
        self.source_IR[rows, :rank] = v_IR
        self.target_IR[rows, :rank] = v_IR / diagonal_I.clamp(min=1e-3).unsqueeze(1)
        self.score_std_2.copy_(self._score_std(pairs, rows))

    def _score_std(self, pairs: Tensor, rows: Tensor) -> Tensor:
        """Root mean square score of members and titles that have nothing to do with each other, for both ranks, (2,).

        Computed on members that have about MAX_PAIRS plays in all.
        """
        members = int(pairs[0].max()) + 1
        sampled = pairs[:, pairs[0] % max(1, pairs.shape[1] // MAX_PAIRS) == 0]
        sums_MR = torch.zeros(members, self.config.rank)
        sums_MR.index_add_(0, sampled[0], self.source_IR[rows[sampled[1]]])
        # each member beside the title of the play halfway round, which is as good as random
        random_targets = self.target_IR[rows[sampled[1].roll(sampled.shape[1] // 2)]]
        products_PR = sums_MR[sampled[0]] * random_targets
        scores = torch.stack([products_PR[:, :COARSE_RANK].sum(1), products_PR.sum(1)])
        return scores.square().mean(1).sqrt().clamp(min=1e-6)

    def similarity(self, coplay_NR: Tensor, title_NR: Tensor) -> Tensor:
        """How well a title fits what was played, (N, 2): by the leading COARSE_RANK patterns of co-play, and by all.

        The inverse hyperbolic sine of the dot product in units of its spread: linear near zero, logarithmic for
        members who played a thousand titles, because clicks do not rise in proportion to such a score.
        """
        products_NR = coplay_NR * title_NR
        scores_N2 = torch.stack([products_NR[:, :COARSE_RANK].sum(1), products_NR.sum(1)], dim=1)
        return torch.asinh(scores_N2 / self.score_std_2)


@dataclass(frozen=True, kw_only=True)
class NextItemConfig:
    """The model of the next play: which title follows which."""

    rank: int = 128
    """Length of the vectors; 0 leaves it out. Rare pairs need many: of 10,000 titles, 1,024 keep nearly all, 256 a tenth less."""
    ridge: float = 150.0
    """Ridge of the regression: plays' worth of evidence that a title says nothing about the next."""
    near: float = 6.0
    """Plays after which the fast part of a play's weight has fallen to 1 / e."""
    far: float = 100.0
    """Plays after which the slow part of a play's weight has fallen to 1 / e."""
    rest: float = 0.1
    """Share of a play's weight that falls slowly."""
    gain: float = 400.0
    """Factor of the regression's scores, which are shares of plays, beside the towers' logits. Not learned: on the plays it was
    fitted to, the regression looks better than it is."""
    titles: int = 8192
    """How many titles it covers, the most played ones: time grows with the cube, memory with the square (8,192: 1.1 GB)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.rank <= 4096:
            raise ValueError(f"rank={self.rank}: must lie in 0 .. 4096.")
        for name in ("ridge", "near", "far", "gain"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)}: must be above 0.")
        if not 0 <= self.rest <= 1:
            raise ValueError(f"rest={self.rest}: must lie in 0 .. 1.")
        if self.titles < 1:
            raise ValueError(f"titles={self.titles}: must be at least 1.")


class NextItemRegression(nn.Module):
    """Vectors of the next-item regression by title row; zero, which scores 0, before `fit` and for titles it does not cover."""

    source_IR: Tensor
    target_IR: Tensor

    def __init__(self, titles: int, config: NextItemConfig) -> None:
        """`titles`: trained rows, the unknown row 0 included."""
        super().__init__()
        self.config = config
        for name in ("source_IR", "target_IR"):
            self.register_buffer(name, torch.zeros(titles, config.rank))

    @torch.no_grad()
    def fit(self, member_P: Tensor, title_P: Tensor, seed: int = 0) -> None:
        """Learn from who (members, each's plays in order and together) played which title row next.

        With S the weights of what was played before each play (P, I) and Y the titles then played, only those that are
        new to the member, B = (S'S + ridge)^-1 S'Y. The best predictions S B of rank R are those on the largest
        eigenvectors V of Y'S B (reduced-rank regression; Izenman, 1975): source B V, target V.
        """
        index, rows = self._regressed_rows(title_P)
        if not len(rows):
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            gram_II, next_II = self._gram_matrices(_histories(member_P), title_P, index, len(rows))
            gram_II.diagonal().add_(self.config.ridge)
            root_II = torch.linalg.cholesky(gram_II)
            rank = min(self.config.rank, len(rows))
            target_IR = torch.randn(len(rows), min(rank + OVERSAMPLING, len(rows)))
            for _ in range(POWER_ITERATIONS):
                target_IR = next_II.T @ torch.cholesky_solve(next_II @ target_IR, root_II)
                target_IR = torch.linalg.qr(target_IR).Q
            source_IR = torch.cholesky_solve(next_II @ target_IR, root_II)
            rotation = torch.linalg.eigh(target_IR.T @ (next_II.T @ source_IR)).eigenvectors.flip(1)[:, :rank]
        self.source_IR.zero_()
        self.target_IR.zero_()
        self.source_IR[rows, :rank] = source_IR @ rotation
        self.target_IR[rows, :rank] = target_IR @ rotation

    def _regressed_rows(self, title_P: Tensor) -> tuple[Tensor, Tensor]:
        """The index of each play's title among the rows that are regressed, len(rows) for others; and those rows."""
        count_I = torch.bincount(title_P.clamp(max=len(self.source_IR)), minlength=len(self.source_IR) + 1)
        count_I[0] = count_I[-1] = 0  # unknown, untrained
        by_count = count_I.sort(descending=True, stable=True).indices[: self.config.titles]
        rows = by_count[count_I[by_count] > 0].sort().values
        index_I = torch.full_like(count_I, len(rows))
        index_I[rows] = torch.arange(len(rows))
        return index_I[title_P.clamp(max=len(self.source_IR))], rows

    def _gram_matrices(
        self, histories: Iterator[tuple[int, int]], title_P: Tensor, index_P: Tensor, titles: int
    ) -> tuple[Tensor, Tensor]:
        """S'S and S'Y, (I, I) each, summed over blocks of plays; further back than a block nothing counts."""
        columns = titles + 1  # the last for titles that are left out, whose plays pass all the same
        gram, following = torch.zeros(columns * columns), torch.zeros(columns * columns)
        for begin, end in histories:
            first_P = _first_plays(title_P[begin:end])
            for start in range(begin, end, BLOCK):
                stop, low = min(end, start + BLOCK), max(begin, start - BLOCK)
                index_B = index_P[low:stop]
                target_B = torch.arange(start, stop)[first_P[start - begin : stop - begin]]
                weight_BB = self.weights(target_B[:, None] - 1 - torch.arange(low, stop))
                pair_BB = index_B[:, None] * columns + index_B
                gram.index_add_(0, pair_BB.flatten(), (weight_BB.T @ weight_BB).flatten())
                pair_BB = index_B[:, None] * columns + index_P[target_B]
                following.index_add_(0, pair_BB.flatten(), weight_BB.T.flatten())
        known_columns = slice(0, titles)
        return gram.view(columns, columns)[known_columns, known_columns].clone(), following.view(columns, columns)[
            known_columns, known_columns
        ].clone()

    def weights(self, ago: Tensor) -> Tensor:
        """The weight of a play by its distance `ago` from the last one, in plays (0: the last); 0 where `ago` is negative."""
        config = self.config
        back = ago.clamp(min=0)
        return ((1 - config.rest) * torch.exp(-back / config.near) + config.rest * torch.exp(-back / config.far)) * (
            ago >= 0
        )

    def states(self, play_title_MT: Tensor, length_M: Tensor, span: int) -> Tensor:
        """Sum of the vectors of the last `span` of the first `length_M` plays, weighted by how long ago they were: (M, R)."""
        ago_MT = length_M[:, None] - 1 - torch.arange(play_title_MT.shape[1], device=play_title_MT.device)
        weight_MT = self.weights(ago_MT) * (ago_MT < span)
        return (weight_MT.unsqueeze(1) @ self.source_IR[self._trained(play_title_MT)]).squeeze(1)

    def targets(self, rows: Tensor) -> Tensor:
        """The vectors by which titles are scored, the gain included, (...,) -> (..., R)."""
        return self.target_IR[self._trained(rows)] * self.config.gain

    def _trained(self, rows: Tensor) -> Tensor:
        """Rows of trained titles; others become the unknown row, whose vector is zero."""
        return torch.where(rows < len(self.source_IR), rows, 0)


def _histories(member_P: Tensor) -> Iterator[tuple[int, int]]:
    """Start and end of each member's plays; of more than MAX_MEMBERS members, of that many drawn at random."""
    count = torch.unique_consecutive(member_P, return_counts=True)[1]
    end = count.cumsum(0)
    sampled = torch.arange(len(end)) if len(end) <= MAX_MEMBERS else torch.randperm(len(end))[:MAX_MEMBERS]
    yield from zip((end - count)[sampled].tolist(), end[sampled].tolist(), strict=True)


def _first_plays(title_P: Tensor) -> Tensor:
    """Whether a play is the first of its title among these, bool (P,)."""
    order = title_P.sort(stable=True).indices
    sorted_P = title_P[order]
    first_P = torch.ones_like(title_P, dtype=torch.bool)
    first_P[order[1:]] = sorted_P[1:] != sorted_P[:-1]
    return first_P
