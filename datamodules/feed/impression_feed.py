"""Shards -> batches: members x plays, plus impressions that point into them.

In: mapped shards. Out: `Batch`es, a member's plays once for all impressions of a window. A window is a run of one
member's impressions together with the plays they can see: each state depends on the last `reach` plays only, so a
window keeps `reach` plays to its left, and cutting a long history changes no prediction. Gathering is one indexing
operation per column; a thread stays one batch ahead. The order follows from (seed, epoch) alone.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from queue import Full, Queue
from threading import Event, Thread

import numpy as np
import torch
from torch import Tensor

from datamodules.shards.padding import padded
from datamodules.shards.shard import Shard

SHARDS_MIXED = 8
"""Shards whose batches are mixed: few enough that their arrays stay in memory."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """`M` windows of members, `T` plays, `N` impressions, `K` candidates. Padding is 0, on the right."""

    play_title: Tensor
    """int64 (M, T): title rows."""
    play_artwork: Tensor
    """int64 (M, T): artwork rows, 0 where not logged."""
    play_watched: Tensor
    """float32 (M, T): fraction watched, NaN where not logged."""
    first: Tensor
    """bool (M,): whether the window begins with the member's first play."""
    member: Tensor
    """int64 (N,): the window an impression belongs to."""
    position: Tensor
    """int64 (N,): how many of the window's plays lie before the impression; 0 = no history yet."""
    title: Tensor
    """int64 (N,)."""
    artworks: Tensor
    """int64 (N, K): candidates, or the shown artwork alone (K = 1) when training."""
    context: dict[str, Tensor]
    """By context feature, int64 (N,), of a number float32 (N,); and as `play_count` how many plays the member had before
    the impression, those before the window included, int64 (N,)."""
    clicked: Tensor
    """float32 (N,)."""
    engaged: Tensor
    """float32 (N,): NaN where not logged."""
    shown: Tensor
    """int64 (N,): index of the shown artwork in `artworks`."""
    past_artwork: Tensor
    """int64 (N, J): artwork rows of the member's past impressions, J = 0 in a feed without them."""
    past_clicked: Tensor
    """float32 (N, J)."""
    past_hours: Tensor
    """float32 (N, J): hours from a past impression to this one."""
    shard: int
    """Index of the impressions' shard."""
    engagement_known: Tensor
    """int64 (n,): the clicked impressions of which it was logged whether they were engaged."""
    index: Tensor
    """int64 (N,): their rows in the shard."""
    global_impressions: int
    """Impressions of the batch over all ranks: N for a single rank."""

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device."""
        return self._mapped(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which copies to a GPU overlap with work."""
        return self._mapped(lambda value: value.pin_memory())

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = {f.name: function(v) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **tensors, context={name: function(value) for name, value in self.context.items()})


@dataclass(frozen=True, kw_only=True)
class _Windows:
    """Windows of a shard: flat arrays of shape (W,)."""

    first: np.ndarray
    """Index of the first impression in the selected impressions."""
    count: np.ndarray
    """Number of impressions."""
    play: np.ndarray
    """First play."""
    plays: np.ndarray
    """Number of plays."""

    def take(self, window_indices: np.ndarray) -> "_Windows":
        return _Windows(**{f.name: getattr(self, f.name)[window_indices] for f in fields(self)})


