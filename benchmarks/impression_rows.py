"""A log in the form that most libraries need: one row per impression, with its whole history in it.

Two subjects read it: torch-rechub, and keyart's own model where each impression's plays are encoded anew.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from datamodules.feed.impression_feed import Batch
from datamodules.shards.shard import TRAIN, Shards
from foundation.context import ContextFeature


@dataclass(frozen=True)
class ImpressionRows:
    """N training impressions of shards, with up to `plays` plays each; padding is 0, on the right."""

    columns: dict[str, np.ndarray]
    """`play_*` of shape (N, plays), `length` and the rest of shape (N,)."""
    features: tuple[ContextFeature, ...]
    """Context features, columns of their names among them."""

    @classmethod
    def of(cls, shards: Shards, plays: int, max_impressions: int, seed: int = 0) -> "ImpressionRows":
        """At most `max_impressions` training impressions of shards, drawn at random."""
        parts: dict[str, list[np.ndarray]] = {}
        selected = [np.flatnonzero(shard.split == TRAIN) for shard in shards.shards]
        share = min(1.0, max_impressions / max(1, sum(map(len, selected))))
        rng = np.random.default_rng(seed)
        for shard, rows in zip(shards.shards, selected, strict=True):
            rows = np.sort(rng.permutation(rows)[: round(share * len(rows))])
            end = shard.history_end[rows]
            start = np.maximum(shard.history_start[rows], end - plays)
            within = np.arange(plays)
            inside = within < (end - start)[:, None]
            play = np.where(inside, start[:, None] + within, 0)

            def history_column(
                column: np.ndarray, fill: float, inside: np.ndarray = inside, play: np.ndarray = play
            ) -> np.ndarray:
                return np.where(inside, column[play] if len(column) else fill, fill)

            engaged = shard.engaged[rows]
            arrays = {
                "play_title": history_column(shard.play_title, 0).astype(np.int64),
                "play_artwork": history_column(shard.play_artwork, 0).astype(np.int64),
                "play_watched": history_column(shard.play_watched, np.nan).astype(np.float32),
                "first": start == shard.history_start[rows],
                "length": (end - start).astype(np.int64),
                "title": shard.title[rows].astype(np.int64),
                "artwork": shard.candidate[shard.candidate_start[rows] + shard.shown[rows]].astype(np.int64),
                **shard.context_at(rows),
                "play_count": (shard.history_end[rows] - shard.history_start[rows]).astype(np.int64),
                "clicked": shard.clicked[rows].astype(np.float32),
                "engaged": np.where(engaged < 0, np.nan, engaged).astype(np.float32),
            }
            for name, values in arrays.items():
                parts.setdefault(name, []).append(values)
        return cls({name: np.concatenate(values) for name, values in parts.items()}, shards.context)

    def __len__(self) -> int:
        return len(self.columns["clicked"])

    def batches(self, size: int, seed: int = 0) -> Iterator[Batch]:
        """One epoch in random order, as batches of keyart's model with one member per impression."""
        order = np.random.default_rng(seed).permutation(len(self))
        for begin in range(0, len(self) - size + 1, size):
            rows = order[begin : begin + size]
            arrays = {name: torch.from_numpy(values[rows]) for name, values in self.columns.items()}
            has_engaged = (arrays["clicked"] > 0) & ~torch.isnan(arrays["engaged"])
            yield Batch(
                play_title=arrays["play_title"],
                play_artwork=arrays["play_artwork"],
                play_watched=arrays["play_watched"],
                first=arrays["first"],
                member=torch.arange(size),
                position=arrays["length"],
                artworks=arrays["artwork"][:, None],
                shown=torch.zeros(size, dtype=torch.int64),
                past_artwork=torch.zeros(size, 0, dtype=torch.int64),
                past_clicked=torch.zeros(size, 0),
                past_hours=torch.zeros(size, 0),
                shard=0,
                engagement_known=has_engaged.nonzero()[:, 0],
                index=torch.from_numpy(rows),
                global_impressions=size,
                context={name: arrays[name] for name in (*(f.name for f in self.features), "play_count")},
                **{name: arrays[name] for name in ("title", "clicked", "engaged")},
            )


def write_for_torch_rechub(rows: ImpressionRows, shards: Shards, embedding: np.ndarray, path: Path) -> None:
    """Write the rows as .npz, with the features that keyart's model reads of titles and artworks in each.

    Columns: `user_*` and `item_*`, ids int64 (N,) or (N, L) with 0 for padding, `item_image` float32 (N, E), `clicked`.
    Columns that the log lacks are left out.
    """
    arrays, catalogue = rows.columns, shards.catalogue
    title, artwork = arrays["title"], arrays["artwork"]
    columns = {
        "user_history": arrays["play_title"],
        "user_country": arrays["country"],
        "user_device": arrays["device"],
        "user_hour": arrays["hour"],
        "user_row": arrays["row"] + 1,
        "user_column": arrays["column"] + 1,
        "item_title": title,
        "item_genres": catalogue.title_genres[title].astype(np.int64),
        "item_people": catalogue.title_people[title].astype(np.int64),
        "item_artwork": artwork,
        "item_depicted": catalogue.artwork_people[artwork].astype(np.int64),
        "item_moods": catalogue.artwork_genres[artwork].astype(np.int64),
        "item_image": embedding[artwork],
    }
    columns = {name: values for name, values in columns.items() if values.any()}
    np.savez(path, clicked=arrays["clicked"], **columns)
