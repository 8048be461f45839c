"""The trained ranker with its catalogue computed: what a serving graph holds.

In: the recent history, the context and the candidates of each request. Out: probabilities and terms. Every vector of a
title or an artwork is computed once, here, so that a request costs gathers, one member encoding and dot products.

Legend: N requests, T plays, K candidates, D width, I titles, A artworks.
"""

import torch
from torch import Tensor, nn

from models.two_tower import Context, TwoTower

INPUTS = (
    "history_title",
    "history_artwork",
    "history_watched",
    "history_length",
    "country",
    "device",
    "hour",
    "row",
    "column",
    "title",
    "artworks",
)
OUTPUTS = ("click_probability", "engaged_probability", "appeal", "affinity")


class Ranking(nn.Module):
    """A `TwoTower` in evaluation mode, its towers' outputs kept as tables."""

    play_ID: Tensor
    play_image_ID: Tensor
    play_artwork_AD: Tensor
    title_ID: Tensor
    title_bias_I: Tensor
    artwork_AD: Tensor
    artwork_bias_A: Tensor

    def __init__(self, model: TwoTower) -> None:
        super().__init__()
        assert not model.training, "dropout would be baked into the tables"
        self.model = model
        titles = torch.arange(len(model.title_year_I))
        artworks = torch.arange(len(model.artwork_image_AE))
        with torch.no_grad():
            tables = (*model.title_tokens(titles), model.artwork_tokens(artworks), *model.titles(titles))
            tables += model.artworks(artworks)
        names = (
            "play_ID",
            "play_image_ID",
            "play_artwork_AD",
            "title_ID",
            "title_bias_I",
            "artwork_AD",
            "artwork_bias_A",
        )
        for name, table in zip(names, tables, strict=True):
            self.register_buffer(name, table)

    def forward(
        self,
        history_title: Tensor,
        history_artwork: Tensor,
        history_watched: Tensor,
        history_length: Tensor,
        country: Tensor,
        device: Tensor,
        hour: Tensor,
        row: Tensor,
        column: Tensor,
        title: Tensor,
        artworks: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rank the candidates of N requests.

        `history_*`: (N, T), the last plays, oldest first, padded on the right; `history_length`: (N,), 0 for a member
        without history; `artworks`: (N, K) rows, padded with 0. All int64 but `history_watched`, float32, NaN where not
        logged. Returns click and engaged probabilities (N, K), appeal (N, K) and affinity (N,) as logits.
        """
        image_NTD = torch.where(
            (history_artwork > 0).unsqueeze(-1),
            self.play_artwork_AD[history_artwork],
            self.play_image_ID[history_title],
        )
        tokens_NTD = self.play_ID[history_title] + image_NTD + self.model.watched_tokens(history_watched)
        state_ND = self.model.history(tokens_NTD)[torch.arange(history_title.shape[0]), history_length]
        context = Context(country, device, hour, row, column)
        title_terms = self.title_ID[title], self.title_bias_I[title]
        artwork_terms = self.artwork_AD[artworks], self.artwork_bias_A[artworks]
        terms = self.model.rank_vectors(state_ND, context, title_terms, artwork_terms)
        click_NK, engaged_NK = self.model.probabilities(terms)
        return click_NK, engaged_NK, terms.appeal_NK, terms.affinity_N
