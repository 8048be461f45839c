"""Opposite tastes: pairs of histories for which the chosen artwork should differ, in a simulated dataset.

In: the tables titles and artworks. Out: pairs of two kinds, half of each. `mood`: a history of romances against one of
comedies, for a title that has an artwork in either mood. `star`: a history of titles with one person against one with
another, for a title that shows each of them alone.

Candidates are only the competing artworks: one of a third mood or person may be the right choice for both members (it
may simply be the better picture), and the pair would say nothing.
A pair is passed when the choice for the first history is one of `artwork_a` and the choice for the second one of
`artwork_b`: a ranker that ignores histories passes none, one that guesses passes about a quarter.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq

from datamodules.simulator.click_law import DEVICES
from datamodules.simulator.population import COUNTRIES
from foundation.errors import UserError

OPPOSITE_MOODS = ("Romance", "Comedy")
HISTORY_LENGTHS = (12, 25)
"""Shortest and longest history."""
_MIN_OWN_TITLES = 3
"""Titles of its own that a history must at least have."""


@dataclass(frozen=True, kw_only=True)
class OppositeHistories:
    """Two members who differ in one taste, and the artworks that compete for them."""

    kind: Literal["mood", "star"]
    taste_a: str
    """The genre or person that history a is about."""
    taste_b: str
    title_id: str
    candidates: list[str]
    """artwork_ids: those of `artwork_a` and `artwork_b`, in the title's order."""
    history_a: list[str]
    """title_ids, oldest first; never the title itself. As long as `history_b`."""
    history_b: list[str]
    artwork_a: list[str]
    """The artworks that are right to show after history a."""
    artwork_b: list[str]
    country: str
    """Country of both members; the device is shared too."""
    device: str


@dataclass(frozen=True, kw_only=True)
class _OppositeCase:
    """One title on which two tastes disagree."""

    kind: Literal["mood", "star"]
    tastes: tuple[str, str]
    title_id: str
    artworks: tuple[list[str], list[str]]
    own: tuple[list[str], list[str]]
    """Titles that fit only one of the two tastes."""
    neither: list[str]


@dataclass(frozen=True, kw_only=True)
class _Title:
    title_id: str
    genres: frozenset[str]
    cast: frozenset[str]


