"""The law of the simulated service: when a shown artwork is clicked, and when the click leads to a real viewing.

    logit p(click)           = base + affinity + appeal + presentation - fatigue
    affinity(m, i)           = AFFINITY * (taste_m . genres_i + fandom_m . cast_i)
    appeal(m, a, device)     = MOOD * taste_m[mood_a] + PERSON * fandom_m . people_a
                               + QUALITY * quality_a + FRAMING * close_a * side[device] + OWN * own_m . visible_a
    presentation             = PRESENTATION * (-0.35 ln(1 + row) - 0.15 ln(1 + column) + place[device]
                               + 0.2 cos(2 pi (hour - 21) / 24))
    fatigue(m, i, a)         = FATIGUE * (ln(1 + k_a) + ln(1 + k_i) / 2)
    logit p(engaged | click) = ENGAGED + MATCH * (taste_m . genres_i + fandom_m . cast_i) - MISLED * misleads_a
    p(engaged)               = p(click) * p(engaged | click)
    p(a play is rated)       = RATED
    p(a rating is 1, not -1) = 1 / (1 + exp(-STEEPNESS * (match - FIT)))
    p(a play is left early)  = ABANDONED / (1 + exp(STEEPNESS * (match - FIT)))
    match(m, i)              = taste_m . genres_i + fandom_m . cast_i

The words in capitals are the effect sizes, `EffectSizes`, of which OWN, FATIGUE, RATED and ABANDONED are 0 by default, and the
constants FIT and STEEPNESS. taste_m holds a member's taste for every genre, fandom_m for every person, nearly all zero; genres_i
are shares that sum to 1, cast_i is 1 for the lead and less down the bill; people_a are equal shares of the one or two people the
artwork shows, mood_a is the genre it looks like; quality_a lies in -1 .. 1; close_a is 1 for a close-up and -1 for a wide picture;
misleads_a is 1 where the mood is none of the title's genres or the only person shown has a tiny role. Everything that appeal
depends on is visible (`draw_artworks`).

own_m are tastes that no viewing history tells: a weight for every attribute of visible_a, which are the mood, the people's shares,
close_a and quality_a. All weights are normal with one standard deviation, at which the candidates of a title differ by 1 logit
(root mean square about the title's mean, over titles and members) where OWN is 1.
k_a is how many of the member's impressions of this artwork, k_i of this title, were not clicked: those that were shown at most
`TIRED_DAYS` days before, and at least `KNOWN_HOURS` hours, since the outcome of later ones is not known yet. The base is that of
the law without fatigue, so that fatigue lowers the click rate.
Plays that follow a click are engaged or not by this law; only the others are left early: less than a tenth is then watched.

Legend: M members, I titles, A artworks, G genres, P people, V visible attributes, N impressions, K candidates.
"""

from dataclasses import dataclass

import numpy as np

DEVICES = ("mobile", "tv", "web")
DEVICE_FRAMING = (1.0, -1.0, 0.0)
"""By device: a face is seen on a small screen, a scene on a large one."""
DEVICE_EFFECT = (0.0, 0.25, -0.15)
"""By device: how readily anything is clicked."""
ROW, COLUMN, EVENING, EVENING_HOUR = -0.35, -0.15, 0.2, 21
TIRED_DAYS, KNOWN_HOURS = 30, 1
FIT, STEEPNESS = 1.0, 2.0
"""The match from which on a thumb is rather up than down, and how sharply that changes with the match."""
SHARES = ("rated", "abandoned")
OFF_BY_DEFAULT = ("own", "fatigue", *SHARES)
"""Effects without which a service is what it was before there were any of them."""


