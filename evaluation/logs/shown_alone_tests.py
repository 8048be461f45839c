"""Tests of propensities where only the shown artwork's was logged: sums of 1 / propensity over what was shown.

The expected sum over impressions of d(shown) / p(shown) is that of sum_k d_k over the candidates with a propensity above 0: of
d = 1, their number. A larger sum is a fault of the propensities; a smaller one may also mean that some candidates are never
shown, and is noted, not doubted. The variance is the sample's, by level no smaller than the whole log's per impression.

Not testable by it: whether an artwork that is shown as often as its propensity says is shown to the right members.

Legend: N impressions, K candidates (padded), C candidates of all impressions, L levels, A artworks.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.logs.context_levels import ContextLevels
from evaluation.logs.scored_log import ScoredLog
from evaluation.logs.tail_bounds import bennett_tail
from evaluation.logs.tail_tests import TailTests
from foundation.choice import PROBABILITY_ROUNDING

CERTAIN = 1 - PROBABILITY_ROUNDING
"""An artwork with at least this propensity was not drawn: the others had none, which the propensity tells."""
LEAST = 200
"""Impressions of a level, or with an artwork among the candidates, below which it is not tested."""
NEGLIGIBLE = 0.05
"""Deviations below this share of the expected sum are no reason to doubt."""
LOWER_ERROR_RATE = 1e-4
NUMBER, APPEAL, FIRST, ARTWORK = "number of candidates", "predicted appeal", "first candidate", "artwork"
PHRASES = {
    NUMBER: "by the inverse of their propensities, artworks were shown",
    APPEAL: "artworks of higher predicted appeal were shown",
    FIRST: "the first candidate of the list was shown",
}


def shown_alone_tests(
    scored: ScoredLog, rows: NDArray[np.integer], levels: Sequence[ContextLevels]
) -> tuple[TailTests, str]:
    """Tests of the impressions at some rows, and a note where some candidates seem never to be shown; empty otherwise."""
    rows = rows[scored.propensity[rows] < CERTAIN]
    part, levels = scored.take(rows), [one.take(rows) for one in levels]
    if len(part) < LEAST:
        return TailTests.join([]), ""
    weight_N, width_N = 1 / part.propensity, part.width
    whole = ContextLevels(name="", code_N=np.zeros(len(part), np.int64), levels=[""])
    number = _by_level(NUMBER, weight_N, width_N.astype(np.float64), [whole, *levels])
    sum_T, variance_T = number.sum_T, number.variance_T
    below = bennett_tail(sum_T[:1], variance_T[:1], number.largest_T[:1])[0] < LOWER_ERROR_RATE and sum_T[0] < 0
    note = ""
    batches = [number.surplus_only()]
    if below:
        inverse, candidates = number.shown_T[0] / len(part), number.expected_T[0] / len(part)
        note = (
            f"Only shown artworks' propensities were logged, and their inverses are {inverse:.2f} on average, of {candidates:.2f} "
            "candidates: the log never shows some of them, or its propensities are wrong."
        )
    else:
        index_N = part.shown
        click_C = np.clip(part.click_probability_NK.values_C.astype(np.float64), 1e-9, 1 - 1e-9)
        logit_NK = part.artwork_NK.like(np.log(click_C / (1 - click_C)))
        centred_C = logit_NK.values_C - np.repeat(logit_NK.sums() / width_N, width_N)
        scale = float(np.abs(centred_C).max(initial=0.0))
        if scale > 1e-6:
            appeal_N = part.artwork_NK.like(centred_C / scale)[np.arange(len(part)), index_N]
            batches.append(_by_level(APPEAL, appeal_N * weight_N, np.zeros(len(part)), [whole, *levels]))
        batches.append(_by_level(FIRST, (index_N == 0) * weight_N, np.ones(len(part)), [whole, *levels]))
        batches.append(_by_artwork(part, weight_N))
    return TailTests.join(batches), note


def _by_level(name: str, value_N: NDArray, expected_N: NDArray, groupings: Sequence[ContextLevels]) -> TailTests:
    """Sums of values minus expected ones, by level."""
    gap_N = value_N - expected_N
    largest, mean_variance = float(np.abs(gap_N).max()), float(gap_N.var())
    batches = []
    for grouping in groupings:
        count, total, squares, shown, expected = (
            np.bincount(grouping.code_N, values, len(grouping.levels))
            for values in (None, gap_N, gap_N**2, value_N, expected_N)
        )
        (at,) = np.nonzero(count >= LEAST)
        scale = np.where(np.abs(expected[at]) > 0, np.abs(expected[at]), count[at])
        batches.append(
            TailTests(
                what=name,
                attribute=grouping.name,
                names=grouping.levels,
                level_T=at,
                artwork_T=np.full(len(at), -1),
                artworks=None,
                sum_T=total[at],
                variance_T=np.maximum(squares[at] - total[at] ** 2 / count[at], count[at] * mean_variance),
                slack_T=PROBABILITY_ROUNDING * scale,
                largest_T=np.full(len(at), largest),
                range_T=np.full(len(at), np.inf),
                negligible_T=NEGLIGIBLE * scale,
                shown_T=shown[at],
                expected_T=expected[at],
                count_T=count[at].astype(np.float64),
                overall_T=np.full(len(at), grouping.name == ""),
                phrase=PHRASES[name],
            )
        )
    return TailTests.join(batches)


def _by_artwork(part: ScoredLog, weight_N: NDArray) -> TailTests:
    """Each artwork's sum of 1 / propensity minus the impressions that had it among their candidates."""
    artworks = len(part.artworks)
    shown_N = part.artwork_NK[np.arange(len(part)), part.shown]
    candidates = np.bincount(part.artwork_NK.values_C, minlength=artworks).astype(np.float64)
    total, squares = (np.bincount(shown_N, values, artworks) for values in (weight_N, weight_N * (weight_N - 1)))
    (at,) = np.nonzero(candidates >= LEAST)
    mean_variance = squares.sum() / max(candidates.sum(), 1.0)
    return TailTests(
        what=ARTWORK,
        attribute="",
        names=[""],
        level_T=np.zeros(len(at), np.int64),
        artwork_T=at,
        artworks=part.artworks,
        sum_T=(total - candidates)[at],
        variance_T=np.maximum(squares[at], candidates[at] * mean_variance),
        slack_T=PROBABILITY_ROUNDING * candidates[at],
        largest_T=np.full(len(at), float(weight_N.max())),
        range_T=np.full(len(at), np.inf),
        negligible_T=NEGLIGIBLE * candidates[at],
        shown_T=total[at],
        expected_T=candidates[at],
        count_T=candidates[at],
        overall_T=np.zeros(len(at), bool),
        phrase="",
    )
