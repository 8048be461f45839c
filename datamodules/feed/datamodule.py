"""The LightningDataModule over shards: which batches an epoch of the trainer sees.

An epoch of the trainer is one slice of a pass over the training impressions, so that validation comes more often than
passes do. Which batches it holds follows from the training's place alone, so that a resumed training asks for those that
are left.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytorch_lightning as pl
import torch

from datamodules.feed.impression_feed import Batch, Feed
from datamodules.shards.shard import TRAIN, VALIDATION, Shards


@dataclass(kw_only=True)
class Cursor:
    """How far a training has come. One object, read by all that depend on it and moved by the keeper alone."""

    validations: int = 0
    """Slices that are finished, validation included."""
    batch: int = 0
    """Batches done of the present slice; all of them while it is validated."""
    step: int = 0
    """Steps of the optimiser since the beginning."""


class EpochPart:
    """The batches that are left of one slice of one pass; what the trainer takes for a loader."""

    def __init__(self, feed: Feed, part: int, parts: int, done: int = 0) -> None:
        """Slice `part` of `parts` of the feed's present pass, without its first `done` batches."""
        plan = len(feed)
        self.feed = feed
        self.begin, self.end = part * plan // parts + done, (part + 1) * plan // parts

    def __len__(self) -> int:
        """Batches."""
        return self.end - self.begin

    def __iter__(self) -> Iterator[Batch]:
        """Gather them."""
        return self.feed.batches(self.begin, self.end)


class ShardsModule(pl.LightningDataModule):
    """Feeds of the training and the validation split."""

    def __init__(
        self,
        shards: Shards,
        *,
        reach: int,
        batch: int,
        validations_per_epoch: int,
        window: int,
        seed: int,
        cursor: Cursor,
        pin: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """`reach`: plays a state depends on; `batch`: impressions of all `ranks` together; `slices`: per pass.

        `window`: impressions of a member that share a reading of its plays, at most.
        """
        super().__init__()
        self.validations_per_epoch, self.cursor = validations_per_epoch, cursor
        self.train_feed = Feed(
            shards.shards,
            TRAIN,
            reach=reach,
            impressions=batch,
            window=window,
            shuffle=True,
            seed=seed,
            pin=pin,
            rank=rank,
            ranks=ranks,
        )
        self.validation_feed = Feed(
            shards.shards,
            VALIDATION,
            reach=reach,
            impressions=2 * batch,
            shuffle=False,
            pin=pin,
            rank=rank,
            ranks=ranks,
        )

    def train_dataloader(self) -> EpochPart:
        """What is left of the present slice."""
        self.train_feed.epoch, part = divmod(self.cursor.validations, self.validations_per_epoch)
        return EpochPart(self.train_feed, part, self.validations_per_epoch, self.cursor.batch)

    def val_dataloader(self) -> EpochPart:
        """The whole split, in order."""
        return EpochPart(self.validation_feed, 0, 1)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copy every column."""
        return batch.to(device)
