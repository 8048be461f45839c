"""The sequence tower: from plays in their order to a learned state, and from there to the title that is played next.

Titles are represented by content and by id, ids dropped at random, so that content alone learns to represent a title. It has
a head of its own: affinity moves a click by some tenths of a logit, picking one title of ten thousand takes several.

Legend: M members, T plays, D width, L list length, x any leading shape.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.dropout import Dropout, keep_mask
from models.history import HistoryConfig, HistoryEncoder
from models.layers import mean_of_known, table
from models.types import Sizes

GENRE_STD = 0.15
"""Standard deviation of the genres' initial vectors."""


class SequenceTower(nn.Module):
    """The history encoder, its tokens and the head that predicts the next title."""

    def __init__(self, width: int, history: HistoryConfig, sizes: Sizes, dropout: float, id_dropout: float) -> None:
        super().__init__()
        self.titles, self.id_dropout, self.dropout = sizes.titles, id_dropout, Dropout(dropout)
        self.genre, self.title_id = table(sizes.genres, width, GENRE_STD), table(sizes.titles, width, 0.02)
        self.title_content = nn.Linear(3 * width + 1, width)
        self.token_content, self.watched = nn.Linear(4 * width, width), nn.Linear(2, width)
        self.token_image = nn.Linear(width, width, bias=False)
        self.history = HistoryEncoder(width, history)
        self.next_vector, self.next_bias = nn.Linear(width, width), table(sizes.titles, 1, 0.0)
        self.member_next = nn.Linear(width, width)

    def freeze(self, history: bool) -> None:
        """Leave the head untrained, its output zero; with `history`, the tokens and the history encoder too."""
        nn.init.zeros_(self.member_next.weight)
        nn.init.zeros_(self.member_next.bias)
        for part in (self,) if history else (self.member_next, self.next_vector, self.next_bias):
            part.requires_grad_(False)

    def tokens(self, rows: Tensor, people: Tensor, genres_xL: Tensor, year: Tensor) -> Tensor:
        """A play's token without its image, (x, D), from its title's row (x,), people (x, D), genres (x, L) and year (x,)."""
        ids = self._drop_ids(rows)
        genres = mean_of_known(self.genre, genres_xL)
        parts = [self._hidden(ids, people, genres, year), genres, people, self.title_id(ids)]
        return self.token_content(self.dropout(torch.cat(parts, dim=-1)))

    def forward(self, token_MTD: Tensor, image_MTD: Tensor, watched_MT: Tensor) -> Tensor:
        """The state after every number of plays, (M, T + 1, D)."""
        input_MTD = token_MTD + self.token_image(self.dropout(image_MTD)) + self._watched(watched_MT)
        return self.history(input_MTD)

    def last(self, token_NTD: Tensor, image_NTD: Tensor, watched_NT: Tensor, length_N: Tensor) -> Tensor:
        """The state (N, D) after the first `length_N` plays alone."""
        input_NTD = token_NTD + self.token_image(image_NTD) + self._watched(watched_NT)
        return self.history.last(input_NTD, length_N)

    def next_titles(self, rows: Tensor, people: Tensor, genres_xL: Tensor, year: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (x, D) and biases (x, 1) that score titles as the next play; arguments as of `tokens`."""
        ids = self._drop_ids(rows)
        content = self.next_vector(self._hidden(ids, people, mean_of_known(self.genre, genres_xL), year))
        return content + self.title_id(ids), self.next_bias(ids)

    def _hidden(self, ids: Tensor, people: Tensor, genres: Tensor, year: Tensor) -> Tensor:
        return F.gelu(self.title_content(torch.cat([genres, people, self.title_id(ids), year.unsqueeze(-1)], dim=-1)))

    def _watched(self, watched: Tensor) -> Tensor:
        """What the fraction watched adds, (x, D); NaN = not logged."""
        known = ~torch.isnan(watched)
        shares = torch.where(known, watched - 0.5, 0.0)
        return self.watched(torch.stack([shares, known.to(shares.dtype)], dim=-1))

    def _drop_ids(self, rows: Tensor) -> Tensor:
        """Rows of trained titles; others become the unknown row, and while training a share of all do."""
        rows = torch.where(rows < self.titles, rows, 0)
        if self.training and self.id_dropout:
            rows = rows * keep_mask(self.id_dropout, rows.shape, rows.device)[0]
        return rows
