"""Exposure: how often a policy shows a segment of members what artworks depict, against the catalogue and the uniform policy.

The publicly reported failure of personal artwork is members shown the faces of actors who barely appear. It has two signs,
reported side by side for each segment and each person or tag that artworks depict: it is shown to the segment more than by the
uniform policy, and a click on it leads to a viewing less often than the segment's other clicks do.

Legend: N impressions, K candidates (padded), M members, A artworks.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

from collections import Counter
from dataclasses import dataclass
from math import erfc, sqrt
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamodules.contract.tables import ARTWORKS, Column
from evaluation.audits.clickbait import FALSE_DISCOVERIES, MIN_CLICKS, benjamini_hochberg
from evaluation.logs.columns import read_columns, to_array
from evaluation.logs.log_slices import read_segments, top_levels
from evaluation.logs.scored_log import ScoredLog
from evaluation.off_policy.intervals import Members, Sums, normal_interval, standard_error
from evaluation.record.rows import EngagementRow, ExposureRow, finite_or_none
from foundation.lists import blocks
from foundation.shell import shell_word

MAX_TAGS = 30
"""How many people and tags are reported: those the uniform policy would show most."""
ALL = "all members"


@dataclass(frozen=True, kw_only=True)
class TagExposure:
    """One person or tag: by member, (M,), its expected impressions, and clicks on it weighted to the policy."""

    name: str
    catalogue: float
    """Share of the catalogue's artworks that depict it."""
    scored_M: NDArray[np.float64]
    uniform_M: NDArray[np.float64]
    logged_M: NDArray[np.float64]
    clicked_M: NDArray[np.float64]
    engaged_M: NDArray[np.float64]
    clicks: int
    """Clicks on it, not weighted."""


def read_depicts(dataset: Path) -> tuple[pa.Array, list[list[str]]] | None:
    """Artwork ids and the values that each depicts; None where the dataset lacks them."""
    files = ARTWORKS.files(dataset)
    if not files:
        return None
    columns = [
        Column(name="artwork_id", kind="string", nullable=True),
        Column(name="depicts", kind="strings", required=False, nullable=True),
    ]
    table = read_columns(files[0], files, columns, remedy=f"Run keyart check {shell_word(dataset)}.")
    if "depicts" not in table.column_names:
        return None
    return to_array(table["artwork_id"]), [words or [] for words in table["depicts"].to_pylist()]


def exposure(
    dataset: Path, log: ScoredLog, member: pa.Array, weight_N: NDArray[np.floating]
) -> tuple[list[ExposureRow], list[str]]:
    """Rows of segment, level and depicted person or tag with its exposure; and notes on what is left out.

    `member`: the log's member ids; `weight_N`: the policy's weights; `log` must be ordered by member.
    """
    depicts = read_depicts(dataset)
    if depicts is None or not any(depicts[1]):
        return [], ["The dataset does not say what artworks depict: exposure cannot be measured."]
    members = Members.of(log.member)
    tags = _depicted(log, members, *depicts, weight_N)
    if not tags:
        return [], ["No two artworks of the log depict the same: exposure cannot be measured."]
    segments, notes = read_segments(dataset, member.take(pa.array(members.start_M)))
    groups = _groups(segments, len(members))
    count_M = members.total(np.ones(len(log)))
    whole = np.stack([members.total(weight_N * log.clicked), np.zeros(len(members))])
    if log.engaged is not None:
        whole[1] = members.total(weight_N * log.engaged)
    rows = [
        _row(name, level, tag, at_M, count_M, whole, log.engaged is not None)
        for name, level, at_M in groups
        for tag in tags
    ]
    p_values = np.array([np.nan if row["chance"] is None else row["chance"] for row in rows])
    for row, below in zip(rows, benjamini_hochberg(p_values).tolist(), strict=True):
        shown_more = row["above_low"] is not None and row["above_low"] > 0
        row["flag"] = "shown more, watched less" if below and shown_more else "watched less" if below else ""
    if log.engaged is None:
        notes.append(
            "The log does not say which clicks led to a viewing: engagement by what is depicted cannot be measured."
        )
    return rows, notes


def _depicted(
    log: ScoredLog, members: Members, artworks: pa.Array, words: list[list[str]], weight_N: NDArray
) -> list[TagExposure]:
    """The people and tags that the uniform policy would show most, with their exposure."""
    index = pc.index_in(log.artworks, value_set=artworks).to_pylist()
    of_A = [words[p] if p is not None else [] for p in index]
    candidates_A = np.bincount(log.artwork_NK.values_C, np.repeat(1 / log.width, log.width), len(of_A))
    expected_impressions: dict[str, float] = {}
    encode_artworks: Counter[str] = Counter()
    for depicted, expected in zip(of_A, candidates_A.tolist(), strict=True):
        for word in set(depicted):
            expected_impressions[word] = expected_impressions.get(word, 0.0) + expected
            encode_artworks[word] += 1
    names = [
        word
        for word in sorted(expected_impressions, key=lambda w: -expected_impressions[w])
        if encode_artworks[word] > 1
    ][:MAX_TAGS]
    in_catalogue = Counter(word for depicted in words for word in set(depicted))
    index_N = np.repeat(np.arange(len(members)), np.diff(np.append(members.start_M, len(log))))
    tags = []
    for name in names:
        # index -1, the padding, is the last column
        depicts_A = np.array([name in depicted for depicted in of_A] + [False])
        sums = np.zeros((5, len(members)))
        clicks = 0
        for rows in blocks(log.artwork_NK):
            depicts_nk = depicts_A[log.artwork_NK[rows]]
            shown_n = depicts_nk[np.arange(len(depicts_nk)), log.shown[rows]]
            uniform_n = depicts_nk.sum(1) / log.width[rows]
            clicked_n = shown_n * log.clicked[rows]
            engaged_n = np.zeros(len(shown_n)) if log.engaged is None else shown_n * log.engaged[rows]
            shown = ((log.policy_NK[rows] * depicts_nk).sum(1), uniform_n, shown_n)
            values = (*shown, weight_N[rows] * clicked_n, weight_N[rows] * engaged_n)
            for row, value_n in enumerate(values):
                sums[row] += np.bincount(index_N[rows], value_n, len(members))
            clicks += int(clicked_n.sum())
        share = in_catalogue[name] / max(len(words), 1)
        by_member = dict(zip(("scored_M", "uniform_M", "logged_M", "clicked_M", "engaged_M"), sums, strict=True))
        tags.append(TagExposure(name=name, catalogue=share, clicks=clicks, **by_member))
    return tags


