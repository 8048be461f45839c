"""Events of the simulated service: impressions, clicks and plays.

In: a simulated catalogue and its members. Out: a `SimulatedLog` of impressions in the order of time, with true propensities and
probabilities, and `SimulatedPlays`. Clicks follow `click_law`; titles are shown and played by popularity, freshness and taste.

Legend as in `click_law`, with J plays.
"""

from dataclasses import dataclass

import numpy as np
from rich.progress import Progress

from datamodules.simulator.click_law import (
    DEVICES,
    FIT,
    STEEPNESS,
    EffectSizes,
    SimulatedCatalogue,
    SimulatedImpressions,
    SimulatedMembers,
    match,
    sigmoid,
    true_terms,
)
from datamodules.simulator.fatigue import tired_clicks
from datamodules.simulator.population import COUNTRIES

_DAY = 86_400_000_000  # microseconds
_HOURS = 1.0 + 0.9 * np.cos(2 * np.pi * (np.arange(24) - 20) / 24) + 0.3 * (np.arange(24) == 12)
_CHUNK = 20_000  # rows that are multiplied with every title at once


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedLog:
    """Impressions in the order of time, with their outcomes."""

    shown: SimulatedImpressions
    time_N: np.ndarray
    """Microseconds since day 0."""
    propensities_NK: np.ndarray
    """float32."""
    explore_N: np.ndarray
    chosen_N: np.ndarray
    """Index of the shown artwork among the candidates."""
    clicked_N: np.ndarray
    engaged_N: np.ndarray
    p_click_NK: np.ndarray
    p_engaged_NK: np.ndarray
    base: float
    """The base of the law."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedPlays:
    """Plays by (member, time)."""

    member_J: np.ndarray
    title_J: np.ndarray
    time_J: np.ndarray
    """Microseconds since day 0."""
    watched_J: np.ndarray
    artwork_J: np.ndarray
    """The artwork it was clicked through, -1 for other plays."""
    watched_N: np.ndarray
    """By impression, the fraction watched of the play that its click started; 0 without a click."""
    rating_J: np.ndarray | None
    """1 or -1, NaN where not rated; None where plays have no ratings."""


def draw_log(
    rng: np.random.Generator,
    catalogue: SimulatedCatalogue,
    members: SimulatedMembers,
    progress: Progress,
    *,
    days: int,
    mean_impressions: float,
    explore: float,
    click_rate: float,
    strengths: EffectSizes,
) -> SimulatedLog:
    """Draw visits, titles, positions, candidates, shown artworks and outcomes."""
    count_M = np.maximum(1, rng.poisson(mean_impressions * rng.gamma(2.0, 0.5, len(members.joined_M))))
    member_N, time_N = _draw_visits(rng, count_M, members.joined_M, days)
    order = np.argsort(time_N, kind="stable")
    member_N, time_N = member_N[order], time_N[order]
    rows = len(time_N)
    title_N = _choose_titles(rng, catalogue, members, member_N, time_N, progress, "impressions", pull=0.35)

    own_device_N = rng.random(rows) < 0.75
    device_N = np.where(own_device_N, members.device_M[member_N], rng.integers(0, len(DEVICES), rows))
    # popular titles are shown at high positions, so that a naive model mistakes position for appeal
    row_scale_N = 3.2 * np.exp(-0.35 * catalogue.popularity_I[title_N])
    shown = SimulatedImpressions(
        member_N=member_N,
        title_N=title_N,
        candidates_NK=_draw_candidates(rng, catalogue, title_N, time_N),
        device_N=device_N,
        hour_N=time_N // (_DAY // 24) % 24,
        row_N=np.minimum(rng.exponential(row_scale_N), 11).astype(np.int16),
        column_N=np.minimum(rng.exponential(1.6, rows), np.array([2, 5, 4])[device_N]).astype(np.int16),
    )
    terms = true_terms(strengths, members, catalogue, shown, click_rate)

    explore_N = rng.random(rows) < explore
    propensities_NK = _propensities(rng, strengths, catalogue, members, shown, explore_N)
    reached_NK = np.cumsum(propensities_NK, 1, dtype=np.float64)
    # a draw in (0, sum]: never a candidate of propensity 0, never one past the last
    chosen_N = (reached_NK < (1.0 - rng.random(rows))[:, None] * reached_NK[:, -1:]).sum(1)
    draw_N = rng.random(rows)
    if strengths.fatigue:
        fatigue_NK, clicked_N = tired_clicks(
            strengths.fatigue, terms, catalogue, shown, time_N, chosen_N=chosen_N, draw_N=draw_N
        )
        p_click_NK, p_engaged_NK = terms.probabilities(fatigue_NK)
        click_N = p_click_NK[np.arange(rows), chosen_N]
    else:
        p_click_NK, p_engaged_NK = terms.probabilities()
        click_N = p_click_NK[np.arange(rows), chosen_N]
        clicked_N = draw_N < click_N
    engaged_N = clicked_N & (rng.random(rows) < p_engaged_NK[np.arange(rows), chosen_N] / click_N)
    return SimulatedLog(
        shown=shown,
        time_N=time_N,
        propensities_NK=propensities_NK,
        explore_N=explore_N,
        chosen_N=chosen_N,
        clicked_N=clicked_N,
        engaged_N=engaged_N,
        p_click_NK=p_click_NK,
        p_engaged_NK=p_engaged_NK,
        base=terms.base,
    )


def _draw_visits(
    rng: np.random.Generator, count_M: np.ndarray, joined_M: np.ndarray, days: int
) -> tuple[np.ndarray, np.ndarray]:
    """`count_M` moments per member from joining to the end, mostly in the evening; members in order, times not."""
    member_N = np.repeat(np.arange(len(count_M)), count_M)
    day_N = np.floor(rng.uniform(joined_M[member_N], days)).astype(np.int64)
    hour_N = rng.choice(24, len(member_N), p=_HOURS / _HOURS.sum())
    return member_N, day_N * _DAY + hour_N * (_DAY // 24) + rng.integers(0, _DAY // 24, len(member_N))


def _choose_titles(
    rng: np.random.Generator,
    catalogue: SimulatedCatalogue,
    members: SimulatedMembers,
    member_N: np.ndarray,
    time_N: np.ndarray,
    progress: Progress,
    what: str,
    *,
    pull: float,
) -> np.ndarray:
    """A title for each visit, in proportion to exp(popularity + freshness + pull x match), if released by then."""
    title_N = np.zeros(len(member_N), np.int64)
    task = progress.add_task(what, total=len(member_N))
    for start in range(0, len(member_N), _CHUNK):
        rows = slice(start, start + _CHUNK)
        weight_NI = members.taste_MG[member_N[rows]] @ catalogue.genres_IG.T
        weight_NI += members.fandom_MP[member_N[rows]] @ catalogue.cast_IP.T
        age_NI = time_N[rows, None] / _DAY - catalogue.released_I
        weight_NI = np.exp(pull * weight_NI + catalogue.popularity_I + np.exp(-np.maximum(age_NI, 0.0) / 60.0))
        reached_NI = np.cumsum(np.where(age_NI >= 0, weight_NI, 0.0), axis=1)
        draw_N = (1.0 - rng.random(len(reached_NI))) * reached_NI[:, -1]
        title_N[rows] = (reached_NI < draw_N[:, None]).sum(1)
        progress.advance(task, len(reached_NI))
    return title_N


def _draw_candidates(
    rng: np.random.Generator, catalogue: SimulatedCatalogue, title_N: np.ndarray, time_N: np.ndarray
) -> np.ndarray:
    """Artworks of each title that exist by then; now and then one of three or more is held back. -1 on the right."""
    count_I = np.bincount(catalogue.title_A, minlength=len(catalogue.title_names))
    first_I, max_candidates = np.cumsum(count_I) - count_I, int(count_I.max())
    candidates_NK = first_I[title_N][:, None] + np.arange(max_candidates)
    mask_NK = np.arange(max_candidates) < count_I[title_N][:, None]
    candidates_NK = np.where(mask_NK, candidates_NK, 0)
    mask_NK &= catalogue.added_A[candidates_NK] <= time_N[:, None] / _DAY
    withheld_N = np.where(rng.random(len(title_N)) < 0.12, rng.integers(0, max_candidates, len(title_N)), -1)
    mask_NK &= (np.arange(max_candidates) != withheld_N[:, None]) | (mask_NK.sum(1, keepdims=True) < 3)
    candidates_NK = np.where(mask_NK, candidates_NK, -1)
    left_NK = np.argsort(~mask_NK, axis=1, kind="stable")
    return np.take_along_axis(candidates_NK, left_NK, 1).astype(np.int32)


def _propensities(
    rng: np.random.Generator,
    strengths: EffectSizes,
    catalogue: SimulatedCatalogue,
    members: SimulatedMembers,
    shown: SimulatedImpressions,
    explore_N: np.ndarray,
) -> np.ndarray:
    """The logging policy, float32 of shape (N, K): uniform where it explores, else the older model's softmax."""
    mask_NK = shown.candidates_NK >= 0
    country_CG = np.stack([members.taste_MG[members.country_M == c].mean(0) for c in range(len(COUNTRIES))])
    country_CG = np.nan_to_num(country_CG)  # a country without members
    believed_quality_A = strengths.quality * catalogue.quality_A + rng.normal(0, 0.2, len(catalogue.title_A))
    country_N = members.country_M[shown.member_N]
    score_NK = strengths.mood * country_CG[country_N[:, None], catalogue.mood_A[shown.candidates_NK]]
    score_NK = np.where(explore_N[:, None], 0.0, 2.0 * (score_NK + believed_quality_A[shown.candidates_NK]))
    weight_NK = np.where(mask_NK, np.exp(score_NK), 0.0)
    return (weight_NK / weight_NK.sum(1, keepdims=True)).astype(np.float32)


