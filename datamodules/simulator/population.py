"""Draws the population of the simulated service: people, titles, artworks and members.

In: sizes and a generator. Out: `click_law.SimulatedCatalogue` and `click_law.SimulatedMembers`. The first two titles are the
oldest examples of the problem: one has a couple on one artwork and its comedian on another; one has two stars, each alone on
an artwork.

Legend as in `click_law`.
"""

import numpy as np

from datamodules.simulator.click_law import DEVICES, SimulatedCatalogue, SimulatedMembers, visible_attributes
from datamodules.simulator.draw_artworks import MOODS

GENRES = tuple(MOODS)
COUNTRIES = ("BR", "DE", "IN", "JP", "US")
AGE_BANDS = ("18-29", "30-44", "45-59", "60+")

BILLING = (1.0, 0.7, 0.45, 0.12)
"""Weight of a cast member by billing; the last is a tiny role."""
_TOGETHER = {("Romance", "Comedy"): 4.0, ("Romance", "Drama"): 3.0, ("Action", "Science Fiction"): 3.0,
             ("Horror", "Thriller"): 3.0, ("Action", "Western"): 2.0, ("Drama", "Thriller"): 2.0}  # fmt: skip
_MISREPRESENTS = 0.22
"""Share of a title's third and later artworks in a mood that none of its genres has."""


def simulate_catalogue(
    rng: np.random.Generator, *, titles: int, people: int, days: int, artwork_range: tuple[int, int] = (3, 6)
) -> SimulatedCatalogue:
    """People with a home genre, titles with genres and casts, artworks that show some of the cast in some mood."""
    home_P = np.arange(people) % len(GENRES)
    fame_P = np.exp(rng.normal(0.0, 0.45, people))
    genres = [_draw_genres(rng, title % len(GENRES)) for title in range(titles)]
    cast = [_draw_cast(rng, home_P, fame_P, title_genres) for title_genres in genres]

    romance, comedy, drama, thriller = (GENRES.index(g) for g in ("Romance", "Comedy", "Drama", "Thriller"))
    lovers = [int(p) for p in rng.permutation(np.flatnonzero(np.isin(home_P, (romance, drama))))[:2]]
    # known from comedies: of the comedy people, who was in most of them and in little else
    in_comedies_P, elsewhere_P = (
        np.array(
            [sum(p in c and (comedy in g) == funny for g, c in zip(genres, cast, strict=True)) for p in range(people)]
        )
        for funny in (True, False)
    )
    comedian = int(np.argmax(np.where(home_P == comedy, in_comedies_P / (in_comedies_P + elsewhere_P + 3), -1)))
    genres[0], cast[0] = [romance, comedy], [*lovers, comedian]
    # two equally known people: the histories of their followers differ in nothing else
    stars = sorted(np.flatnonzero(np.isin(home_P, (drama, thriller))), key=lambda p: -sum(int(p) in c for c in cast))
    genres[1], cast[1] = [drama, thriller], [int(stars[0]), int(stars[1])]

    drawn: list[tuple[int, int, tuple[int, ...], int]] = []  # title, mood, people, close-up
    for title in range(titles):
        count = int(rng.integers(artwork_range[0], artwork_range[1] + 1))
        known: set[tuple[int, tuple[int, ...], int]] = set()
        if title == 0:
            known = {(romance, tuple(lovers), 1), (comedy, (comedian,), 1)}
        elif title == 1:
            known = {(thriller, (int(star),), 1) for star in stars[:2]}
        first = sorted(known)
        while len(known) < count:
            known.add(artwork := _draw_artwork(rng, genres[title], cast[title], len(known)))
            first = first if artwork in first else [*first, artwork]
        drawn += [(title, *artwork) for artwork in first]

    title_A = np.array([title for title, *_ in drawn])
    mood_A = np.array([mood for _, mood, *_ in drawn])
    shows = [people for *_, people, _ in drawn]
    cast_IP = np.zeros((titles, people))
    for title, names in enumerate(cast):
        cast_IP[title, names] = BILLING[: len(names)]
    misleads_A = np.array([float(m not in genres[t] or (len(w) == 1 and w[0] in cast[t][3:])) for t, m, w, _ in drawn])
    quality_A = np.clip(rng.uniform(-1, 1, len(drawn)) + 0.3 * misleads_A, -1, 1)  # clickbait is made to be clicked
    quality_A[title_A < 2] *= 0.3  # in the two examples the choice is about taste
    later_A = (rng.random(len(drawn)) < 0.1) & (index_within(title_A) >= 2)
    released_I = np.where(
        rng.random(titles) < 0.12, rng.uniform(0, 0.9 * days, titles), -(rng.gamma(1.2, 3000, titles))
    )
    released_I[:2] = (-4000.0, -9000.0)
    return SimulatedCatalogue(
        people=_names(rng, people, words=2),
        title_names=_names(rng, titles, words=1, before=("The ", "", "Last ", "A ", "Beyond ", "Return to ")),
        title_genres=genres,
        title_cast=cast,
        genres_IG=np.stack([np.isin(np.arange(len(GENRES)), g) / len(g) for g in genres]),
        cast_IP=cast_IP,
        popularity_I=rng.normal(0.0, 0.6, titles),
        released_I=released_I,
        title_A=title_A,
        mood_A=mood_A,
        shows=shows,
        pair_A2=np.array([(shown[0], shown[-1]) for shown in shows]),
        close_A=np.array([2.0 * close - 1.0 for *_, close in drawn]),
        quality_A=quality_A,
        misleads_A=misleads_A,
        added_A=np.where(later_A, rng.uniform(0, 0.9 * days, len(drawn)), 0.0),
    )


