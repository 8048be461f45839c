"""Shards -> batches: members x plays, plus impressions that point into them.

In: mapped shards. Out: `Batch`es, a member's plays once for all impressions of a window. A window is a run of one
member's impressions together with the plays they can see: each state depends on the last `reach` plays only, so a
window keeps `reach` plays to its left, and cutting a long history changes no prediction. Gathering is one indexing
operation per column; a thread stays one batch ahead. The order follows from (seed, epoch) alone.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from queue import Full, Queue
from threading import Event, Thread

import numpy as np
import torch
from torch import Tensor

from datamodules.shards import Shard

MICROSECONDS, MICROSECONDS_AN_HOUR = 1_000_000, 3_600_000_000
TOGETHER = 8
"""Shards whose batches are mixed: few enough that what is read lies in memory."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """`M` windows of members, `T` plays, `N` impressions, `K` candidates. Padding is 0 and lies right of what counts."""

    play_title: Tensor
    """int64 (M, T): title rows."""
    play_artwork: Tensor
    """int64 (M, T): artwork rows, 0 where not logged."""
    play_watched: Tensor
    """float32 (M, T): fraction watched, NaN where not logged."""
    play_time: Tensor
    """int64 (M, T): seconds since 1970, UTC."""
    first: Tensor
    """bool (M,): the window begins with the member's first play."""
    member: Tensor
    """int64 (N,): the window an impression belongs to."""
    position: Tensor
    """int64 (N,): how many of the window's plays lie before the impression; 0 = no history yet."""
    title: Tensor
    """int64 (N,)."""
    artworks: Tensor
    """int64 (N, K): candidates, or the shown artwork alone (K = 1) when training."""
    country: Tensor
    """int64 (N,)."""
    device: Tensor
    """int64 (N,)."""
    hour: Tensor
    """int64 (N,): of the day, UTC."""
    row: Tensor
    """int64 (N,): -1 where not logged."""
    column: Tensor
    """int64 (N,): -1 where not logged."""
    play_count: Tensor
    """int64 (N,): how many plays the member had before the impression, those before the window included."""
    clicked: Tensor
    """float32 (N,)."""
    engaged: Tensor
    """float32 (N,): NaN where not logged."""
    shown: Tensor
    """int64 (N,): place of the shown artwork in `artworks`."""
    shard: int
    """Which shard the impressions are of."""
    asked: Tensor
    """int64 (n,): the clicked impressions of which it was logged whether they were engaged."""
    index: Tensor
    """int64 (N,): their rows in the shard."""
    whole: int
    """Impressions of the batch over all ranks: N where there is one."""

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device."""
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in self._tensors().items()})

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which copies to a GPU overlap with work."""
        return replace(self, **{name: value.pin_memory() for name, value in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}


@dataclass(frozen=True, kw_only=True)
class _Windows:
    """Windows of a shard: flat arrays of shape (W,)."""

    first: np.ndarray
    """First impression, a place in the selected impressions."""
    count: np.ndarray
    """How many impressions."""
    play: np.ndarray
    """First play."""
    plays: np.ndarray
    """How many plays."""

    def take(self, places: np.ndarray) -> "_Windows":
        return _Windows(**{f.name: getattr(self, f.name)[places] for f in fields(self)})


def _windows(shard: Shard, selected: np.ndarray, reach: int, most: int) -> _Windows:
    """Cut selected impressions (rows, in order) into runs of at most `most` of one member, spanning `reach` plays."""
    end, start = shard.history_end[selected], shard.history_start[selected]
    member = np.searchsorted(shard.member_impressions, selected, side="right") - 1
    new_member = np.flatnonzero(np.diff(member, prepend=-1))
    rank = np.arange(len(selected)) - np.repeat(new_member, np.diff(np.append(new_member, len(selected))))
    key = np.stack([member, rank // most, (end - start) // reach])
    first = np.flatnonzero((np.diff(key, axis=1, prepend=-1) != 0).any(0))
    count = np.diff(np.append(first, len(selected)))
    play = np.maximum(start[first], end[first] - reach)
    return _Windows(first=first, count=count, play=play, plays=end[first + count - 1] - play)


class Feed:
    """Batches of the impressions of one split; set `epoch` to say which pass. Iterating yields the whole pass."""

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
        seed: int = 0,
        pin: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """`reach`: plays a state depends on; `impressions`: about how many a batch holds; `window`: at most, per window.

        With several `ranks`, each is dealt every so many-th window of every batch: together they yield the batches that
        one alone does, and a batch of fewer windows than ranks is empty for some.
        """
        self.shards, self.reach, self.impressions = shards, reach, impressions
        self.shuffle, self.candidates, self.seed, self.pin = shuffle, candidates, seed, pin
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
        """Share of this epoch's encoded positions that hold no play."""
        encoded = held = 0
        for s, places in self.plan():
            plays = self.windows[s].plays[places]
            encoded += len(plays) * max(1, int(plays.max(initial=0)))
            held += int(plays.sum())
        return 1 - held / max(1, encoded)

    def __len__(self) -> int:
        """Batches of this epoch."""
        return len(self.plan())

    def plan(self) -> list[tuple[int, np.ndarray]]:
        """This epoch's batches as (shard, windows): windows of like length together.

        Shuffled, members are mixed within a batch, and batches over some shards at a time, whose order is random too.
        """
        if self._plan is not None and self._plan[0] == self.epoch:
            return self._plan[1]
        chance = np.random.default_rng((self.seed, self.epoch))
        batches: list[tuple[int, np.ndarray]] = []
        order = chance.permutation(len(self.shards)) if self.shuffle else np.arange(len(self.shards))
        of_group: list[tuple[int, np.ndarray]] = []
        for place, s in enumerate(order, start=1):
            windows = self.windows[s]
            places = chance.permutation(len(windows.first)) if self.shuffle else np.arange(len(windows.first))
            # Windows are sorted by length within a stretch of random ones: little padding, and still mixed members
            stretch = max(1, 32 * self.impressions // max(1, int(windows.count.mean()) if len(places) else 1))
            of_shard: list[tuple[int, np.ndarray]] = []
            for begin in range(0, len(places), stretch):
                some = places[begin : begin + stretch]
                some = some[np.argsort(windows.plays[some], kind="stable")]
                batch_of = np.cumsum(windows.count[some]) // self.impressions
                of_shard += [(int(s), part) for part in np.split(some, np.flatnonzero(np.diff(batch_of)) + 1)]
            of_group += of_shard
            if place % TOGETHER == 0 or place == len(order):
                batches += [of_group[b] for b in chance.permutation(len(of_group))] if self.shuffle else of_group
                of_group = []
        self._plan = (self.epoch, batches)
        return batches

    def __iter__(self) -> Iterator[Batch]:
        """Every batch of this pass."""
        return self.batches(0, len(self))

    def batches(self, begin: int, end: int) -> Iterator[Batch]:
        """Batches begin .. end of this pass; a thread gathers one ahead."""
        plan = self.plan()[begin:end]
        last = {s: place for place, (s, _) in enumerate(plan)}
        ahead: Queue[Batch | BaseException | None] = Queue(maxsize=2)
        stop = Event()

        def put(item: "Batch | BaseException | None") -> None:
            while not stop.is_set():
                with suppress(Full):
                    ahead.put(item, timeout=0.1)
                    return

        def work() -> None:
            try:
                for place, (s, places) in enumerate(plan):
                    if stop.is_set():
                        return
                    batch = self._share(s, places)
                    if last[s] == place:
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

    def _share(self, s: int, places: np.ndarray) -> Batch:
        """This rank's part of the batch of some windows of a shard.

        Where a batch has fewer windows than there are ranks, some get one window's plays and no impression: every weight
        then has a gradient, if only zero, which is what ranks that average their gradients wait for.
        """
        share, whole = places[self.rank :: self.ranks], int(self.windows[s].count[places].sum())
        if len(share):
            return self.gather(s, self.windows[s].take(share), whole)
        first = self.windows[s].take(places[:1])
        return self.gather(s, replace(first, count=np.zeros_like(first.count)), whole)

    def rows(self, s: int, windows: _Windows) -> tuple[np.ndarray, np.ndarray]:
        """A shard's impressions in some windows: the window of each, and its place in the shard."""
        member = np.repeat(np.arange(len(windows.count)), windows.count)
        run = np.cumsum(windows.count) - windows.count
        return member, self.selected[s][np.arange(len(member)) - run[member] + windows.first[member]]

    def gather(self, s: int, windows: _Windows, whole: int) -> Batch:
        """The batch of some windows of a shard, `whole` impressions over all ranks."""
        shard = self.shards[s]
        within = np.arange(max(1, int(windows.plays.max(initial=0))))
        inside_MT = within < windows.plays[:, None]
        play_MT = np.where(inside_MT, windows.play[:, None] + within, 0)
        if len(shard.play_title):
            title_MT = np.where(inside_MT, shard.play_title[play_MT], 0)
            artwork_MT = np.where(inside_MT, shard.play_artwork[play_MT], 0)
            watched_MT = np.where(inside_MT, shard.play_watched[play_MT], np.nan)
            time_MT = np.where(inside_MT, shard.play_time[play_MT] // MICROSECONDS, 0)
        else:
            title_MT = artwork_MT = time_MT = np.zeros(play_MT.shape, np.int64)
            watched_MT = np.full(play_MT.shape, np.nan)

        member, rows = self.rows(s, windows)
        shown = shard.shown[rows].astype(np.int64)
        start = shard.candidate_start[rows]
        if self.candidates:
            width = shard.candidate_start[rows + 1] - start
            offset = np.arange(int(width.max(initial=1)))
            there = offset < width[:, None]
            artworks = np.where(there, shard.candidate[np.where(there, start[:, None] + offset, 0)], 0)
        else:
            artworks, shown = shard.candidate[start + shown][:, None], np.zeros_like(shown)

        def whole_numbers(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values, np.int64))

        clicked, engaged = shard.clicked[rows], shard.engaged[rows]
        first = windows.play == shard.history_start[self.selected[s][windows.first]]
        return Batch(
            play_title=whole_numbers(title_MT),
            play_artwork=whole_numbers(artwork_MT),
            play_watched=torch.from_numpy(watched_MT.astype(np.float32)),
            play_time=whole_numbers(time_MT),
            first=torch.from_numpy(first),
            member=whole_numbers(member),
            position=whole_numbers(shard.history_end[rows] - windows.play[member]),
            title=whole_numbers(shard.title[rows]),
            artworks=whole_numbers(artworks),
            country=whole_numbers(shard.country[rows]),
            device=whole_numbers(shard.device[rows]),
            hour=whole_numbers(shard.shown_at[rows] // MICROSECONDS_AN_HOUR % 24),
            row=whole_numbers(shard.row[rows]),
            column=whole_numbers(shard.column[rows]),
            play_count=whole_numbers(shard.history_end[rows] - shard.history_start[rows]),
            clicked=torch.from_numpy(clicked.astype(np.float32)),
            engaged=torch.from_numpy(np.where(engaged < 0, np.nan, engaged).astype(np.float32)),
            shown=whole_numbers(shown),
            shard=s,
            asked=whole_numbers(np.flatnonzero((clicked > 0) & (engaged >= 0))),
            index=whole_numbers(rows),
            whole=whole,
        )
