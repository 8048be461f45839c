"""SASRec and HSTU of RecTools, by its own classes; runs in an environment with RecTools.

`python rectools_models.py LOG.npz OUT.json SASRec|HSTU EPOCHS SEED`. Does not import keyart. LOG.npz: member, title and time
(microseconds) of the plays to learn from, in order; validation_* and test_*: the play after them and the one after that,
of every member. OUT.json: the ten titles for every member at the end, of the epoch that was best on validation.
RecTools' own defaults except for the `settings`.
"""

import json
import logging
import sys
import warnings
from typing import Any

import numpy as np
import pandas as pd
from pytorch_lightning import Trainer, seed_everything  # pyright: ignore
from rectools import Columns  # pyright: ignore
from rectools.dataset import Dataset  # pyright: ignore
from rectools.models import HSTUModel, SASRecModel  # pyright: ignore
from rectools.models.nn.item_net import IdEmbeddingsItemNet  # pyright: ignore

VALIDATE_EVERY = 4
"""Epochs between validations."""
PATIENCE = 4
"""Validations without improvement after which training ends."""
HSTU_SETTINGS = {"use_key_padding_mask": False, "lightning_module_kwargs": {"logits_t": 0.05}}
"""Temperature of the softmax over cosines, as in RecTools' own studies; without one nothing is learned."""
TOP_K = 10


def interactions(log: dict[str, np.ndarray], *parts: str) -> pd.DataFrame:
    """Plays of some parts of the log, as RecTools' interactions."""
    columns = {
        name: np.concatenate([log[part + key] for part in parts])
        for name, key in ((Columns.User, "member"), (Columns.Item, "title"), (Columns.Datetime, "time"))
    }
    frame = pd.DataFrame(columns).assign(**{Columns.Weight: 1.0})
    return frame.assign(**{Columns.Datetime: pd.to_datetime(frame[Columns.Datetime], unit="us")})


def trainer() -> Trainer:
    """A silent trainer on the CPU or GPU."""
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(
        min_epochs=VALIDATE_EVERY,
        max_epochs=VALIDATE_EVERY,
        enable_checkpointing=False,
        accelerator="cpu",
        **quiet,
    )


def main(source: str, out: str, subject: str, epochs: int, seed: int) -> None:
    """Train, validate every few epochs, and write the best epoch's lists for the test."""
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    log = dict(np.load(source))
    seed_everything(seed)
    settings = {"n_factors": 64, "session_max_len": 100, "dropout_rate": 0.3, "lr": 0.002, "batch_size": 16}
    settings |= HSTU_SETTINGS if subject == "HSTU" else {"use_key_padding_mask": True}
    class_ = SASRecModel if subject == "SASRec" else HSTUModel
    model = class_(
        loss="softmax", item_net_block_types=(IdEmbeddingsItemNet,), get_trainer_func=trainer, verbose=0, **settings
    )
    known = Dataset.construct(interactions(log, ""))
    later = Dataset.construct(interactions(log, "", "validation_"))

    def listed(dataset: Dataset, part: str) -> np.ndarray:
        """(U, 10): titles for the members of a part, -1 where there are fewer."""
        targets = interactions(log, part)
        context = {} if subject == "SASRec" else {"context": targets[[Columns.User, Columns.Datetime]]}
        frame = model.recommend(targets[Columns.User].to_numpy(), dataset, TOP_K, filter_viewed=True, **context)
        table = np.full((len(targets), TOP_K), -1)
        row = pd.Series(np.arange(len(targets)), index=targets[Columns.User])
        table[np.asarray(row[frame[Columns.User]]), frame[Columns.Rank].to_numpy() - 1] = frame[Columns.Item]
        return table

    best: dict[str, object] = {"validation": -1.0}
    scores_by_epoch = []
    for epoch in range(VALIDATE_EVERY, epochs + 1, VALIDATE_EVERY):
        if epoch == VALIDATE_EVERY:
            model.fit(known)
        else:
            model.fit_partial(known, min_epochs=VALIDATE_EVERY, max_epochs=VALIDATE_EVERY)
        hit = listed(known, "validation_") == log["validation_title"][:, None]
        validation = float((hit / np.log2(np.arange(TOP_K) + 2)).sum(1).mean())
        scores_by_epoch.append([epoch, validation])
        print(subject, seed, epoch, round(validation, 4), file=sys.stderr, flush=True)
        if validation > float(str(best["validation"])):
            best = {"validation": validation, "epoch": epoch, "listed": listed(later, "test_").tolist()}
        elif epoch >= int(str(best["epoch"])) + PATIENCE * VALIDATE_EVERY:
            break
    with open(out, "w", encoding="utf-8") as file:
        json.dump(best | {"settings": settings, "scores_by_epoch": scores_by_epoch}, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
