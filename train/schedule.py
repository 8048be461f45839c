"""The learning rate's course: a linear warm-up, then half a cosine down (Loshchilov and Hutter, SGDR, 2017)."""

import math

LEAST = 0.01
"""Share of the peak rate that is left at the end."""


def warm_cosine(step: int, total: int, warmup: float) -> float:
    """Factor of the peak rate at a step, 0 .. total - 1; `warmup` is the share of the steps during which it rises."""
    warm = max(1, int(warmup * total))
    if step < warm:
        return (step + 1) / warm
    done = min(1.0, (step - warm) / max(1, total - warm))
    return LEAST + (1 - LEAST) * 0.5 * (1 + math.cos(done * math.pi))
