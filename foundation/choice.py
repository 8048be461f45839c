"""Scores of candidates -> choice probabilities, and when two probabilities count as equal.

Legend: N impressions, K candidates (padded).
"""

import numpy as np
from numpy.typing import NDArray

PROBABILITY_ROUNDING = 1e-3
"""Relative tolerance for logged and scored probabilities: logs hold float32, some rounded to four decimals.

Every comparison of probabilities uses it: that they sum to 1, that an impression was randomised, that a policy is not
personalised, that weights are 1 on average.
"""


def equal_within_rounding(one: NDArray, other: NDArray | float) -> NDArray[np.bool_]:
    """Whether `one` differs from `other` by at most `PROBABILITY_ROUNDING` times `other`; False for NaN."""
    return np.abs(one - other) <= PROBABILITY_ROUNDING * np.abs(other)


def greedy_NK(score_NK: NDArray, mask_NK: NDArray) -> NDArray[np.float64]:
    """Probability 1 for the candidate with the highest score, the first of equals."""
    best_N = np.where(mask_NK, score_NK, -np.inf).argmax(1)
    return (np.arange(score_NK.shape[1]) == best_N[:, None]).astype(np.float64)


def softmax_NK(score_NK: NDArray, mask_NK: NDArray, temperature: float) -> NDArray[np.float64]:
    """Softmax of the scores' logits over the candidates in the mask; scores in 0 .. 1, `temperature` above 0."""
    sure_NK = np.clip(score_NK.astype(np.float64), 1e-9, 1 - 1e-9)
    logit_NK = np.where(mask_NK, np.log(sure_NK / (1 - sure_NK)) / temperature, -np.inf)
    raised_NK = np.exp(logit_NK - logit_NK.max(1, keepdims=True))
    return raised_NK / raised_NK.sum(1, keepdims=True)
