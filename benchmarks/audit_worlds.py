"""Simulated logs whose truth is known, for the audits beside a value: who is shown, clicks, and views what they clicked.

A world is drawn anew in every replication: titles with a cast in order, artworks that depict members of the cast, extras whom no
cast has, genres and moods, members with segments, and a log. Faces can be planted that one segment watches less.

Legend: N impressions, K candidates, M members, T titles, A artworks.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from evaluation.logs.logged_impressions import Outcomes
from evaluation.logs.scored_log import ScoredLog
from foundation.lists import Lists

GENRES = ("Action", "Comedy", "Drama", "Horror", "Romance", "Western")
MOODS = ("dark", "bright", "night", "couple", "city", "landscape")
PERIOD = 60 * 24 * 3600 * 1_000_000
"""Sixty days in microseconds."""
PLANTED = "planted"
"""Beginning of the names of planted faces."""
HARMED = "c"
"""The level of the segment `group` that watches planted faces less."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Parameters of a simulated service and its log."""

    impressions: int = 20_000
    members: int = 1000
    titles: int = 60
    width: int = 4
    click_rate: float = 0.15
    engaged_rate: float = 0.55
    """After a click."""
    title_spread: float = 0.5
    """Standard deviation between titles, in logits of engagement."""
    title_levels: int = 0
    """Titles at so many equally spaced levels of engagement, from -2 to 2 logits, in the place of a spread."""
    countries: int = 0
    """Levels of a second segment, `country`; 0: without it. Countries differ in engagement."""
    drift: float = 0.0
    """Logits that engagement and clicks lose from the beginning of the period to its end."""
    arrivals: bool = False
    """Whether half the artworks are added during the period, and a fourth is taken away."""
    heavy: bool = False
    """Whether activity is lognormal: one member in twenty has a third of the impressions."""
    explored: float = 1.0
    """Share of the impressions that are randomised; the others are by a policy that prefers what members click."""
    faces: int = 0
    artworks_a_face: int = 0
    """Planted faces, and on how many artworks each is."""
    harm: float = 1.5
    """Logits of engagement that the level `HARMED` of `group` loses after a click on a planted face."""
    uncredited: bool = True
    """Whether planted faces are in no title's cast; else they are the last of their titles' casts."""


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """A log and what belongs to it; the dataset's tables of titles, artworks and members are in files."""

    log: ScoredLog
    member: pa.Array
    weight_N: NDArray[np.float64]
    """Importance weights of the scored policy."""
    outcomes: Outcomes
    planted: frozenset[str]


def simulate_world(world: World, seed: int, folder: Path) -> Simulated:
    """Draw a service and its log, and write the tables that the audits read into `folder`."""
    rng = np.random.default_rng(seed)
    artworks = world.titles * world.width
    title_A = np.repeat(np.arange(world.titles), world.width)
    depicts, planted_A, casts = _catalogue(world, rng)
    group_M, country_M = rng.integers(0, 3, world.members), rng.integers(0, max(world.countries, 1), world.members)
    _write_tables(world, folder, depicts, casts, group_M, country_M)

    activity_M = np.exp(rng.normal(0, 1.5 if world.heavy else 0.5, world.members))
    member_N = np.sort(rng.choice(world.members, world.impressions, p=activity_M / activity_M.sum()))
    title_N = rng.choice(world.titles, world.impressions, p=_popularity(world.titles))
    time_N = rng.random(world.impressions)
    from_A, until_A = np.zeros(artworks), np.ones(artworks)
    if world.arrivals:
        kind_A = rng.permuted(np.tile(np.arange(world.width), (world.titles, 1)), axis=1).reshape(-1)
        from_A = np.where(kind_A < world.width / 2, rng.uniform(0.1, 0.7, artworks), 0.0)
        until_A = np.where(kind_A == world.width - 1, rng.uniform(0.3, 0.9, artworks), 1.0)
    artwork_NK = title_N[:, None] * world.width + np.arange(world.width)
    offered_NK = (from_A[artwork_NK] <= time_N[:, None]) & (time_N[:, None] <= until_A[artwork_NK])

    appeal_A = rng.normal(0, 0.3, artworks)
    style_AS, taste_MS = rng.normal(0, 0.5, (artworks, 3)), rng.normal(0, 0.7, (world.members, 3))
    appeal_NK = appeal_A[artwork_NK] + np.einsum("nks,ns->nk", style_AS[artwork_NK], taste_MS[member_N])
    width_N = offered_NK.sum(1)
    uniform_NK = offered_NK / width_N[:, None]
    preferred_NK = _softmax(np.where(offered_NK, 4 * (appeal_NK + rng.normal(0, 0.3, appeal_NK.shape)), -np.inf))
    explored_N = rng.random(world.impressions) < world.explored
    logging_NK = np.where(explored_N[:, None], uniform_NK, 0.2 * uniform_NK + 0.8 * preferred_NK)
    policy_NK = _softmax(np.where(offered_NK, 6 * (appeal_NK + rng.normal(0, 0.3, appeal_NK.shape)), -np.inf))
    below_NK = logging_NK.cumsum(1) < rng.random((world.impressions, 1))
    shown_N = np.minimum(below_NK.sum(1), world.width - 1 - np.argmax(offered_NK[:, ::-1], 1))
    at = (np.arange(world.impressions), shown_N)
    shown_artwork_N = artwork_NK[at]

    title_click_T, member_click_M = rng.normal(0, 0.3, world.titles), rng.normal(0, 0.5, world.members)
    trend_N = -world.drift * (time_N - 0.5)
    click_N = _logit(world.click_rate) - 0.2 + title_click_T[title_N] + member_click_M[member_N] + trend_N / 2
    p_click_NK = _sigmoid(click_N[:, None] + appeal_NK)
    clicked_N = rng.random(world.impressions) < p_click_NK[at]
    title_T = rng.normal(0, world.title_spread, world.titles)
    if world.title_levels:
        title_T = rng.permutation(np.resize(np.linspace(-2, 2, world.title_levels), world.titles))
    country_L = rng.normal(0, 0.4, world.countries) if world.countries else np.zeros(1)
    engaged_N = _logit(world.engaged_rate) + title_T[title_N] + rng.normal(0, 0.5, world.members)[member_N] + trend_N
    engaged_N += country_L[country_M[member_N]] + np.array([0.2, 0.0, -0.2])[group_M[member_N]]
    engaged_N -= world.harm * (planted_A[shown_artwork_N] & (group_M[member_N] == 2))
    was_engaged_N = clicked_N & (rng.random(world.impressions) < _sigmoid(engaged_N))

    ids = pa.array([f"a{a}" for a in range(artworks)])
    shown_at_N = (time_N * PERIOD).astype(np.int64)
    slot_N = offered_NK.cumsum(1)[at] - 1  # the index among the offered ones
    log = ScoredLog(
        impression_id=pa.array(np.arange(world.impressions).astype(str)),
        member=member_N,
        title=title_N,
        artworks=ids,
        artwork_NK=Lists.of_padded(artwork_NK.astype(np.int32), offered_NK, padding=-1),
        shown=slot_N,
        propensity=logging_NK[at],
        propensity_NK=Lists.of_padded(logging_NK, offered_NK),
        shown_at=shown_at_N,
        logging_policy=np.zeros(world.impressions, np.int64),
        logging_policies=("simulated",),
        missing=0,
        unknown=0,
        randomised=explored_N & (width_N > 1),
        clicked=clicked_N.astype(np.float64),
        engaged=was_engaged_N.astype(np.float64),
        click_probability_NK=Lists.of_padded(p_click_NK, offered_NK),
        policy_NK=Lists.of_padded(policy_NK, offered_NK),
        engaged_probability=None,
        true_click_NK=None,
        true_engaged_NK=None,
    )
    outcomes = Outcomes(
        artworks=ids,
        artwork=shown_artwork_N,
        title=title_A[shown_artwork_N],
        member=member_N,
        width=width_N,
        propensity=log.propensity,
        clicked=log.clicked,
        engaged=log.engaged,
        shown_at=shown_at_N,
    )
    return Simulated(
        log=log,
        member=pa.array([f"m{m}" for m in member_N]),
        weight_N=policy_NK[at] / logging_NK[at],
        outcomes=outcomes,
        planted=frozenset(f"{PLANTED} {face}" for face in range(world.faces)),
    )


