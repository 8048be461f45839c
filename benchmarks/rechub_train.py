"""torch-rechub's data loader and two-tower trainer, by its own classes; runs in an environment with torch-rechub.

`python rechub_train.py ROWS.npz OUT.json feed|train BATCH WIDTH`. Does not import keyart; `ROWS.npz` is written by
`benchmarks.impression_rows`. OUT.json: impressions, seconds.
"""

import json
import sys
import tempfile
import time

import numpy as np
from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature  # pyright: ignore
from torch_rechub.models.matching import DSSM  # pyright: ignore
from torch_rechub.trainers import MatchTrainer  # pyright: ignore
from torch_rechub.utils.data import MatchDataGenerator  # pyright: ignore

SHARED = {"user_history": "item_title", "item_depicted": "item_people", "item_moods": "item_genres"}
"""Columns of ids that share the embedding table of another column, where that one exists."""


def features(columns: dict[str, np.ndarray], width: int) -> tuple[list[object], list[object]]:
    """The features of the two towers."""
    towers: dict[str, list[object]] = {"user": [], "item": []}
    # columns whose table others share come first
    for name in sorted(columns, key=lambda name: name in SHARED):
        values, other = columns[name], SHARED.get(name)
        shared = other if other in columns else None
        rows = 1 + max(int(columns[n].max()) for n in columns if name in (n, SHARED.get(n)))
        if values.dtype == np.float32:
            feature: object = DenseFeature(name, embed_dim=values.shape[1])
        elif values.ndim == 2:
            feature = SequenceFeature(name, rows, width, pooling="mean", shared_with=shared, padding_idx=0)
        else:
            feature = SparseFeature(name, rows, width, shared_with=shared)
        towers[name.split("_")[0]].append(feature)
    return towers["user"], towers["item"]


def main(source: str, out: str, what: str, batch: int, width: int) -> None:
    """Time one epoch over the rows, reading or training."""
    columns = dict(np.load(source))
    clicked = columns.pop("clicked")
    few = {name: values[:2] for name, values in columns.items()}
    loader, _, _ = MatchDataGenerator(columns, clicked).generate_dataloader(few, few, batch, num_workers=0)
    user, item = features(columns, width)
    model = DSSM(user, item, {"dims": [2 * width, width]}, {"dims": [2 * width, width]})
    with tempfile.TemporaryDirectory() as folder:
        trainer = MatchTrainer(model, mode=0, n_epoch=1, model_path=folder)
        next(iter(loader))
        start = time.perf_counter()
        if what == "train":
            trainer.train_one_epoch(loader)
        else:
            for _ in loader:
                pass
        seconds = time.perf_counter() - start
    with open(out, "w", encoding="utf-8") as file:
        json.dump({"impressions": len(clicked), "seconds": seconds}, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
