"""The usual ways to rank titles without a network, for `keyart bench titles`: scores float32 (U, I), higher is better.

Legend: U members, I titles.
"""

import numpy as np

from benchmarks.title_log import TitleLog

RIDGE = 100.0
"""EASE's, chosen on the validation play among 100, 300 and 1,000."""
RECENT = 6.0
"""Plays after which a play counts 1 / e in EASE's recent form, chosen likewise among 6, 12, 24."""
NEIGHBOURS, SHRINKAGE = 100, 10.0
"""item-kNN's, chosen likewise among 50, 100 and all."""


def played(log: TitleLog, recent: float | None = None) -> np.ndarray:
    """(U, I): 1 where a title was played; with `recent`, e^-(plays since / recent)."""
    found = np.zeros((log.members, len(log.titles)), np.float32)
    found[log.member, log.title] = 1 if recent is None else np.exp(-log.from_end() / recent)
    return found


def popularity(known: TitleLog) -> np.ndarray:
    """How often each title was played, for everybody alike."""
    count = np.bincount(known.title, minlength=len(known.titles)).astype(np.float32)
    return np.tile(count, (known.members, 1))


def neighbours(known: TitleLog, told: TitleLog) -> np.ndarray:
    """Sum of the shrunk cosines of a title with the titles played, each title's nearest neighbours alone (Sarwar, 2001)."""
    x_UI = played(known)
    together_II = x_UI.T @ x_UI
    norm_I = np.sqrt(np.diag(together_II)) + 1e-9
    likeness_II = together_II / (norm_I[:, None] * norm_I + SHRINKAGE)
    np.fill_diagonal(likeness_II, 0)
    nearest = min(NEIGHBOURS, len(likeness_II))
    least_I = np.partition(likeness_II, -nearest, axis=0)[-nearest]
    return played(told) @ np.where(likeness_II >= least_I, likeness_II, 0)


def ease(known: TitleLog, told: TitleLog, recent: float | None = None) -> np.ndarray:
    """The regression of every title on all others (Steck, 2019); with `recent`, plays count by how long ago they were."""
    x_UI = played(known).astype(np.float64)
    titles = x_UI.shape[1]
    # by members, which are fewer: (X'X + r)^-1 = (1 - X' (XX' + r)^-1 X) / r
    inner = np.linalg.solve(x_UI @ x_UI.T + RIDGE * np.eye(len(x_UI)), x_UI)
    precision_II = (np.eye(titles) - x_UI.T @ inner) / RIDGE
    weight_II = -precision_II / np.diag(precision_II)
    np.fill_diagonal(weight_II, 0)
    return played(told, recent) @ weight_II.astype(np.float32)


def same_genres(told: TitleLog) -> np.ndarray:
    """Cosine of a title's genres and the mean of those of the titles played."""
    words = sorted({word for genres in told.titles["genres"] for word in genres})
    place = {word: i for i, word in enumerate(words)}
    hot = np.zeros((len(told.titles), len(words)), np.float32)
    for row, genres in enumerate(told.titles["genres"]):
        hot[row, [place[word] for word in genres]] = 1
    hot /= np.maximum(1e-9, np.linalg.norm(hot, axis=1, keepdims=True))
    taste = played(told) @ hot
    return taste / np.maximum(1e-9, np.linalg.norm(taste, axis=1, keepdims=True)) @ hot.T
