"""Exposure: how often a policy shows a segment of members what artworks depict, against the catalogue and the uniform policy.

The publicly reported failure of personal artwork is members shown the faces of actors who barely appear. It has two signs,
reported side by side for each segment and each person or tag that artworks depict: it is shown to the segment more than by the
uniform policy, and a click on it leads to a viewing less often than a click on its titles' other artworks does, in the same
segment and at about the same time. All tags are tested; people who are absent from their title's cast or low in it are
also tested together, because each is rare.

Legend: N impressions, K candidates (padded), M members, A artworks, G tags, L levels of a segment, E pairs of impression and tag.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evaluation.audits.clickbait import TOGETHER_ENGAGED, benjamini_hochberg
from evaluation.audits.depicted import Depicted, read_depicted
from evaluation.audits.stratified_gap import drift_by_time, stratified_gap, time_strata
from evaluation.logs.log_slices import read_segments, top_levels
from evaluation.logs.scored_log import ScoredLog
from evaluation.off_policy.intervals import Members, Sums, Z, normal_interval
from evaluation.off_policy.verdict import assess_groups, assess_members
from evaluation.record.rows import ExposureRow, Verdict, finite_or_none
from foundation.lists import Lists

MAX_TAGS = 30
"""How many people and tags are listed in every segment: those the uniform policy would show most."""
MAX_WORST, MIN_WORST = 100, 20
"""How many other pairs of segment and tag are listed: those flagged, and of the smallest P values, so many at most, at least."""
TAG_DISCOVERIES, GROUP_DISCOVERIES = 0.075, 0.025
"""Expected share of false discoveries among all tags, and among groups of people: together a tenth."""
MIN_EXPECTED = 7.0
"""Viewings after clicks on a tag, expected at its titles' rates, below which a segment's tag is not tested."""
ALL = "all members"
TAGS_PER_PASS = 16
ROWS_PER_PASS = 100_000
"""Tags, and impressions, in memory at a time where arrays have a number for each member and tag, or candidate and tag."""


@dataclass(frozen=True, kw_only=True)
class _Engagement:
    """One segment's engagement after clicks, arrays (G, L)."""

    rate_GL: NDArray[np.float64]
    gap_GL: NDArray[np.float64]
    error_GL: NDArray[np.float64]
    p_value_GL: NDArray[np.float64]
    """P value of the gap being below 0; NaN where it is not tested."""
    clicks_GL: NDArray[np.int64]
    share_GL: NDArray[np.float64]
    """Share of the scored policy's clicks in the segment."""
    verdict_GL: NDArray[np.str_]
    """The verdict on the gap."""


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """A segment's levels by member, and what they are shown."""

    name: str
    levels: list[str]
    level_M: NDArray[np.integer]
    shown_GL: dict[str, NDArray[np.float64]]
    """Share of impressions that depict each tag, (G, L), by `scored`, `uniform` and `logged`."""
    engagement: _Engagement | None


def exposure(
    dataset: Path, log: ScoredLog, member: pa.Array, weight_N: NDArray[np.floating], doubts: Sequence[str] = ()
) -> tuple[list[ExposureRow], list[str]]:
    """Rows of segment, level and depicted person or tag with its exposure; and notes on what is left out.

    Every tag is tested in every segment; rows are those of the tags shown most, of groups of people, and of the worst others.
    `member`: the log's member ids; `weight_N`: the policy's weights; `log` must be ordered by member; `doubts`: defects of
    the log. UserError as `read_depicted`.
    """
    depicted, notes = read_depicted(dataset, log.artworks)
    if depicted is None or not len(depicted.tags_AG.values_C):
        return [], ["The dataset does not say what artworks depict: exposure cannot be measured."]
    members = Members.of(log.member)
    columns, segment_notes = read_segments(dataset, member.take(pa.array(members.start_M)))
    notes += segment_notes
    index_N = np.repeat(np.arange(len(members)), np.diff(np.append(members.start_M, len(log))))
    segments = []
    for name, (level_M, levels) in {
        ALL: (np.zeros(len(members), np.int64), [""]),
        **{name: top_levels(values) for name, values in columns.items()},
    }.items():
        level_N = level_M[index_N]
        segments.append(
            _Segment(
                name=name,
                levels=levels,
                level_M=level_M,
                shown_GL=_shown(log, depicted, level_N, len(levels)),
                engagement=_engagement(log, depicted, level_N, len(levels), weight_N, doubts),
            )
        )
    tested, flagged = _flags([segment.engagement for segment in segments], depicted.groups)
    rows = _rows(log, depicted, members, index_N, segments, flagged)
    if log.engaged is None:
        notes.append(
            "The log does not say which clicks led to a viewing: engagement by what is depicted cannot be measured."
        )
    else:
        notes.append(f"Exposure: {tested:,} pairs of segment and tag were tested, of {len(depicted.names):,} tags.")
    return rows, notes