def simulate_members(rng: np.random.Generator, *, members: int, people: int, days: int) -> SimulatedMembers:
    """Members like one to three genres and follow a few people, mostly of those genres; age and country lean on it."""
    age_M = rng.choice(len(AGE_BANDS), members, p=(0.3, 0.3, 0.25, 0.15))
    country_M = rng.choice(len(COUNTRIES), members, p=(0.18, 0.16, 0.26, 0.12, 0.28))
    lean_MG = rng.normal(0, 0.7, (len(AGE_BANDS), len(GENRES)))[age_M]
    lean_MG = lean_MG + rng.normal(0, 0.5, (len(COUNTRIES), len(GENRES)))[country_M]
    order_MG = np.argsort(-(lean_MG + rng.gumbel(size=lean_MG.shape)), 1)
    liked_M = rng.choice((1, 2, 3), members, p=(0.35, 0.45, 0.2))
    liked_MG = np.zeros(lean_MG.shape)
    np.put_along_axis(liked_MG, order_MG, np.arange(len(GENRES)) < liked_M[:, None], 1)
    taste_MG = liked_MG * rng.uniform(1.9, 2.5, liked_MG.shape) + rng.normal(0, 0.2, liked_MG.shape)
    taste_MG -= taste_MG.mean(1, keepdims=True)

    home_MP = liked_MG[:, np.arange(people) % len(GENRES)]
    rank_MP = np.argsort(np.argsort(-(1.2 * home_MP + rng.gumbel(size=home_MP.shape)), 1), 1)
    followed_MP = rank_MP < rng.integers(1, 4, members)[:, None]
    joined_M = np.where(rng.random(members) < 0.25, rng.uniform(0, 0.95 * days, members), 0.0)
    return SimulatedMembers(
        taste_MG=taste_MG,
        fandom_MP=np.where(followed_MP, rng.uniform(1.4, 2.2, home_MP.shape), 0.0),
        country_M=country_M,
        device_M=rng.choice(len(DEVICES), members, p=(0.4, 0.4, 0.2)),
        age_M=age_M,
        joined_M=joined_M,
    )


