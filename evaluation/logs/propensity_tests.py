"""Tests of whether artworks were shown as often as the logged propensities say.

In: a scored log and its context in levels. Out: `PropensityTests`: doubts about the log, and the tests as rows.

Every test is a sum over impressions of d(shown) - sum_k p_k d_k, for a function d of the candidates that is fixed before the
draw: that a candidate is this artwork, comes first in the list, was shown to the member the last time, or its predicted appeal.
If the draws were by the logged propensities p, each term has mean 0 and variance sum_k p_k d_k^2 - (sum_k p_k d_k)^2, given all
before it, also where the logging policy learns meanwhile. The tails are bounded (`tail_bounds`), and all tests together
reject in at most `ERROR_RATE` of honest logs (Holm).

Legend: N impressions, K candidates (padded), C candidates of all impressions, L levels, A artworks, T tests, M members.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.logs.context_levels import ContextLevels
from evaluation.logs.scored_log import ScoredLog
from evaluation.logs.shown_alone_tests import shown_alone_tests
from evaluation.logs.tail_bounds import bennett_tail, holm
from evaluation.logs.tail_tests import TailTests
from evaluation.off_policy.verdict import GrossDoubt
from evaluation.record.log_rows import PropensityTestRow
from foundation.choice import PROBABILITY_ROUNDING
from foundation.lists import Lists

ERROR_RATE = 0.01
"""Share of honest logs in which any test rejects, at most."""
CELL_SHARE, DIRECTION_SHARE = 0.05, 0.005
"""Deviations below are no doubt, however sure: of an artwork's expected count; of the impressions, for other functions."""
GROSS_SHARE, GROSS_ERRORS = 0.1, 3.0
"""Where at least this share of the impressions showed another artwork, less so many standard errors, nothing is answered."""
MAX_CANDIDATES = 6_000_000
"""Candidates that are tested at most: of a larger log, every second, third .. impression."""
KEPT_SHARE = 0.9
"""Where shortly after, the same artwork is shown again in at least this share, it was kept and not drawn anew."""
ROWS_REPORTED = 20
ROUNDED = ((2, 20), (3, 0), (4, 0))
"""Decimals to which propensities may be rounded, with the number of distinct ones above which a grid is taken for rounding."""

FIRST, POSITION, PROPENSITY = "first candidate", "position in the list", "logged propensity"
APPEAL, POLICY, AGAIN = "predicted appeal", "scored policy's probability", "shown the last time"
LEARNED = "over- or underdelivered to other members"
PHRASES = {
    FIRST: "the first candidate of the list was shown",
    POSITION: "later candidates of the list were shown",
    PROPENSITY: "artworks with high propensities were shown",
    APPEAL: "artworks of higher predicted appeal were shown",
    POLICY: "the scored policy's artworks were shown",
    AGAIN: "the artwork that a member saw the last time was shown again",
    LEARNED: "artworks that other members saw too often for their propensities were shown",
}
KEPT_NOTE = (
    "Members are shown the artwork of the last time again, more often than draws by the propensities would: artworks are kept "
    "for a while. Intervals by member allow for it."
)


@dataclass(frozen=True, kw_only=True)
class PropensityTests:
    """The result of all tests."""

    tests: int
    rejected: int
    doubts: tuple[str, ...]
    rows: list[PropensityTestRow]
    """Those that reject most, and the nearest of the others."""
    notes: list[str]


def check_propensities(scored: ScoredLog, levels: Sequence[ContextLevels]) -> PropensityTests:
    """Test propensities by artwork, position, appeal and repetition, overall and by every level of the context.

    Where only the shown artwork's propensity was logged, those of the others are known where it is 1 / K throughout a logging
    policy; elsewhere `shown_alone_tests` applies.
    """
    propensity_NK = _known_propensities(scored)
    known_N = ~np.isnan(propensity_NK.reduce(np.add)) & (scored.width > 1)
    batches: list[TailTests] = []
    notes: list[str] = []
    if known_N.any():
        sampled = _Sample.of(scored, propensity_NK, np.flatnonzero(known_N), levels)
        directions, kept = sampled.direction_tests()
        batches += [directions, sampled.cell_tests()]
        notes += [KEPT_NOTE] if kept else []
    alone_N = ~known_N & (scored.width > 1)
    if alone_N.any():
        batch, note = shown_alone_tests(scored, np.flatnonzero(alone_N), levels)
        batches.append(batch)
        notes += [note] if note else []
    return _judge(batches, notes)