@dataclass(frozen=True, kw_only=True)
class EffectSizes:
    """The effect sizes of the law, in logits per unit, and two shares of plays."""

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
    own: float = 0.0
    """Tastes of members' own that no viewing history tells; at 1, the candidates of a title differ by about 1 logit."""
    fatigue: float = 0.0
    """What a click loses per ln(1 + k), k earlier impressions of the artwork without a click; per title, half of it."""
    rated: float = 0.0
    """Share of plays with a thumb, -1 or 1; 0 writes no column `rating`."""
    abandoned: float = 0.0
    """Share that is left early, of plays of titles that do not fit the member at all."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, value in vars(self).items():
            low, high = -5 if name == "engaged" else 0, 1 if name in SHARES else 5
            if not low <= value <= high:
                raise ValueError(f"{name}={value}: must lie in {low} .. {high}.")


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
    own_MV: np.ndarray | None = None
    """Weights of visible attributes: moods, people, close-up, quality; None where members have no tastes of their own."""


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


@dataclass(frozen=True, kw_only=True, eq=False)
class TrueTerms:
    """What the law says of every candidate where no member is tired of anything, (N, K)."""

    logit_NK: np.ndarray
    """Logits of a click, with the base."""
    engaged_NK: np.ndarray
    """p(engaged | click)."""
    mask_NK: np.ndarray
    base: float
    """Such that a uniform policy gets the click rate on these impressions."""

    def probabilities(self, fatigue_NK: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """p(click) and p(engaged), float32 of shape (N, K), 0 in padding."""
        click_NK = np.where(self.mask_NK, sigmoid(self.logit_NK - fatigue_NK), 0.0)
        return click_NK.astype(np.float32), (click_NK * self.engaged_NK).astype(np.float32)


def visible_attributes(catalogue: SimulatedCatalogue) -> np.ndarray:
    """What an artwork shows, of shape (A, V): its mood, the shares of its people, 1 for a close-up and -1 for wide, quality."""
    artworks = np.arange(len(catalogue.title_A))
    mood_AG = np.zeros((len(artworks), catalogue.genres_IG.shape[1]))
    mood_AG[artworks, catalogue.mood_A] = 1.0
    people_AP = np.zeros((len(artworks), catalogue.cast_IP.shape[1]))
    for slot in (0, 1):
        people_AP[artworks, catalogue.pair_A2[:, slot]] += 0.5
    return np.hstack([mood_AG, people_AP, catalogue.close_A[:, None], catalogue.quality_A[:, None]])


def match(
    members: SimulatedMembers, catalogue: SimulatedCatalogue, member_N: np.ndarray, title_N: np.ndarray
) -> np.ndarray:
    """taste . genres + fandom . cast, of shape (N,)."""
    by_genre_N = np.einsum("ng,ng->n", members.taste_MG[member_N], catalogue.genres_IG[title_N])
    return by_genre_N + np.einsum("np,np->n", members.fandom_MP[member_N], catalogue.cast_IP[title_N])


def true_terms(
    strengths: EffectSizes,
    members: SimulatedMembers,
    catalogue: SimulatedCatalogue,
    shown: SimulatedImpressions,
    click_rate: float,
) -> TrueTerms:
    """The law of these impressions, whose base is chosen such that a uniform policy gets `click_rate` on them."""
    mask_NK = shown.candidates_NK >= 0
    match_N = match(members, catalogue, shown.member_N, shown.title_N)
    presentation_N = (
        ROW * np.log1p(shown.row_N) + COLUMN * np.log1p(shown.column_N) + np.array(DEVICE_EFFECT)[shown.device_N]
    )
    presentation_N += EVENING * np.cos(2 * np.pi * (shown.hour_N - EVENING_HOUR) / 24)
    base_logit_N = strengths.affinity * match_N + strengths.presentation * presentation_N
    logit_NK = base_logit_N[:, None] + _appeal_NK(strengths, members, catalogue, shown)

    base = _base_for(click_rate, logit_NK, mask_NK)
    engaged_NK = strengths.engaged + strengths.match * match_N[:, None]
    engaged_NK = sigmoid(engaged_NK - strengths.misled * catalogue.misleads_A[shown.candidates_NK])
    return TrueTerms(logit_NK=logit_NK + base, engaged_NK=engaged_NK, mask_NK=mask_NK, base=base)


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
    if strengths.own:
        assert members.own_MV is not None, "drawn with the members"
        own_MV, first_person = members.own_MV, members.taste_MG.shape[1]
        own_NK = own_MV[member_N1, catalogue.mood_A[candidates_NK]]
        for slot in (0, 1):
            own_NK += 0.5 * own_MV[member_N1, first_person + catalogue.pair_A2[:, slot][candidates_NK]]
        own_NK += own_MV[member_N1, -2] * catalogue.close_A[candidates_NK]
        own_NK += own_MV[member_N1, -1] * catalogue.quality_A[candidates_NK]
        appeal_NK += strengths.own * own_NK
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
        if (share_NK * sigmoid(logit_NK + middle)).sum() < click_rate:
            low = middle
        else:
            high = middle
    return round((low + high) / 2, 6)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + np.exp(-x))