def draw_opposite_histories(dataset: Path, count: int, seed: int) -> list[OppositeHistories]:
    """Draw `count` pairs, every second one of kind `star`; cases take turns, each with new histories.

    The two histories of a pair are matched: the n-th titles of both share as many other genres as can be had; where a
    taste has too few titles, both histories hold the same titles that fit neither. Raises UserError where the
    catalogue is too small for a pair of some kind.
    """
    titles = [
        _Title(title_id=row["title_id"], genres=frozenset(row["genres"]), cast=frozenset(row["cast"]))
        for row in pq.read_table(dataset / "titles.parquet", columns=["title_id", "genres", "cast"]).to_pylist()
    ]
    shows: dict[str, dict[str, frozenset[str]]] = {title.title_id: {} for title in titles}
    for row in pq.read_table(dataset / "artworks.parquet").to_pylist():
        shows[row["title_id"]][row["artwork_id"]] = frozenset(row["depicts"])

    rng = np.random.default_rng(seed)
    contests = {"mood": _mood_contests(titles, shows), "star": _star_contests(titles, shows)}
    for kind, cases in contests.items():
        if not cases:
            raise UserError(
                f"{dataset}/titles.parquet: no title lets two {kind} histories disagree. Simulate more titles."
            )
        rng.shuffle(cases)  # type: ignore[arg-type]
    genres_of = {title.title_id: title.genres for title in titles}
    turns = [contests[kind] for kind in ("mood", "star")]
    return [_draw_pair(rng, turns[n % 2][n // 2 % len(turns[n % 2])], genres_of) for n in range(count)]


def _mood_contests(titles: list[_Title], shows: dict[str, dict[str, frozenset[str]]]) -> list[_OppositeCase]:
    """Romance against comedy. Histories avoid the people on the competing artworks, where enough titles are left."""
    cases = []
    for title in titles:
        artworks = _split(shows[title.title_id], *OPPOSITE_MOODS)
        faces = frozenset().union(*(shows[title.title_id][artwork] for side in artworks for artwork in side))
        rest = [other for other in titles if other is not title]
        unrelated = [other for other in rest if not other.cast & faces]
        for pool, min_titles in ((unrelated, HISTORY_LENGTHS[0]), (rest, _MIN_OWN_TITLES)):
            own = _split({other.title_id: other.genres for other in pool}, *OPPOSITE_MOODS)
            if all(artworks) and min(map(len, own)) >= min_titles:
                neither = [other.title_id for other in pool if not other.genres & set(OPPOSITE_MOODS)]
                cases.append(_opposite_case("mood", OPPOSITE_MOODS, title, artworks, own, neither))
                break
    return cases


def _star_contests(titles: list[_Title], shows: dict[str, dict[str, frozenset[str]]]) -> list[_OppositeCase]:
    """Pairs of people of a cast, each of whom has an artwork without the other."""
    cases = []
    for title in titles:
        rest = [other for other in titles if other is not title]
        cast = sorted(title.cast)
        for a, b in ((a, b) for n, a in enumerate(cast) for b in cast[n + 1 :]):
            alone = {artwork: words for artwork, words in shows[title.title_id].items() if len(words & title.cast) == 1}
            artworks = _split(alone, a, b)
            own = _split({other.title_id: other.cast for other in rest}, a, b)
            if all(artworks) and min(map(len, own)) >= _MIN_OWN_TITLES:
                neither = [other.title_id for other in rest if not other.cast & {a, b}]
                cases.append(_opposite_case("star", (a, b), title, artworks, own, neither))
    return cases


def _opposite_case(
    kind: Literal["mood", "star"],
    tastes: tuple[str, str],
    title: _Title,
    artworks: tuple[list[str], list[str]],
    own: tuple[list[str], list[str]],
    neither: list[str],
) -> _OppositeCase:
    return _OppositeCase(kind=kind, tastes=tastes, title_id=title.title_id, artworks=artworks, own=own, neither=neither)


def _split(words: dict[str, frozenset[str]], a: str, b: str) -> tuple[list[str], list[str]]:
    """Ids whose words hold a and not b, and b and not a."""

    def only(x: str, y: str) -> list[str]:
        return [key for key, value in words.items() if x in value and y not in value]

    return only(a, b), only(b, a)


def _draw_pair(
    rng: np.random.Generator, contest: _OppositeCase, genres_of: dict[str, frozenset[str]]
) -> OppositeHistories:
    length = int(rng.integers(HISTORY_LENGTHS[0], HISTORY_LENGTHS[1] + 1))
    matched = _match(rng, contest.own, lambda title: genres_of[title] - set(contest.tastes))[:length]
    shortfall = length - len(matched)
    filler = rng.choice(len(contest.neither) or len(matched), shortfall, replace=shortfall > len(contest.neither))
    both = [(contest.neither[n],) * 2 if contest.neither else matched[n] for n in filler]
    history = [(matched + both)[n] for n in rng.permutation(length)]
    artwork_a, artwork_b = contest.artworks
    return OppositeHistories(
        kind=contest.kind,
        taste_a=contest.tastes[0],
        taste_b=contest.tastes[1],
        title_id=contest.title_id,
        candidates=sorted(artwork_a + artwork_b),
        history_a=[a for a, _ in history],
        history_b=[b for _, b in history],
        artwork_a=artwork_a,
        artwork_b=artwork_b,
        country=COUNTRIES[rng.integers(len(COUNTRIES))],
        device=DEVICES[rng.integers(len(DEVICES))],
    )


def _match(
    rng: np.random.Generator, own: tuple[list[str], list[str]], genres: Callable[[str], frozenset[str]]
) -> list[tuple[str, str]]:
    """Greedily give each title of the first side, in random order, the most similar one left of the second.

    Best matches come first, so that a cut keeps them.
    """
    left = [own[1][n] for n in rng.permutation(len(own[1]))]
    matched: list[tuple[float, str, str]] = []
    for a in (own[0][n] for n in rng.permutation(len(own[0]))):
        if not left:
            break
        likeness = [len(genres(a) & genres(b)) / max(1, len(genres(a) | genres(b))) for b in left]
        best = int(np.argmax(likeness))
        matched.append((likeness[best], a, left.pop(best)))
    matched.sort(key=lambda entry: -entry[0])
    return [(a, b) for _, a, b in matched]
