"""The LightningDataModule over shards: which batches an epoch of the trainer sees.

An epoch of the trainer is one slice of a pass over the training impressions, so that validation and checkpoints come
more often than passes do. The slice follows from the epoch's number alone: a resumed run asks for the same batches.
"""

from collections.abc import Iterator

import pytorch_lightning as pl
import torch

from datamodules.feed import Batch, Feed
from datamodules.shards import TRAIN, VALIDATION, Shards


class Slice:
    """The batches of one slice of one pass; what the trainer takes for a loader."""

    def __init__(self, feed: Feed, part: int, parts: int) -> None:
        """Slice `part` of `parts` of the feed's present pass."""
        plan = len(feed)
        self.feed = feed
        self.begin, self.end = part * plan // parts, (part + 1) * plan // parts

    def __len__(self) -> int:
        """Batches."""
        return self.end - self.begin

    def __iter__(self) -> Iterator[Batch]:
        """Gather them."""
        return self.feed.batches(self.begin, self.end)


class ShardsModule(pl.LightningDataModule):
    """Feeds of the training and the validation split."""

    def __init__(self, shards: Shards, *, reach: int, batch: int, slices: int, seed: int, pin: bool = False) -> None:
        """`reach`: plays a state depends on; `batch`: impressions; `slices`: trainer epochs per pass."""
        super().__init__()
        self.slices = slices
        self.train_feed = Feed(shards.shards, TRAIN, reach=reach, impressions=batch, shuffle=True, seed=seed, pin=pin)
        self.validation_feed = Feed(
            shards.shards, VALIDATION, reach=reach, impressions=2 * batch, shuffle=False, pin=pin
        )

    def train_dataloader(self) -> Slice:
        """The slice of the trainer's epoch."""
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        self.train_feed.epoch, part = divmod(epoch, self.slices)
        return Slice(self.train_feed, part, self.slices)

    def val_dataloader(self) -> Slice:
        """The whole split, in order."""
        return Slice(self.validation_feed, 0, 1)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copy every column."""
        return batch.to(device)
