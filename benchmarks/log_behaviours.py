"""How simulated logs are written: loggers that are honest, loggers that lie about their propensities, damage done afterwards.

Legend: N impressions, K candidates, M members, A artworks, D days.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulated_logs import DAYS, START, TITLES, WIDTH, Damage, Drawn, Logger, LoggerOf, Traffic, softmax
from evaluation.logs.context_levels import MICROSECONDS_AN_HOUR

# --- loggers: honest ones


def _uniform(t: Traffic) -> NDArray[np.float64]:
    return np.full(t.click_NK.shape, 1 / WIDTH)


def _greedy(value_NK: NDArray) -> NDArray[np.float64]:
    return (np.arange(WIDTH) == value_NK.argmax(1)[:, None]).astype(float)


def _older(t: Traffic) -> NDArray[np.float64]:
    """Scores of an older model of members' tastes."""
    return t.wanted_NK + t.rng.normal(0, 0.7, t.wanted_NK.shape)


def _fixed(t: Traffic, strength: float) -> NDArray[np.float64]:
    """Propensities that are the same for everybody, by title."""
    value_A = strength * np.random.default_rng(11).normal(0, 1, TITLES * WIDTH)
    return softmax(value_A[t.title_N[:, None] * WIDTH + np.arange(WIDTH)])


def honest_uniform(t: Traffic) -> Logger:
    """Every artwork equally likely."""
    return Logger(true_NK=_uniform(t))


def epsilon_greedy(t: Traffic, share: float = 0.1) -> Logger:
    """The older model's favourite, and in a share of the impressions any artwork."""
    return Logger(true_NK=(1 - share) * _greedy(_older(t)) + share / WIDTH)


def softmax_by_member(t: Traffic, sharpness: float = 1.5) -> Logger:
    """A softmax over the older model's scores."""
    return Logger(true_NK=softmax(sharpness * _older(t)))


def rare_artworks(t: Traffic) -> Logger:
    """Propensities as low as .001."""
    order_NK = _older(t).argsort(1).argsort(1)
    return Logger(true_NK=np.array([0.001, 0.009, 0.09, 0.9])[order_NK])


def rounded(t: Traffic) -> Logger:
    """A softmax whose propensities were logged with three decimals."""
    true_NK = softmax(1.5 * _older(t))
    near_NK = np.maximum(np.rint(1000 * true_NK), 1) / 1000
    near_NK[np.arange(len(t)), near_NK.argmax(1)] += 1 - near_NK.sum(1)
    return Logger(true_NK=true_NK, logged_NK=near_NK)


def thompson(t: Traffic) -> Logger:
    """Beta posteriors of every artwork that learn from day to day; propensities by 1,000 draws, from which is drawn."""
    day_N = (t.at_N - START) // (24 * MICROSECONDS_AN_HOUR)
    artwork_NK = t.title_N[:, None] * WIDTH + np.arange(WIDTH)
    success_A, failure_A = np.ones((2, TITLES * WIDTH))
    true_NK = np.zeros(t.click_NK.shape)
    for day in range(int(day_N.max()) + 1):
        draws = t.rng.beta(success_A, 5 * failure_A, (1000, TITLES * WIDTH)).reshape(1000, TITLES, WIDTH)
        share_TK = 0.95 * _greedy(draws.reshape(-1, WIDTH)).reshape(1000, TITLES, WIDTH).mean(0) + 0.05 / WIDTH
        at = np.flatnonzero(day_N == day)
        true_NK[at] = share_TK[t.title_N[at]]
        shown = (true_NK[at].cumsum(1) < t.rng.random(len(at))[:, None]).sum(1).clip(max=WIDTH - 1)
        clicked = t.rng.random(len(at)) < t.click_NK[at, shown]
        success_A += np.bincount(artwork_NK[at, shown], clicked, TITLES * WIDTH)
        failure_A += np.bincount(artwork_NK[at, shown], 0.2 * ~clicked, TITLES * WIDTH)
    return Logger(true_NK=true_NK)


def several(t: Traffic, who_N: NDArray[np.int64] | None = None) -> Logger:
    """Three loggers, at random by default: uniform, one policy for everybody, another one."""
    who_N = t.rng.integers(0, 3, len(t)) if who_N is None else who_N
    every = np.stack([_uniform(t), _fixed(t, 1.0), _fixed(t, -0.7)])
    return Logger(true_NK=every[who_N, np.arange(len(t))], policy_N=who_N, names=("explore", "popular", "contrary"))


