"""torch-rechub's two-tower model, exported by its own exporter; runs in an environment with torch-rechub.

`python rechub_export.py FOLDER WIDTH PLAYS TITLES ARTWORKS IMAGE`. Does not import keyart. FOLDER/user.onnx: a history of
title ids, a country and a device -> a vector; FOLDER/item.onnx: a title, an artwork and its image embedding -> a vector.
Weights are random, because only time is measured.
"""

import sys
from pathlib import Path

from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature  # pyright: ignore
from torch_rechub.models.matching import DSSM  # pyright: ignore
from torch_rechub.utils.onnx_export import ONNXExporter  # pyright: ignore


def main(folder: Path, width: int, plays: int, titles: int, artworks: int, image: int) -> None:
    """Export both towers."""
    item = [
        SparseFeature("item_title", titles, width),
        SparseFeature("item_artwork", artworks, width),
        DenseFeature("item_image", embed_dim=image),
    ]
    history = SequenceFeature("user_history", titles, width, pooling="mean", shared_with="item_title", padding_idx=0)
    user = [history, SparseFeature("user_country", 8, width), SparseFeature("user_device", 8, width)]
    model = DSSM(user, item, {"dims": [2 * width, width]}, {"dims": [2 * width, width]})
    exporter = ONNXExporter(model)
    for mode in ("user", "item"):
        exporter.export(str(folder / f"{mode}.onnx"), mode=mode, seq_length=plays)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(word) for word in sys.argv[2:]))
