"""Faults of how a log was written: repeated impressions, stretches without impressions or without clicks, one member's traffic.

In: a scored log. Out: `LogFault`s in words, each a reason to doubt every value. Bursts, quiet nights and members of very
different activity are no faults: every test counts members, not impressions, and allows for the hour of the day.

Legend: N impressions, M members, V visits (a member in an hour), H hours, B blocks of the period.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from evaluation.logs.context_levels import MICROSECONDS_AN_HOUR
from evaluation.logs.scored_log import ScoredLog
from evaluation.logs.tail_bounds import bennett_tail

ERROR_RATE = 0.002
"""Share of honest logs in which one of the tests accuses, at most."""
REPEATED_SHARE = 0.002
"""Repeated impressions up to this share are named in a note only."""
MEMBER_SHARE = 0.1
"""Share of the impressions from which on one member's traffic is a fault."""
APART = 3.0
"""How many times the impressions of the next member that must be: activity has long tails. With twice the share it need not."""
QUIET_HOURS = 3
"""Impressions are missing in no less than this many hours."""
QUIETEST_SHARE, QUIET_DAYS = 0.05, 3
"""With fewer days on a side, the quietest hours of an honest log are taken to have at least this share of its usual visits."""
NEAR_DAYS = 14
"""Days before and after a stretch without impressions by which it is judged."""
FEW_CLICKS = 0.2
"""A stretch whose share of clicked impressions is below this part of the others' is one whose clicks were not recorded."""
BLOCKS = 60
"""Blocks of equally many impressions in which clicks are counted."""


@dataclass(frozen=True, kw_only=True)
class LogFault:
    """One fault, in words."""

    kind: str
    """repeated, impressions missing, clicks missing, one member, or only clicked."""
    text: str
    impressions: int
    """Impressions it concerns."""
    since: int | None = None
    until: int | None = None
    """Microseconds since 1970, where it concerns a stretch of time."""


def log_faults(scored: ScoredLog, slot_N: NDArray[np.integer] | None = None) -> tuple[list[LogFault], list[str]]:
    """Faults that are reasons to doubt, and notes on smaller ones.

    `slot_N`: row and column of each impression as one integer, where they were logged: a title twice on a page is no repetition.
    """
    if not len(scored):
        return [], []
    notes: list[str] = []
    faults = list(_one_member(scored))
    repeated = _repeated(scored, slot_N)
    if repeated is not None:
        if repeated.impressions > REPEATED_SHARE * len(scored):
            faults.append(repeated)
        else:
            notes.append(repeated.text[0].upper() + repeated.text[1:] + ".")
    faults += _missing_impressions(scored)
    faults += _missing_clicks(scored)
    return faults, notes


def _one_member(scored: ScoredLog) -> Iterator[LogFault]:
    """A member with a large share of the traffic, who stands apart from the next or has too much for any interval."""
    count_M = np.sort(np.bincount(scored.member))
    most, second = int(count_M[-1]), int(count_M[-2]) if len(count_M) > 1 else 0
    apart = most > APART * second or most > 2 * MEMBER_SHARE * len(scored)
    if second and apart and most > MEMBER_SHARE * len(scored):
        yield LogFault(
            kind="one member", text=f"one member has {most / len(scored):.0%} of the impressions", impressions=most
        )


def _repeated(scored: ScoredLog, slot_N: NDArray[np.integer] | None) -> LogFault | None:
    """Impressions of one member, title and time with one artwork, beyond what independent draws would make alike."""
    keys = [scored.shown_at, scored.title, scored.member]
    keys = keys if slot_N is None else [slot_N, *keys]
    order = np.lexsort(keys)
    same_P = np.all([key[order][1:] == key[order][:-1] for key in keys], axis=0)
    first_P, second_P = order[:-1][same_P], order[1:][same_P]
    if not len(first_P):
        return None
    artwork_N = scored.artwork_NK[np.arange(len(scored)), scored.shown]
    alike = int((artwork_N[first_P] == artwork_N[second_P]).sum())
    # the chance that a second draw is alike is the propensity of what the first one showed
    expected_P = scored.propensity[first_P]
    surplus = alike - float(expected_P.sum())
    variance = float((expected_P * (1 - expected_P)).sum())
    if not alike or (alike < len(first_P) and bennett_tail(surplus, variance, 1.0) > ERROR_RATE):
        return None
    text = (
        f"{alike:,} impressions ({alike / len(scored):.1%}) repeat another of the same member, title, artwork and time"
    )
    return LogFault(kind="repeated", text=text, impressions=alike)