def _catalogue(world: World, rng: np.random.Generator) -> tuple[list[list[str]], NDArray[np.bool_], list[list[str]]]:
    """What each artwork depicts, whether that is a planted face, and the titles' casts."""
    actors = [f"actor {n}" for n in range(2 * world.titles)]
    casts = [[actors[p] for p in rng.choice(len(actors), 8, replace=False)] for _ in range(world.titles)]
    depicts, extras = [], 0
    for artwork in range(world.titles * world.width):
        cast, draw = casts[artwork // world.width], rng.random()
        words = [str(rng.choice(GENRES)), str(rng.choice(MOODS))]
        if draw < 0.75:
            words.append(cast[int(rng.integers(0, 3))])
        elif draw < 0.85:
            words.append(cast[int(rng.integers(3, 8))])
        elif draw < 0.9:
            words.append(f"extra {extras}")
            extras += 1
        depicts.append(words)
    planted_A = np.zeros(len(depicts), bool)
    chosen = rng.choice(len(depicts), world.faces * world.artworks_a_face, replace=False)
    for index, artwork in enumerate(chosen.tolist()):
        face = f"{PLANTED} {index // world.artworks_a_face}"
        planted_A[artwork] = True
        depicts[artwork] = [*depicts[artwork][:2], face]
        if not world.uncredited and face not in casts[artwork // world.width]:
            casts[artwork // world.width].append(face)
    return depicts, planted_A, casts


def _write_tables(
    world: World, folder: Path, depicts: list[list[str]], casts: list[list[str]], group_M: NDArray, country_M: NDArray
) -> None:
    names = pa.list_(pa.string())
    title_ids = [f"t{t}" for t in range(world.titles)]
    titles = {"title_id": title_ids, "name": title_ids, "cast": pa.array(casts, names)}
    titles["genres"] = pa.array([[GENRES[t % len(GENRES)]] for t in range(world.titles)], names)
    pq.write_table(pa.table(titles), folder / "titles.parquet")
    artworks = {"artwork_id": [f"a{a}" for a in range(len(depicts))], "depicts": pa.array(depicts, names)}
    artworks["title_id"] = [f"t{a // world.width}" for a in range(len(depicts))]
    pq.write_table(pa.table(artworks), folder / "artworks.parquet")
    members = {"member_id": [f"m{m}" for m in range(world.members)], "group": [("a", "b", HARMED)[g] for g in group_M]}
    if world.countries:
        members["country"] = [f"country {c}" for c in country_M]
    pq.write_table(pa.table(members), folder / "members.parquet")


def _popularity(titles: int) -> NDArray[np.float64]:
    weight_T = 1 / np.sqrt(1 + np.arange(titles))
    return weight_T / weight_T.sum()


def _softmax(values_NK: NDArray) -> NDArray[np.float64]:
    exp_NK = np.exp(values_NK - values_NK.max(1, keepdims=True))
    return exp_NK / exp_NK.sum(1, keepdims=True)


def _sigmoid(logit: NDArray) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-logit))


def _logit(p: float) -> float:
    return float(np.log(p / (1 - p)))