def by_member(t: Traffic) -> Logger:
    """Who logs depends on the member, active and willing ones being served by one policy."""
    drawn_M = t.rng.random(int(t.member_N.max()) + 1)
    level_M = np.bincount(t.member_N, t.click_NK.mean(1)) / np.maximum(np.bincount(t.member_N), 1)
    high_M = level_M > np.median(level_M)
    who_M = np.where(drawn_M < np.where(high_M, 0.85, 0.15), 1, 0)
    return several(t, who_M[t.member_N])


def by_device(t: Traffic) -> Logger:
    """Who logs depends on the device."""
    return several(t, t.device_N)


def deterministic(t: Traffic, explored_N: NDArray[np.bool_] | None = None, names: bool = True) -> Logger:
    """Production for certain in 70 % of the impressions, a uniform choice in the others."""
    explored_N = t.rng.random(len(t)) < 0.3 if explored_N is None else explored_N
    true_NK = np.where(explored_N[:, None], 1 / WIDTH, _greedy(_older(t)))
    if not names:
        return Logger(true_NK=true_NK)
    return Logger(true_NK=true_NK, policy_N=explored_N.astype(np.int64), names=("production", "explore"))


def deterministic_by_member(t: Traffic) -> Logger:
    """30 % of the members see a uniform choice, the others production for certain."""
    return deterministic(t, (t.rng.random(int(t.member_N.max()) + 1) < 0.3)[t.member_N])


def deterministic_by_device(t: Traffic) -> Logger:
    """One device sees a uniform choice, the others production for certain."""
    return deterministic(t, t.device_N == 0)


def kept_for_the_period(t: Traffic) -> Logger:
    """Equally likely artworks, drawn once for each member and title and kept: honest, and not independent."""
    pair_N = t.member_N * TITLES + t.title_N
    drawn_N = np.random.default_rng(int(t.rng.integers(2**31))).integers(0, WIDTH, int(pair_N.max()) + 1)[pair_N]
    return Logger(true_NK=(np.arange(WIDTH) == drawn_N[:, None]).astype(float), logged_NK=_uniform(t))


def alone(logger_of: LoggerOf) -> LoggerOf:
    """The same logger, of which only the shown artwork's propensity is logged."""
    return lambda t: replace(logger_of(t), shown_alone=True)


# --- loggers that lie


def even_but_preferring(t: Traffic, sharpness: float = 1.5) -> Logger:
    """Logged 1 / K, while the log prefers what members want."""
    return Logger(true_NK=softmax(sharpness * t.wanted_NK), logged_NK=_uniform(t))


def even_but_unknown_taste(t: Traffic) -> Logger:
    """Logged 1 / K, while each member has favourites that no score knows and no artwork has on average."""
    taste = np.random.default_rng(int(t.rng.integers(2**31))).normal(
        0, 1.5, (int(t.member_N.max()) + 1, TITLES * WIDTH)
    )
    artwork_NK = t.title_N[:, None] * WIDTH + np.arange(WIDTH)
    return Logger(true_NK=softmax(taste[t.member_N[:, None], artwork_NK]), logged_NK=_uniform(t))


def averaged_over_rows(t: Traffic) -> Logger:
    """Sharp in the first two rows, even below; logged as the average over rows."""
    older_NK = _older(t)
    sharp_NK, even_NK = softmax(3 * older_NK), _uniform(t)
    first = float((t.row_N < 2).mean())
    return Logger(
        true_NK=np.where((t.row_N < 2)[:, None], sharp_NK, even_NK), logged_NK=first * sharp_NK + (1 - first) * even_NK
    )


def averaged_over(context: str) -> LoggerOf:
    """One policy for everybody on one device, or at some hours, another elsewhere; logged as the average."""

    def logger(t: Traffic) -> Logger:
        hour_N = t.at_N // MICROSECONDS_AN_HOUR % 24
        here_N = t.device_N == 0 if context == "device" else (hour_N >= 18) | (hour_N < 6)
        one_NK, other_NK, share = _fixed(t, 1.0), _fixed(t, -1.0), float(here_N.mean())
        return Logger(
            true_NK=np.where(here_N[:, None], one_NK, other_NK), logged_NK=share * one_NK + (1 - share) * other_NK
        )

    return logger


