"""The shape of the two-tower ranker, as a recipe sets it and a run records it."""

from dataclasses import dataclass, field

from models.history import HistoryConfig
from models.linear_title_models import LowRankEaseConfig, NextItemConfig


@dataclass(frozen=True, kw_only=True)
class TwoTowerConfig:
    """The ranker's shape."""

    width: int = 64
    """Length of the member vector, and of every vector that it is multiplied with."""
    history: HistoryConfig = field(default_factory=HistoryConfig)
    """The history encoder."""
    dropout: float = 0.4
    """Dropout rate of the tokens that the learned state reads, in training."""
    id_dropout: float = 0.7
    """Share of those tokens' title ids replaced by the unknown row in training, so that content alone learns to represent a
    title."""
    coplay: LowRankEaseConfig = field(default_factory=LowRankEaseConfig)
    """The model of co-play, which predicts clicks."""
    next_item: NextItemConfig = field(default_factory=NextItemConfig)
    """The model of the next play, which ranks titles."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 2 <= self.width <= 4096:
            raise ValueError(f"width={self.width}: must lie in 2 .. 4096.")
        for name, share in (("dropout", self.dropout), ("id_dropout", self.id_dropout)):
            if not 0 <= share < 1:
                raise ValueError(f"{name}={share}: must lie in [0, 1).")
