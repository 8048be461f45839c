"""The record of what a ranker looks at, which serving computes and the report shows: artworks by their appeal for groups
of members.

Appeal is in logits of a click, above the mean artwork of the title; for the members of a favourite genre it is also above the
appeal for all members.
"""

from typing import Literal, TypedDict


class PreferredArtwork(TypedDict):
    """An artwork, its title's id and name, and its appeal for a group."""

    artwork: str
    title: str
    name: str
    appeal: float


class GroupPreferences(TypedDict):
    """The artworks with most and least appeal for the members of a favourite genre, most extreme first; empty genre: for all."""

    genre: str
    impressions: int
    members: int
    most: list[PreferredArtwork]
    least: list[PreferredArtwork]


class OccludedArtwork(TypedDict):
    """What each cell of an artwork's image adds to its appeal for a group, in rows from the top.

    It is the appeal of the image minus that with the cell covered by the image's mean colour.
    """

    genre: str
    shown_as: Literal["most", "least"]
    artwork: PreferredArtwork
    cells: list[list[float]]


class Preferences(TypedDict):
    """What the ranker looks at: means over `impressions`, evenly spaced among `impressions_in_period`.

    `unreadable` counts artworks whose image was to be covered and is missing or broken. `left_out` is empty, or says why no
    image was covered.
    """

    impressions: int
    impressions_in_period: int
    artworks: int
    groups: list[GroupPreferences]
    occluded: list[OccludedArtwork]
    unreadable: int
    left_out: str
