"""The trained ranker with its catalogue computed: what a serving graph holds.

In: the recent history, the context and the candidates of each request. Out: probabilities and terms. Every vector of a
title or an artwork is computed once, here, so that a request costs gathers, one member encoding and dot products.

Clicks alone cannot tell what all of a title's artworks share from what the title adds: the sum is the same. Here it counts as
the title's: appeal is what an artwork has above the mean of its title's artworks, for this member, and affinity has the rest.

Legend: N requests, T plays, K candidates, D width, I titles, A artworks.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

from models.two_tower import Artworks, Context, Plays, States, Titles, TwoTower

_Parts = TypeVar("_Parts", Plays, Titles, Artworks)

INPUTS = (
    "history_title",
    "history_artwork",
    "history_watched",
    "history_time",
    "history_length",
    "country",
    "device",
    "hour",
    "row",
    "column",
    "play_count",
    "title",
    "artworks",
)
OUTPUTS = ("click_probability", "engaged_probability", "appeal", "affinity", "member", "taste", "liked")


class Ranking(nn.Module):
    """A `TwoTower` in evaluation mode, its towers' outputs kept as tables."""

    artwork_content: Tensor
    mean_vector: Tensor
    mean_content: Tensor
    mean_bias: Tensor

    def __init__(self, model: TwoTower) -> None:
        super().__init__()
        assert not model.training, "dropout would be baked into the tables"
        self.model = model
        titles, artworks = torch.arange(len(model.title_year_I)), torch.arange(len(model.artwork_image_AE))
        with torch.no_grad():
            tables = {"play": model.plays(titles), "title": model.titles(titles), "artwork": model.artworks(artworks)}
        for name, table in tables.items():
            for part, values in table._asdict().items():
                self.register_buffer(f"{name}_{part}", values)
        for part, values in tables["artwork"]._asdict().items():
            self.register_buffer(f"mean_{part}", _mean_by_title(values, model.title_artworks_IL))

    def _rows(self, kind: type[_Parts], name: str, rows: Tensor) -> _Parts:
        """The parts of a table at rows."""
        return kind(*(getattr(self, f"{name}_{part}")[rows] for part in kind._fields))

    def forward(
        self,
        history_title: Tensor,
        history_artwork: Tensor,
        history_watched: Tensor,
        history_time: Tensor,
        history_length: Tensor,
        country: Tensor,
        device: Tensor,
        hour: Tensor,
        row: Tensor,
        column: Tensor,
        play_count: Tensor,
        title: Tensor,
        artworks: Tensor,
    ) -> tuple[Tensor, ...]:
        """Rank the candidates of N requests.

        `history_*`: (N, T), the last plays, oldest first, padded on the right; `history_length`: (N,), 0 for a member
        without history; `history_time`: seconds, of which only differences count; `artworks`: (N, K) rows, padded with 0.
        All int64 but `history_watched`, float32, NaN where not logged. Returns click and engaged probabilities (N, K),
        appeal (N, K) and affinity (N,) as logits, the vector that ranks titles for the member, (N, W), and the two that
        meet artworks, (N, D) and (N, 3 D).
        """
        # the first third of an artwork's content is its projected image
        image_NTD = self.artwork_content[history_artwork][..., : self.model.config.width]
        again_N = self.model.played(history_title, history_length, title)
        plays = self._rows(Plays, "play", history_title)
        states = self.model.read(plays, image_NTD, history_artwork, history_watched, history_time)
        state = States(*(part[torch.arange(history_title.shape[0]), history_length] for part in states))
        context = Context(country, device, hour, row, column, play_count)
        title_terms, artwork_terms = self._rows(Titles, "title", title), self._rows(Artworks, "artwork", artworks)
        terms = self.model.rank_vectors(state, context, title_terms, artwork_terms, again_N)
        click_NK, engaged_NK = self.model.probabilities(terms)
        member_NW = self.model.member_vectors(state.learned, history_title, history_length)
        meet = self.model.appeal_vectors(state, context)
        taste_ND, liked_NC = meet
        shared_N = (taste_ND * self.mean_vector[title]).sum(-1) + (liked_NC * self.mean_content[title]).sum(-1)
        shared_N = shared_N + self.mean_bias[title]
        appeal_NK, affinity_N = terms.appeal_NK - shared_N[:, None], terms.affinity_N + shared_N
        return click_NK, engaged_NK, appeal_NK, affinity_N, member_NW, *meet


def _mean_by_title(values_A: Tensor, artworks_IL: Tensor) -> Tensor:
    """Mean over a title's artworks, (A, ...) -> (I, ...); 0 for a title that has none."""
    there_IL = (artworks_IL > 0).to(values_A.dtype)
    share_IL = there_IL / there_IL.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("il,il...->i...", share_IL, values_A[artworks_IL])
