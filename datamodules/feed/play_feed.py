"""Shards -> batches of plays alone: what was played after what, each member stored once.

In: shards. Out: `PlayBatch`es, stretches of members' histories in which every play is to be predicted from those before it.
Each epoch cuts long histories at other positions, and contains every play about once. The order follows from
(seed, epoch) alone.

Legend: M stretches, T plays.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datamodules.shards.shard import Shard
from foundation.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PlayBatch:
    """A batch of stretches. Padding is 0, on the right."""

    play_title: Tensor
    """int64 (M, T): title rows."""
    play_artwork: Tensor
    """int64 (M, T): artwork rows, 0 where not logged."""
    play_watched: Tensor
    """float32 (M, T): fraction watched, NaN where not logged."""
    first: Tensor
    """bool (M,): whether the stretch begins with the member's first play."""


class PlaysFeed:
    """Batches of the plays before a moment; set `epoch` to choose the epoch. Iterating yields the whole epoch."""

    def __init__(
        self, shards: list[Shard], *, before: int | None = None, plays: int = 100, batch: int = 16, seed: int = 0
    ) -> None:
        """`before`: microseconds since 1970, None: all plays; `plays`: plays per stretch, at most; `batch`: stretches per
        batch."""
        for name, value in (("plays", plays), ("batch", batch)):
            if value < 1:
                raise UserError(f"{name}={value}: must be at least 1.")
        self.shards, self.plays, self.batch, self.seed, self.epoch = shards, plays, batch, seed, 0
        self.spans: list[tuple[np.ndarray, np.ndarray]] = []
        """By shard: start and end of each member's plays."""
        for shard in shards:
            start, end = shard.member_plays[:-1], shard.member_plays[1:]
            if before is not None:
                count_before = np.concatenate([[0], np.cumsum(np.asarray(shard.play_time) < before)])
                end = start + count_before[end] - count_before[start]
            self.spans.append((np.asarray(start), np.asarray(end)))

    def __len__(self) -> int:
        """Number of batches of this epoch."""
        return len(self._plan())

    def played(self) -> tuple[Tensor, Tensor]:
        """All plays as pairs: members, numbered over all shards, and title rows, each int64 (P,)."""
        members, titles, count = [], [], 0
        for shard, (start, end) in zip(self.shards, self.spans, strict=True):
            member = np.repeat(np.arange(len(start)), end - start)
            index = np.arange(len(member)) - np.repeat(np.cumsum(end - start) - (end - start), end - start)
            titles.append(np.asarray(shard.play_title[start[member] + index], np.int64))
            members.append(member + count)
            count += len(start)
        return torch.from_numpy(np.concatenate(members)), torch.from_numpy(np.concatenate(titles))

    def __iter__(self) -> Iterator[PlayBatch]:
        """Every batch of this epoch."""
        for s, start, length, first in self._plan():
            columns = {
                name: torch.from_numpy(values) for name, values in self.shards[s].padded_runs(start, length).items()
            }
            yield PlayBatch(**columns, first=torch.from_numpy(first))

    def _plan(self) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """This epoch's batches: shard, and each stretch's first play, its length and whether it is a member's first."""
        rng = np.random.default_rng((self.seed, self.epoch))
        batches = []
        for s, (begin, end) in enumerate(self.spans):
            count = end - begin
            # a long history is cut at a random offset, so that every play is sometimes in the middle of a stretch
            shift = np.where(count > self.plays, rng.integers(0, self.plays, len(count)), 0)
            pieces = np.where(count > 0, -(-(count + shift) // self.plays), 0)
            member = np.repeat(np.arange(len(count)), pieces)
            piece = np.arange(len(member)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
            start = begin[member] - shift[member] + piece * self.plays
            stop = np.minimum(start + self.plays, end[member])
            start = np.maximum(start, begin[member])
            length, first = stop - start, start == begin[member]
            # stretches of similar length together, in random order
            order = np.argsort(length + rng.random(len(length)) * max(1, self.plays // 5), kind="stable")
            parts = np.split(order, np.arange(self.batch, len(order), self.batch)) if len(order) else []
            batches += [(s, start[part], length[part].astype(np.int64), first[part]) for part in parts]
        return [batches[index] for index in rng.permutation(len(batches))]
