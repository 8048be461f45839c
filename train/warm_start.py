"""A warm start: a new training begins from the weights of a finished run.

In: the finished run and shards prepared like its own (`keyart prepare DATASET NEW --like SHARDS --since DATE`). The
towers' tables must mean the same, row by row, and images must have been embedded by the same encoder; titles and artworks
added since have rows behind the trained ones, and content only.
"""

from pathlib import Path

import torch

from datamodules.shards.shard import Shards
from foundation.context import categories_of
from foundation.errors import UserError
from foundation.shell import shell_word
from models.own_taste import OWN_TASTE_BUFFERS
from models.two_tower import Content, TwoTower, TwoTowerConfig
from train.run import Run

GROWING = ("titles", "artworks")
"""Vocabularies that may have untrained values at their end; the model's tables end with the trained ones."""
POST_HOC_BUFFERS = ("calibration", "posterior_FF", "posterior_own_A", "own_preferences.weight_AP", *OWN_TASTE_BUFFERS)
"""Buffers that are fitted after the training."""
FIXED = ("people", "genres")
"""Vocabularies with a table row for every value, as those of context features are."""


def inherited_model_config(base_run: Run, requested: TwoTowerConfig) -> TwoTowerConfig:
    """The model config of a warm start: the run's own; UserError where the requested one is neither that nor the default."""
    if requested not in (base_run.model.config, TwoTowerConfig()):
        raise UserError(
            f"{base_run.folder}: its model is {base_run.model.config}, and {requested} was requested. "
            "A warm start keeps the model: leave out --model options, or --from."
        )
    return base_run.model.config


def require_compatible(base_run: Run, shards: Shards, encoder: str) -> None:
    """Raise a UserError where the run's weights would mean something else on these shards.

    `encoder`: fingerprint of the image encoder of the shards' embedding, by `train.embed.encoder_fingerprint`.
    """
    theirs = Path(base_run.config["shards"])
    context = base_run.model.sizes.context
    if context != shards.context:
        raise UserError(
            f"{shards.folder}: its context features ({', '.join(f.name for f in shards.context)}) are not, or not standardised "
            f"as, those {base_run.folder} was trained with ({', '.join(f.name for f in context)}). "
            f"Prepare it with keyart prepare DATASET {shell_word(shards.folder)} --like {shell_word(theirs)} --since DATE."
        )
    for name in (*GROWING, *FIXED, *categories_of(context)):
        old, new = base_run.vocabularies[name], shards.vocabularies[name]
        if name in GROWING:
            same = (old.trained, old.values[: old.trained]) == (new.trained, new.values[: new.trained])
        else:
            same = old.values == new.values
        if not same:
            raise UserError(
                f"{shards.folder}: its {name} are not those {base_run.folder} was trained with. "
                f"Prepare it with keyart prepare DATASET {shell_word(shards.folder)} --like {shell_word(theirs)} --since DATE."
            )
    trained_with = base_run.config.get("image_encoder_fingerprint")
    if encoder != trained_with:
        raise UserError(
            f"{shards.folder}: its images are embedded by another encoder ({encoder}) than the one {base_run.folder} was "
            f"trained with ({trained_with}). Prepare it with --like {shell_word(theirs)}, and embed it with the "
            f"settings of {theirs}."
        )


@torch.no_grad()
def copy_weights(model: TwoTower, base_run: Run) -> None:
    """Copy every parameter of the run; content stays that of the new shards, and calibration is yet to be fitted."""
    own_buffers = {
        name: value for name, value in model.named_buffers() if name in (*Content._fields, *POST_HOC_BUFFERS)
    }
    model.load_state_dict(base_run.model.state_dict() | own_buffers)
