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

from benchmarks.impression_rows import ImpressionRows
from datamodules.feed.datamodule import Cursor
from datamodules.feed.impression_feed import Batch, Feed
from datamodules.shards.shard import TRAIN, Shards
from models.history import HistoryConfig
from models.two_tower import TwoTower, TwoTowerConfig
from train.embed import load_embedding
from train.optimiser import OptimiserConfig
from train.prior import PriorConfig
from train.run import content_of, sizes_of
from train.task import RankerTask, clip_gradients, losses

WARMUP_STEPS = 5
"""Steps before timing starts."""
PREMADE_BATCHES = 12
"""Batches made beforehand, to time the same steps without a feed."""
STREAMED = ("title", "candidate_start", "shown_at", "clicked", "engaged", "shown")
"""Columns of an impression in a batch, beside its context, its position in the history and its artwork."""


def keyart_feed(shards: Shards, batch: int, plays: int) -> Feed:
    """The feed of `keyart fit` with its defaults."""
    return Feed(shards.shards, TRAIN, reach=plays, impressions=batch, shuffle=True, pin=torch.cuda.is_available())


def floor(shards: Shards, feed: Feed) -> tuple[int, float]:
    """Index the bytes of one epoch of the feed once, column by column, and nothing else; returns impressions and seconds."""
    plan, count = feed.plan(), 0
    index_plan = []
    for s, windows in plan:
        cut = feed.windows[s].take(windows)
        play = np.repeat(cut.play - np.cumsum(cut.plays) + cut.plays, cut.plays) + np.arange(int(cut.plays.sum()))
        index_plan.append((s, play, feed.rows(s, cut)[1]))
    start = time.perf_counter()
    for s, play, rows in index_plan:
        shard = shards.shards[s]
        for name in ("play_title", "play_artwork", "play_watched"):
            getattr(shard, name)[play]
        for name in (*STREAMED, "history_end"):
            getattr(shard, name)[rows]
        for values in shard.context.values():
            values[rows]
        shard.candidate[shard.candidate_start[rows]]
        count += len(rows)
    return count, time.perf_counter() - start


class Training:
    """keyart's model and one step of its training, as in `train.task`."""

    def __init__(self, shards: Shards, embedding: torch.Tensor, shape: TwoTowerConfig) -> None:
        torch.manual_seed(0)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = TwoTower(shape, sizes_of(shards.vocabularies, shards.context), content_of(shards, embedding))
        self.model = model.to(self.device).train()
        self.task = RankerTask(
            model, OptimiserConfig(), PriorConfig(), impressions=1_000_000, total_steps=10_000, seed=0, cursor=Cursor()
        ).to(self.device)
        self.optimiser = self.task.configure_optimizers()["optimizer"]  # pyright: ignore
        for group in self.optimiser.param_groups:  # no warm-up: the schedule is not stepped
            group["lr"] = group["initial_lr"]
        self.bf16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported()

    def step(self, batch: Batch) -> None:
        """Forward, backward, clip, AdamW, running average."""
        batch = batch.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            click, engaged, _ = losses(self.model, batch)
        (click + engaged / batch.global_impressions + self.task.prior.loss() / self.task.impressions).backward()
        clip_gradients(self.model, 1.0)
        self.task.ema.update(self.model)
        self.optimiser.step()
        self.optimiser.zero_grad()

    def timed(self, batches: Iterator[Batch]) -> tuple[int, float]:
        """Impressions and seconds of all steps after the first few."""
        for batch in islice(batches, WARMUP_STEPS):
            self.step(batch)
        self._wait()
        start, count = time.perf_counter(), 0
        for batch in batches:
            self.step(batch)
            count += len(batch.clicked)
        self._wait()
        return count, time.perf_counter() - start

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
        start = time.perf_counter()
        float((x @ x)[0, 0])  # reading the number waits for the device
        rates.append(2 * size**3 / (time.perf_counter() - start))
    return float(np.median(rates))


def feed_subject(shards: Shards, subject: str, batch: int, plays: int, max_impressions: int) -> dict[str, float]:
    """Time one epoch of batches; `per-impression` at most `max_impressions` impressions."""
    if subject == "per-impression":
        rows = ImpressionRows.of(shards, plays, max_impressions)
        return _measured(lambda: sum(len(b.clicked) for b in rows.batches(batch)))
    feed = keyart_feed(shards, batch, plays)
    if subject == "floor":
        count, seconds = floor(shards, feed)
        return {"impressions": count, "seconds": seconds}
    list(feed.batches(0, 3))  # the pages of the shards are in memory for every subject
    return _measured(lambda: sum(len(b.clicked) for b in feed)) | {"padding": feed.padding()}


def train_subject(
    shards: Shards, subject: str, batch: int, max_impressions: int, shape: TwoTowerConfig, embedding: torch.Tensor
) -> dict[str, float]:
    """Time steps on `max_impressions` impressions."""
    training, plays = Training(shards, embedding, shape), shape.history.span
    steps = max(PREMADE_BATCHES, max_impressions // batch)
    if subject == "per-impression":
        rows = ImpressionRows.of(shards, plays, (WARMUP_STEPS + steps) * batch)
        count, seconds = training.timed(rows.batches(batch))
        return {"impressions": count, "seconds": seconds}
    feed = keyart_feed(shards, batch, plays)
    premade = list(feed.batches(0, PREMADE_BATCHES))
    count, seconds = training.timed(feed.batches(0, WARMUP_STEPS + steps))
    flops = sum(training.flops(b) for b in premade) / sum(len(b.clicked) for b in premade) * count / seconds
    report = {"impressions": count, "seconds": seconds, "flops": flops / reachable_flops(training.device)}
    # the same steps with batches made beforehand, in turn, because the machine's load varies
    fed_seconds, premade_seconds = [], []
    for _ in range(3):
        fed_seconds.append(training.timed(feed.batches(0, PREMADE_BATCHES))[1])
        premade_seconds.append(training.timed(iter([b.to(training.device) for b in premade]))[1])
    report["waiting"] = max(0.0, 1 - median(premade_seconds) / median(fed_seconds))
    if training.device.type == "cuda":
        report["device_gigabytes"] = torch.cuda.max_memory_allocated() / 1e9
    return report


def _measured(work: Callable[[], int]) -> dict[str, float]:
    start = time.perf_counter()
    count = work()
    return {"impressions": count, "seconds": time.perf_counter() - start}


def main(arguments: list[str]) -> None:
    """Measure the subject that the arguments name: see the module."""
    folder, out, what, subject = arguments[:4]
    batch, plays, width, max_impressions = map(int, arguments[4:8])
    encoder = arguments[8] if len(arguments) > 8 else "mean"
    shards = Shards.open(Path(folder))
    if what == "feed":
        report = feed_subject(shards, subject, batch, plays, max_impressions)
    else:
        history = HistoryConfig(encoder=encoder, span=plays)  # pyright: ignore[reportArgumentType]
        shape = TwoTowerConfig(width=width, history=history)
        report = train_subject(shards, subject, batch, max_impressions, shape, load_embedding(Path(folder))[0])
    Path(out).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
