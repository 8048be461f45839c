"""The trained ranker with its catalogue computed: what a serving graph holds.

In: the recent history, the context and the candidates of each request. Out: probabilities and terms. Every vector of a
title or an artwork is computed once, here, so that a request costs gathers, one member encoding and dot products.

Clicks cannot separate what all of a title's artworks have in common from what the title adds: only the sum matters. It counts
as the title's: appeal is an artwork's logit minus the mean over its title's artworks, for this member; the rest is affinity.

Legend: N requests, T plays, K candidates, D width, I titles, A artworks.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

from models.context import Context
from models.two_tower import ArtworkEncoding, PlayEncoding, States, TitleEncoding, TwoTower

_Parts = TypeVar("_Parts", PlayEncoding, TitleEncoding, ArtworkEncoding)

OUTPUTS = ("click_probability", "engaged_probability", "appeal", "affinity", "artwork_query", "content_query")
HISTORY = ("history_title", "history_artwork", "history_watched", "history_length")
"""Inputs that describe a member's history, in order."""


class Ranking(nn.Module):
    """A `TwoTower` in evaluation mode, its towers' outputs kept as tables."""

    artwork_content: Tensor
    artwork_image: Tensor
    mean_vector: Tensor
    mean_content: Tensor
    mean_bias: Tensor
    play_token: Tensor
    play_content: Tensor
    play_mean_image: Tensor
    play_coplay: Tensor

    def __init__(self, model: TwoTower) -> None:
        super().__init__()
        assert not model.training, "dropout would be baked into the tables"
        self.model = model
        self.context = (*(feature.name for feature in model.sizes.context), "play_count")
        """Inputs that are the context."""
        self.inputs = (*HISTORY, *self.context, "title", "artworks")
        """Inputs of `forward`, in order."""
        titles, artworks = torch.arange(len(model.title_year_I)), torch.arange(len(model.artwork_image_AE))
        with torch.no_grad():
            tables = {"play": model.plays(titles), "title": model.titles(titles), "artwork": model.artworks(artworks)}
        for name, table in tables.items():
            for part, values in table._asdict().items():
                self.register_buffer(f"{name}_{part}", values)
        # an artwork's content begins with its projected image
        self.register_buffer("artwork_image", self.artwork_content[:, : model.config.width].clone())
        for part, values in tables["artwork"]._asdict().items():
            self.register_buffer(f"mean_{part}", _mean_by_title(values, model.title_artworks_IL))

    def _rows(self, kind: type[_Parts], name: str, rows: Tensor) -> _Parts:
        """The parts of the table `name` at rows of any shape, as a tuple of type `kind`."""
        return kind(*(getattr(self, f"{name}_{part}")[rows] for part in kind._fields))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Rank the candidates of N requests, given by `inputs`.

        `history_*`: (N, T), the last plays, oldest first, padded on the right; `history_length`: (N,), 0 for a member
        without history; `artworks`: (N, K) rows, padded with 0.
        All int64 but `history_watched` and numbers of the context, float32, NaN where not known. Returns click and engaged
        probabilities (N, K), appeal (N, K) and affinity (N,) as logits, and the two vectors that meet artworks, (N, D) and
        (N, 2 D + G).
        """
        given = dict(zip(self.inputs, inputs, strict=True))
        state = self.state(*(given[name] for name in HISTORY), learned=self.model.artwork_query_state is not None)
        rewatch_N = self.model.is_rewatch(given["history_title"], given["history_length"], given["title"])
        context = {name: given[name] for name in self.context}
        return self.ranked(state, context, given["title"], self.artworks(given["artworks"]), rewatch_N)

    def artworks(self, rows: Tensor) -> ArtworkEncoding:
        """Encodings of artworks, for rows of any shape, read from the tables."""
        return self._rows(ArtworkEncoding, "artwork", rows)

    def ranked(
        self, state: States, context: Context, title_N: Tensor, artworks: ArtworkEncoding, rewatch_N: Tensor
    ) -> tuple[Tensor, ...]:
        """What `forward` returns, from states (N, ...), encodings of artworks (N, K, ...) and whether a recent play was of the
        title.
        """
        title = self._rows(TitleEncoding, "title", title_N)
        terms = self.model.rank_vectors(state, context, title, artworks, rewatch_N)
        click_NK, engaged_NK = self.model.probabilities(terms)
        queries = self.model.appeal_queries(state, context)
        artwork_query_ND, content_query_NC = queries
        shared_N = (artwork_query_ND * self.mean_vector[title_N]).sum(-1) + (
            content_query_NC * self.mean_content[title_N]
        ).sum(-1)
        shared_N = shared_N + self.mean_bias[title_N]
        appeal_NK, affinity_N = terms.appeal_NK - shared_N[:, None], terms.affinity_N + shared_N
        return click_NK, engaged_NK, appeal_NK, affinity_N, *queries

    def state(
        self,
        title_NT: Tensor,
        artwork_NT: Tensor,
        watched_NT: Tensor,
        length_N: Tensor,
        *,
        learned: bool,
    ) -> States:
        """The states (N, ...) after the last play; `learned`: whether to compute the learned state, which else has length 0."""
        model = self.model
        image_NTD = self.artwork_image[artwork_NT]
        image_NTD = torch.where((artwork_NT > 0).unsqueeze(-1), image_NTD, self.play_mean_image[title_NT])
        content_NTC = torch.cat([image_NTD, self.play_content[title_NT]], dim=-1)
        recent_NC = torch.bmm(model.recent.last(length_N, title_NT.shape[1]).unsqueeze(1), content_NTC).squeeze(1)
        ago_NT = length_N[:, None] - 1 - torch.arange(title_NT.shape[1], device=title_NT.device)
        counts_NT = ((ago_NT >= 0) & (ago_NT < model.config.history.span)).to(recent_NC.dtype)
        coplay_NR = torch.bmm(counts_NT.unsqueeze(1), self.play_coplay[title_NT]).squeeze(1)
        learned_ND = recent_NC.new_zeros(title_NT.shape[0], 0)
        if learned:
            learned_ND = model.sequence_tower.last(self.play_token[title_NT], image_NTD, watched_NT, length_N)
        return States(learned_ND, recent_NC, coplay_NR)


def _mean_by_title(values_A: Tensor, artworks_IL: Tensor) -> Tensor:
    """Mean over a title's artworks, (A, ...) -> (I, ...); 0 for a title that has none."""
    mask_IL = (artworks_IL > 0).to(values_A.dtype)
    share_IL = mask_IL / mask_IL.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("il,il...->i...", share_IL, values_A[artworks_IL])