def shifted(t: Traffic) -> Logger:
    """Propensities of the candidate before."""
    true_NK = softmax(1.5 * _older(t))
    return Logger(true_NK=true_NK, logged_NK=np.roll(true_NK, 1, axis=1))


def previous_day(t: Traffic) -> Logger:
    """Propensities of the policy of the day before, where the policy changes every day."""
    day_N = (t.at_N - START) // (24 * MICROSECONDS_AN_HOUR)
    value_DA = np.random.default_rng(12).normal(0, 1, (DAYS + 2, TITLES * WIDTH))
    artwork_NK = t.title_N[:, None] * WIDTH + np.arange(WIDTH)
    true_NK, logged_NK = (softmax(value_DA[(day_N + shift)[:, None], artwork_NK]) for shift in (1, 0))
    return Logger(true_NK=true_NK, logged_NK=logged_NK)


def another_list(t: Traffic) -> Logger:
    """Propensities normalised over the title's first two artworks, and the rest spread over the others."""
    true_NK = softmax(1.0 * _older(t))
    logged_NK = true_NK.copy()
    logged_NK[:, :2] *= 0.8 / true_NK[:, :2].sum(1, keepdims=True)
    logged_NK[:, 2:] *= 0.2 / true_NK[:, 2:].sum(1, keepdims=True)
    return Logger(true_NK=true_NK, logged_NK=logged_NK)


def always_the_first(t: Traffic) -> Logger:
    """Logged 1 / K, and the first of the list is shown twice as often as any other."""
    return Logger(true_NK=np.tile([0.4, 0.2, 0.2, 0.2], (len(t), 1)), logged_NK=_uniform(t))


def too_high(t: Traffic) -> Logger:
    """A softmax that was logged half as sharp as it was."""
    older_NK = _older(t)
    return Logger(true_NK=softmax(2 * older_NK), logged_NK=softmax(older_NK))


# --- damage to a log that was drawn


def unclicked_dropped(share: float) -> Damage:
    """Drop a share of the impressions without a click."""
    return lambda drawn, rng: drawn.take(
        np.flatnonzero((drawn.scored.clicked > 0) | (rng.random(len(drawn.scored)) >= share))
    )


def artwork_dropped(drawn: Drawn, rng: np.random.Generator) -> Drawn:
    """Drop the impressions that showed one artwork."""
    shown_N = drawn.scored.artwork_NK[np.arange(len(drawn.scored)), drawn.scored.shown]
    return drawn.take(np.flatnonzero(shown_N != np.bincount(shown_N).argsort()[TITLES * WIDTH // 2]))


def repeated(share: float) -> Damage:
    """A share of the impressions a second time, under other ids."""

    def damage(drawn: Drawn, rng: np.random.Generator) -> Drawn:
        count = len(drawn.scored)
        return drawn.take(np.concatenate([np.arange(count), rng.choice(count, int(share * count), replace=False)]))

    return damage


def _within(drawn: Drawn, low: float, high: float) -> NDArray[np.bool_]:
    at_N = drawn.scored.shown_at
    share_N = (at_N - at_N.min()) / (at_N.max() - at_N.min())
    return (share_N >= low) & (share_N < high)


def impressions_missing(low: float, high: float) -> Damage:
    """No impressions in a part of the period."""
    return lambda drawn, rng: drawn.take(np.flatnonzero(~_within(drawn, low, high)))


def clicks_missing(low: float, high: float, kept: float = 0.0) -> Damage:
    """No clicks, or few, in a part of the period."""

    def damage(drawn: Drawn, rng: np.random.Generator) -> Drawn:
        lost_N = _within(drawn, low, high) & (rng.random(len(drawn.scored)) >= kept)
        clicked_N = np.where(lost_N, 0.0, drawn.scored.clicked)
        return replace(drawn, scored=replace(drawn.scored, clicked=clicked_N, engaged=clicked_N))

    return damage


def one_member(share: float) -> Damage:
    """A share of the impressions becomes one member's."""

    def damage(drawn: Drawn, rng: np.random.Generator) -> Drawn:
        member_N = np.where(rng.random(len(drawn.scored)) < share, 0, drawn.scored.member)
        moved = replace(drawn, scored=replace(drawn.scored, member=member_N))
        return moved.take(np.arange(len(member_N)))

    return damage


def undamaged(drawn: Drawn, rng: np.random.Generator) -> Drawn:
    """The log as it was drawn."""
    return drawn
