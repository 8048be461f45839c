"""The second head: whether a click leads to a real viewing, from the features of member, title, artwork and context.

Only clicks have an engagement label, some tens of thousands among hundreds of thousands of impressions: the head is
linear in the towers' features, and takes the click's own terms without sending gradients into them.

Legend: N impressions, K candidates, D width, G genres, W member features, P own preferences.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.context import Context, ContextSum
from models.layers import dots, repeated, scaled_linear
from models.types import ArtworkEncoding, LogitTerms, Sizes, TitleEncoding

INIT_STD = 0.01
"""Standard deviation of the head's initial weights."""


class Engagement(nn.Module):
    """Logit of a real viewing given a click."""

    def __init__(
        self,
        width: int,
        member_features: int,
        title_features: int,
        artwork_features: int,
        sizes: Sizes,
        unread: int = 0,
    ) -> None:
        """`member_features`, `title_features`, `artwork_features`: lengths of the three feature vectors; `unread`: how many numbers
        at the end of an artwork's vector are of clicks alone."""
        super().__init__()
        self.width, self.unread = width, unread
        self.member, self.title = (
            scaled_linear(member_features, width, INIT_STD),
            scaled_linear(title_features, width, INIT_STD),
        )
        self.title_bias, self.artwork_bias = (
            scaled_linear(title_features, 1, 0.0),
            scaled_linear(artwork_features, 1, 0.0),
        )
        self.context = ContextSum(sizes, "engagement", 1, 0.0)
        self.gain, self.fit_gain = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.full((2,), 0.3))

    def encode_titles(self, title_features: Tensor) -> Tensor:
        """What meets artwork vectors, and what the title adds: (..., D + P + 1), the part `engaged` of `TitleEncoding`."""
        query = F.pad(self.title(title_features), (0, self.unread))
        return torch.cat([query, self.title_bias(title_features)], dim=-1)

    def encode_artworks(self, artwork_features: Tensor) -> Tensor:
        """What the artwork adds, (...,): the part `engaged` of `ArtworkEncoding`."""
        return self.artwork_bias(artwork_features).squeeze(-1)

    def forward(
        self,
        member_features_NW: Tensor,
        context: Context,
        title: TitleEncoding,
        artwork: ArtworkEncoding,
        terms: LogitTerms,
    ) -> Tensor:
        """(N, K). The terms of the click are taken as they are: no gradient reaches them."""
        query_ND = self.member(member_features_NW) + title.engaged[..., : self.width]
        # does the artwork show the title's people and genres? people and moods, as in the title's own content
        gain_C = repeated(self.fit_gain, (self.width, title.content.shape[-1] - self.width))
        content_match_NK = dots(artwork.content[..., self.width :], title.content * gain_C)
        affinity_gain, appeal_gain = self.gain
        title_term_N = title.engaged[..., -1] + self.context(context).squeeze(-1)
        title_term_N = title_term_N + affinity_gain * terms.affinity_N.detach()
        artwork_term_NK = artwork.engaged + appeal_gain * terms.appeal_NK.detach()
        return (
            dots(artwork.vector[..., : self.width], query_ND)
            + content_match_NK
            + artwork_term_NK
            + title_term_N.unsqueeze(-1)
        )
