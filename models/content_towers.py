"""The towers by themselves, for what the catalogue gains after training: an artwork's image and words, a title's words ->
the vectors that the ranker keeps of them. A new one has no id of its own: content alone tells it.

Legend: N artworks or titles, H height, W width, L list length, D width of the ranker, C = 2 D + G, E image embedding.
"""

import torch
from torch import Tensor, nn

from models.image_encoder import ImageEncoder, Projection, resize_like_pillow
from models.layers import mean_of_known
from models.serving import VECTORS
from models.two_tower import TwoTower
from models.types import TitleFeatures

ARTWORK_INPUTS = ("image", "depicts_people", "depicts_genres")
ARTWORK_OUTPUTS = (*VECTORS, "image_embedding")
TITLE_INPUTS = ("genres", "cast", "release_year")
TITLE_OUTPUTS = (
    *("title_vector", "title_content", "title_bias", "title_engaged"),
    *("play_token", "play_content", "retrieval_vector"),
)


class ArtworkVectors(nn.Module):
    """The artwork tower from pixels on."""

    def __init__(
        self,
        model: TwoTower,
        encoder: ImageEncoder,
        projection: Projection,
        image_size: tuple[int, int],
        limit: tuple[int, int],
    ) -> None:
        """`image_size`: height and width that images were kept in, in training; `limit`: people and genres counted of a list."""
        super().__init__()
        self.model, self.encoder, self.projection = model, encoder.eval(), projection.eval()
        self.image_size, self.limit = image_size, limit

    def forward(self, image: Tensor, depicts_people: Tensor, depicts_genres: Tensor) -> tuple[Tensor, ...]:
        """`image`: uint8 (N, H, W, 3), RGB; `depicts_*`: the rows of the same words as people and as genres, (N, L), 0 where
        they are none. Returns the parts of `Artworks`, and the embedding (N, E)."""
        embedding = self.projection(self.encoder.blocks(resize_like_pillow(image, *self.image_size) / 255))
        picture = (embedding - self.model.image_mean_E) * self.model.image_scale
        people, genres = (
            _first_known(rows, limit) for rows, limit in zip((depicts_people, depicts_genres), self.limit, strict=True)
        )
        new = torch.zeros_like(people[:, 0])
        return *self.model.encode_artworks(new, picture, people, genres), embedding


class TitleVectors(nn.Module):
    """The title tower, and what a play of the title says, but for its artworks' images."""

    def __init__(self, model: TwoTower, limit: tuple[int, int]) -> None:
        """`limit`: people and genres counted of a list."""
        super().__init__()
        self.model, self.limit = model, limit

    def forward(self, genres: Tensor, cast: Tensor, release_year: Tensor) -> tuple[Tensor, ...]:
        """`genres`, `cast`: rows (N, L), 0 where not known; `release_year`: float32 (N,), NaN where not known."""
        model = self.model
        new = torch.zeros_like(cast[:, 0])
        decades = torch.where(torch.isnan(release_year), 0.0, (release_year - 2000) / 10)
        people = mean_of_known(model.person, _first_known(cast, self.limit[0]))
        title_features = TitleFeatures(new, people, _first_known(genres, self.limit[1]), decades)
        title = model.encode_titles(title_features)
        play = model.encode_plays(title_features, torch.zeros_like(people))
        title_parts = (title.vector, title.content, title.bias, title.engaged)
        return *title_parts, play.token, play.content, model.retrieval_vector(title_features)


def _first_known(rows_NL: Tensor, limit: int) -> Tensor:
    """The first `limit` rows of each list that are known; 0 for the others."""
    known_NL = (rows_NL > 0).long()
    return rows_NL * known_NL * (known_NL.cumsum(1) <= limit)
