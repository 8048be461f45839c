"""Policies of serving: how click probabilities become the probabilities with which artworks are shown.

Legend: N requests, K candidates (padded).
"""

from dataclasses import dataclass

import numpy as np

from foundation.choice import greedy_NK, softmax_NK
from foundation.errors import UserError

DEFAULT_DRAWS, MAX_DRAWS, WIDTH = 256, 100_000, 0.25
"""Thompson sampling: default and largest number of draws, and the default factor of the posterior's width."""


@dataclass(frozen=True)
class ServingPolicy:
    """A rule from click probabilities to the policy's probabilities."""

    kind: str
    """greedy, softmax, epsilon or thompson."""
    strength: float = 0.0
    """Temperature of the softmax over click logits, above 0; the share shown uniformly, 0 .. 1; or the posterior draws."""
    width: float = WIDTH
    """For thompson: factor of the posterior's standard deviation."""

    @classmethod
    def parse(cls, text: str) -> "ServingPolicy":
        """`greedy`, `softmax:TEMPERATURE`, `epsilon:SHARE` or `thompson[:DRAWS[:WIDTH]]`; anything else is a UserError."""
        kind, _, strength = text.partition(":")
        strength, _, wide = strength.partition(":")
        try:
            value, width = float(strength) if strength else 0.0, float(wide) if wide else WIDTH
        except ValueError:
            value = width = np.nan
        value = DEFAULT_DRAWS if kind == "thompson" and not strength else value
        fits = {
            "greedy": not strength,
            "softmax": 0 < value < np.inf,
            "epsilon": bool(strength) and 0 <= value <= 1,
            "thompson": 1 <= value <= MAX_DRAWS and value % 1 == 0 and 0 < width < np.inf,
        }
        if not fits.get(kind, False) or (wide and kind != "thompson"):
            raise UserError(
                f"policy={text}: give greedy, softmax:TEMPERATURE (above 0), epsilon:SHARE (0 .. 1) or "
                f"thompson:DRAWS:WIDTH (1 .. {MAX_DRAWS}; above 0)."
            )
        return cls(kind, value, width)

    def probabilities(self, click_NK: np.ndarray, mask_NK: np.ndarray) -> np.ndarray:
        """float32 (N, K), each row summing to 1 over the candidates of the mask; ties go to the first."""
        if self.kind == "softmax":
            return softmax_NK(click_NK, mask_NK, self.strength).astype(np.float32)
        chosen = greedy_NK(click_NK, mask_NK)
        if self.kind == "epsilon":
            chosen = (1 - self.strength) * chosen + self.strength * mask_NK / mask_NK.sum(1, keepdims=True)
        return chosen.astype(np.float32)
