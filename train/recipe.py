"""A recipe: every choice between a log and a bundle, as one YAML file of `configs/` holds it."""

from dataclasses import dataclass, field

from datamodules.prepare.prepare import PrepareConfig
from train.config import FitConfig
from train.embed_config import EmbedConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What `keyart pipeline` does to a dataset. A file names only what differs from the defaults."""

    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    """How the log becomes shards."""
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    """How artworks are embedded."""
    fit: FitConfig = field(default_factory=FitConfig)
    """How the ranker is trained."""
    policy: str = "greedy"
    """The policy of the scores: `greedy`, `softmax:TEMPERATURE`, `epsilon:SHARE` or `thompson:DRAWS:WIDTH:FLOOR`."""