def _shown(log: ScoredLog, depicted: Depicted, level_N: NDArray, levels: int) -> dict[str, NDArray[np.float64]]:
    """Share of each level's impressions that depict each tag: sums by artwork first, then by the tags of artworks."""
    artworks = len(depicted.tags_AG)
    sums = np.zeros((3, levels * artworks))
    start_N = log.artwork_NK.start_N
    for first in range(0, len(log), ROWS_PER_PASS):
        end = min(first + ROWS_PER_PASS, len(log))
        cells = slice(start_N[first], start_N[end])
        width_n = log.width[first:end]
        key_c = np.repeat(level_N[first:end] * artworks, width_n) + log.artwork_NK.values_C[cells]
        was_shown = start_N[first:end] - start_N[first] + log.shown[first:end]
        sums[0] += np.bincount(key_c, log.policy_NK.values_C[cells], levels * artworks)
        sums[1] += np.bincount(key_c, np.repeat(1 / width_n, width_n), levels * artworks)
        sums[2] += np.bincount(key_c[was_shown], minlength=levels * artworks)
    count_L = np.bincount(level_N, minlength=levels)
    tags, artwork_E = depicted.tags_AG.values_C, depicted.tags_AG.row_C
    shares = {}
    for name, table_LA in zip(("scored", "uniform", "logged"), sums.reshape(3, levels, artworks), strict=True):
        by_level = [np.bincount(tags, table_A[artwork_E], len(depicted.names)) for table_A in table_LA]
        shares[name] = np.stack(by_level, 1) / np.maximum(count_L, 1)
    return shares


def _engagement(
    log: ScoredLog, depicted: Depicted, level_N: NDArray, levels: int, weight_N: NDArray, doubts: Sequence[str]
) -> _Engagement | None:
    """Engagement after clicks on each tag in each level, against the same titles' other artworks; None where it is not known.

    Clicks are weighted as if their artworks had been shown to anybody. They are compared within the title, the level and, where
    a title has clicks enough, the time; and what time adds to all titles is taken off.
    """
    if log.engaged is None:
        return None
    at = np.flatnonzero(log.clicked > 0)
    engaged_n, level_n, time_n = log.engaged[at], level_N[at], log.shown_at[at]
    click_weight_n = 1 / (log.width[at] * log.propensity[at])
    tags_nG = depicted.tags_AG.take(log.artwork_NK[at, log.shown[at]])
    row_E, count = tags_nG.row_C, len(depicted.names) * levels
    group_E = tags_nG.values_C * levels + level_n[row_E]
    title_n = log.title[at] * levels + level_n
    gap = stratified_gap(
        engaged_n,
        click_weight_n,
        log.member[at],
        stratum_N=time_strata(title_n, time_n, TOGETHER_ENGAGED),
        title_N=title_n,
        row_E=row_E,
        group_E=group_E,
        groups=count,
        drift_N=drift_by_time(engaged_n, click_weight_n, title_n, time_n) if len(at) else None,
    )
    policy_n = np.asarray(weight_N, np.float64)[at]
    policy_GL = np.bincount(group_E, policy_n[row_E], count).reshape(-1, levels)
    of_level_L = np.bincount(level_n, policy_n, levels)
    verdict_A = np.array(assess_groups(gap.expected_rewarded_A, gap.members_A, doubts))
    tested_A = (gap.expected_rewarded_A >= MIN_EXPECTED) & (verdict_A != "unanswerable")
    p_value_A = np.where(tested_A, gap.p_value_A(above=False), np.nan)
    shape = (-1, levels)
    return _Engagement(
        rate_GL=gap.rate_A.reshape(shape),
        gap_GL=gap.gap_A.reshape(shape),
        error_GL=gap.error_A.reshape(shape),
        p_value_GL=p_value_A.reshape(shape),
        clicks_GL=np.bincount(group_E, minlength=count).reshape(shape),
        share_GL=policy_GL / np.maximum(of_level_L, 1e-300),
        verdict_GL=verdict_A.reshape(shape),
    )


