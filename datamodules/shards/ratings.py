"""What a member's ratings say, play by play: on one scale, less the member's own habit so far, and nothing of the future.

In: ratings as they were given, thumbs or stars, of one member or of many, and the scale of the training period. Out: a number for
every rated play, about -1 for what a member likes least and 1 for what they like most. Needs numpy alone, so that whoever is
asked for one member's history computes the same numbers as `prepare` did.

Legend: M members, P plays.
"""

from dataclasses import dataclass

import numpy as np

SHRINKAGE = 5
"""Ratings at the training period's mean that every member counts as having given before the first."""
UNIT = 2.0**24
"""Parts of 1 in which scaled ratings are counted: as fine as 32 bits near 1, and sums of whole numbers are exact in any order."""


@dataclass(frozen=True, kw_only=True)
class RatingScale:
    """The scale of a log's ratings, from the plays of the training period alone."""

    low: float
    """Its lower end: -1 for thumbs, for stars the least that was given."""
    high: float
    """Its upper end: 1 for thumbs, for stars the most that was given."""
    mean: float
    """The mean rating."""


def centred_ratings(rating: np.ndarray, member_start: np.ndarray, scale: RatingScale) -> np.ndarray:
    """Each rating on the scale of thumbs, less its member's mean so far: float32 (P,), NaN where a play is not rated.

        z_p     = (clip(rating_p, low, high) - mean) / ((high - low) / 2)
        value_p = z_p - (sum of z_q) / (number of q + 5),   q: the member's rated plays up to and including p

    A value follows from its own play and from those of its member before it, so that no later rating ever changes it; nor does
    any other member's, in any bit. The sum is shrunk to the mean of all members, as by 5 ratings at it: a first rating keeps 5/6 of
    z. Where the scale has one point alone, z is 0: a rating then says that it was given, and nothing else.

    `rating`: (P,), by member and time, NaN where a play is not rated; read in 32 bits. `member_start`: (M + 1,), member m's plays
    are rows [m], up to [m + 1]. `scale`: of the training period.
    """
    kept = rating.astype(np.float32).astype(np.float64)
    rated = ~np.isnan(kept)
    half_range = (scale.high - scale.low) / 2
    clipped = np.clip(np.where(rated, kept, scale.mean), scale.low, scale.high)
    z = (clipped - scale.mean) / half_range if half_range > 0 else np.zeros(len(kept))
    units = np.where(rated, np.rint(z * UNIT), 0).astype(np.int64)
    length = np.diff(member_start)
    total, count = (_running_sums(values, member_start, length) for values in (units, rated.astype(np.int64)))
    value = units / UNIT - total / UNIT / (count + SHRINKAGE)
    return np.where(rated, value, np.nan).astype(np.float32)


def _running_sums(values: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """int64 (P,): the sum of a member's values up to and including each row."""
    sums = np.concatenate([[0], np.cumsum(values)])
    return sums[1:] - np.repeat(sums[start[:-1]], length)
