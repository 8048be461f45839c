"""Which parts of an artwork's image raise its appeal: parts are covered one at a time, and the artwork is encoded anew.

Zeiler and Fergus, *Visualizing and Understanding Convolutional Networks*, 2014, section 4.2. In: a session of a bundle's
artwork.onnx, an image and a mean query. Out: by cell of a grid, the appeal of the image minus its appeal with the cell covered.

Legend: R rows and L columns of the grid, B = R L + 1 images, H height, W width.
"""

import numpy as np
import onnxruntime as ort

from serving.bundle.new_artworks import padded_lists, run_session
from serving.scoring.mean_queries import MeanQuery

CELLS = 24
"""Cells of a grid, about: 6 x 4 on an image of 3 to 2."""
LONGEST_SIDE = 600
"""Pixels to which larger images are shrunk first."""
PIXELS_AT_ONCE = 2_000_000
"""Pixels of the images that artwork.onnx is given at a time: bounds the memory."""


def grid_of(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a grid of about `CELLS` square cells, none smaller than a pixel."""
    columns = round((CELLS * width / height) ** 0.5)
    columns = min(max(columns, 1), CELLS, width)
    return min(max(round(CELLS / columns), 1), height), columns


def occlude(
    session: ort.InferenceSession, pixels_HW3: np.ndarray, depicts: list[str] | None, query: MeanQuery
) -> np.ndarray:
    """What each cell adds to appeal, (R, L): positive where covering it by the image's mean colour lowers appeal.

    `pixels_HW3`: uint8, RGB; `depicts`: the artwork's column of that name. The mean of the title's artworks stays as it is.
    """
    height, width = pixels_HW3.shape[:2]
    rows, columns = grid_of(height, width)
    cover_3 = np.rint(pixels_HW3.reshape(-1, 3).mean(0)).astype(np.uint8)
    top, left = (
        np.rint(np.linspace(0, size, parts + 1)).astype(int) for size, parts in ((height, rows), (width, columns))
    )
    cells = [None, *((r, c) for r in range(rows) for c in range(columns))]
    batch = max(1, PIXELS_AT_ONCE // (height * width))
    appeals = []
    for begin in range(0, len(cells), batch):
        part = cells[begin : begin + batch]
        image_BHW3 = np.repeat(pixels_HW3[None], len(part), axis=0)
        for image, cell in zip(image_BHW3, part, strict=True):
            if cell is not None:
                image[top[cell[0]] : top[cell[0] + 1], left[cell[1]] : left[cell[1] + 1]] = cover_3
        encoded = run_session(session, {"image": image_BHW3, "depicts": padded_lists([depicts] * len(part))})
        parts = (encoded[f"artwork_{name}"].astype(np.float64) for name in ("vector", "content", "bias"))
        appeals.append(query.appeal(*parts))
    appeal_B = np.concatenate(appeals)
    return (appeal_B[0] - appeal_B[1:]).reshape(rows, columns)
