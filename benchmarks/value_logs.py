"""Logs that lie and logs that do not: how often `keyart value` doubts each, and whether its intervals hold where it does not.

    uv run python -m benchmarks.value_logs --replications 50

Every replication draws a log of known truth (10,000 to 30,000 impressions of about 1,000 members, 4 artworks a title), reviews it
as `keyart value` does and estimates the policies. `rows` returns (scenario, wanted, measured, replications).

Legend: N impressions, K candidates, M members, A artworks, T titles, S styles.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from evaluation.logs.context_levels import MICROSECONDS_AN_HOUR, ContextLevels, context_levels
from evaluation.logs.log_review import LogReview, WeightsOption, review_log
from evaluation.logs.log_slices import ImpressionAttributes
from evaluation.logs.scored_log import ScoredLog
from evaluation.off_policy.valuation import estimate, importance_weights
from evaluation.record.rows import Estimates
from foundation.context import BUILT_IN
from foundation.lists import Lists

TITLES, WIDTH, STYLES, DAYS = 20, 4, 3, 14
DEVICES = ("tv", "phone", "tablet")
START = 20_000 * 24 * MICROSECONDS_AN_HOUR
"""The first moment of every log, in microseconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Impressions before an artwork is chosen, and the truth about them."""

    rng: np.random.Generator
    member_N: NDArray[np.int64]
    title_N: NDArray[np.int64]
    device_N: NDArray[np.int64]
    row_N: NDArray[np.int64]
    at_N: NDArray[np.int64]
    click_NK: NDArray[np.float64]
    """True click probabilities."""
    wanted_NK: NDArray[np.float64]
    """True appeal of every candidate, in logits."""
    score_NK: NDArray[np.float64]
    """Its appeal by a model that knows it with some noise, in logits."""

    def __len__(self) -> int:
        """N."""
        return len(self.member_N)


@dataclass(frozen=True, kw_only=True)
class Logger:
    """How artworks were chosen, what was logged of it, and by whose name; arrays as of a `Traffic`."""

    true_NK: NDArray[np.float64]
    logged_NK: NDArray[np.float64] | None = None
    """None: as was done."""
    policy_N: NDArray[np.int64] | None = None
    names: tuple[str, ...] = ("production",)
    shown_alone: bool = False
    """Whether only the shown artwork's propensity is logged."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A log with its truth."""

    scored: ScoredLog
    attributes: ImpressionAttributes
    click_NK: NDArray[np.float64]

    def take(self, rows: NDArray[np.integer]) -> "Drawn":
        """Some impressions, ordered by member."""
        rows = rows[np.argsort(self.scored.member[rows], kind="stable")]
        return Drawn(scored=self.scored.take(rows), attributes=self.attributes.take(rows), click_NK=self.click_NK[rows])

    def truth(self, policy_NK: NDArray) -> float:
        """Mean click probability under a policy."""
        return float((self.click_NK * policy_NK).sum(1).mean())


LoggerOf = Callable[[Traffic], Logger]
Damage = Callable[[Drawn, np.random.Generator], Drawn]


class ResultRow(NamedTuple):
    """One line of the table."""

    scenario: str
    wanted: str
    measured: str
    replications: int


@dataclass(frozen=True, kw_only=True)
class Service:
    """Sizes of a simulated service."""

    members: int = 1000
    impressions: int = 20_000
    spread: float = 0.8
    """Standard deviation of the logarithm of members' activity."""
    click_logit: float = -2.3
    taste: float = 0.9
    night: float = 0.05
    """Traffic of the quietest hour, as a share of the busiest."""
    burst: float = 0.0
    """Share of the impressions that come in sessions of half an hour."""


