"""Clicks of members who tire of what they were shown and did not click: each outcome depends on earlier ones.

In: the law's terms of every impression, and one draw for each. Out: fatigue of every candidate by `click_law`, and which
impressions were clicked. All members' first impressions of a title are settled at once, then all second ones, and so on: within
such a round no outcome depends on another.

Legend as in `click_law`, with S the most artworks of a title.
"""

import numpy as np

from datamodules.simulator.click_law import (
    KNOWN_HOURS,
    TIRED_DAYS,
    SimulatedCatalogue,
    SimulatedImpressions,
    TrueTerms,
    sigmoid,
)

_HOUR = 3_600_000_000  # microseconds


def tired_clicks(
    strength: float,
    terms: TrueTerms,
    catalogue: SimulatedCatalogue,
    shown: SimulatedImpressions,
    time_N: np.ndarray,
    chosen_N: np.ndarray,
    draw_N: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Fatigue of every candidate in logits, (N, K), and which impressions are clicked, bool (N,).

    `time_N`: microseconds, in order. `chosen_N`: the shown artwork among the candidates. `draw_N`: uniform in 0 .. 1; an impression
    is clicked where it lies below p(click).
    """
    rows = len(time_N)
    count_I = np.bincount(catalogue.title_A, minlength=len(catalogue.title_names))
    first_I = np.cumsum(count_I) - count_I
    slot_NK = np.where(shown.candidates_NK >= 0, shown.candidates_NK - first_I[shown.title_N][:, None], 0)
    shown_slot_N = slot_NK[np.arange(rows), chosen_N]

    # in order of (member, title, time), a member's impressions of a title are a run of positions
    _, run_N = np.unique(shown.member_N * len(count_I) + shown.title_N, return_inverse=True)
    order = np.argsort(run_N, kind="stable")
    run = run_N[order]
    rank = np.arange(rows) - np.searchsorted(run, run)
    # times as rows of the log, whose order they are in, so that run and time fit into one integer
    key = run * (rows + 1) + order
    first, last = (time_N - hours * _HOUR for hours in (24 * TIRED_DAYS, KNOWN_HOURS))
    since = np.searchsorted(key, run_N * (rows + 1) + np.searchsorted(time_N, first, side="left"))
    until = np.searchsorted(key, run_N * (rows + 1) + np.searchsorted(time_N, last, side="right"))

    # by position: how many of its run's impressions before it showed each of the title's artworks and were not clicked
    ignored_before_NS = np.zeros((rows, int(count_I.max())), np.int32)
    fatigue_NK = np.zeros(slot_NK.shape)
    clicked_N = np.zeros(rows, bool)
    by_rank = np.argsort(rank, kind="stable")
    ends = np.cumsum(np.bincount(rank))
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        positions = by_rank[start:end]
        n = order[positions]
        if start:
            previous = order[positions - 1]
            ignored_before_NS[positions] = ignored_before_NS[positions - 1]
            ignored_before_NS[positions, shown_slot_N[previous]] += ~clicked_N[previous]
        ignored_nS = ignored_before_NS[until[n]] - ignored_before_NS[since[n]]
        of_artwork = np.log1p(np.take_along_axis(ignored_nS, slot_NK[n], 1))
        fatigue_NK[n] = strength * (of_artwork + 0.5 * np.log1p(ignored_nS.sum(1, keepdims=True)))
        at = n, chosen_N[n]
        clicked_N[n] = draw_N[n] < sigmoid(terms.logit_NK[at] - fatigue_NK[at]).astype(np.float32)
    return fatigue_NK, clicked_N
