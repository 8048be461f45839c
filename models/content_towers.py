"""The towers on their own, for titles and artworks added after training.

In: an artwork's image or vector, people and genres; a title's genres, cast and year. Out: the vectors that the ranker keeps
of them. An added title or artwork has no trained id: it is encoded from its content alone.

Legend: N artworks or titles, H height, W width, V numbers of a user's vector, L list length, D width of the ranker,
C = 2 D + G, E embedding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.image_encoder import ImageEncoder, Projection
from models.layers import mean_of_known
from models.resizing import resize_like_pillow
from models.retrieval import retrieval_vector
from models.serving import VECTORS
from models.two_tower import TwoTower
from models.types import TitleFeatures

ARTWORK_OUTPUTS = (*VECTORS, "image_embedding")
TITLE_INPUTS = ("genres", "cast", "release_year")
TITLE_OUTPUTS = (
    *("title_vector", "title_content", "title_bias", "title_engaged"),
    *("play_token", "play_content", "retrieval_vector"),
)


@dataclass(frozen=True)
class ArtworkEmbedding:
    """How a catalogue's artworks were embedded, so that others can be."""

    encoder: ImageEncoder | None
    """None where images were not read."""
    projection: Projection | None
    """Reduces the encoder's features; None where `encoder` is."""
    vectors: Projection | None = None
    """Reduces the user's own vectors; None where the user gave none."""


class ArtworkVectors(nn.Module):
    """The artwork tower, starting from the image, from a vector of the user's own, or from both: see `artwork_vectors`."""

    inputs: tuple[str, ...]
    """Inputs of `forward`, in order. `image`: uint8 (N, H, W, 3), RGB; `embedding`: float32 (N, V), the user's vectors;
    `depicts_people`, `depicts_genres`: int64 (N, L), the row of each `depicts` value as a person and as a genre, 0 where it is
    not one. `forward` returns the parts of `ArtworkEncoding`, then the embedding (N, E)."""

    def __init__(
        self, model: TwoTower, embedding: ArtworkEmbedding, image_size: tuple[int, int], limit: tuple[int, int]
    ) -> None:
        """`image_size`: height and width that images were kept in, in training; `limit`: people and genres counted of a list."""
        super().__init__()
        self.model, self.image_size, self.limit = model, image_size, limit
        self.encoder, self.projection, self.vectors = embedding.encoder, embedding.projection, embedding.vectors

    @property
    def vector_length(self) -> int:
        """V; 0 where no vectors are read."""
        return 0 if self.vectors is None else len(self.vectors.get_buffer("centre_0"))

    def of_image(self, image: Tensor) -> Tensor:
        """The part of the embedding computed from images."""
        assert self.encoder is not None
        assert self.projection is not None
        return self.projection(self.encoder.blocks(resize_like_pillow(image, *self.image_size) / 255))

    def of_vector(self, embedding: Tensor) -> Tensor:
        """The part of the embedding computed from the user's vectors."""
        assert self.vectors is not None
        return self.vectors([embedding])

    def encode(self, embedding: Tensor, depicts_people: Tensor, depicts_genres: Tensor) -> tuple[Tensor, ...]:
        """The parts of `ArtworkEncoding` and the embedding, from the embedding (N, E) and rows (N, L)."""
        picture = (embedding - self.model.image_mean_E) * self.model.image_scale_E
        people, genres = (
            _first_known(rows, limit) for rows, limit in zip((depicts_people, depicts_genres), self.limit, strict=True)
        )
        new = torch.zeros_like(people[:, 0])
        return *self.model.encode_artworks(new, picture, people, genres), embedding


class _OfImage(ArtworkVectors):
    inputs = ("image", "depicts_people", "depicts_genres")

    def forward(self, image: Tensor, depicts_people: Tensor, depicts_genres: Tensor) -> tuple[Tensor, ...]:
        return self.encode(self.of_image(image), depicts_people, depicts_genres)


class _OfVector(ArtworkVectors):
    inputs = ("embedding", "depicts_people", "depicts_genres")

    def forward(self, embedding: Tensor, depicts_people: Tensor, depicts_genres: Tensor) -> tuple[Tensor, ...]:
        return self.encode(self.of_vector(embedding), depicts_people, depicts_genres)


class _OfBoth(ArtworkVectors):
    inputs = ("image", "embedding", "depicts_people", "depicts_genres")

    def forward(
        self, image: Tensor, embedding: Tensor, depicts_people: Tensor, depicts_genres: Tensor
    ) -> tuple[Tensor, ...]:
        parts = torch.cat([self.of_image(image), self.of_vector(embedding)], dim=1)
        return self.encode(parts, depicts_people, depicts_genres)


def artwork_vectors(
    model: TwoTower, embedding: ArtworkEmbedding, image_size: tuple[int, int], limit: tuple[int, int]
) -> ArtworkVectors:
    """The artwork tower for what the catalogue was embedded from. Tracing needs one fixed signature, so each has a class."""
    if embedding.vectors is None:
        return _OfImage(model, embedding, image_size, limit).eval()
    kind = _OfVector if embedding.encoder is None else _OfBoth
    return kind(model, embedding, image_size, limit).eval()


class TitleVectors(nn.Module):
    """The title tower, and the encoding of a play of the title without its artworks' images."""

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
        return *title_parts, play.token, play.content, retrieval_vector(model, title_features)


def _first_known(rows_NL: Tensor, limit: int) -> Tensor:
    """The first `limit` rows of each list that are known; 0 for the others."""
    known_NL = (rows_NL > 0).long()
    return rows_NL * known_NL * (known_NL.cumsum(1) <= limit)
