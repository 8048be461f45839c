"""A warm start: a new training begins from the weights of a finished run.

In: the finished run and shards prepared like its own (`keyart prepare DATASET NEW --like SHARDS --since DATE`). The
towers' tables must mean the same, row by row, and images must have been embedded by the same encoder; what the
catalogue gained since stands behind the trained rows and has content only.
"""

import torch

from datamodules.contract import UserError
from datamodules.shards import Shards
from models.two_tower import Content, TwoTower, TwoTowerConfig
from train.run import Run

GROWING = ("titles", "artworks")
"""Vocabularies that may gain untrained values behind; the model's tables end with the trained ones."""
AFTERWARDS = ("calibration", "posterior_FF", "posterior_own_A")
"""What is fitted when the training is over."""
FIXED = ("people", "genres", "countries", "devices")
"""Vocabularies whose every row is a row of a table."""


def shape_of(before: Run, wanted: TwoTowerConfig) -> TwoTowerConfig:
    """The model config a warm start has: the run's own. Another one that was asked for is a UserError."""
    if wanted not in (before.model.config, TwoTowerConfig()):
        raise UserError(
            f"{before.folder}: its model is {before.model.config}, and {wanted} was asked for. "
            "A warm start keeps the model: leave out --model options, or --from."
        )
    return before.model.config


def require_alike(before: Run, shards: Shards, encoder: str) -> None:
    """Raise a UserError where weights of the run would mean something else on these shards.

    `encoder` identifies the image encoder of the shards' embedding, as `train.embed.encoder_fingerprint` gives it.
    """
    theirs = before.config["shards"]
    for name in (*GROWING, *FIXED):
        old, new = before.vocabularies[name], shards.vocabularies[name]
        if name in GROWING:
            same = (old.trained, old.values[: old.trained]) == (new.trained, new.values[: new.trained])
        else:
            same = old.values == new.values
        if not same:
            raise UserError(
                f"{shards.folder}: its {name} are not those {before.folder} was trained with. "
                f"Prepare it with keyart prepare DATASET {shards.folder} --like {theirs} --since DATE."
            )
    trained_with = before.config.get("image_encoder_fingerprint")
    if encoder != trained_with:
        raise UserError(
            f"{shards.folder}: its images are embedded by another encoder ({encoder}) than the one {before.folder} was "
            f"trained with ({trained_with}). Prepare it with --like {theirs}, and embed it with the settings of those."
        )


@torch.no_grad()
def take_weights(model: TwoTower, before: Run) -> None:
    """Copy every parameter of the run; content stays that of the new shards, and calibration is yet to be fitted."""
    own = {name: value for name, value in model.named_buffers() if name in (*Content._fields, *AFTERWARDS)}
    model.load_state_dict(before.model.state_dict() | own)
