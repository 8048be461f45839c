"""What groups of members look for in artworks: means of their queries, which need no knowledge of why members click.

Appeal is linear in a member's queries, so that an artwork's appeal by mean queries is its mean appeal over their impressions.
In: a bundle and shards of a log. Out: mean queries of the evaluated impressions, and of the members of a favourite genre.

Legend: N impressions of a shard, S sampled impressions, P pairs of title and candidate, A artworks, D width, C content, G genres,
I titles.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from datamodules.shards.shard import MICROSECONDS, Shard
from serving.bundle.bundle import Bundle
from serving.scoring.scorer import shard_requests

MAX_SAMPLED = 5000
"""Impressions whose queries are computed, at most: evenly spaced ones."""
MAX_GENRES, MIN_MEMBERS = 4, 30
"""Favourite genres to report, at most, and the members that each must have among the sampled impressions."""
QUERIES = ("artwork_query", "content_query")


@dataclass(frozen=True, kw_only=True)
class MeanQuery:
    """What some impressions' members look for, on average: all of them, or those of a genre above all of them."""

    genre: str
    """The members' favourite genre; empty for all members."""
    impressions: int
    members: int
    artwork_query_D: np.ndarray
    content_query_C: np.ndarray
    bias: float
    """How often an artwork's bias counts: 1 for all members, 0 for a difference to them, in which it cancels out."""

    def appeal(self, vector_AD: np.ndarray, content_AC: np.ndarray, bias_A: np.ndarray) -> np.ndarray:
        """What artworks add to the logit of a click, (A,), before their title's mean is taken out."""
        return vector_AD @ self.artwork_query_D + content_AC @ self.content_query_C + self.bias * bias_A


@dataclass(frozen=True, kw_only=True)
class SampledQueries:
    """Queries of a sample of the evaluated impressions."""

    artwork_query_SD: np.ndarray
    content_query_SC: np.ndarray
    member_S: np.ndarray
    """Members as integers."""
    genre_S: np.ndarray
    """The genre that was played most before the impression, the first of the list among equals; -1 without such plays."""
    impressions: int
    """How many impressions the sample is of."""
    pair_P2: np.ndarray
    """Rows of a title and of an artwork that was its candidate in any of them, known ones, each pair once."""


def sample_queries(
    bundle: Bundle, shards: Sequence[Shard], since: datetime, genres_IG: np.ndarray, most: int = MAX_SAMPLED
) -> SampledQueries:
    """Run the ranker on at most `most` of the impressions shown at or after `since` that offered two candidates.

    `shards`: by the bundle's vocabularies; `genres_IG`: bool, by title row, the genres of each.
    """
    moment = int(since.timestamp() * MICROSECONDS)
    rows_by_shard = [
        np.flatnonzero((shard.shown_at >= moment) & (np.diff(shard.candidate_start) > 1)) for shard in shards
    ]
    total = sum(map(len, rows_by_shard))
    step, offset, members = -(-total // most) or 1, 0, 0
    queries: dict[str, list[np.ndarray]] = {name: [] for name in QUERIES}
    member_parts, genre_parts, pair_parts = [], [], [np.zeros((0, 2), np.int64)]
    for shard, rows_N in zip(shards, rows_by_shard, strict=True):
        sampled_S = rows_N[-offset % step :: step]
        offset += len(rows_N)
        for request, _ in shard_requests(shard, bundle.request_lengths, sampled_S):
            outputs = bundle.rank(request, QUERIES)
            for name in QUERIES:
                queries[name].append(outputs[name])
        member_parts.append(members + np.searchsorted(shard.member_impressions, sampled_S, side="right") - 1)
        members += len(shard.member_impressions) - 1
        genre_parts.append(_favourite_genres(shard, sampled_S, genres_IG))
        pair_parts.append(_candidate_pairs(shard, rows_N))
    widths = [bundle.tables[name].shape[1] for name in ("artwork_vector", "artwork_content")]
    return SampledQueries(
        **{f"{name}_S{letter}": np.concatenate([np.zeros((0, width)), *queries[name]])
           for name, letter, width in zip(QUERIES, "DC", widths, strict=True)},
        member_S=np.concatenate(member_parts),
        genre_S=np.concatenate(genre_parts),
        impressions=total,
        pair_P2=np.unique(np.concatenate(pair_parts), axis=0),
    )  # fmt: skip


def _favourite_genres(shard: Shard, rows_S: np.ndarray, genres_IG: np.ndarray) -> np.ndarray:
    """The genre played most in each impression's history, (S,); -1 where no play has a genre."""
    genre_S = np.full(len(rows_S), -1)
    for index, row in enumerate(rows_S.tolist()):
        count_G = genres_IG[shard.play_title[shard.history_start[row] : shard.history_end[row]]].sum(0)
        if count_G.any():
            genre_S[index] = count_G.argmax()
    return genre_S


def _candidate_pairs(shard: Shard, rows_N: np.ndarray) -> np.ndarray:
    """Title and artwork of every known candidate of some impressions, int64 (P, 2)."""
    width_N = np.diff(shard.candidate_start)
    keep_N = np.zeros(len(width_N), bool)
    keep_N[rows_N] = True
    keep_C = np.repeat(keep_N, width_N)
    pair_P2 = np.stack([np.repeat(shard.title, width_N)[keep_C], shard.candidate[keep_C]], axis=1).astype(np.int64)
    return np.unique(pair_P2[(pair_P2 > 0).all(1)], axis=0)


def mean_queries(sample: SampledQueries, genres: Sequence[str]) -> list[MeanQuery]:
    """The mean over all sampled impressions, then, above it, that of each of the most frequent favourite genres with enough
    members."""
    if not len(sample.member_S):
        return []
    artwork_D, content_C = sample.artwork_query_SD.mean(0), sample.content_query_SC.mean(0)
    members_of: dict[int, int] = {
        genre: len(np.unique(sample.member_S[sample.genre_S == genre]))
        for genre in np.unique(sample.genre_S[sample.genre_S >= 0]).tolist()
    }
    frequent = sorted((genre for genre in members_of if members_of[genre] >= MIN_MEMBERS), key=lambda g: -members_of[g])
    everybody = MeanQuery(
        genre="",
        impressions=len(sample.member_S),
        members=len(np.unique(sample.member_S)),
        artwork_query_D=artwork_D,
        content_query_C=content_C,
        bias=1.0,
    )
    by_genre = [
        MeanQuery(
            genre=genres[genre],
            impressions=int((sample.genre_S == genre).sum()),
            members=members_of[genre],
            artwork_query_D=sample.artwork_query_SD[sample.genre_S == genre].mean(0) - artwork_D,
            content_query_C=sample.content_query_SC[sample.genre_S == genre].mean(0) - content_C,
            bias=0.0,
        )
        for genre in frequent[:MAX_GENRES]
    ]
    return [everybody, *by_genre]
