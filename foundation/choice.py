"""Scores of candidates -> how often each is chosen, and when two such probabilities are equal.

Legend: N impressions, K candidates (padded).
"""

import numpy as np
from numpy.typing import NDArray

PROBABILITY_ROUNDING = 1e-3
"""How far rounding may move a logged or scored probability, as a share of it: logs hold float32, some rounded to four places.

Everybody reads probabilities by it: that they sum to 1, that an impression was randomised, that a policy is not
personalised, that weights are 1 on average.
"""


def equal_within_rounding(one: NDArray, other: NDArray | float) -> NDArray[np.bool_]:
    """Whether probabilities are equal but for `PROBABILITY_ROUNDING` of the other; False for NaN."""
    return np.abs(one - other) <= PROBABILITY_ROUNDING * np.abs(other)


def greedy_NK(score_NK: NDArray, mask_NK: NDArray) -> NDArray[np.float64]:
    """Certain of the best scored candidate, the first of equals."""
    best_N = np.where(mask_NK, score_NK, -np.inf).argmax(1)
    return (np.arange(score_NK.shape[1]) == best_N[:, None]).astype(np.float64)


def softmax_NK(score_NK: NDArray, mask_NK: NDArray, temperature: float) -> NDArray[np.float64]:
    """Softmax of the scores' logits over the candidates that are there; `temperature` above 0."""
    sure_NK = np.clip(score_NK.astype(np.float64), 1e-9, 1 - 1e-9)
    logit_NK = np.where(mask_NK, np.log(sure_NK / (1 - sure_NK)) / temperature, -np.inf)
    raised_NK = np.exp(logit_NK - logit_NK.max(1, keepdims=True))
    return raised_NK / raised_NK.sum(1, keepdims=True)
