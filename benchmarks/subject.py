"""One subject of `keyart bench feed` or `keyart bench train`, in a process of its own.

`python -m benchmarks.subject SHARDS OUT.json feed|train keyart|per-impression|floor BATCH PLAYS WIDTH IMPRESSIONS [ENCODER]`
OUT.json: impressions, seconds and, where they apply, padding, waiting, flops, device_gigabytes.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.materialised import Rows
from datamodules.datamodule import Place
from datamodules.feed import Batch, Feed
from datamodules.shards import TRAIN, Shards
from models.history import HistoryConfig
from models.two_tower import TwoTower, TwoTowerConfig
from train.embed import load_embedding
from train.optimiser import OptimiserConfig
from train.prior import PriorConfig
from train.run import content_of, sizes_of
from train.task import RankerTask, clip_gradients, losses

WARM = 5
"""Steps before the clock starts."""
KEPT = 12
"""Batches made beforehand, to learn what the same steps take without a feed."""
STREAMED = ("title", "candidate_start", "country", "device", "shown_at", "row", "column", "clicked", "engaged", "shown")
"""Columns of an impression that a batch is made of, beside its place in the history and its artwork."""


def keyart_feed(shards: Shards, batch: int, plays: int) -> Feed:
    """The feed as `keyart fit` has it by default."""
    return Feed(shards.shards, TRAIN, reach=plays, impressions=batch, shuffle=True, pin=torch.cuda.is_available())


def floor(shards: Shards, feed: Feed) -> tuple[int, float]:
    """Index the bytes that a pass of the feed is made of once, column by column, and do nothing else with them."""
    plan, count = feed.plan(), 0
    places = []
    for s, windows in plan:
        cut = feed.windows[s].take(windows)
        play = np.repeat(cut.play - np.cumsum(cut.plays) + cut.plays, cut.plays) + np.arange(int(cut.plays.sum()))
        places.append((s, play, feed.rows(s, cut)[1]))
    began = time.perf_counter()
    for s, play, rows in places:
        shard = shards.shards[s]
        for name in ("play_title", "play_artwork", "play_watched", "play_time"):
            getattr(shard, name)[play]
        for name in (*STREAMED, "history_end"):
            getattr(shard, name)[rows]
        shard.candidate[shard.candidate_start[rows]]
        count += len(rows)
    return count, time.perf_counter() - began


class Training:
    """keyart's model and one step of its training, as `train.task` has it."""

    def __init__(self, shards: Shards, embedding: torch.Tensor, shape: TwoTowerConfig) -> None:
        torch.manual_seed(0)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = TwoTower(shape, sizes_of(shards.vocabularies), content_of(shards, embedding))
        self.model = model.to(self.device).train()
        self.task = RankerTask(
            model, OptimiserConfig(), PriorConfig(), impressions=1_000_000, total_steps=10_000, seed=0, place=Place()
        ).to(self.device)
        self.optimiser = self.task.configure_optimizers()["optimizer"]  # pyright: ignore
        for group in self.optimiser.param_groups:  # no warm-up: nobody counts the steps
            group["lr"] = group["initial_lr"]
        self.bf16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported()

    def step(self, batch: Batch) -> None:
        """Forward, backward, clip, AdamW, running average."""
        batch = batch.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            click, engaged, _ = losses(self.model, batch)
        (click + engaged / batch.whole + self.task.prior.loss() / self.task.impressions).backward()
        clip_gradients(self.model, 1.0)
        self.task.average.update(self.model)
        self.optimiser.step()
        self.optimiser.zero_grad()

    def timed(self, batches: Iterator[Batch]) -> tuple[int, float]:
        """Impressions and seconds of all steps after the first few."""
        for batch in islice(batches, WARM):
            self.step(batch)
        self._wait()
        began, count = time.perf_counter(), 0
        for batch in batches:
            self.step(batch)
            count += len(batch.clicked)
        self._wait()
        return count, time.perf_counter() - began

    def flops(self, batch: Batch) -> int:
        """Floating-point operations of one step's forward and backward pass, by torch's own count."""
        with FlopCounterMode(display=False) as counter:
            self.step(batch)
        return counter.get_total_flops()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def reachable_flops(device: torch.device) -> float:
    """Operations a second that a large matrix product reaches here, in bfloat16 on a GPU."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    x, rates = torch.randn(size, size, device=device, dtype=dtype), []
    for _ in range(5):
        began = time.perf_counter()
        float((x @ x)[0, 0])  # asking for a number waits for it
        rates.append(2 * size**3 / (time.perf_counter() - began))
    return float(np.median(rates))


def feed_subject(shards: Shards, subject: str, batch: int, plays: int, most: int) -> dict[str, float]:
    """One pass of batches, or as much of it as `most` impressions."""
    if subject == "per-impression":
        rows = Rows.of(shards, plays, most)
        return _measured(lambda: sum(len(b.clicked) for b in rows.batches(batch)))
    feed = keyart_feed(shards, batch, plays)
    if subject == "floor":
        count, seconds = floor(shards, feed)
        return {"impressions": count, "seconds": seconds}
    list(feed.batches(0, 3))  # the pages of the shards are in memory for everybody
    return _measured(lambda: sum(len(b.clicked) for b in feed)) | {"padding": feed.padding()}


def train_subject(
    shards: Shards, subject: str, batch: int, most: int, shape: TwoTowerConfig, embedding: torch.Tensor
) -> dict[str, float]:
    """Steps on `most` impressions."""
    training, plays = Training(shards, embedding, shape), shape.history.span
    steps = max(KEPT, most // batch)
    if subject == "per-impression":
        rows = Rows.of(shards, plays, (WARM + steps) * batch)
        count, seconds = training.timed(rows.batches(batch))
        return {"impressions": count, "seconds": seconds}
    feed = keyart_feed(shards, batch, plays)
    kept = list(feed.batches(0, KEPT))
    count, seconds = training.timed(feed.batches(0, WARM + steps))
    flops = sum(training.flops(b) for b in kept) / sum(len(b.clicked) for b in kept) * count / seconds
    told = {"impressions": count, "seconds": seconds, "flops": flops / reachable_flops(training.device)}
    # what the same steps take with their batches made beforehand; turn about, for a machine is seldom quiet
    fed, made = [], []
    for _ in range(3):
        fed.append(training.timed(feed.batches(0, KEPT))[1])
        made.append(training.timed(iter([b.to(training.device) for b in kept]))[1])
    told["waiting"] = max(0.0, 1 - median(made) / median(fed))
    if training.device.type == "cuda":
        told["device_gigabytes"] = torch.cuda.max_memory_allocated() / 1e9
    return told


def _measured(work: Callable[[], int]) -> dict[str, float]:
    began = time.perf_counter()
    count = work()
    return {"impressions": count, "seconds": time.perf_counter() - began}


def main(words: list[str]) -> None:
    """See the module."""
    folder, out, what, subject = words[:4]
    batch, plays, width, most = map(int, words[4:8])
    encoder = words[8] if len(words) > 8 else "mean"
    shards = Shards.open(Path(folder))
    if what == "feed":
        told = feed_subject(shards, subject, batch, plays, most)
    else:
        history = HistoryConfig(encoder=encoder, span=plays)  # pyright: ignore[reportArgumentType]
        shape = TwoTowerConfig(width=width, history=history)
        told = train_subject(shards, subject, batch, most, shape, load_embedding(Path(folder))[0])
    Path(out).write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1:])
