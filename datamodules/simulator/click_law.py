"""The law of the simulated service: when a shown artwork is clicked, and when the click leads to a real viewing.

    logit p(click)           = base + affinity + appeal + presentation
    affinity(m, i)           = AFFINITY * (taste_m . genres_i + fandom_m . cast_i)
    appeal(m, a, device)     = MOOD * taste_m[mood_a] + PERSON * fandom_m . people_a
                               + QUALITY * quality_a + FRAMING * close_a * side[device]
    presentation             = PRESENTATION * (-0.35 ln(1 + row) - 0.15 ln(1 + column) + place[device]
                               + 0.2 cos(2 pi (hour - 21) / 24))
    logit p(engaged | click) = ENGAGED + MATCH * (taste_m . genres_i + fandom_m . cast_i) - MISLED * misleads_a
    p(engaged)               = p(click) * p(engaged | click)

The words in capitals are the effect sizes, `EffectSizes`. taste_m holds a member's taste for every genre, fandom_m for
every person, nearly all zero; genres_i are shares that sum to 1, cast_i is 1 for the lead and less down the bill;
people_a are equal shares of the one or two people the artwork shows, mood_a is the genre it looks like; quality_a lies
in -1 .. 1; close_a is 1 for a close-up and -1 for a wide picture; misleads_a is 1 where the mood is none of the title's
genres or the only person shown has a tiny role. Everything that appeal depends on is visible (`draw_artworks`).

Legend: M members, I titles, A artworks, G genres, P people, N impressions, K candidates.
"""

from dataclasses import dataclass

import numpy as np

DEVICES = ("mobile", "tv", "web")
DEVICE_FRAMING = (1.0, -1.0, 0.0)
"""By device: a face is seen on a small screen, a scene on a large one."""
DEVICE_EFFECT = (0.0, 0.25, -0.15)
"""By device: how readily anything is clicked."""
ROW, COLUMN, EVENING, EVENING_HOUR = -0.35, -0.15, 0.2, 21


