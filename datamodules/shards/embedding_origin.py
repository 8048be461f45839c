"""What artworks were embedded from, as shards, runs and bundles record it; imports nothing but the standard library."""

from typing import NotRequired, TypedDict

TRAINED_HERE, FROM_HUB = "trained here on", "torchvision's pretrained weights"
FROM_FILE, FROM_RUN = "weights of", "and projection of the run"
GIVEN = "given in artworks.parquet"
"""How a record tells where an image encoder's weights, or the vectors in its place, come from: licences are told by these words."""


class EmbeddingOrigin(TypedDict):
    """What artworks were embedded from, as a run and a bundle keep it."""

    sources: list[str]
    """Of `image` and `embedding`."""
    width: int
    """Numbers of an artwork's features."""
    vector_length: NotRequired[int]
    """Numbers of a vector of the user's own."""
    vectors: NotRequired[str]
    """Fingerprint of these vectors."""
