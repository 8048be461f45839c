"""The shape of the two-tower ranker, as a recipe sets it and a run records it."""

from dataclasses import dataclass, field

from models.history import HistoryConfig
from models.linear_title_models import LowRankEaseConfig, NextItemConfig


@dataclass(frozen=True, kw_only=True)
class TwoTowerConfig:
    """The ranker's shape."""

    width: int = 64
    """Of the member vector, and of everything that meets it in a dot product."""
    history: HistoryConfig = field(default_factory=HistoryConfig)
    """The history encoder."""
    dropout: float = 0.4
    """Of the tokens that the learned state reads, while training."""
    id_dropout: float = 0.7
    """Share of title ids sent to the unknown row there while training, so that content alone learns to stand for a title."""
    coplay: LowRankEaseConfig = field(default_factory=LowRankEaseConfig)
    """What is played together, which tells clicks."""
    next_item: NextItemConfig = field(default_factory=NextItemConfig)
    """What is played next, which ranks titles."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 2 <= self.width <= 4096:
            raise ValueError(f"width={self.width}: must lie in 2 .. 4096.")
        for name, share in (("dropout", self.dropout), ("id_dropout", self.id_dropout)):
            if not 0 <= share < 1:
                raise ValueError(f"{name}={share}: must lie in [0, 1).")