def draw_plays(
    rng: np.random.Generator,
    catalogue: SimulatedCatalogue,
    members: SimulatedMembers,
    log: SimulatedLog,
    progress: Progress,
    *,
    days: int,
    mean_plays: float,
    strengths: EffectSizes,
    rated_rng: np.random.Generator,
    abandoned_rng: np.random.Generator,
) -> SimulatedPlays:
    """Draw plays without an impression, and those that follow a click.

    A title is seldom played twice by one member: every tenth repetition stays. `rated_rng`, `abandoned_rng`: of ratings, and of
    what is left early.
    """
    play_count_M = rng.poisson(mean_plays * rng.gamma(2.5, 0.4, len(members.joined_M)))
    play_count_M[rng.random(len(members.joined_M)) < 0.05] = 0
    # three times as many as needed: repetitions of a title are dropped, and the first drawn, at whatever time, are kept
    member_J, time_J = _draw_visits(rng, 3 * play_count_M, members.joined_M, days)
    title_J = _choose_titles(rng, catalogue, members, member_J, time_J, progress, "plays", pull=1.6)
    first_J = np.zeros(len(member_J), bool)
    first_J[np.unique(member_J * len(catalogue.title_names) + title_J, return_index=True)[1]] = True
    kept_rows = np.flatnonzero(first_J | (rng.random(len(member_J)) < 0.1))
    ordinal_J = np.arange(len(kept_rows)) - np.searchsorted(member_J[kept_rows], member_J[kept_rows])
    kept_rows = kept_rows[ordinal_J < play_count_M[member_J[kept_rows]]]
    member_J, time_J, title_J = member_J[kept_rows], time_J[kept_rows], title_J[kept_rows]
    watched_J = rng.beta(2.0, 2.0, len(member_J)) * 0.5 + 0.5 / (
        1 + np.exp(-match(members, catalogue, member_J, title_J) - rng.normal(0, 0.8, len(member_J)))
    )

    if strengths.abandoned:
        misfit_J = sigmoid(-STEEPNESS * (match(members, catalogue, member_J, title_J) - FIT))
        left_J = abandoned_rng.random(len(member_J)) < strengths.abandoned * misfit_J
        watched_J = np.where(left_J, abandoned_rng.uniform(0.01, 0.1, len(member_J)), watched_J)

    clicks = np.flatnonzero(log.clicked_N)
    engaged = log.engaged_N[clicks]
    watched = np.where(engaged, rng.uniform(0.35, 1.0, len(clicks)), rng.uniform(0.01, 0.15, len(clicks)))
    delay = rng.integers(2_000_000, 60_000_000, len(clicks))  # strictly after the impression it follows
    member_J = np.concatenate([member_J, log.shown.member_N[clicks]])
    time_J = np.concatenate([time_J, log.time_N[clicks] + delay])
    title_J = np.concatenate([title_J, log.shown.title_N[clicks]])
    artworks = log.shown.candidates_NK[clicks, log.chosen_N[clicks]]
    artwork_J = np.concatenate([np.full(len(title_J) - len(clicks), -1), artworks])
    order = np.lexsort((time_J, member_J))
    watched_N = np.zeros(len(log.clicked_N))
    watched_N[clicks] = watched
    member_J, title_J = member_J[order], title_J[order]
    rating_J = None
    if strengths.rated:
        rated_J = rated_rng.random(len(order)) < strengths.rated
        fit_J = sigmoid(STEEPNESS * (match(members, catalogue, member_J, title_J) - FIT))
        rating_J = np.where(rated_J, np.where(rated_rng.random(len(order)) < fit_J, 1.0, -1.0), np.nan)
    return SimulatedPlays(
        member_J=member_J,
        title_J=title_J,
        time_J=time_J[order],
        watched_J=np.concatenate([watched_J, watched])[order],
        artwork_J=artwork_J[order],
        watched_N=watched_N,
        rating_J=rating_J,
    )
