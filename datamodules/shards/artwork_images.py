"""Artwork images: files -> pixels, and the hashes of their bytes by which embeddings are cached."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from datamodules.contract.check_files import printable
from datamodules.contract.image_decoding import decode_image, fault_words, strict_image_decoding
from datamodules.contract.image_files import image_file
from datamodules.contract.stored_types import with_text_ids
from datamodules.contract.tables import ARTWORKS
from datamodules.shards.vocabulary import Vocabulary
from foundation.errors import UserError

HEIGHT, WIDTH = 144, 96
"""Size that every image is resized to once, in pixels: posters are taller than wide."""


def image_paths(dataset: Path, artworks: Vocabulary) -> list[Path]:
    """The image file of every artwork of the vocabulary, in its order (row 1 first)."""
    parts = (pq.read_table(path, columns=["artwork_id", "image"]) for path in ARTWORKS.files(dataset))
    table = pa.concat_tables(with_text_ids(part) for part in parts)
    by_id = dict(zip(table["artwork_id"].to_pylist(), table["image"].to_pylist(), strict=True))
    missing = [value for value in artworks.values if value not in by_id]
    if missing:
        raise UserError(
            f"{dataset}/artworks.parquet: lacks {len(missing)} artworks of the shards (first: {missing[0]}). "
            "Give the dataset the shards were prepared from, or prepare it."
        )
    without = [value for value in artworks.values if not (by_id[value] or "").strip()]
    if without:
        raise UserError(
            f"{dataset}/artworks.parquet: {len(without)} artworks have no image (first: {without[0]}). "
            "Name their files, or embed the vectors alone: --sources embedding."
        )
    return [image_file(dataset, by_id[value]) for value in artworks.values]


def content_hashes(paths: Sequence[Path]) -> list[str]:
    """16 hexadecimal digits of every file's bytes; an absent file is a UserError."""

    def digest(path: Path) -> str:
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{printable(path, 300)}: cannot be read ({reason}). Restore the file.") from None

    with ThreadPoolExecutor() as pool:
        return list(pool.map(digest, paths))


def load_images(paths: Sequence[Path]) -> np.ndarray:
    """Pixels, uint8 of shape (n, 3, 144, 96): as people see them (`decode_image`), brought to one size; corrupt = UserError."""

    def load(path: Path) -> np.ndarray:
        try:
            picture, _ = decode_image(path)
        except Exception as error:  # on broken bytes Pillow's decoders raise whatever they stumble over
            raise UserError(
                f"{printable(path, 300)}: cannot be read as an image ({printable(fault_words(error, path))}). Replace the file."
            ) from None
        return np.asarray(picture.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)).transpose(2, 0, 1)

    with strict_image_decoding(), ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(load, paths)))