def _judge(batches: Sequence[TailTests], notes: list[str]) -> PropensityTests:
    """One error rate over all batches, in equal parts; doubts from what it rejects."""
    batches = [batch for batch in batches if len(batch)]
    rows: list[tuple[bool, float, PropensityTestRow]] = []
    # the worst test of all, and the worst of those in one level of a context
    worst: dict[bool, tuple[float, str]] = {}
    rejected, gross = 0, 0.0
    for batch in batches:
        p_T = bennett_tail(np.maximum(np.abs(batch.sum_T) - batch.slack_T, 0), batch.variance_T, batch.largest_T)
        adjusted_T = np.minimum(1.0, holm(p_T) * len(batches))
        reject_T = (adjusted_T <= ERROR_RATE) & (np.abs(batch.sum_T) > batch.negligible_T)
        rejected += int(reject_T.sum())
        error_T = np.sqrt(batch.variance_T)
        score_T = np.abs(batch.sum_T) / np.maximum(error_T, 1e-12)
        for index in np.lexsort((-score_T, ~reject_T))[:ROWS_REPORTED]:
            row = batch.row(int(index), float(adjusted_T[index]))
            rows.append((bool(reject_T[index]), float(score_T[index]), row))
        if reject_T.any():
            for within, among_T in ((False, reject_T), (True, reject_T & batch.within_T)):
                index = int(np.where(among_T, score_T, -1).argmax())
                if among_T[index] and score_T[index] > worst.get(within, (0.0, ""))[0]:
                    worst[within] = float(score_T[index]), batch.sentence(index)
            sure_T = np.abs(batch.sum_T) - batch.slack_T - GROSS_ERRORS * error_T
            moved_T = np.where(reject_T & batch.overall_T, sure_T / np.maximum(batch.range_T, 1e-12), 0)
            gross = max(gross, float(moved_T.max()))
    tests = sum(len(batch) for batch in batches)
    doubts: tuple[str, ...] = ()
    if worst:
        counts = f"{rejected:,} of {tests:,} tests reject, at {ERROR_RATE:.0%} for all"
        named = "; ".join(dict.fromkeys(sentence for _, sentence in worst.values()))
        text = f"propensities are not what was done: {named}; {counts}"
        if gross > GROSS_SHARE:
            moved = f"at least {gross:.0%} of the impressions showed another artwork than they would have drawn"
            doubts = (GrossDoubt(f"{text}; {moved}"),)
        else:
            doubts = (text,)
    ordered = [row for *_, row in sorted(rows, key=lambda item: (not item[0], -item[1]))]
    return PropensityTests(tests=tests, rejected=rejected, doubts=doubts, rows=ordered[:ROWS_REPORTED], notes=notes)


def _known_propensities(scored: ScoredLog) -> Lists:
    """Propensities of all candidates in double precision, summing to 1; NaN where they are not known."""
    value_C = scored.propensity_NK.values_C.astype(np.float64)
    lists = scored.propensity_NK.like(value_C)
    unknown_N = np.isnan(lists.reduce(np.add))
    if unknown_N.any():
        width_N = scored.width
        even_N = np.abs(scored.propensity * width_N - 1) <= PROBABILITY_ROUNDING
        policies = len(scored.logging_policies)
        uneven_P = np.bincount(scored.logging_policy[unknown_N & ~even_N], minlength=policies)
        fill_N = unknown_N & (uneven_P[scored.logging_policy] == 0)
        value_C = np.where(np.repeat(fill_N, width_N), np.repeat(1 / width_N, width_N), value_C)
    total_N = scored.propensity_NK.like(value_C).sums()
    return scored.propensity_NK.like(value_C / np.repeat(np.where(total_N > 0, total_N, np.nan), scored.width))