def _windows(shard: Shard, selected: np.ndarray, reach: int, max_impressions: int) -> _Windows:
    """Cut selected impressions (rows, in order) into runs of at most `max_impressions` of one member, spanning `reach` plays."""
    end, start = shard.history_end[selected], shard.history_start[selected]
    member = np.searchsorted(shard.member_impressions, selected, side="right") - 1
    new_member = np.flatnonzero(np.diff(member, prepend=-1))
    rank = np.arange(len(selected)) - np.repeat(new_member, np.diff(np.append(new_member, len(selected))))
    key = np.stack([member, rank // max_impressions, (end - start) // reach])
    first = np.flatnonzero((np.diff(key, axis=1, prepend=-1) != 0).any(0))
    count = np.diff(np.append(first, len(selected)))
    play = np.maximum(start[first], end[first] - reach)
    return _Windows(first=first, count=count, play=play, plays=end[first + count - 1] - play)


class Feed:
    """Batches of the impressions of one split; set `epoch` to choose the epoch. Iterating yields the whole epoch."""

    def __init__(
        self,
        shards: list[Shard],
        split: int,
        *,
        reach: int,
        impressions: int,
        window: int = 128,
        shuffle: bool,
        candidates: bool = False,
        past: bool = True,
        seed: int = 0,
        pin: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """`reach`: plays a state depends on; `impressions`: about how many a batch has; `window`: impressions per window, at
        most; `past`: whether batches hold past impressions, which training does not read.

        With several `ranks`, each gets every `ranks`-th window of every batch: together they yield the batches of a single
        rank, and a batch of fewer windows than ranks is empty for some.
        """
        self.shards, self.reach, self.impressions = shards, reach, impressions
        self.shuffle, self.candidates, self.past, self.seed, self.pin = shuffle, candidates, past, seed, pin
        self.selected: list[np.ndarray] = []
        self.windows: list[_Windows] = []
        for shard in shards:
            self.selected.append(np.flatnonzero(shard.split == split))
            self.windows.append(_windows(shard, self.selected[-1], reach, window))
            shard.release()
        self.rank, self.ranks = rank, ranks
        self.epoch = 0
        self._plan: tuple[int, list[tuple[int, np.ndarray]]] | None = None

    @property
    def size(self) -> int:
        """Impressions of an epoch."""
        return sum(len(rows) for rows in self.selected)

    def padding(self) -> float:
        """Share of this epoch's encoded positions that are padding."""
        encoded = held = 0
        for s, window_indices in self.plan():
            plays = self.windows[s].plays[window_indices]
            encoded += len(plays) * max(1, int(plays.max(initial=0)))
            held += int(plays.sum())
        return 1 - held / max(1, encoded)

    def __len__(self) -> int:
        """Batches of this epoch."""
        return len(self.plan())

    def plan(self) -> list[tuple[int, np.ndarray]]:
        """This epoch's batches as (shard, windows): windows of similar length together.

        Shuffled, members are mixed within a batch, and batches over some shards at a time, whose order is random too.
        """
        if self._plan is not None and self._plan[0] == self.epoch:
            return self._plan[1]
        rng = np.random.default_rng((self.seed, self.epoch))
        batches: list[tuple[int, np.ndarray]] = []
        order = rng.permutation(len(self.shards)) if self.shuffle else np.arange(len(self.shards))
        of_group: list[tuple[int, np.ndarray]] = []
        for ordinal, s in enumerate(order, start=1):
            windows = self.windows[s]
            window_indices = rng.permutation(len(windows.first)) if self.shuffle else np.arange(len(windows.first))
            # Windows are sorted by length within a stretch of random ones: little padding, and still mixed members
            pool_size = max(1, 32 * self.impressions // max(1, int(windows.count.mean()) if len(window_indices) else 1))
            of_shard: list[tuple[int, np.ndarray]] = []
            for begin in range(0, len(window_indices), pool_size):
                pool = window_indices[begin : begin + pool_size]
                pool = pool[np.argsort(windows.plays[pool], kind="stable")]
                batch_of = np.cumsum(windows.count[pool]) // self.impressions
                of_shard += [(int(s), part) for part in np.split(pool, np.flatnonzero(np.diff(batch_of)) + 1)]
            of_group += of_shard
            if ordinal % SHARDS_MIXED == 0 or ordinal == len(order):
                batches += [of_group[b] for b in rng.permutation(len(of_group))] if self.shuffle else of_group
                of_group = []
        self._plan = (self.epoch, batches)
        return batches

    def __iter__(self) -> Iterator[Batch]:
        """Every batch of this epoch."""
        return self.batches(0, len(self))

    def batches(self, begin: int, end: int) -> Iterator[Batch]:
        """Batches begin .. end of this epoch; a thread gathers one ahead."""
        plan = self.plan()[begin:end]
        last = {s: ordinal for ordinal, (s, _) in enumerate(plan)}
        ahead: Queue[Batch | BaseException | None] = Queue(maxsize=2)
        stop = Event()

        def put(item: "Batch | BaseException | None") -> None:
            while not stop.is_set():
                with suppress(Full):
                    ahead.put(item, timeout=0.1)
                    return

        def work() -> None:
            try:
                for ordinal, (s, window_indices) in enumerate(plan):
                    if stop.is_set():
                        return
                    batch = self._share(s, window_indices)
                    if last[s] == ordinal:
                        self.shards[s].release()
                    put(batch.pin_memory() if self.pin else batch)
                put(None)
            except BaseException as error:  # handed to the reader, who raises it
                put(error)

        thread = Thread(target=work, name="feed", daemon=True)
        thread.start()
        try:
            while (item := ahead.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()

    def _share(self, s: int, window_indices: np.ndarray) -> Batch:
        """This rank's part of the batch of some windows of a shard.

        Where a batch has fewer windows than there are ranks, some get one window's plays and no impression: every weight
        then has a gradient, if only zero, which averaging the gradients over ranks needs.
        """
        share, global_impressions = (
            window_indices[self.rank :: self.ranks],
            int(self.windows[s].count[window_indices].sum()),
        )
        if len(share):
            return self.gather(s, self.windows[s].take(share), global_impressions)
        first = self.windows[s].take(window_indices[:1])
        return self.gather(s, replace(first, count=np.zeros_like(first.count)), global_impressions)

    def rows(self, s: int, windows: _Windows) -> tuple[np.ndarray, np.ndarray]:
        """A shard's impressions in some windows: the window of each, and its row in the shard."""
        member = np.repeat(np.arange(len(windows.count)), windows.count)
        run = np.cumsum(windows.count) - windows.count
        return member, self.selected[s][np.arange(len(member)) - run[member] + windows.first[member]]

    def gather(self, s: int, windows: _Windows, global_impressions: int) -> Batch:
        """The batch of some windows of a shard. `global_impressions`: its impressions over all ranks."""
        shard = self.shards[s]
        plays = shard.padded_runs(windows.play, windows.plays)
        member, rows = self.rows(s, windows)
        shown = shard.shown[rows].astype(np.int64)
        start = shard.candidate_start[rows]
        if self.candidates:
            artworks, _ = padded(shard.candidate, start, shard.candidate_start[rows + 1] - start)
        else:
            artworks, shown = shard.candidate[start + shown][:, None], np.zeros_like(shown)

        past = shard.past_impressions(rows) if self.past else shard.past_impressions(rows, most=0)

        def to_int64(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values, np.int64))

        clicked, engaged = shard.clicked[rows], shard.engaged[rows]
        first = windows.play == shard.history_start[self.selected[s][windows.first]]
        return Batch(
            **{name: torch.from_numpy(values) for name, values in plays.items()},
            first=torch.from_numpy(first),
            member=to_int64(member),
            position=to_int64(shard.history_end[rows] - windows.play[member]),
            title=to_int64(shard.title[rows]),
            artworks=to_int64(artworks),
            context={name: torch.from_numpy(values) for name, values in shard.context_at(rows).items()}
            | {"play_count": to_int64(shard.history_end[rows] - shard.history_start[rows])},
            clicked=torch.from_numpy(clicked.astype(np.float32)),
            engaged=torch.from_numpy(np.where(engaged < 0, np.nan, engaged).astype(np.float32)),
            shown=to_int64(shown),
            **{name: torch.from_numpy(values) for name, values in past.items()},
            shard=s,
            engagement_known=to_int64(np.flatnonzero((clicked > 0) & (engaged >= 0))),
            index=to_int64(rows),
            global_impressions=global_impressions,
        )
