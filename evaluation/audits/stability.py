"""How often a title's artwork changes for a member: artworks that change too often cost trust.

Legend: N impressions, K candidates (padded), E pairs of impressions and an artwork of either.
"""

import numpy as np
from numpy.typing import NDArray

from evaluation.logs.scored_log import ScoredLog
from evaluation.off_policy.estimators import Terms
from evaluation.off_policy.intervals import Members, normal_interval
from evaluation.off_policy.verdict import assess_members
from evaluation.record.rows import StabilityRow, finite_or_none

DAY = 86_400_000_000
PAIRS_PER_BLOCK = 100_000
"""Pairs of impressions in memory at a time."""
DAY_BANDS = ((1, "the next day"), (2, "2 to 7 days later"), (8, "more than 7 days later"))


def changes(log: ScoredLog) -> list[StabilityRow]:
    """Probability that two impressions of one title to one member, on different days, show different artworks; by days between.

    For each impression and the last one before it on an earlier day: 1 - sum_a policy(a) earlier_policy(a), each day's
    artwork being an independent draw; 0 or 1 for a deterministic policy. Rows of policy (`scored`, `uniform`, and `logged`,
    computed from the shown artworks), days, value with its interval by member, pairs, members, and a
    verdict by the number of members. `log` must be ordered by
    member.
    """
    order = np.lexsort((log.shown_at, log.title, log.member))
    same = (np.diff(log.member[order]) == 0) & (np.diff(log.title[order]) == 0)
    day = log.shown_at[order] // DAY
    # the first impression of a day is compared with the last one of the day before
    later = same & (np.diff(day) > 0)
    earlier_N, later_N = order[:-1][later], order[1:][later]
    between = (day[1:] - day[:-1])[later]
    changed = {name: np.empty(len(later_N)) for name in ("scored", "uniform", "logged")}
    width = log.width
    for begin in range(0, len(later_N), PAIRS_PER_BLOCK):
        rows = slice(begin, begin + PAIRS_PER_BLOCK)
        pair = earlier_N[rows], later_N[rows]
        scored, alike = _common(log, *pair)
        changed["scored"][rows] = 1 - scored
        changed["uniform"][rows] = 1 - alike / (width[pair[0]] * width[pair[1]])
        earlier_shown, later_shown = (log.artwork_NK[side, log.shown[side]] for side in pair)
        changed["logged"][rows] = earlier_shown != later_shown
    member = log.member[later_N]
    band = np.searchsorted([begin for begin, _ in DAY_BANDS], between, side="right") - 1
    return [
        _change_row(policy, words, values[band == band_index], member[band == band_index])
        for policy, values in changed.items()
        for band_index, (_, words) in enumerate(DAY_BANDS)
        if (band == band_index).any()
    ]


def _common(log: ScoredLog, earlier_n: NDArray, later_n: NDArray) -> tuple[NDArray, NDArray]:
    """By pair of impressions: sum_a policy(a) earlier_policy(a), and the number of common candidates, (n,) both."""
    sides = [log.artwork_NK.take(rows) for rows in (earlier_n, later_n)]
    # a pair and an artwork as one number: what the two impressions have in common
    artworks = len(log.artworks)
    distinct_E, index = np.unique(
        np.concatenate([lists.row_C * artworks + lists.values_C for lists in sides]), return_inverse=True
    )
    earlier_c, later_c = np.split(index.reshape(-1), [len(sides[0].values_C)])
    earlier_policy_c, later_policy_c = (log.policy_NK.take(rows).values_C for rows in (earlier_n, later_n))
    earlier_E, count_E = (np.bincount(earlier_c, values, len(distinct_E)) for values in (earlier_policy_c, None))
    scored, alike = (sides[1].like(values_c) for values_c in (later_policy_c * earlier_E[later_c], count_E[later_c]))
    return scored.sums(), alike.reduce(np.add)


def _change_row(policy: str, days: str, values: NDArray, member: NDArray) -> StabilityRow:
    members = Members.of(member)
    terms: Terms = ((values, np.ones(len(values))),)
    sums = members.sums(terms)
    interval = normal_interval(sums.value, sums.influence_M)
    verdict = assess_members(members.total(np.ones(len(values))))
    none = verdict == "unanswerable"
    return {
        "policy": policy,
        "days": days,
        "value": None if none else sums.value,
        "low": None if none else finite_or_none(interval.low),
        "high": None if none else finite_or_none(interval.high),
        "pairs": len(values),
        "members": len(members),
        "verdict": verdict,
    }