def _row(
    segment: str,
    level: str,
    tag: TagExposure,
    at_M: NDArray[np.bool_],
    count_M: NDArray,
    whole_2M: NDArray,
    engagement: bool,
) -> ExposureRow:
    """The row of one segment's level and one tag: exposure, and engagement after clicks against the segment's other clicks."""

    def ratio(numerator_M: NDArray, denominator_M: NDArray) -> Sums:
        return Sums(numerator_M[at_M][None], denominator_M[at_M][None])

    scored, uniform, logged = (ratio(v, count_M) for v in (tag.scored_M, tag.uniform_M, tag.logged_M))
    interval = normal_interval(scored.value, scored.influence_M)
    above = scored.value - uniform.value
    apart = normal_interval(above, scored.influence_M - uniform.influence_M)
    row = ExposureRow(
        segment=segment,
        level=level,
        depicts=tag.name,
        scored=scored.value,
        low=finite_or_none(interval.low),
        high=finite_or_none(interval.high),
        uniform=uniform.value,
        logged=logged.value,
        catalogue=tag.catalogue,
        above_uniform=above,
        above_low=finite_or_none(apart.low),
        above_high=finite_or_none(apart.high),
        engaged_after_click=None,
        of_others=None,
        engaged_gap=None,
        engaged_low=None,
        engaged_high=None,
        chance=None,
        members=int(at_M.sum()),
        flag="",
    )
    if engagement and tag.clicks >= MIN_CLICKS and (tag.clicked_M[at_M] > 0).sum() > 1:
        own = ratio(tag.engaged_M, tag.clicked_M)
        others = ratio(whole_2M[1] - tag.engaged_M, whole_2M[0] - tag.clicked_M)
        influence_M = own.influence_M - others.influence_M
        gap, error = own.value - others.value, standard_error(influence_M)
        ends = normal_interval(gap, influence_M)
        row["engaged_after_click"] = finite_or_none(own.value)
        row["of_others"] = finite_or_none(others.value)
        row["engaged_gap"] = finite_or_none(gap)
        row["engaged_low"], row["engaged_high"] = finite_or_none(ends.low), finite_or_none(ends.high)
        row["chance"] = finite_or_none(0.5 * erfc(-gap / error / sqrt(2))) if error > 0 else None
    return row


def engagement_by_segment(
    dataset: Path, log: ScoredLog, member: pa.Array, weights: dict[str, NDArray[np.floating]]
) -> list[EngagementRow]:
    """The share of each policy's clicks in a segment that leads to a viewing, against the uniform policy's share.

    `weights`: by policy, `uniform` included. Rows of segment, level, policy, value, uniform, gap with its interval.
    """
    if log.engaged is None:
        return []
    members = Members.of(log.member)
    segments, _ = read_segments(dataset, member.take(pa.array(members.start_M)))
    totals = {
        name: (members.total(weight_N * log.engaged), members.total(weight_N * log.clicked))
        for name, weight_N in weights.items()
    }
    rows: list[EngagementRow] = []
    for segment, level, at_M in _groups(segments, len(members)):
        sums = {name: Sums(e_M[at_M][None], c_M[at_M][None]) for name, (e_M, c_M) in totals.items()}
        for name, own in sums.items():
            if name == "uniform":
                continue
            gap = own.value - sums["uniform"].value
            ends = normal_interval(gap, own.influence_M - sums["uniform"].influence_M)
            rows.append(
                {
                    "segment": segment,
                    "level": level,
                    "policy": name,
                    "value": finite_or_none(own.value),
                    "uniform": finite_or_none(sums["uniform"].value),
                    "gap": finite_or_none(gap),
                    "low": finite_or_none(ends.low),
                    "high": finite_or_none(ends.high),
                    "members": int(at_M.sum()),
                }
            )
    return rows


def _groups(segments: dict[str, pa.Array], members: int) -> list[tuple[str, str, NDArray[np.bool_]]]:
    """All members, and each level of each segment, as (segment, level, mask of members)."""
    groups: list[tuple[str, str, NDArray[np.bool_]]] = [(ALL, "", np.ones(members, bool))]
    for name, values in segments.items():
        code_M, levels = top_levels(values)
        groups += [(name, level, code_M == index) for index, level in enumerate(levels) if (code_M == index).any()]
    return groups


FLAG_RULE = (
    f"Of the pairs of segment and tag that are flagged, {FALSE_DISCOVERIES:.0%} are expected to be false discoveries; fewer "
    f"than {MIN_CLICKS} clicks are not tested."
)
