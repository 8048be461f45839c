"""Vectors that rank titles: a member's, and a title's, whose dot product is the title's score as the next play.

They join the sequence tower's vectors, the next-item regression's and the title's bias, so that any vector index can list titles.

Legend: M members, T plays, D width, R rank of the next-item regression, W = D + R + 1.
"""

import torch
from torch import Tensor

from models.two_tower import TwoTower
from models.types import TitleFeatures


def member_vectors(model: TwoTower, state_MD: Tensor, play_title_MT: Tensor, length_M: Tensor) -> Tensor:
    """Title queries of members after the first `length_M` plays, without any context: (M, W).

    `state_MD`: the learned state at that position. The last column, 1, multiplies the title's bias.
    """
    parts = [model.sequence_tower.member_next(state_MD)]
    if model.next_item is not None:
        parts.append(model.next_item.states(play_title_MT, length_M, model.config.history.reach))
    return torch.cat([*parts, torch.ones_like(parts[0][:, :1])], dim=-1)


def title_vectors(model: TwoTower, rows: Tensor) -> Tensor:
    """Retrieval vectors of titles, (...,) -> (..., W), the last column the title's bias."""
    return retrieval_vector(model, model.title_features_of(rows))


def retrieval_vector(model: TwoTower, title_features: TitleFeatures) -> Tensor:
    """Retrieval vectors of titles from their features."""
    parts = [*model.sequence_tower.next_titles(*title_features)]
    if model.next_item is not None:
        parts.insert(1, model.next_item.targets(title_features.rows))
    return torch.cat(parts, dim=-1)