def draw_traffic(service: Service, seed: int) -> Traffic:
    """Members of different activity, level and taste meet titles, at hours of the day that differ much."""
    world, rng = np.random.default_rng(7), np.random.default_rng(seed)
    title_T, style_AS = world.normal(0, 0.4, TITLES), world.normal(0, 0.5, (TITLES * WIDTH, STYLES))
    quality_A = world.normal(0, 0.35, TITLES * WIDTH)
    activity_M = np.exp(rng.normal(0, service.spread, service.members))
    member_N = np.sort(rng.choice(service.members, service.impressions, p=activity_M / activity_M.sum()))
    count = len(member_N)
    taste_MS, level_M = rng.normal(0, service.taste, (service.members, STYLES)), rng.normal(0, 0.6, service.members)
    title_N = rng.choice(TITLES, count, p=_softmax(world.normal(0, 0.5, (1, TITLES)))[0])
    artwork_NK = title_N[:, None] * WIDTH + np.arange(WIDTH)
    wanted_NK = quality_A[artwork_NK] + np.einsum("nks,ns->nk", style_AS[artwork_NK], taste_MS[member_N])
    device_N = np.minimum(rng.integers(0, 3, service.members)[member_N] + (rng.random(count) < 0.2), 2)
    row_N = np.minimum(rng.geometric(0.35, count) - 1, 6)
    logit_N = (
        service.click_logit + level_M[member_N] + title_T[title_N] + np.array([0.5, 0.0, -0.5])[device_N] - 0.12 * row_N
    )
    busy_H = service.night + (1 - service.night) * (1 + np.cos((np.arange(24) - 20) / 24 * 2 * np.pi)) / 2
    hour_N = rng.choice(24, count, p=busy_H / busy_H.sum()) + 24 * rng.integers(0, DAYS, count)
    at_N = START + hour_N * MICROSECONDS_AN_HOUR + rng.integers(0, MICROSECONDS_AN_HOUR, count)
    in_session_N = rng.random(count) < service.burst
    begins_M = at_N[np.searchsorted(member_N, np.arange(service.members)).clip(max=count - 1)]
    session_N = begins_M[member_N] + rng.integers(0, MICROSECONDS_AN_HOUR // 2, count)
    return Traffic(
        rng=rng,
        member_N=member_N,
        title_N=title_N,
        device_N=device_N,
        row_N=row_N,
        at_N=np.where(in_session_N, session_N, at_N),
        click_NK=1 / (1 + np.exp(-logit_N[:, None] - wanted_NK)),
        wanted_NK=wanted_NK,
        score_NK=wanted_NK + rng.normal(0, 0.5, wanted_NK.shape),
    )


def _softmax(value_NK: NDArray) -> NDArray[np.float64]:
    raised_NK = np.exp(value_NK - value_NK.max(1, keepdims=True))
    return raised_NK / raised_NK.sum(1, keepdims=True)


def draw_log(service: Service, logger_of: LoggerOf, seed: int) -> Drawn:
    """A log whose scored policy is a sharp softmax over the noisy scores."""
    traffic = draw_traffic(service, seed)
    logger = logger_of(traffic)
    count, rng = len(traffic), traffic.rng
    shown_N = (logger.true_NK.cumsum(1) < rng.random(count)[:, None]).sum(1).clip(max=WIDTH - 1)
    rows = np.arange(count)
    logged_NK = logger.true_NK if logger.logged_NK is None else logger.logged_NK
    logged_NK = logged_NK.astype(np.float32).astype(np.float64)
    clicked_N = (rng.random(count) < traffic.click_NK[rows, shown_N]).astype(float)
    engaged_N = clicked_N * (rng.random(count) < 0.6)
    width_N = np.full(count, WIDTH)

    def lists(values_NK: NDArray, padding: float = 0) -> Lists:
        return Lists.of(values_NK.ravel(), width_N, padding)

    artwork_NK = traffic.title_N[:, None] * WIDTH + np.arange(WIDTH)
    policy_N = np.zeros(count, np.int64) if logger.policy_N is None else logger.policy_N
    propensity_NK = np.full(logged_NK.shape, np.nan) if logger.shown_alone else logged_NK
    scored = ScoredLog(
        impression_id=pa.array(rows).cast(pa.string()),
        member=traffic.member_N,
        title=traffic.title_N,
        artworks=pa.array([f"t{a // WIDTH}/{a % WIDTH}" for a in range(TITLES * WIDTH)]),
        artwork_NK=lists(artwork_NK.astype(np.int32), -1),
        shown=shown_N,
        propensity=logged_NK[rows, shown_N],
        propensity_NK=lists(propensity_NK.astype(np.float32)),
        shown_at=traffic.at_N,
        logging_policy=policy_N,
        logging_policies=logger.names,
        missing=0,
        unknown=0,
        randomised=np.all(np.abs(logged_NK - 1 / WIDTH) < 1e-3, axis=1),
        clicked=clicked_N,
        engaged=engaged_N,
        click_probability_NK=lists((1 / (1 + np.exp(2.0 - traffic.score_NK))).astype(np.float32)),
        policy_NK=lists(_softmax(4 * traffic.score_NK).astype(np.float32)),
        engaged_probability=None,
        true_click_NK=None,
        true_engaged_NK=None,
    )
    attributes = ImpressionAttributes(
        member=pa.array(traffic.member_N).cast(pa.string()),
        title=pa.array(traffic.title_N).cast(pa.string()),
        columns={
            "device": pa.array(np.array(DEVICES)[traffic.device_N]),
            "row": pa.array(traffic.row_N),
            "country": pa.array(np.array(["NL", "DE", "FR", "US"])[traffic.member_N % 4]),
        },
        features=BUILT_IN,
    )
    return Drawn(scored=scored, attributes=attributes, click_NK=traffic.click_NK)


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
    return _softmax(value_A[t.title_N[:, None] * WIDTH + np.arange(WIDTH)])


def honest_uniform(t: Traffic) -> Logger:
    """Every artwork equally likely."""
    return Logger(true_NK=_uniform(t))


def epsilon_greedy(t: Traffic, share: float = 0.1) -> Logger:
    """The older model's favourite, and in a share of the impressions any artwork."""
    return Logger(true_NK=(1 - share) * _greedy(_older(t)) + share / WIDTH)


def softmax_by_member(t: Traffic, sharpness: float = 1.5) -> Logger:
    """A softmax over the older model's scores."""
    return Logger(true_NK=_softmax(sharpness * _older(t)))


def rare_artworks(t: Traffic) -> Logger:
    """Propensities as low as .001."""
    order_NK = _older(t).argsort(1).argsort(1)
    return Logger(true_NK=np.array([0.001, 0.009, 0.09, 0.9])[order_NK])


def rounded(t: Traffic) -> Logger:
    """A softmax whose propensities were logged with three decimals."""
    true_NK = _softmax(1.5 * _older(t))
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
    return Logger(true_NK=_softmax(sharpness * t.wanted_NK), logged_NK=_uniform(t))


def even_but_unknown_taste(t: Traffic) -> Logger:
    """Logged 1 / K, while each member has favourites that no score knows and no artwork has on average."""
    taste = np.random.default_rng(int(t.rng.integers(2**31))).normal(
        0, 1.5, (int(t.member_N.max()) + 1, TITLES * WIDTH)
    )
    artwork_NK = t.title_N[:, None] * WIDTH + np.arange(WIDTH)
    return Logger(true_NK=_softmax(taste[t.member_N[:, None], artwork_NK]), logged_NK=_uniform(t))


def averaged_over_rows(t: Traffic) -> Logger:
    """Sharp in the first two rows, even below; logged as the average over rows."""
    older_NK = _older(t)
    sharp_NK, even_NK = _softmax(3 * older_NK), _uniform(t)
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
    true_NK = _softmax(1.5 * _older(t))
    return Logger(true_NK=true_NK, logged_NK=np.roll(true_NK, 1, axis=1))


def previous_day(t: Traffic) -> Logger:
    """Propensities of the policy of the day before, where the policy changes every day."""
    day_N = (t.at_N - START) // (24 * MICROSECONDS_AN_HOUR)
    value_DA = np.random.default_rng(12).normal(0, 1, (DAYS + 2, TITLES * WIDTH))
    artwork_NK = t.title_N[:, None] * WIDTH + np.arange(WIDTH)
    true_NK, logged_NK = (_softmax(value_DA[(day_N + shift)[:, None], artwork_NK]) for shift in (1, 0))
    return Logger(true_NK=true_NK, logged_NK=logged_NK)


def another_list(t: Traffic) -> Logger:
    """Propensities normalised over the title's first two artworks, and the rest spread over the others."""
    true_NK = _softmax(1.0 * _older(t))
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
    return Logger(true_NK=_softmax(2 * older_NK), logged_NK=_softmax(older_NK))


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


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A kind of log and what is wanted of it."""

    name: str
    logger: LoggerOf = honest_uniform
    damage: Damage = undamaged
    service: Service = field(default_factory=Service)
    doubted: bool = False
    """Whether it is to be doubted; an honest log is not."""
    covered: bool = False
    """Whether the intervals' coverage is measured."""
    weights: WeightsOption = "auto"


HEAVY = Service(spread=1.5, burst=0.7, night=0.01)
HONEST = (
    Scenario(name="uniform"),
    Scenario(name="epsilon-greedy", logger=epsilon_greedy),
    Scenario(name="softmax by member", logger=softmax_by_member),
    Scenario(name="Thompson sampling", logger=thompson),
    Scenario(name="three loggers at random", logger=several, covered=True),
    Scenario(name="three loggers by member", logger=by_member, covered=True),
    Scenario(name="three loggers by device", logger=by_device, covered=True),
    Scenario(name="70 % deterministic, by impression", logger=deterministic, covered=True),
    Scenario(name="70 % deterministic, by member", logger=deterministic_by_member, covered=True),
    Scenario(name="70 % deterministic, unnamed", logger=lambda t: deterministic(t, names=False), covered=True),
    Scenario(name="three decimals", logger=rounded),
    Scenario(name="propensities of .001", logger=rare_artworks),
    Scenario(name="heavy members, bursts, quiet nights", logger=softmax_by_member, service=HEAVY),
    Scenario(name="rare clicks", service=Service(click_logit=-4.5, impressions=30_000)),
    Scenario(name="10,000 impressions", logger=epsilon_greedy, service=Service(impressions=10_000)),
    Scenario(name="drawn once for each member and title", logger=kept_for_the_period),
    Scenario(name="uniform, shown propensity alone", logger=alone(honest_uniform)),
    Scenario(name="softmax, shown propensity alone", logger=alone(softmax_by_member)),
    Scenario(name="propensities of .001, shown propensity alone", logger=alone(rare_artworks)),
)
LYING = (
    Scenario(name="logged 1/K, prefers what members want", logger=even_but_preferring),
    Scenario(name="logged 1/K, prefers it a little", logger=lambda t: even_but_preferring(t, 0.4)),
    Scenario(name="logged 1/K, members' favourites unknown to the scores", logger=even_but_unknown_taste),
    Scenario(name="logged as the average over page rows", logger=averaged_over_rows),
    Scenario(name="logged as the average over devices", logger=averaged_over("device")),
    Scenario(name="logged as the average over hours", logger=averaged_over("hour")),
    Scenario(name="propensities of the candidate before", logger=shifted),
    Scenario(name="propensities of the day before", logger=previous_day),
    Scenario(name="normalised over another list", logger=another_list),
    Scenario(name="first of the list preferred", logger=always_the_first),
    Scenario(name="logged half as sharp", logger=too_high),
    Scenario(name="only clicked impressions", damage=unclicked_dropped(1.0)),
    Scenario(name="90 % of the unclicked dropped", damage=unclicked_dropped(0.9)),
    Scenario(name="one artwork's impressions missing", damage=artwork_dropped),
    Scenario(name="1/K and prefers, shown propensity alone", logger=alone(even_but_preferring)),
    Scenario(name="candidate before, shown propensity alone", logger=alone(shifted)),
    Scenario(name="half as sharp, shown propensity alone", logger=alone(too_high)),
    Scenario(name="balanced weights, loggers by device", logger=by_device, weights="balanced"),
    Scenario(name="balanced weights, loggers by member", logger=by_member, weights="balanced"),
    Scenario(name="5 % repeated under other ids", damage=repeated(0.05)),
    Scenario(name="1 % repeated under other ids", logger=softmax_by_member, damage=repeated(0.01)),
    Scenario(name="impressions missing in the middle half", damage=impressions_missing(0.25, 0.75)),
    Scenario(name="impressions missing for a day", damage=impressions_missing(0.4, 0.48)),
    Scenario(name="clicks missing in the middle half", damage=clicks_missing(0.25, 0.75)),
    Scenario(name="clicks missing for half a day", damage=clicks_missing(0.4, 0.44)),
    Scenario(name="9 of 10 clicks missing for a day", damage=clicks_missing(0.4, 0.48, 0.1)),
    Scenario(name="one member with 15 %", damage=one_member(0.15)),
)
LYING = tuple(replace(scenario, doubted=True) for scenario in LYING)
SCENARIOS = (*HONEST, *LYING)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was said of one log."""

    review: LogReview
    estimates: Estimates
    truth: dict[str, float]


def levels_of(drawn: Drawn) -> list[ContextLevels]:
    """The context of a drawn log."""
    return context_levels(drawn.scored, drawn.attributes)


def draw_scenario(scenario: Scenario, seed: int) -> Drawn:
    """One log of a scenario."""
    return scenario.damage(draw_log(scenario.service, scenario.logger, seed), np.random.default_rng(seed))


def judge(scenario: Scenario, seed: int, draws: int = 20) -> Outcome:
    """Draw, review and value one log."""
    drawn = draw_scenario(scenario, seed)
    clicks_alone = replace(drawn.scored, engaged=None)
    review = review_log(clicks_alone, levels_of(drawn), weights=scenario.weights)
    scored = review.scored
    even_NK = np.full((len(scored), WIDTH), 1 / WIDTH)
    policies = {"scored": scored.policy_NK.__getitem__, "uniform": lambda rows: even_NK[rows]}
    weighted_log = importance_weights(review.log, policies)
    estimates = estimate(weighted_log, doubts=review.doubts, replay_doubts=review.replay_doubts, draws=draws)
    every = slice(None)
    truth = {
        "scored": drawn.truth(drawn.scored.policy_NK[every]),
        "uniform": drawn.truth(np.full(drawn.click_NK.shape, 1 / WIDTH)),
    }
    return Outcome(review=review, estimates=estimates, truth=truth)


def verdict_of(estimates: Estimates, policy: str = "scored", estimator: str = "dr") -> str:
    """The verdict on clicks under a policy."""
    keys = [(row["policy"], row["estimator"], row["reward"], row["verdict"]) for row in estimates["verdicts"]]
    return next(verdict for *key, verdict in keys if key == [policy, estimator, "clicked"])


def doubted(scenario: Scenario, seeds: Sequence[int]) -> int:
    """How many logs are doubted: by the review, or by the verdict on the scored policy where the log lies."""
    count = 0
    for seed in seeds:
        drawn = draw_scenario(scenario, seed)
        doubts = bool(review_log(drawn.scored, levels_of(drawn), weights=scenario.weights).doubts)
        if scenario.doubted and not doubts:
            doubts = verdict_of(judge(scenario, seed).estimates) != "reliable"
        count += doubts
    return count


def coverage(scenario: Scenario, seeds: Sequence[int]) -> dict[str, list[bool]]:
    """By policy and estimator, whether each interval with the verdict `reliable` contained the truth."""
    held: dict[str, list[bool]] = {}
    for seed in seeds:
        outcome = judge(scenario, seed)
        for row in outcome.estimates["estimates"]:
            name = f"{row['policy']} by {row['estimator']}"
            if row["reward"] != "clicked" or row["estimator"] not in ("dr", "snips", "replay"):
                continue
            held.setdefault(name, [])
            if row["verdict"] == "reliable" and row["low"] is not None and row["high"] is not None:
                held[name].append(row["low"] <= outcome.truth[row["policy"]] <= row["high"])
    return held


def rows(replications: int = 50, scenarios: Sequence[Scenario] = SCENARIOS, covered: int = 300) -> Iterator[ResultRow]:
    """False and missed alarms of every scenario, and the coverage of reliable intervals by `covered` logs."""
    for scenario in scenarios:
        count = doubted(scenario, range(replications))
        wanted = "doubted in all" if scenario.doubted else "doubted in 5 % at most"
        yield ResultRow(scenario.name, wanted, f"doubted in {count} of {replications}", replications)
        if scenario.covered and covered:
            for name, held in coverage(scenario, range(covered)).items():
                share = f"{np.mean(held):.1%}" if held else "none"
                measured = f"{share} of {len(held)} reliable"
                yield ResultRow(f"{scenario.name}: {name}", "92 to 98 % hold", measured, covered)


def main(replications: int, covered: int, names: Sequence[str]) -> None:
    """Print the table line by line."""
    scenarios = [one for one in SCENARIOS if not names or any(name in one.name for name in names)]
    console, table = Console(width=140), Table("scenario", "wanted", "measured", "replications")
    for row in rows(replications, scenarios, covered):
        console.print(
            f"{row.scenario} | {row.wanted} | {row.measured} | {row.replications}", highlight=False, markup=False
        )
        table.add_row(*map(str, row))
    console.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="False and missed alarms of the checks of a log, on logs of known truth."
    )
    parser.add_argument("--replications", type=int, default=50)
    parser.add_argument("--covered", type=int, default=300)
    parser.add_argument("--scenarios", nargs="*", default=[], help="parts of the scenarios' names; default: all")
    arguments = parser.parse_args()
    main(arguments.replications, arguments.covered, arguments.scenarios)
