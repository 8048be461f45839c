"""The sources of artworks' embeddings, as shards, runs and bundles record them; imports only the standard library."""

from typing import NotRequired, TypedDict

DRAWN_HERE = "random filters, drawn here with"
TRAINED_HERE, FROM_HUB = "trained here on", "torchvision's pretrained weights"
FROM_PACKAGE = "pretrained weights in the package"
FROM_FILE, FROM_RUN = "weights of", "and projection of the run"
GIVEN = "given in artworks.parquet"
"""Phrases by which a record names the origin of an image encoder's weights, or of vectors; licences are derived from them."""


class EmbeddingOrigin(TypedDict):
    """The sources of a run's or bundle's artwork embeddings."""

    sources: list[str]
    """`image`, `embedding` or both."""
    width: int
    """Length of an artwork's embedding."""
    vector_length: NotRequired[int]
    """Length of the user's own vectors."""
    vectors: NotRequired[str]
    """Fingerprint of these vectors."""
