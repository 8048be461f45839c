"""Artworks as small pictures inside a page."""

import base64
import io
from functools import lru_cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

WIDTH, QUALITY = 150, 60


@lru_cache(maxsize=2048)
def thumbnail(path: Path) -> str | None:
    """An image file as a JPEG data URI of at most `WIDTH` by 3/2 of that; None where it cannot be read."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * WIDTH, 3 * WIDTH))
            small = image.convert("RGB")
            small.thumbnail((WIDTH, WIDTH * 3 // 2))
            target = io.BytesIO()
            small.save(target, "JPEG", quality=QUALITY, optimize=True)
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError):
        return None
    return "data:image/jpeg;base64," + base64.b64encode(target.getvalue()).decode("ascii")
