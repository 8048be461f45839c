"""One training, as a recipe or a command line describes it, and what identifies it."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from datamodules.shards.shard import Shards
from foundation.errors import UserError, require_seed
from foundation.fingerprint import fingerprint
from models.two_tower import TwoTowerConfig
from train.embed import load_embedding
from train.finetune import FineTuneConfig
from train.next_title import TitlesConfig
from train.optimiser import OptimiserConfig
from train.plugins import ClassSpec, import_class
from train.prior import PriorConfig

FINGERPRINT_EXCLUDED = ("checkpoint_minutes", "devices", "logger")
"""Fields that may change when a training is resumed: the fingerprint leaves them out."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """One training."""

    model: TwoTowerConfig = field(default_factory=TwoTowerConfig)
    """The ranker."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """How the weights are updated."""
    prior: PriorConfig = field(default_factory=PriorConfig)
    """Normal priors of the weights."""
    evidence: bool = True
    """Learn from the log, before training, how far each block of image features matters: `train.evidence`."""
    titles: TitlesConfig = field(default_factory=TitlesConfig)
    """Whether and how it also learns to rank titles."""
    finetune: FineTuneConfig = field(default_factory=FineTuneConfig)
    """Whether and how the image encoder is trained with the ranker."""
    epochs: int = 10
    """Passes over the training impressions, at most."""
    validations_per_epoch: int = 2
    """Validations per epoch."""
    patience: int = 8
    """Validations without a better log loss after which training ends."""
    batch: int = 2048
    """Impressions per step, of all devices together."""
    window: int = 128
    """How many impressions of one member in one batch share one encoding of its plays, at most: more is faster, fewer mix
    members better. 1 encodes the history for each impression."""
    seed: int = 0
    """Seed of the initial weights, the order of batches and the dropout."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints, the most that a killed training loses; fractions are allowed."""
    precision: Literal["auto", "32", "bf16"] = "auto"
    """Arithmetic of the training: bf16 is bfloat16 autocast, auto is that on GPUs that have it and 32 bits elsewhere."""
    compile: bool = False
    """Have torch.compile fuse what the towers compute for a batch: minutes at the start, needs a C++ compiler."""
    devices: int = 1
    """GPUs of this machine to train on, or processes where it has none; torchrun's own number where it started them."""
    logger: bool | list[ClassSpec] = True
    """Where metrics and this config go beside the run's own log.csv. true: TensorBoard's files in RUN/tensorboard; false:
    nowhere; or Lightning loggers by class path, each with init_args, in their place. The option may be given again."""
    callbacks: list[ClassSpec] = field(default_factory=list)
    """Lightning callbacks by class path, each with init_args. The option may be given again."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_seed(self.seed)
        for name in ("epochs", "validations_per_epoch", "patience", "batch", "window", "devices"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1.")
        if not self.checkpoint_minutes > 0:
            raise UserError(f"checkpoint_minutes={self.checkpoint_minutes}: must be above 0.")
        for spec in self.logger if isinstance(self.logger, list) else []:
            import_class("logger", spec)
        for spec in self.callbacks:
            import_class("callbacks", spec)


def run_fingerprint(shards: Path, config: FitConfig, base_run: str | None = None) -> str:
    """Fingerprint of a run on these shards and embeddings with this config; `base_run`: fingerprint of the run it began from."""
    _, embedding = load_embedding(shards)
    what = {name: value for name, value in asdict(config).items() if name not in FINGERPRINT_EXCLUDED}
    return fingerprint(
        Shards.open(shards).fingerprint, embedding["fingerprint"], what, *([] if base_run is None else [base_run])
    )
