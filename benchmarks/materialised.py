"""A log as most libraries want it: every impression a row of its own, with its whole history written into it.

Two subjects read it: torch-rechub, and keyart's own model where each impression's plays are encoded anew.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from datamodules.feed import MICROSECONDS, MICROSECONDS_AN_HOUR, Batch
from datamodules.shards import TRAIN, Shards


@dataclass(frozen=True)
class Rows:
    """The training impressions of shards, N of them, with `plays` plays each; padding is 0 and lies right."""

    columns: dict[str, np.ndarray]
    """`play_*` of shape (N, plays), `length` and the rest of shape (N,)."""

    @classmethod
    def of(cls, shards: Shards, plays: int, most: int, seed: int = 0) -> "Rows":
        """At most `most` training impressions, drawn at random."""
        parts: dict[str, list[np.ndarray]] = {}
        selected = [np.flatnonzero(shard.split == TRAIN) for shard in shards.shards]
        share = min(1.0, most / max(1, sum(map(len, selected))))
        chance = np.random.default_rng(seed)
        for shard, rows in zip(shards.shards, selected, strict=True):
            rows = np.sort(chance.permutation(rows)[: round(share * len(rows))])
            end = shard.history_end[rows]
            start = np.maximum(shard.history_start[rows], end - plays)
            within = np.arange(plays)
            inside = within < (end - start)[:, None]
            play = np.where(inside, start[:, None] + within, 0)

            def past(
                column: np.ndarray, fill: float, inside: np.ndarray = inside, play: np.ndarray = play
            ) -> np.ndarray:
                return np.where(inside, column[play] if len(column) else fill, fill)

            engaged = shard.engaged[rows]
            found = {
                "play_title": past(shard.play_title, 0).astype(np.int64),
                "play_artwork": past(shard.play_artwork, 0).astype(np.int64),
                "play_watched": past(shard.play_watched, np.nan).astype(np.float32),
                "play_time": past(shard.play_time, 0).astype(np.int64) // MICROSECONDS,
                "first": start == shard.history_start[rows],
                "length": (end - start).astype(np.int64),
                "title": shard.title[rows].astype(np.int64),
                "artwork": shard.candidate[shard.candidate_start[rows] + shard.shown[rows]].astype(np.int64),
                "country": shard.country[rows].astype(np.int64),
                "device": shard.device[rows].astype(np.int64),
                "hour": shard.shown_at[rows] // MICROSECONDS_AN_HOUR % 24,
                "row": shard.row[rows].astype(np.int64),
                "column": shard.column[rows].astype(np.int64),
                "play_count": (shard.history_end[rows] - shard.history_start[rows]).astype(np.int64),
                "clicked": shard.clicked[rows].astype(np.float32),
                "engaged": np.where(engaged < 0, np.nan, engaged).astype(np.float32),
            }
            for name, values in found.items():
                parts.setdefault(name, []).append(values)
        return cls({name: np.concatenate(values) for name, values in parts.items()})

    def __len__(self) -> int:
        return len(self.columns["clicked"])

    def batches(self, size: int, seed: int = 0) -> Iterator[Batch]:
        """One pass in random order, as keyart's model reads it: a member for each impression."""
        order = np.random.default_rng(seed).permutation(len(self))
        for begin in range(0, len(self) - size + 1, size):
            rows = order[begin : begin + size]
            found = {name: torch.from_numpy(values[rows]) for name, values in self.columns.items()}
            told = (found["clicked"] > 0) & ~torch.isnan(found["engaged"])
            yield Batch(
                play_title=found["play_title"],
                play_artwork=found["play_artwork"],
                play_watched=found["play_watched"],
                play_time=found["play_time"],
                first=found["first"],
                member=torch.arange(size),
                position=found["length"],
                artworks=found["artwork"][:, None],
                shown=torch.zeros(size, dtype=torch.int64),
                shard=0,
                asked=told.nonzero()[:, 0],
                index=torch.from_numpy(rows),
                whole=size,
                **{
                    name: found[name]
                    for name in (
                        *("title", "country", "device", "hour", "row", "column", "play_count"),
                        *("clicked", "engaged"),
                    )
                },
            )


def write_for_torch_rechub(rows: Rows, shards: Shards, embedding: np.ndarray, path: Path) -> None:
    """The same rows as .npz, with what else keyart's model reads of a title and of an artwork written into each.

    Columns: `user_*` and `item_*`, ids int64 (N,) or (N, L) with 0 for padding, `item_image` float32 (N, E), `clicked`.
    What the log does not hold is left out.
    """
    found, catalogue = rows.columns, shards.catalogue
    title, artwork = found["title"], found["artwork"]
    columns = {
        "user_history": found["play_title"],
        "user_country": found["country"],
        "user_device": found["device"],
        "user_hour": found["hour"],
        "user_row": found["row"] + 1,
        "user_column": found["column"] + 1,
        "item_title": title,
        "item_genres": catalogue.title_genres[title].astype(np.int64),
        "item_people": catalogue.title_people[title].astype(np.int64),
        "item_artwork": artwork,
        "item_depicted": catalogue.artwork_people[artwork].astype(np.int64),
        "item_moods": catalogue.artwork_genres[artwork].astype(np.int64),
        "item_image": embedding[artwork],
    }
    columns = {name: values for name, values in columns.items() if values.any()}
    np.savez(path, clicked=found["clicked"], **columns)