def _rounding(value_C: NDArray) -> float:
    """Half a unit of the last decimal where all propensities lie on a decimal grid; else 0."""
    some_C = value_C[:: 1 + len(value_C) // 200_000]
    for decimals, distinct in ROUNDED:
        grid_C = some_C * 10**decimals
        if np.abs(grid_C - np.rint(grid_C)).max(initial=0) < 1e-3 and len(np.unique(np.rint(grid_C))) > distinct:
            return 0.5 * 10.0**-decimals
    return 0.0


def _last_shown(scored: ScoredLog) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The artwork that the member was shown for this title the last time, -1 for none, and microseconds since, (N,) each."""
    order = np.lexsort((scored.shown_at, scored.title, scored.member))
    artwork_N = scored.artwork_NK[np.arange(len(scored)), scored.shown].astype(np.int64)[order]
    member_N, title_N, at_N = (column[order] for column in (scored.member, scored.title, scored.shown_at))
    same = (member_N[1:] == member_N[:-1]) & (title_N[1:] == title_N[:-1]) & (at_N[1:] > at_N[:-1])
    last_N, since_N = np.full((2, len(scored)), -1, np.int64)
    last_N[order[1:][same]] = artwork_N[:-1][same]
    since_N[order[1:][same]] = (at_N[1:] - at_N[:-1])[same]
    return last_N, since_N


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """Impressions whose propensities are all known, as arrays over their candidates."""

    scored: ScoredLog
    levels: Sequence[ContextLevels]
    p_NK: Lists
    artwork_C: NDArray[np.int64]
    row_C: NDArray[np.int64]
    shown_C: NDArray[np.float64]
    slack_C: NDArray[np.float64]
    last_N: NDArray[np.int64]
    since_N: NDArray[np.int64]

    @classmethod
    def of(cls, scored: ScoredLog, p_NK: Lists, rows: NDArray, levels: Sequence[ContextLevels]) -> "_Sample":
        """The impressions at some rows, or a part of them where they are many."""
        half_unit = _rounding(scored.propensity_NK.values_C[~np.isnan(scored.propensity_NK.values_C)])
        last_N, since_N = _last_shown(scored)
        rows = rows[:: 1 + int(scored.width[rows].sum()) // MAX_CANDIDATES]
        part = scored if len(rows) == len(scored) else scored.take(rows)
        p_NK = p_NK.take(rows)
        return cls(
            scored=part,
            levels=[one.take(rows) for one in levels],
            p_NK=p_NK,
            artwork_C=part.artwork_NK.values_C.astype(np.int64),
            row_C=p_NK.row_C,
            shown_C=p_NK.one_hot(part.shown).values_C,
            slack_C=np.maximum(PROBABILITY_ROUNDING * p_NK.values_C, half_unit),
            last_N=last_N[rows],
            since_N=since_N[rows],
        )

    def direction_tests(self) -> tuple[TailTests, bool]:
        """Tests of functions of the candidates, overall and by level; and whether artworks are kept for a while."""
        kept = self._keeps_artworks()
        parts = []
        for name, d_C, rows_N in self._directions(kept):
            parts += self._direction(name, d_C, rows_N)
        return TailTests.join(parts), kept

    def _directions(self, kept: bool) -> Iterator[tuple[str, NDArray, NDArray | None]]:
        index_C = self.p_NK.index_C
        yield FIRST, (index_C == 0).astype(np.float64), None
        yield POSITION, index_C / np.maximum(np.repeat(self.scored.width, self.scored.width) - 1, 1), None
        yield PROPENSITY, self.p_NK.values_C, None
        click_C = np.clip(self.scored.click_probability_NK.values_C.astype(np.float64), 1e-9, 1 - 1e-9)
        yield APPEAL, self._standardised(np.log(click_C / (1 - click_C))), None
        yield POLICY, self.scored.policy_NK.values_C.astype(np.float64), None
        if not kept:
            yield AGAIN, (self.artwork_C == self.last_N[self.row_C]).astype(np.float64), None
        tested_N = self.scored.member % 2 == 1
        for name, key_C, count in self._cells():
            with_residual = self._learned(key_C, count, ~tested_N[self.row_C])
            yield f"{LEARNED}, by {name}" if name else LEARNED, with_residual[key_C], tested_N

    def _standardised(self, value_C: NDArray) -> NDArray[np.float64]:
        """Minus the mean of the impression's candidates, over their standard deviation."""
        lists, width_N = self.p_NK.like(value_C), self.scored.width
        centred_C = value_C - np.repeat(lists.sums() / width_N, width_N)
        deviation_N = np.sqrt(self.p_NK.like(centred_C**2).sums() / width_N)
        return centred_C / np.repeat(np.where(deviation_N > 1e-6, deviation_N, np.inf), width_N)

    def _keeps_artworks(self) -> bool:
        """Whether, in the shortest quarter of times between two impressions of a title, the artwork is nearly always the same."""
        pair_N = self.last_N >= 0
        if pair_N.sum() < 40:
            return False
        short_N = pair_N & (self.since_N <= np.quantile(self.since_N[pair_N], 0.25))
        again_N = self.scored.artwork_NK[np.arange(len(self.last_N)), self.scored.shown] == self.last_N
        sure_N = self.p_NK.reduce(np.maximum)
        return bool(again_N[short_N].mean() > KEPT_SHARE > sure_N[short_N].mean())

    def _direction(self, name: str, d_C: NDArray, rows_N: NDArray | None) -> list[TailTests]:
        """Tests of one function of the candidates."""
        p_C = self.p_NK.values_C
        mean_N, shown_N = self.p_NK.like(p_C * d_C).sums(), self.p_NK.like(self.shown_C * d_C).sums()
        gap_C = d_C - np.repeat(mean_N, self.scored.width)
        variance_N = self.p_NK.like(p_C * gap_C**2).sums()
        slack_N = self.p_NK.like(self.slack_C * np.abs(gap_C)).sums()
        possible_C = p_C > 0
        high_N = self.p_NK.like(np.where(possible_C, d_C, -np.inf)).reduce(np.maximum)
        low_N = self.p_NK.like(np.where(possible_C, d_C, np.inf)).reduce(np.minimum)
        range_N = high_N - low_N
        use_N = range_N > 1e-9 if rows_N is None else (range_N > 1e-9) & rows_N
        if not use_N.any():
            return []
        sum_N = np.where(use_N, shown_N - mean_N, 0.0)
        variance_N, slack_N, range_N = (np.where(use_N, v, 0.0) for v in (variance_N, slack_N, range_N))
        largest = float(range_N.max())
        inflation = self._inflation(sum_N, variance_N)
        batches = []
        groupings = [ContextLevels(name="", code_N=np.zeros(len(sum_N), np.int64), levels=[""])]
        for grouping in [*groupings, *(self.levels if name in PHRASES and rows_N is None else [])]:
            count = len(grouping.levels)
            sums = [
                np.bincount(grouping.code_N, values, count)
                for values in (sum_N, variance_N, slack_N, range_N, use_N * shown_N, use_N * mean_N, use_N)
            ]
            sum_L, variance_L, slack_L, range_L, shown_L, mean_L, count_L = (v[sums[6] > 0] for v in sums)
            level_L = np.flatnonzero(sums[6] > 0)
            batches.append(
                TailTests(
                    what=name,
                    attribute=grouping.name,
                    names=grouping.levels,
                    level_T=level_L,
                    artwork_T=np.full(len(level_L), -1),
                    artworks=None,
                    sum_T=sum_L,
                    variance_T=variance_L * inflation,
                    slack_T=slack_L,
                    largest_T=np.full(len(level_L), largest),
                    range_T=range_L,
                    negligible_T=DIRECTION_SHARE * range_L,
                    shown_T=shown_L,
                    expected_T=mean_L,
                    count_T=count_L,
                    overall_T=np.full(len(level_L), grouping.name == ""),
                    phrase=PHRASES.get(name.split(",")[0], name),
                )
            )
        return batches

    def _inflation(self, sum_N: NDArray, variance_N: NDArray) -> float:
        """How much larger the variance is where a member's draws depend on each other, by the spread of members' sums; at least 1.

        The sums are compared with the member's share of the whole sum, so that a shift that all members share is no spread.
        """
        total = variance_N.sum()
        if total <= 0:
            return 1.0
        sum_M, variance_M = (np.bincount(self.scored.member, values) for values in (sum_N, variance_N))
        return max(1.0, float(((sum_M - variance_M / total * sum_N.sum()) ** 2).sum() / total))

    def _cells(self) -> Iterator[tuple[str, NDArray, int]]:
        """Artworks, and artworks by level: an attribute's name, each candidate's cell (C,), and how many cells there are."""
        artworks = len(self.scored.artworks)
        yield "", self.artwork_C, artworks
        for grouping in self.levels:
            yield (
                grouping.name,
                grouping.code_N[self.row_C] * artworks + self.artwork_C,
                artworks * len(grouping.levels),
            )

    def _learned(self, key_C: NDArray, count: int, learn_C: NDArray) -> NDArray[np.float64]:
        """Standardised surplus of each cell among some members, within -1 .. 1, (cells,): a direction to test on the others."""
        p_C, key_c = self.p_NK.values_C[learn_C], key_C[learn_C]
        surplus, variance = (
            np.bincount(key_c, values, count) for values in (self.shown_C[learn_C] - p_C, p_C * (1 - p_C))
        )
        return np.clip(surplus / np.sqrt(variance + 1) / 3, -1, 1)

    def cell_tests(self) -> TailTests:
        """Tests of every artwork, overall and by level."""
        p_C = self.p_NK.values_C
        inflation = self._kept_inflation()
        batches = []
        groupings = [None, *self.levels]
        for grouping, (name, key_C, count) in zip(groupings, self._cells(), strict=True):
            n, expected, variance, slack, shown = (
                np.bincount(key_C, values, count) for values in (None, p_C, p_C * (1 - p_C), self.slack_C, self.shown_C)
            )
            (at,) = np.nonzero((variance > 0) | (np.abs(shown - expected) > 1e-6))
            less = np.minimum(expected, n - expected)[at]
            batches.append(
                TailTests(
                    what="artwork",
                    attribute=name,
                    names=[""] if grouping is None else grouping.levels,
                    level_T=at // len(self.scored.artworks),
                    artwork_T=at % len(self.scored.artworks),
                    artworks=self.scored.artworks,
                    sum_T=(shown - expected)[at],
                    variance_T=variance[at] * inflation,
                    slack_T=slack[at],
                    largest_T=np.ones(len(at)),
                    range_T=n[at].astype(np.float64),
                    negligible_T=CELL_SHARE * less,
                    shown_T=shown[at],
                    expected_T=expected[at],
                    count_T=n[at].astype(np.float64),
                    overall_T=np.zeros(len(at), bool),
                    phrase="",
                )
            )
        return TailTests.join(batches)

    def _kept_inflation(self) -> float:
        """Variance of an artwork's count over that of independent draws: 1 + (mean repetitions - 1) x share kept; at least 1."""
        rows = np.flatnonzero(self.last_N >= 0)
        if not len(rows):
            return 1.0
        part = self.p_NK.take(rows)
        again_C = self.scored.artwork_NK.take(rows).values_C == np.repeat(self.last_N[rows], part.width_N)
        expected = part.like(part.values_C * again_C).sums().mean()
        seen = (self.scored.artwork_NK[rows, self.scored.shown[rows]] == self.last_N[rows]).mean()
        titles = int(self.scored.title.max()) + 1
        _, repeats = np.unique(self.scored.member.astype(np.int64) * titles + self.scored.title, return_counts=True)
        mean_repeats = float((repeats.astype(np.float64) ** 2).sum() / repeats.sum())
        kept = max(0.0, float((seen - expected) / max(1 - expected, 1e-9)))
        return 1.0 + kept * (mean_repeats - 1)
