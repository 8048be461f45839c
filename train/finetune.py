"""End-to-end fine-tuning: the click loss also trains the image encoder.

In a step each distinct image among the artworks that the batch shows or was clicked through is encoded once, with a
gradient; all other images, such as those of the titles' other artworks, come from the table that the running average of the
encoder computed at the last validation. Statistics of batch normalisation stay those of the encoder's
own training. Starting weights and projection are those the shards were embedded with, so that training starts from
exactly the shards' embedding.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from datamodules.feed.impression_feed import Batch
from datamodules.shards.shard import EMBEDDING
from foundation.errors import UserError
from foundation.progress import progress_bar
from foundation.shell import shell_word
from foundation.stored import reading
from models.image_encoder import BACKBONES
from train.ema import ExponentialMovingAverage
from train.embed import load_embedding, load_encoder
from train.embed_config import PIXEL_ROW, PIXELS

CHUNK_SIZE = 128
"""Images encoded at once where no gradient is needed."""


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig:
    """Whether and how the image encoder is trained with the ranker."""

    learning_rate: float = 0.0
    """Peak learning rate of the encoder's weights; 0 leaves the images' embeddings as they are."""
    weight_decay: float = 0.05
    """Decoupled weight decay of the encoder's weights."""
    images: int = 256
    """Distinct images per step that are encoded with a gradient, at most; others of the batch come from the table."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, upper in (("learning_rate", 1.0), ("weight_decay", 100.0)):
            if not 0 <= getattr(self, name) <= upper:
                raise UserError(f"finetune.{name}={getattr(self, name)}: must lie in 0 .. {upper:g}.")
        if self.images < 1:
            raise UserError(f"finetune.images={self.images}: must be at least 1.")


class ImageTower(nn.Module):
    """The shards' encoder and projection over their pixels, and the running average of its weights."""

    def __init__(self, shards: Path, config: FineTuneConfig, decay: float) -> None:
        """A UserError where the shards hold no pixels, or their embedding is not made by a backbone alone from images."""
        super().__init__()
        folder = shards / EMBEDDING
        if load_embedding(shards)[1]["vector_length"]:
            raise UserError(
                f"{shards}: its embedding holds vectors given in artworks.parquet, which "
                f"finetune.learning_rate={config.learning_rate} cannot train. Run keyart embed DATASET {shell_word(shards)} "
                "--sources image --pixels, or leave the rate out."
            )
        if not (folder / PIXELS).is_file():
            raise UserError(
                f"{shards}: holds no pixels, which finetune.learning_rate={config.learning_rate} needs to train the "
                f"image encoder. Run keyart embed DATASET {shell_word(shards)} --pixels, with the other options as before."
            )
        self.config = config
        self.encoder, self.projection = load_encoder(folder)
        if self.encoder.backbone is None:
            raise UserError(
                f"{shards}: its image encoder has no backbone, which finetune.learning_rate={config.learning_rate} trains. "
                f"Run keyart embed DATASET {shell_word(shards)} --encoder.backbone {next(iter(BACKBONES))} --pixels, or leave "
                "the rate out."
            )
        self.ema = ExponentialMovingAverage(self.encoder, decay)
        with reading(
            folder / PIXELS, f"Remove {shell_word(folder)} and run keyart embed DATASET {shell_word(shards)} --pixels."
        ):
            self.pixels: np.ndarray = np.load(folder / PIXELS, mmap_mode="r")
            self.pixel_row = torch.from_numpy(np.load(folder / PIXEL_ROW).astype(np.int64))

    def train(self, mode: bool = True) -> "ImageTower":
        """Set the mode of all parts except batch normalisation, which keeps its statistics."""
        super().train(mode)
        self.encoder.eval()
        self.ema.eval()
        return self

    def batch_images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Artwork rows (n,), ascending, and their embeddings (n, E) by the present encoder, with a gradient."""
        touched = torch.cat([batch.artworks.flatten(), batch.play_artwork.flatten()]).cpu()
        artworks = torch.unique(touched)[:, None]
        rows = self.pixel_row[artworks[:, 0]]
        images = torch.unique(rows[rows >= 0])
        if len(images) > self.config.images:
            images = images[torch.randperm(len(images))[: self.config.images]].sort().values
        if not len(images):
            device = next(self.encoder.parameters()).device
            return artworks[:0, 0].to(device), torch.zeros(0, self.width, device=device)
        index = torch.searchsorted(images, rows).clamp(max=len(images) - 1)
        encoded = images[index] == rows
        vectors = self._encode(self.encoder, images)
        return artworks[encoded, 0].to(vectors.device), vectors[index[encoded].to(vectors.device)]

    @property
    def width(self) -> int:
        """E."""
        return sum(getattr(self.projection, f"turn_{i}").shape[1] for i in range(self.projection.blocks))

    @torch.no_grad()
    def table(self) -> Tensor:
        """Every artwork's embedding by the averaged encoder, float32 (A, E)."""
        with progress_bar(Console(stderr=True)) as progress:
            task, parts = progress.add_task("embed images anew", total=len(self.pixels)), []
            for begin in range(0, len(self.pixels), CHUNK_SIZE):
                chunk = torch.arange(begin, min(begin + CHUNK_SIZE, len(self.pixels)))
                parts.append(self._encode(self.ema.module, chunk))
                progress.advance(task, len(chunk))
        images = torch.cat(parts)
        known = (self.pixel_row >= 0).to(images.device)
        return torch.where(known[:, None], images[self.pixel_row.clamp(min=0).to(images.device)], 0.0)

    def saved(self) -> dict[str, Tensor]:
        """The averaged encoder and the projection, as SHARDS/embedding/encoder.safetensors holds them."""
        state: dict[str, Any] = {f"encoder.{k}": v for k, v in self.ema.module.state_dict().items()}
        state |= {f"projection.{k}": v for k, v in self.projection.state_dict().items()}
        return {name: value.detach().cpu().contiguous() for name, value in state.items()}

    def _encode(self, encoder: nn.Module, images: Tensor) -> Tensor:
        pixels = torch.from_numpy(self.pixels[images.numpy()])
        return self.projection(encoder(pixels.to(next(encoder.parameters()).device, non_blocking=True))).float()