@dataclass(frozen=True, kw_only=True)
class EffectSizes:
    """The effect sizes of the law, in logits per unit."""

    affinity: float = 0.5
    """Effect of the title's genres and cast."""
    mood: float = 0.72
    """Taste for the genre an artwork looks like."""
    person: float = 0.7
    """Being a fan of the people it shows."""
    quality: float = 0.5
    """Contrast and colour; the same for every member."""
    framing: float = 0.15
    """Close-ups on small screens, wide pictures on large ones."""
    presentation: float = 1.0
    """Row, column, device and hour."""
    engaged: float = 0.6
    """Logit of engagement after a click at no match."""
    match: float = 0.5
    """How much a title that fits the member adds to engagement."""
    misled: float = 1.5
    """How much an artwork that misrepresents its title takes from engagement."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, value in vars(self).items():
            if not (-5 if name == "engaged" else 0) <= value <= 5:
                raise ValueError(f"{name}={value}: must lie in {'-5' if name == 'engaged' else '0'} .. 5.")


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedCatalogue:
    """The service's titles and artworks, with attributes that only the simulation knows."""

    people: list[str]
    """Names."""
    title_names: list[str]
    title_genres: list[list[int]]
    title_cast: list[list[int]]
    """In billing order."""
    genres_IG: np.ndarray
    cast_IP: np.ndarray
    popularity_I: np.ndarray
    """Logit."""
    released_I: np.ndarray
    """Day, negative where before the log begins."""
    title_A: np.ndarray
    mood_A: np.ndarray
    shows: list[tuple[int, ...]]
    """People on each artwork, left to right."""
    pair_A2: np.ndarray
    """The people on each artwork as a pair; a single person twice."""
    close_A: np.ndarray
    """1 close-up, -1 wide."""
    quality_A: np.ndarray
    misleads_A: np.ndarray
    """1 or 0."""
    added_A: np.ndarray
    """Day, 0 for artworks of the first day."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedMembers:
    """The service's members, with attributes that only the simulation knows."""

    taste_MG: np.ndarray
    fandom_MP: np.ndarray
    country_M: np.ndarray
    device_M: np.ndarray
    """The device a member mostly uses."""
    age_M: np.ndarray
    """Index of the age band, drawn first: tastes follow it."""
    joined_M: np.ndarray
    """Day of joining, 0 for those who joined before the log began."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedImpressions:
    """Impressions as input of the law; candidates are padded with -1."""

    member_N: np.ndarray
    title_N: np.ndarray
    candidates_NK: np.ndarray
    """int32 artwork rows, from the left."""
    device_N: np.ndarray
    hour_N: np.ndarray
    row_N: np.ndarray
    column_N: np.ndarray


def match(
    members: SimulatedMembers, catalogue: SimulatedCatalogue, member_N: np.ndarray, title_N: np.ndarray
) -> np.ndarray:
    """taste . genres + fandom . cast, of shape (N,)."""
    by_genre_N = np.einsum("ng,ng->n", members.taste_MG[member_N], catalogue.genres_IG[title_N])
    return by_genre_N + np.einsum("np,np->n", members.fandom_MP[member_N], catalogue.cast_IP[title_N])


def true_probabilities(
    strengths: EffectSizes,
    members: SimulatedMembers,
    catalogue: SimulatedCatalogue,
    shown: SimulatedImpressions,
    click_rate: float,
) -> tuple[np.ndarray, np.ndarray, float]:
    """p(click) and p(engaged), float32 of shape (N, K), 0 in padding, and the base.

    The base is chosen such that a uniform policy gets `click_rate` on these impressions.
    """
    mask_NK = shown.candidates_NK >= 0
    match_N = match(members, catalogue, shown.member_N, shown.title_N)
    presentation_N = (
        ROW * np.log1p(shown.row_N) + COLUMN * np.log1p(shown.column_N) + np.array(DEVICE_EFFECT)[shown.device_N]
    )
    presentation_N += EVENING * np.cos(2 * np.pi * (shown.hour_N - EVENING_HOUR) / 24)
    base_logit_N = strengths.affinity * match_N + strengths.presentation * presentation_N
    logit_NK = base_logit_N[:, None] + _appeal_NK(strengths, members, catalogue, shown)

    base = _base_for(click_rate, logit_NK, mask_NK)
    click_NK = np.where(mask_NK, _sigmoid(logit_NK + base), 0.0)
    engaged_NK = strengths.engaged + strengths.match * match_N[:, None]
    engaged_NK = _sigmoid(engaged_NK - strengths.misled * catalogue.misleads_A[shown.candidates_NK])
    return click_NK.astype(np.float32), (click_NK * engaged_NK).astype(np.float32), base


def _appeal_NK(
    strengths: EffectSizes, members: SimulatedMembers, catalogue: SimulatedCatalogue, shown: SimulatedImpressions
) -> np.ndarray:
    """The appeal of each candidate, (N, K)."""
    member_N1, candidates_NK = shown.member_N[:, None], shown.candidates_NK
    appeal_NK = strengths.mood * members.taste_MG[member_N1, catalogue.mood_A[candidates_NK]]
    for slot in (0, 1):
        fandom_NK = members.fandom_MP[member_N1, catalogue.pair_A2[:, slot][candidates_NK]]
        appeal_NK += strengths.person * 0.5 * fandom_NK
    appeal_NK += strengths.quality * catalogue.quality_A[candidates_NK]
    return (
        appeal_NK
        + strengths.framing * catalogue.close_A[candidates_NK] * np.array(DEVICE_FRAMING)[shown.device_N][:, None]
    )


def _base_for(click_rate: float, logit_NK: np.ndarray, mask_NK: np.ndarray) -> float:
    """Bisect for the base at which the mean over impressions of the mean over candidates is `click_rate`."""
    step = max(
        1, len(logit_NK) // 50_000
    )  # a sample determines the base as well, and each of 40 halvings reads all of it
    logit_NK, mask_NK = logit_NK[::step], mask_NK[::step]
    share_NK = mask_NK / mask_NK.sum(1, keepdims=True) / len(mask_NK)
    low, high = -20.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        if (share_NK * _sigmoid(logit_NK + middle)).sum() < click_rate:
            low = middle
        else:
            high = middle
    return round((low + high) / 2, 6)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))
