"""How often a title's artwork changes for a member: artworks that change too often cost trust.

Legend: N impressions, K candidates (padded).
"""

import numpy as np
from numpy.typing import NDArray

from evaluation.logs.scored_log import ScoredLog
from evaluation.off_policy.estimators import Terms
from evaluation.off_policy.intervals import Members, normal_interval
from evaluation.off_policy.valuation import row_blocks
from evaluation.record.rows import StabilityRow, finite_or_none

DAY = 86_400_000_000
DAY_BANDS = ((1, "the next day"), (2, "2 to 7 days later"), (8, "more than 7 days later"))


def changes(log: ScoredLog) -> list[StabilityRow]:
    """Probability that two impressions of one title to one member, on different days, show different artworks; by days between.

    For each impression and the last one before it on an earlier day: 1 - sum_a policy(a) earlier_policy(a), each day's
    artwork being an independent draw; 0 or 1 for a deterministic policy. Rows of policy (`scored`, `uniform`, and `logged`,
    computed from the shown artworks), days, value with its interval by member, pairs and members. `log` must be ordered by
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
    width = log.mask_NK.sum(1)
    for rows in row_blocks(len(later_N)):
        earlier_rows, later_rows = earlier_N[rows], later_N[rows]
        artwork_nk, before_nk = log.artwork_NK[later_rows], log.artwork_NK[earlier_rows]
        same_nkj = (artwork_nk[:, :, None] == before_nk[:, None, :]) & log.mask_NK[later_rows][:, :, None]
        unchanged = np.einsum("nkj,nk,nj->n", same_nkj, log.policy_NK[later_rows], log.policy_NK[earlier_rows])
        changed["scored"][rows] = 1 - unchanged
        changed["uniform"][rows] = 1 - same_nkj.sum((1, 2)) / (width[earlier_rows] * width[later_rows])
        at = np.arange(len(earlier_rows))
        changed["logged"][rows] = artwork_nk[at, log.shown[later_rows]] != before_nk[at, log.shown[earlier_rows]]
    member = log.member[later_N]
    band = np.searchsorted([begin for begin, _ in DAY_BANDS], between, side="right") - 1
    return [
        _change_row(policy, words, values[band == band_index], member[band == band_index])
        for policy, values in changed.items()
        for band_index, (_, words) in enumerate(DAY_BANDS)
        if (band == band_index).any()
    ]


def _change_row(policy: str, days: str, values: NDArray, member: NDArray) -> StabilityRow:
    members = Members.of(member)
    terms: Terms = ((values, np.ones(len(values))),)
    sums = members.sums(terms)
    interval = normal_interval(sums.value, sums.influence_M)
    return {
        "policy": policy,
        "days": days,
        "value": sums.value,
        "low": finite_or_none(interval.low),
        "high": finite_or_none(interval.high),
        "pairs": len(values),
        "members": len(members),
    }
