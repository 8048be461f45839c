"""The learning rate schedule: a linear warm-up, then half a cosine down (Loshchilov and Hutter, SGDR, 2017)."""

import math

MIN_FACTOR = 0.01
"""Final rate as a share of the peak rate."""


def warmup_cosine(step: int, total: int, warmup: float) -> float:
    """The rate as a factor of the peak rate at a step, 0 .. total - 1; `warmup`: share of the steps during which it rises."""
    warmup_steps = max(1, int(warmup * total))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total - warmup_steps))
    return MIN_FACTOR + (1 - MIN_FACTOR) * 0.5 * (1 + math.cos(progress * math.pi))