def _flags(engagement: list[_Engagement | None], groups: int) -> tuple[int, list[NDArray[np.bool_]]]:
    """How many pairs were tested; and by segment which are flagged, (G, L): the false discovery rate is held in the groups of
    people, and in all tags, over all segments."""
    known = [one for one in engagement if one is not None]
    if not known:
        return 0, []
    p_value_GJ = np.concatenate([one.p_value_GL for one in known], 1)
    below_GJ = np.zeros(p_value_GJ.shape, bool)
    tags = len(p_value_GJ) - groups
    for family, share in ((slice(0, tags), TAG_DISCOVERIES), (slice(tags, None), GROUP_DISCOVERIES)):
        below = benjamini_hochberg(p_value_GJ[family].reshape(-1), share)
        below_GJ[family] = below.reshape(p_value_GJ[family].shape)
    ends = np.cumsum([one.p_value_GL.shape[1] for one in known])[:-1]
    return int(np.isfinite(p_value_GJ).sum()), np.split(below_GJ, ends, 1)


def _listed(
    depicted: Depicted, segments: list[_Segment], flagged: list[NDArray[np.bool_]]
) -> set[tuple[int, int, int]]:
    """Which (segment, tag, level) become rows: the tags shown most and groups of people in every level, and the worst others."""
    tags = len(depicted.names) - depicted.groups
    uniform_G = segments[0].shown_GL["uniform"][:tags, 0]
    always = [*np.argsort(-uniform_G, kind="stable")[:MAX_TAGS].tolist(), *range(tags, len(depicted.names))]
    listed = {
        (index, tag, level)
        for index, segment in enumerate(segments)
        for tag in always
        for level in range(len(segment.levels))
    }
    worst: list[tuple[bool, float, tuple[int, int, int]]] = []
    for index, (segment, flagged_GL) in enumerate(zip(segments, flagged, strict=False)):
        if segment.engagement is not None:
            p_value_GL = segment.engagement.p_value_GL
            for tag, level in np.argwhere(flagged_GL | (p_value_GL < 0.1)).tolist():
                worst.append((not flagged_GL[tag, level], float(p_value_GL[tag, level]), (index, tag, level)))
    worst.sort()
    kept = [key for n, (unflagged, _, key) in enumerate(worst) if n < (MIN_WORST if unflagged else MAX_WORST)]
    return listed | set(kept)


def _rows(
    log: ScoredLog,
    depicted: Depicted,
    members: Members,
    index_N: NDArray,
    segments: list[_Segment],
    flagged: list[NDArray[np.bool_]],
) -> list[ExposureRow]:
    """The rows of the listed pairs, in the order of segments, levels and tags."""
    listed = _listed(depicted, segments, flagged)
    count_M = members.total(np.ones(len(log)))
    rows: dict[tuple[int, int, int], ExposureRow] = {}
    tags = sorted({tag for _, tag, _ in listed})
    for first in range(0, len(tags), TAGS_PER_PASS):
        some = tags[first : first + TAGS_PER_PASS]
        by_member = _by_member(log, depicted, some, index_N, len(members))
        for index, segment in enumerate(segments):
            for level, name in enumerate(segment.levels):
                at_M = segment.level_M == level
                if not at_M.any():
                    continue
                for position, tag in enumerate(some):
                    if (index, tag, level) not in listed:
                        continue
                    scored, uniform = (Sums(v_MG[at_M, position][None], count_M[at_M][None]) for v_MG in by_member)
                    row = _row(segment, name, (tag, level), depicted, scored, uniform)
                    if flagged and flagged[index][tag, level]:
                        shown_more = row["above_low"] is not None and row["above_low"] > 0
                        row["flag"] = "shown more, watched less" if shown_more else "watched less"
                    rows[index, level, tag] = row
    order = sorted(rows, key=lambda key: (key[0], key[1], -segments[0].shown_GL["uniform"][key[2], 0], key[2]))
    return [rows[key] for key in order]


