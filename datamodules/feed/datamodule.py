"""The LightningDataModule over shards: the batches of each epoch of the trainer.

An epoch of the trainer is a part of an epoch over the training impressions, so that validation can come several times
per epoch. Its batches follow from the training's cursor alone, so that a resumed training gets the remaining ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytorch_lightning as pl
import torch

from datamodules.feed.impression_feed import Batch, Feed
from datamodules.shards.shard import TRAIN, VALIDATION, Shards


@dataclass(kw_only=True)
class Cursor:
    """The progress of a training. One object, shared by its readers and moved by the checkpoint callback only."""

    validations: int = 0
    """Validations that are finished."""
    batch: int = 0
    """Batches done since the last validation."""
    step: int = 0
    """Steps of the optimiser since the beginning."""


class EpochPart:
    """The remaining batches before the next validation, in the role of the trainer's data loader."""

    def __init__(self, feed: Feed, part: int, parts: int, done: int = 0) -> None:
        """Part `part` of `parts` of the feed's present epoch, without its first `done` batches."""
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
        """`reach`: plays a state depends on; `batch`: impressions of all `ranks` together;
        `validations_per_epoch`: parts of an epoch, each followed by a validation.

        `window`: impressions of a member that share one encoding of its plays, at most.
        """
        super().__init__()
        self.validations_per_epoch, self.cursor = validations_per_epoch, cursor
        self.train_feed = Feed(
            shards.shards,
            TRAIN,
            reach=reach,
            impressions=batch,
            window=window,
            past=False,
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
            past=False,
            shuffle=False,
            pin=pin,
            rank=rank,
            ranks=ranks,
        )

    def train_dataloader(self) -> EpochPart:
        """The remaining batches before the next validation."""
        self.train_feed.epoch, part = divmod(self.cursor.validations, self.validations_per_epoch)
        return EpochPart(self.train_feed, part, self.validations_per_epoch, self.cursor.batch)

    def val_dataloader(self) -> EpochPart:
        """The whole split, in order."""
        return EpochPart(self.validation_feed, 0, 1)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copy every column."""
        return batch.to(device)
