"""One shard from its rows: members in order of their ids, plays and impressions in order of time, histories by position.

In: the rows of a shard in any order. Out: a `Shard` that does not depend on that order.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.shards.ratings import RatingScale, centred_ratings
from datamodules.shards.shard import CONTEXT_PREFIX, MICROSECONDS_AN_HOUR, TEST, TRAIN, VALIDATION, Shard
from foundation.context import ContextFeature

INT64_MAX = 2**63 - 1

PLAY_COLUMNS = pa.schema(
    {
        "member_id": pa.string(),
        "time": pa.int64(),
        "title": pa.int32(),
        "artwork": pa.int32(),
        "watched": pa.float32(),
        "rating": pa.float32(),
    }
)
IMPRESSION_COLUMNS = pa.schema(
    {
        "member_id": pa.string(),
        "impression_id": pa.string(),
        "time": pa.int64(),
        "title": pa.int32(),
        "candidate": pa.list_(pa.int32()),
        "candidate_propensity": pa.list_(pa.float32()),
        "shown": pa.int16(),
        "propensity": pa.float32(),
        "policy": pa.int16(),
        "clicked": pa.int8(),
        "engaged": pa.int8(),
    }
)


EARLIER_COLUMNS = pa.schema({"member_id": pa.string(), "time": pa.int64(), "artwork": pa.int32(), "clicked": pa.int8()})


def assemble(
    plays: pa.Table | None,
    impressions: pa.Table | None,
    split_times: tuple[int, int],
    features: tuple[ContextFeature, ...],
    rating_scale: RatingScale | None = None,
    outcome_delay: int = MICROSECONDS_AN_HOUR,
    earlier: pa.Table | None = None,
) -> tuple[Shard, np.ndarray]:
    """A shard, and the row of each of its impressions in the table `impressions`, int64 (N,).

    `plays`, `impressions`: rows as `datamodules.prepare.shard_spill` encodes them; None for an empty table. `split_times`:
    first instants of validation and of test. `features`: the context features. `rating_scale`: None where ratings count as not
    given. `outcome_delay`: microseconds until an impression's outcome is known. `earlier`: impressions that are history alone,
    for they were shown before all others.
    """
    plays = plays if plays is not None else PLAY_COLUMNS.empty_table()
    stored = {feature.name: feature.stored_dtype for feature in features if not feature.from_time}
    if impressions is None:
        context_columns = [pa.field(f"{CONTEXT_PREFIX}{name}", pa.from_numpy_dtype(t)) for name, t in stored.items()]
        impressions = pa.schema([*IMPRESSION_COLUMNS, *context_columns]).empty_table()
    shown = impressions
    earlier = earlier if earlier is not None else EARLIER_COLUMNS.empty_table()
    (play_member, shown_member, earlier_member), members = _member_codes(
        [_contiguous(table, "member_id") for table in (plays, shown, earlier)]
    )

    time, title, artwork, watched, rating = (
        np.asarray(_contiguous(plays, name)) for name in ("time", "title", "artwork", "watched", "rating")
    )
    order = member_time_order(
        play_member,
        time,
        lambda rows: (title[rows], artwork[rows], watched[rows].view(np.int32), rating[rows].view(np.int32)),
    )
    member_plays = _offsets(play_member, members)
    play_columns = {
        "play_title": title[order],
        "play_artwork": artwork[order],
        "play_watched": watched[order],
        "play_rating": np.full(len(order), np.nan, np.float32)
        if rating_scale is None
        else centred_ratings(rating[order], member_plays, rating_scale),
        "play_time": time[order],
        "member_plays": member_plays,
    }

    ids = _contiguous(shown, "impression_id")
    shown_at = np.asarray(_contiguous(shown, "time"))
    order = member_time_order(shown_member, shown_at, lambda rows: (_ranks(ids.take(pa.array(rows))),))
    shown_at = shown_at[order]
    member_impressions = _offsets(shown_member, members)
    history_end = _history_ends(play_columns["play_time"], member_plays, shown_at, member_impressions)

    candidates = _contiguous(shown, "candidate")
    start, source_indices = _ragged(candidates.offsets.to_numpy(), order)
    id_bytes, id_start = _concatenated_bytes(ids.take(pa.array(order)))
    candidate, clicked = np.asarray(candidates.values)[source_indices], np.asarray(_contiguous(shown, "clicked"))[order]
    past = _past_impressions(
        np.concatenate([earlier_member, shown_member[order]]),
        np.concatenate([np.asarray(_contiguous(earlier, "time")), shown_at]),
        np.concatenate(
            [
                np.asarray(_contiguous(earlier, "artwork")),
                candidate[start[:-1] + np.asarray(_contiguous(shown, "shown"))[order]],
            ]
        ),
        np.concatenate([np.asarray(_contiguous(earlier, "clicked")), clicked]),
    )
    member_past = _offsets(np.concatenate([earlier_member, shown_member]), members)
    # strictly before, also where outcomes are known at once
    known_at = shown_at - max(outcome_delay - 1, 0)
    split = np.full(len(order), TRAIN, np.int8)
    split[shown_at >= split_times[0]] = VALIDATION
    split[shown_at >= split_times[1]] = TEST
    copied_columns = ("title", "shown", "propensity", "policy", "engaged")
    shard = Shard(
        **play_columns,
        **{name: np.asarray(_contiguous(shown, name))[order] for name in copied_columns},
        context={name: np.asarray(_contiguous(shown, f"{CONTEXT_PREFIX}{name}"))[order] for name in stored},
        features=features,
        member_impressions=member_impressions,
        impression_id=id_bytes,
        impression_id_start=id_start,
        history_start=np.repeat(member_plays[:-1], np.diff(member_impressions)),
        history_end=history_end,
        **past,
        past_start=np.repeat(member_past[:-1], np.diff(member_impressions)),
        past_end=_history_ends(past["past_time"], member_past, known_at, member_impressions),
        shown_at=shown_at,
        clicked=clicked,
        candidate_start=start,
        candidate=candidate,
        candidate_propensity=np.asarray(_contiguous(shown, "candidate_propensity").values)[source_indices],
        split=split,
    )
    return shard, order


def member_time_order(
    member: np.ndarray, time: np.ndarray, tie_keys: Callable[[np.ndarray], tuple[np.ndarray, ...]]
) -> np.ndarray:
    """Rows in order of (member, time, keys of ties); the keys are computed only for rows that tie."""
    if not len(member):
        return np.zeros(0, np.int64)
    least = time.min()
    span = int(time.max()) - int(least) + 1
    packs = span * (int(member.max()) + 1) < INT64_MAX
    order = np.argsort(member * span + (time - least)) if packs else np.lexsort((time, member))
    same = (np.diff(member[order]) == 0) & (np.diff(time[order]) == 0)
    if same.any():
        tied = np.flatnonzero(np.append(same, False) | np.insert(same, 0, False))
        rows = order[tied]
        run = np.cumsum(np.insert(~same, 0, True))[tied]
        order[tied] = rows[np.lexsort((*reversed(tie_keys(rows)), run))]
    return order


def _past_impressions(
    member: np.ndarray, time: np.ndarray, artwork: np.ndarray, clicked: np.ndarray
) -> dict[str, np.ndarray]:
    """Columns of past impressions by (member, time), from rows in any order."""
    order = member_time_order(member, time, lambda rows: (artwork[rows], clicked[rows]))
    return {"past_artwork": artwork[order], "past_clicked": clicked[order], "past_time": time[order]}


def _member_codes(columns: list[pa.Array]) -> tuple[list[np.ndarray], int]:
    """Columns of ids as ranks in the order of the ids' bytes, and the number of different ids."""
    encoded = pa.chunked_array(columns, pa.string()).combine_chunks().dictionary_encode()
    rank = _ranks(encoded.dictionary)
    code = rank[np.asarray(encoded.indices)] if len(encoded) else np.zeros(0, np.int64)
    return np.split(code, np.cumsum([len(column) for column in columns])[:-1]), len(rank)