def _by_member(
    log: ScoredLog, depicted: Depicted, tags: list[int], index_N: NDArray, members: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Expected impressions that depict each of some tags, by member, (M, G) both: of the scored and the uniform policy."""
    position_G = np.full(len(depicted.names), -1)
    position_G[tags] = np.arange(len(tags))
    all_AG = depicted.tags_AG
    of_some = position_G[all_AG.values_C] >= 0
    width_A = np.bincount(all_AG.row_C[of_some], minlength=len(all_AG))
    some_AG = Lists.of(position_G[all_AG.values_C[of_some]], width_A)
    sums = np.zeros((2, members * len(tags)))
    start_N = log.artwork_NK.start_N
    for first in range(0, len(log), ROWS_PER_PASS):
        end = min(first + ROWS_PER_PASS, len(log))
        cells = slice(start_N[first], start_N[end])
        width_n = log.width[first:end]
        tags_cG = some_AG.take(log.artwork_NK.values_C[cells])
        cell_E = tags_cG.row_C
        key_E = np.repeat(index_N[first:end], width_n)[cell_E] * len(tags) + tags_cG.values_C
        for row, value_c in enumerate((log.policy_NK.values_C[cells], np.repeat(1 / width_n, width_n))):
            sums[row] += np.bincount(key_E, value_c[cell_E], sums.shape[1])
    scored_MG, uniform_MG = sums.reshape(2, members, len(tags))
    return scored_MG, uniform_MG


def _row(
    segment: _Segment, level: str, at: tuple[int, int], depicted: Depicted, scored: Sums, uniform: Sums
) -> ExposureRow:
    """The row of one segment's level and one tag, not flagged: exposure, and engagement after clicks on it."""
    verdict = assess_members(scored.denominator_TM[0])
    known_M = 1.0 if verdict != "unanswerable" else np.nan
    interval = normal_interval(scored.value, known_M * scored.influence_M)
    above = scored.value - uniform.value
    apart = normal_interval(above, known_M * (scored.influence_M - uniform.influence_M))
    row = ExposureRow(
        segment=segment.name,
        level=level,
        depicts=depicted.names[at[0]],
        scored=scored.value,
        low=finite_or_none(interval.low),
        high=finite_or_none(interval.high),
        uniform=uniform.value,
        logged=float(segment.shown_GL["logged"][at]),
        catalogue=float(depicted.catalogue_G[at[0]]),
        above_uniform=above,
        above_low=finite_or_none(apart.low),
        above_high=finite_or_none(apart.high),
        verdict=verdict,
        engaged_after_click=None,
        of_others=None,
        engaged_gap=None,
        engaged_low=None,
        engaged_high=None,
        chance=None,
        engaged_verdict="unanswerable",
        members=scored.numerator_TM.shape[1],
        artworks=int(depicted.artworks_G[at[0]]),
        clicks=0,
        share_of_clicks=None,
        flag="",
    )
    if segment.engagement is not None:
        known = segment.engagement
        gap, half = known.gap_GL[at], Z * known.error_GL[at]
        row["clicks"] = int(known.clicks_GL[at])
        row["share_of_clicks"] = finite_or_none(known.share_GL[at])
        if np.isfinite(known.p_value_GL[at]):
            row["engaged_after_click"] = finite_or_none(known.rate_GL[at])
            row["of_others"] = finite_or_none(known.rate_GL[at] - gap)
            row["engaged_gap"] = finite_or_none(gap)
            row["engaged_low"], row["engaged_high"] = finite_or_none(gap - half), finite_or_none(gap + half)
            row["chance"] = float(known.p_value_GL[at])
            row["engaged_verdict"] = cast(Verdict, str(known.verdict_GL[at]))
    return row


FLAG_RULE = (
    f"Compared with clicks on the same titles' other artworks, by the same segment and at about the same time. Of the tags that "
    f"are flagged, {TAG_DISCOVERIES:.1%} are expected to be false discoveries, and {GROUP_DISCOVERIES:.1%} of the groups of "
    f"people; a tag is not tested where fewer than {MIN_EXPECTED:.0f} viewings would be expected."
)
"""What a flag means, in words."""
