"""Policies of serving: how click probabilities become the probabilities with which artworks are shown.

Legend: N requests, K candidates (padded).
"""

from dataclasses import dataclass

import numpy as np

from foundation.choice import greedy_NK, softmax_NK
from foundation.errors import UserError

DEFAULT_DRAWS, MAX_DRAWS, WIDTH, FLOOR = 256, 100_000, 0.25, 0.05
"""Thompson sampling: default and largest number of draws, the default factor of the posterior's width, and the default share of
requests whose artwork is drawn uniformly: without it most candidates have propensity 0, and no other policy can be evaluated
on the log."""


@dataclass(frozen=True)
class ServingPolicy:
    """A rule from click probabilities to the policy's probabilities."""

    kind: str
    """greedy, softmax, epsilon or thompson."""
    strength: float = 0.0
    """Temperature of the softmax over click logits, above 0; the share shown uniformly, 0 .. 1; or the posterior draws."""
    width: float = WIDTH
    """For thompson: factor of the posterior's standard deviation."""
    floor: float = FLOOR
    """For thompson: share shown uniformly, 0 .. 1."""

    @classmethod
    def parse(cls, text: str) -> "ServingPolicy":
        """`greedy`, `softmax:TEMPERATURE`, `epsilon:SHARE` or `thompson[:DRAWS[:WIDTH[:FLOOR]]]`; anything else is a UserError."""
        kind, *numbers = text.split(":")
        defaults = (DEFAULT_DRAWS, WIDTH, FLOOR) if kind == "thompson" else (0.0, WIDTH, FLOOR)
        strength = numbers[0] if numbers else ""
        try:
            values = [float(number) for number in numbers]
        except ValueError:
            values = [np.nan]
        value, width, floor = (*values, *defaults[len(values) :])[:3]
        fits = {
            "greedy": not strength,
            "softmax": 0 < value < np.inf,
            "epsilon": bool(strength) and 0 <= value <= 1,
            "thompson": 1 <= value <= MAX_DRAWS and value % 1 == 0 and 0 < width < np.inf and 0 <= floor <= 1,
        }
        if not fits.get(kind, False) or len(numbers) > (3 if kind == "thompson" else 1):
            raise UserError(
                f"policy={text}: give greedy, softmax:TEMPERATURE (above 0), epsilon:SHARE (0 .. 1) or "
                f"thompson:DRAWS:WIDTH:FLOOR (1 .. {MAX_DRAWS}; above 0; 0 .. 1)."
            )
        return cls(kind, value, width, floor)

    def probabilities(self, click_NK: np.ndarray, mask_NK: np.ndarray) -> np.ndarray:
        """float32 (N, K), each row summing to 1 over the candidates of the mask; ties go to the first."""
        if self.kind == "softmax":
            return softmax_NK(click_NK, mask_NK, self.strength).astype(np.float32)
        chosen = greedy_NK(click_NK, mask_NK)
        if self.kind == "epsilon":
            chosen = mixed_with_uniform(chosen, mask_NK, self.strength)
        return chosen.astype(np.float32)


def mixed_with_uniform(policy_NK: np.ndarray, mask_NK: np.ndarray, share: float) -> np.ndarray:
    """A policy of which a share of the requests is drawn uniformly from the candidates of the mask, (N, K)."""
    return (1 - share) * policy_NK + share * mask_NK / np.maximum(mask_NK.sum(1, keepdims=True), 1)
