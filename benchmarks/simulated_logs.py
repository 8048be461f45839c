"""Simulated logs of known truth: members of different activity and taste meet titles; a `Logger` chooses what they see.

Legend: N impressions, K candidates, M members, A artworks, T titles, S styles, H hours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evaluation.logs.context_levels import MICROSECONDS_AN_HOUR
from evaluation.logs.log_slices import ImpressionAttributes
from evaluation.logs.scored_log import ScoredLog
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
    title_N = rng.choice(TITLES, count, p=softmax(world.normal(0, 0.5, (1, TITLES)))[0])
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


def softmax(value_NK: NDArray) -> NDArray[np.float64]:
    """exp(value) over its sum, row by row."""
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
        policy_NK=lists(softmax(4 * traffic.score_NK).astype(np.float32)),
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
