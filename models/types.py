"""The ranker's inputs and what its towers hand to each other: tuples of tensors.

Legend: N impressions, K candidates, D width, I titles, A artworks, E image embedding, L list length, P own preferences.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from foundation.context import ContextFeature

KNOTS = 4
"""Logits at which a calibration may bend."""


class Content(NamedTuple):
    """The catalogue by row, row 0 unknown; lists padded with 0. The model keeps it among its buffers."""

    title_genres_IL: Tensor
    title_people_IL: Tensor
    title_year_I: Tensor
    title_artworks_IL: Tensor
    artwork_people_AL: Tensor
    artwork_genres_AL: Tensor
    artwork_image_AE: Tensor


class Sizes(NamedTuple):
    """Rows of the trained tables, the unknown row included."""

    titles: int
    artworks: int
    people: int
    genres: int
    context: tuple[ContextFeature, ...]
    """The context features, in the order of a graph's inputs."""
    categories: Mapping[str, int]
    """Rows of every context feature that is a category, by name."""


class States(NamedTuple):
    """The states of members after some number of plays, any leading shape."""

    learned: Tensor
    """(..., D)"""
    recent: Tensor
    """(..., 2 D + G): mean of the recent plays' images, people and genres."""
    coplay: Tensor
    """(..., R): sum of the recent plays' co-play vectors."""
    evidence: Tensor
    """(..., S + 1): what past impressions sum up to, E and then W of `models.own_taste`; (..., 0) where none are read."""


class LogitTerms(NamedTuple):
    """The terms that add up to a prediction, as logits."""

    affinity_N: Tensor
    appeal_NK: Tensor
    presentation_N: Tensor
    engaged_NK: Tensor
    """Logit of engaged given clicked; (n, K) where it was computed for n of the impressions."""

    def click_NK(self) -> Tensor:
        """Logit of a click on each candidate, (N, K)."""
        return self.appeal_NK + (self.affinity_N + self.presentation_N)[:, None]


class TitleFeatures(NamedTuple):
    """Features of titles, any leading shape."""

    rows: Tensor
    """(...,): rows of titles, 0 for one that is not in the catalogue."""
    people: Tensor
    """(..., D): mean vector of the cast."""
    genres_xL: Tensor
    """(..., L): genre rows, padded with 0."""
    year: Tensor
    """(...,): decades since 2000, 0 where not known."""


class TitleEncoding(NamedTuple):
    """The title tower's outputs, any leading shape."""

    vector: Tensor
    """(..., D)"""
    content: Tensor
    """(..., D + G): people and genres."""
    bias: Tensor
    """(...,)"""
    coplay: Tensor
    """(..., R): vector that is multiplied with the member's co-play vector."""
    engaged: Tensor
    """(..., D + P + 1): engagement's query for artwork vectors, and what the title's content adds to engagement."""


class ArtworkEncoding(NamedTuple):
    """The artwork tower's outputs, any leading shape."""

    vector: Tensor
    """(..., D + P): the tower's vector, then the artwork's own preferences."""
    content: Tensor
    """(..., 2 D + G): image, people and moods."""
    bias: Tensor
    """(...,)"""
    engaged: Tensor
    """(...,): what the artwork's content adds to engagement."""


class PlayEncoding(NamedTuple):
    """Encodings of plays of titles, any leading shape."""

    token: Tensor
    """(..., D), without the image."""
    content: Tensor
    """(..., D + G): people and genres."""
    mean_image: Tensor
    """(..., D): projected mean image of the title's artworks."""
    coplay: Tensor
    """(..., R): the title's co-play vector."""


class Plays(NamedTuple):
    """What is kept of the plays of a history, and what each counts."""

    image_NTD: Tensor
    """The image that was clicked; 0 where it is not known."""
    mean_image_NTD: Tensor
    """The mean of the title's images, where the one clicked is not known; else 0."""
    content_NT: Tensor
    """(N, T, D + G): people and genres."""
    coplay_NTR: Tensor
    weight_N1T: Tensor
    """The play's weight in the mean: see `models.history.RecentMean.last`."""
    counts_N1T: Tensor
    """1 for the last `span` plays, else 0."""


class Candidates(NamedTuple):
    """What is kept of the artworks to choose from."""

    vector_NKD: Tensor
    content_NKC: Tensor
    own_NK2: Tensor
    """What each adds for everybody to appeal, and to engagement."""


class Queries(NamedTuple):
    """What a member in a context looks for."""

    title_N1D: Tensor
    """Meets title vectors in affinity."""
    artwork_N1D: Tensor
    """Meets artwork vectors in appeal."""
    content_N1C: Tensor
    """Meets artworks' content in appeal."""
    engagement_N1D: Tensor
    """Meets artwork vectors in engagement."""
    levels_N12: Tensor
    """What the context adds to the logits of a click and of engagement."""
    own_N1D: Tensor
    """What the member's own clicks add to the artwork query; this and the next of length 0 where past impressions are not read."""
    own_level_N11: Tensor
    """What they add to affinity."""


class Fatigue(NamedTuple):
    """What past impressions that were not clicked add."""

    appeal_NK: Tensor
    affinity_N11: Tensor


def piecewise_linear_calibration(logit: Tensor, line: Tensor) -> Tensor:
    """A calibrated logit: scale * logit + shift + sum_k bend_k max(0, logit - knot_k).

    `line` is (2 + 2 KNOTS,): scale, shift, knots, bends; without bends it is Platt's.
    """
    knots, bends = line[2 : 2 + KNOTS], line[2 + KNOTS :]
    return logit * line[0] + line[1] + ((logit.unsqueeze(-1) - knots).clamp(min=0) * bends).sum(-1)


def identity_calibration() -> Tensor:
    """Calibrations of both heads that change nothing, (2, 2 + 2 KNOTS)."""
    line = torch.zeros(2, 2 + 2 * KNOTS)
    line[:, 0] = 1.0
    return line
