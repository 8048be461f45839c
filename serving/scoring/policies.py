"""Policies of serving: how click probabilities become the probabilities with which artworks are shown.

Legend: N requests, K candidates (padded).
"""

from dataclasses import dataclass

import numpy as np

from foundation.choice import greedy_NK, softmax_NK
from foundation.errors import UserError

TEMPERATURES, WIDTHS = (1e-3, 1e3), (1e-3, 1e2)
"""Smallest and largest temperature of a softmax, and factor of a posterior's width: beyond them choices are greedy or uniform, and
float32 overflows."""
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
    """Temperature of the softmax over click logits, in TEMPERATURES; the share shown uniformly, 0 .. 1; or the posterior draws."""
    width: float = WIDTH
    """For thompson: factor of the posterior's standard deviation, in WIDTHS."""
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
            "softmax": TEMPERATURES[0] <= value <= TEMPERATURES[1],
            "epsilon": bool(strength) and 0 <= value <= 1,
            "thompson": 1 <= value <= MAX_DRAWS
            and value % 1 == 0
            and WIDTHS[0] <= width <= WIDTHS[1]
            and 0 <= floor <= 1,
        }
        if not fits.get(kind, False) or len(numbers) > (3 if kind == "thompson" else 1):
            raise UserError(
                f"policy={text[:80]}: give greedy, softmax:TEMPERATURE ({TEMPERATURES[0]:g} .. {TEMPERATURES[1]:g}), "
                f"epsilon:SHARE (0 .. 1) or thompson:DRAWS:WIDTH:FLOOR (1 .. {MAX_DRAWS}; {WIDTHS[0]:g} .. {WIDTHS[1]:g}; 0 .. 1)."
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