def draw_own_tastes(rng: np.random.Generator, catalogue: SimulatedCatalogue, members: int) -> np.ndarray:
    """Normal weights of what artworks show, of shape (M, V), by which the candidates of a title differ by 1, root mean square."""
    visible_AV, titles = visible_attributes(catalogue), len(catalogue.title_names)
    count_I = np.bincount(catalogue.title_A, minlength=titles)
    mean_IV = np.zeros((titles, visible_AV.shape[1]))
    np.add.at(mean_IV, catalogue.title_A, visible_AV)
    apart_A = ((visible_AV - (mean_IV / count_I[:, None])[catalogue.title_A]) ** 2).sum(1)
    variance_I = np.bincount(catalogue.title_A, apart_A, titles) / count_I
    return rng.normal(0.0, variance_I.mean() ** -0.5, (members, visible_AV.shape[1]))


def _draw_genres(rng: np.random.Generator, first: int) -> list[int]:
    """One to three genres; the others go with the first."""
    chosen = [first]
    for _ in range(int(rng.choice((0, 1, 2), p=(0.3, 0.5, 0.2)))):
        name = GENRES[first]
        weight = np.array([_TOGETHER.get((name, g), _TOGETHER.get((g, name), 0.5)) for g in GENRES])
        weight[chosen] = 0.0
        chosen.append(int(rng.choice(len(GENRES), p=weight / weight.sum())))
    return chosen


def _draw_cast(rng: np.random.Generator, home_P: np.ndarray, fame_P: np.ndarray, genres: list[int]) -> list[int]:
    """Two to four people in billing order, mostly known from the title's genres."""
    weight = fame_P * np.where(np.isin(home_P, genres), 10.0, 1.0)
    return [int(p) for p in rng.choice(len(home_P), int(rng.integers(2, 5)), replace=False, p=weight / weight.sum())]


def _draw_artwork(
    rng: np.random.Generator, genres: list[int], cast: list[int], ordinal: int
) -> tuple[int, tuple[int, ...], int]:
    """Mood, people and framing. The first artworks go through the title's genres, later ones may be of another mood."""
    mood = genres[ordinal % len(genres)]
    if ordinal >= 2 and rng.random() < _MISREPRESENTS:
        mood = int(rng.choice([g for g in range(len(GENRES)) if g not in genres]))
    draw = rng.random()
    if draw < 0.12 and len(cast) == 4:
        shown = (cast[3],)
    elif draw < 0.35:
        shown = tuple(int(p) for p in rng.permutation(cast[:3])[:2])
    else:
        shown = (int(rng.choice(cast[:3])),)
    return mood, shown, int(rng.random() < 0.5)


def index_within(owner: np.ndarray) -> np.ndarray:
    """0, 1, ... within each run of equal values."""
    return np.arange(len(owner)) - np.searchsorted(owner, owner)


def _names(rng: np.random.Generator, count: int, *, words: int, before: tuple[str, ...] = ("",)) -> list[str]:
    """Invented names, all different."""
    starts = ("Ba", "Cor", "Del", "Es", "Fio", "Gar", "Hal", "Ir", "Jo", "Kes", "Lu", "Mar", "Nor", "Ol", "Per", "Ru")
    ends = (
        "bert",
        "da",
        "dine",
        "lan",
        "lis",
        "mond",
        "na",
        "ra",
        "rick",
        "rin",
        "sen",
        "tin",
        "vale",
        "vi",
        "wyn",
        "zo",
    )
    names: list[str] = []
    while len(names) < count:
        parts = ["".join(rng.choice(part) for part in (starts, ends)) for _ in range(words)]
        if words == 1 and rng.random() < 0.5:
            parts.append("".join(rng.choice(part) for part in (starts, ends)))
        name = str(rng.choice(before)) + " ".join(parts)
        if name not in names:
            names.append(name)
    return names