def _visits(scored: ScoredLog) -> tuple[NDArray[np.int64], int]:
    """Visits, a member in an hour, by hour of the log, (H,), and the first hour since 1970."""
    hour_N = scored.shown_at // MICROSECONDS_AN_HOUR
    first = int(hour_N.min())
    members = int(scored.member.max()) + 1
    visit_V = np.unique((hour_N - first) * members + scored.member)
    return np.bincount(visit_V // members), first


def _missing_impressions(scored: ScoredLog) -> Iterator[LogFault]:
    """The longest stretches of hours without any impression, where other days had many at those hours."""
    visits_H, first = _visits(scored)
    hours = len(visits_H)
    if hours < 2 * QUIET_HOURS:
        return
    least = 2 * float(np.log(hours / ERROR_RATE))  # expected visits, by half of which no hour would stay empty
    edges = np.flatnonzero(np.diff(np.concatenate([[1], visits_H > 0, [1]]))).reshape(-1, 2)
    length = edges[:, 1] - edges[:, 0]
    possible = (length >= QUIET_HOURS) & (length * float(visits_H.max()) >= least)
    for start, end in edges[possible]:
        expected = _usual_visits(visits_H, int(start), int(end))
        if expected < least or (end - start <= 4 * 24 and _empty_every_week(visits_H, start, end, expected)):
            continue
        since, until = (int((first + hour) * MICROSECONDS_AN_HOUR) for hour in (start, end))
        yield LogFault(
            kind="impressions missing",
            text=f"no impression was logged {_stretch(since, until)}, when about {expected:,.0f} visits were to be expected",
            impressions=0,
            since=since,
            until=until,
        )


def _empty_every_week(visits_H: NDArray[np.int64], start: int, end: int, expected: float) -> bool:
    """Whether the same hours of the week before or after are as good as empty too."""
    weeks = [
        (start + shift, end + shift) for shift in (-168, 168) if start + shift >= 0 and end + shift <= len(visits_H)
    ]
    return any(visits_H[since:until].sum() < QUIETEST_SHARE * expected for since, until in weeks)


def _usual_visits(visits_H: NDArray[np.int64], start: int, end: int) -> float:
    """Visits to be expected in a stretch of hours, by the two weeks before it or after it, whichever had fewer.

    Each hour by the lower quartile of the same hour on the days that had any visit. With few days, an hour of the night cannot be
    compared: a small share of the median hour is taken. Both sides, because traffic grows and a service begins slowly.
    """
    hour = np.arange(end - start)
    expected = []
    for side_H, shift in ((visits_H[:start][-NEAR_DAYS * 24 :][::-1], start), (visits_H[end:][: NEAR_DAYS * 24], end)):
        days_DH = side_H[: len(side_H) // 24 * 24].reshape(-1, 24)
        days_DH = days_DH[days_DH.sum(1) > 0]
        if len(days_DH) >= QUIET_DAYS:
            usual_H = np.quantile(days_DH, 0.25, axis=0)
            # the side before is read backwards from the stretch
            column = (-1 - hour) % 24 if shift == start else (hour - (end - start)) % 24
            expected.append(float(usual_H[column].sum()))
        else:
            busy_H = side_H[side_H > 0]
            expected.append(QUIETEST_SHARE * float(np.median(busy_H)) * len(hour) if len(busy_H) else 0.0)
    return min(expected)


def _missing_clicks(scored: ScoredLog) -> Iterator[LogFault]:
    """Stretches of blocks with next to no clicked impressions, counted by member."""
    clicked_N = scored.clicked
    if clicked_N.all():
        yield LogFault(
            kind="only clicked",
            text="every impression was clicked: those without a click are missing",
            impressions=len(scored),
        )
        return
    count_M = np.bincount(scored.member)
    usual_N = count_M[scored.member] <= MEMBER_SHARE * len(scored)
    order = np.flatnonzero(usual_N)[np.argsort(scored.shown_at[usual_N], kind="stable")]
    # of a member's impressions in a block, the rate counts once: heavy members and bursts weigh no more than others
    blocks = min(BLOCKS, len(order) // 50)
    if blocks < 5:
        return
    block_N = np.arange(len(order)) * blocks // len(order)
    members = int(scored.member.max()) + 1
    pair, index_N = np.unique(block_N * members + scored.member[order], return_inverse=True)
    rate_V = np.bincount(index_N, clicked_N[order]) / np.bincount(index_N)
    block_V = pair // members
    visits_B, clicks_B, squares_B = (np.bincount(block_V, values, blocks) for values in (None, rate_V, rate_V**2))
    rate_B = clicks_B / visits_B
    usual = float(
        np.median(rate_B[rate_B >= np.median(rate_B)])
    )  # of the better half: an outage may take half of the period
    if usual <= 0:
        return
    spread = float(squares_B.sum() / max(clicks_B.sum(), 1e-12))  # variance of a visit's rate, over its mean
    low_B = rate_B < FEW_CLICKS * usual
    edges = np.flatnonzero(np.diff(np.concatenate([[0], low_B, [0]])))
    for start, end in edges.reshape(-1, 2):
        expected, seen = usual * visits_B[start:end].sum(), clicks_B[start:end].sum()
        # even half of the usual rate would hardly ever give so few
        tail = bennett_tail(expected / 2 - seen, expected / 2 * spread, 1.0)
        if blocks * float(tail) < ERROR_RATE:
            rows = order[(block_N >= start) & (block_N < end)]
            since, until = int(scored.shown_at[rows].min()), int(scored.shown_at[rows].max())
            total = int(clicked_N[rows].sum())
            text = f"{total or 'no'} clicks were logged {_stretch(since, until)}, in {len(rows):,} impressions"
            yield LogFault(kind="clicks missing", text=text, impressions=len(rows), since=since, until=until)


def _stretch(since: int, until: int) -> str:
    ends = (datetime.fromtimestamp(at / 1e6, UTC) for at in (since, until))
    return "from {:%Y-%m-%d %H:%M} to {:%Y-%m-%d %H:%M} UTC".format(*ends)
