"""The second head: whether a click leads to a real viewing, from what the click was for and what title and artwork are.

Of engagements there are as many as clicks, some tens of thousands where impressions are hundreds of thousands: it is
linear in what the towers know already, and takes the click's own terms as they are.

Legend: N impressions, K candidates, D width, G genres, W what is told of a member.
"""

import torch
from torch import Tensor, nn

from models.layers import dots, linked, repeated
from models.parts import Artworks, Context, Terms, Titles

SPREAD = 0.01
"""Of its weights before training."""


class Engagement(nn.Module):
    """Logit of a real viewing given a click."""

    def __init__(self, width: int, told: int, held: int, shown: int, devices: int) -> None:
        """`told`, `held`, `shown`: how much is known of a member, of a title, of an artwork."""
        super().__init__()
        self.width = width
        self.member, self.title = linked(told, width, SPREAD), linked(held, width, SPREAD)
        self.by_title, self.by_artwork = linked(held, 1, 0.0), linked(shown, 1, 0.0)
        self.on_device = nn.Embedding(devices, 1)
        nn.init.zeros_(self.on_device.weight)
        self.gain, self.fit_gain = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.full((2,), 0.3))

    def of_titles(self, held: Tensor) -> Tensor:
        """What meets artwork vectors, and what the title adds: (..., D + 1), the part `engaged` of `Titles`."""
        return torch.cat([self.title(held), self.by_title(held)], dim=-1)

    def of_artworks(self, shown: Tensor) -> Tensor:
        """What the artwork adds, (...,): the part `engaged` of `Artworks`."""
        return self.by_artwork(shown).squeeze(-1)

    def forward(self, told_NW: Tensor, context: Context, title: Titles, artwork: Artworks, terms: Terms) -> Tensor:
        """(N, K). The terms of the click are taken as they are: no gradient reaches them."""
        meets_ND = self.member(told_NW) + title.engaged[..., : self.width]
        # does the artwork show whom and what the title holds? people and moods, as in the title's own content
        gain_C = repeated(self.fit_gain, (self.width, title.content.shape[-1] - self.width))
        fits_NK = dots(artwork.content[..., self.width :], title.content * gain_C)
        by_affinity, by_appeal = self.gain
        level_N = title.engaged[..., self.width] + self.on_device(context.device).squeeze(-1)
        level_N = level_N + by_affinity * terms.affinity_N.detach()
        of_artwork_NK = artwork.engaged + by_appeal * terms.appeal_NK.detach()
        return dots(artwork.vector, meets_ND) + fits_NK + of_artwork_NK + level_N.unsqueeze(-1)
