"""Options of `keyart embed`, and the names of the files that it writes."""

from dataclasses import dataclass, field
from typing import Literal

from foundation.errors import UserError, require_seed
from models.image_encoder import ImageEncoderConfig

EMBEDDING_RECORD, ENCODER, PIXELS, PIXEL_ROW = "embedding.json", "encoder.safetensors", "pixels.npy", "pixel_row.npy"
VECTORS = "embedding.npy"


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """How artworks are embedded."""

    sources: Literal["auto", "image", "embedding", "both"] = "auto"
    """Which columns of artworks.parquet are embedded: `image`, by keyart's encoder; `embedding`, vectors of your own; or `both`,
    each standardised on its own and concatenated. `auto`: embedding where the column exists, else image."""
    vector_width: int = 128
    """Principal components kept of vectors of your own; shorter vectors are standardised only."""
    encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    """The backbone that reads images, and the embedding's width."""
    weights: str = "auto"
    """`train`: train the backbone on this catalogue; `package`: efficientnet-lite0's pretrained weights, of the extra
    `efficientnet`; `hub`: torchvision's pretrained weights, downloaded or from its cache; else a file of the backbone's state
    dict, such as torchvision's (.pth or .safetensors), or a run that trained an encoder of its own. `auto`: package for
    efficientnet-lite0, else train."""
    pixels: bool = False
    """Keep the images' pixels beside the embedding, 41 KB each: `keyart fit --finetune.learning_rate` needs them."""
    views: int = 16_000
    """Images that `weights=train` looks at, over all its epochs."""
    batch: int = 64
    """Images per step of `weights=train`."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW for `weights=train`."""
    seed: int = 0
    """Seed of `weights=train`."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_seed(self.seed)
        if self.views < self.batch or self.batch < 2:
            raise UserError(
                f"views={self.views}, batch={self.batch}: a batch is at least 2, and views at least a batch."
            )
        if not 1 <= self.vector_width <= 4096:
            raise UserError(f"vector_width={self.vector_width}: must lie in 1 .. 4096.")
        if self.pixels and self.sources == "embedding":
            raise UserError("pixels=true: sources=embedding reads no images. Leave pixels out, or give sources=image.")
        if not 0 < self.learning_rate < 1:
            raise UserError(f"learning_rate={self.learning_rate}: must lie in (0, 1).")