def _ranks(strings: pa.Array) -> np.ndarray:
    """int64: each string's rank in the order of bytes; the strings differ."""
    rank = np.empty(len(strings), np.int64)
    rank[np.asarray(pc.array_sort_indices(strings)).astype(np.int64)] = np.arange(len(strings))
    return rank


def _history_ends(
    play_time: np.ndarray, member_plays: np.ndarray, shown_at: np.ndarray, member_impressions: np.ndarray
) -> np.ndarray:
    """For every impression, one past its member's last play strictly before it.

    Member and time are packed into one integer, for as many members at a time as fit into 63 bits.
    """
    ends = np.zeros(len(shown_at), np.int64)
    if not len(shown_at) or not len(play_time):
        return ends
    least = min(int(play_time.min()), int(shown_at.min()))
    span = max(int(play_time.max()), int(shown_at.max())) - least + 1
    members, at_once = len(member_plays) - 1, max(1, INT64_MAX // span)
    for first in range(0, members, at_once):
        last = min(members, first + at_once)
        keys = []
        for start, time in ((member_plays, play_time), (member_impressions, shown_at)):
            member = np.repeat(np.arange(last - first), np.diff(start[first : last + 1]))
            # in 64 bits without a sign, so that no two times lie too far apart; a single member's number is 0
            since = (time[start[first] : start[last]] - np.int64(least)).view(np.uint64)
            keys.append(member.astype(np.uint64) * np.uint64(min(span, INT64_MAX)) + since)
        end_index = np.searchsorted(keys[0], keys[1], side="left")
        ends[member_impressions[first] : member_impressions[last]] = member_plays[first] + end_index
    return ends


def _ragged(offsets: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lists in another order: their new offsets, int64 (N + 1,), and the present indices of their values, (C,)."""
    width = np.diff(offsets)[order]
    start = np.concatenate([[0], np.cumsum(width, dtype=np.int64)])
    # in 32 bits, as Arrow's own offsets are
    source_indices = np.repeat(offsets[:-1][order] - start[:-1].astype(np.int32), width)
    source_indices += np.arange(len(source_indices), dtype=np.int32)
    return start, source_indices


def _concatenated_bytes(strings: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Strings as UTF-8 bytes end to end, and where each begins, int64 (N + 1,)."""
    if not len(strings):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, data = strings.buffers()
    start = np.frombuffer(offsets, np.int32, len(strings) + 1, strings.offset * 4).astype(np.int64)
    return np.frombuffer(data or b"", np.uint8)[start[0] : start[-1]], start - start[0]


def _offsets(member: np.ndarray, members: int) -> np.ndarray:
    """int64 (M + 1,): where each member's rows start in columns ordered by member."""
    return np.concatenate([[0], np.cumsum(np.bincount(member, minlength=members))]).astype(np.int64)


def _contiguous(table: pa.Table, name: str) -> pa.Array:
    """A column as one array that starts at its buffers' start."""
    array = table[name].combine_chunks()
    array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
    return pa.concat_arrays([array]) if array.offset else array
