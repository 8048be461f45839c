"""The usual baselines for ranking titles without a network, for `keyart bench titles`: scores float32 (U, I), higher is better.

Legend: U members, I titles.
"""

import numpy as np

from benchmarks.title_log import TitleLog

RIDGE = 100.0
"""EASE's ridge, chosen on the validation play among 100, 300 and 1,000."""
RECENT = 6.0
"""Plays after which a play counts 1 / e in the recent form of EASE, chosen on the validation play among 6, 12, 24."""
NEIGHBOURS, SHRINKAGE = 100, 10.0
"""item-kNN's number of neighbours, chosen on the validation play among 50, 100 and all."""


def play_matrix(log: TitleLog, recent: float | None = None) -> np.ndarray:
    """(U, I): 1 where a title was played; with `recent`, e^-(plays since / recent)."""
    matrix = np.zeros((log.members, len(log.titles)), np.float32)
    matrix[log.member, log.title] = 1 if recent is None else np.exp(-log.from_end() / recent)
    return matrix


def popularity(known: TitleLog) -> np.ndarray:
    """How often each title was played, the same for every member."""
    count = np.bincount(known.title, minlength=len(known.titles)).astype(np.float32)
    return np.tile(count, (known.members, 1))


def item_knn(known: TitleLog, history: TitleLog) -> np.ndarray:
    """Sum of the shrunk cosines of a title with the titles played, only its nearest neighbours counting (Sarwar, 2001)."""
    x_UI = play_matrix(known)
    cooccurrence_II = x_UI.T @ x_UI
    norm_I = np.sqrt(np.diag(cooccurrence_II)) + 1e-9
    similarity_II = cooccurrence_II / (norm_I[:, None] * norm_I + SHRINKAGE)
    np.fill_diagonal(similarity_II, 0)
    nearest = min(NEIGHBOURS, len(similarity_II))
    threshold_I = np.partition(similarity_II, -nearest, axis=0)[-nearest]
    return play_matrix(history) @ np.where(similarity_II >= threshold_I, similarity_II, 0)


def ease(known: TitleLog, history: TitleLog, recent: float | None = None) -> np.ndarray:
    """The regression of every title on all others (Steck, 2019); with `recent`, plays count by how long ago they were."""
    x_UI = play_matrix(known).astype(np.float64)
    titles = x_UI.shape[1]
    # over members, which are fewer than titles: (X'X + r)^-1 = (1 - X' (XX' + r)^-1 X) / r
    inner = np.linalg.solve(x_UI @ x_UI.T + RIDGE * np.eye(len(x_UI)), x_UI)
    precision_II = (np.eye(titles) - x_UI.T @ inner) / RIDGE
    weight_II = -precision_II / np.diag(precision_II)
    np.fill_diagonal(weight_II, 0)
    return play_matrix(history, recent) @ weight_II.astype(np.float32)


def same_genres(history: TitleLog) -> np.ndarray:
    """Cosine of a title's genres and the mean of those of the titles played."""
    genre_names = sorted({word for genres in history.titles["genres"] for word in genres})
    genre_index = {word: i for i, word in enumerate(genre_names)}
    one_hot = np.zeros((len(history.titles), len(genre_names)), np.float32)
    for row, genres in enumerate(history.titles["genres"]):
        one_hot[row, [genre_index[word] for word in genres]] = 1
    one_hot /= np.maximum(1e-9, np.linalg.norm(one_hot, axis=1, keepdims=True))
    profile = play_matrix(history) @ one_hot
    return profile / np.maximum(1e-9, np.linalg.norm(profile, axis=1, keepdims=True)) @ one_hot.T
