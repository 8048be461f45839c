"""The config of the optimiser, the same for every loss."""

from dataclasses import dataclass

from foundation.errors import UserError


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """AdamW (Loshchilov and Hutter, 2019), linear warm-up and cosine decay, averaged weights."""

    learning_rate: float = 5e-3
    """Peak rate."""
    weight_decay: float = 0.1
    """Decoupled weight decay of parameters that have no prior."""
    warmup: float = 0.1
    """Share of all steps during which the rate rises."""
    clip: float = 1.0
    """Largest norm of a step's gradient."""
    average: float = 0.99
    """Decay of the running average of the weights, per step; 0 keeps the last weights."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, value, low, high in (
            ("learning_rate", self.learning_rate, 0.0, 1.0),
            ("weight_decay", self.weight_decay, 0.0, 100.0),
            ("warmup", self.warmup, 0.0, 0.9),
            ("average", self.average, 0.0, 0.99999),
        ):
            if not low <= value <= high:
                raise UserError(f"optimiser.{name}={value}: must lie in {low} .. {high}.")
        if self.clip <= 0:
            raise UserError(f"optimiser.clip={self.clip}: must be above 0.")
