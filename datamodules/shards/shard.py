"""Shards: a prepared log as flat arrays that numpy alone maps into memory, each member stored once.

`SHARDS/manifest.json` (contract version, counts, split dates, fingerprint), `vocabularies.json`, `catalogue/*.npy` and
one folder `shard-00000/` of `.npy` columns per shard. In a shard, plays are sorted by (member, played_at) and
impressions by (member, shown_at); an impression's history is `plays[history_start:history_end]`: exactly the member's
plays strictly before it was shown.
"""

import json
import mmap
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.contract.tables import CONTRACT_VERSION
from datamodules.shards.catalogue import Catalogue
from datamodules.shards.vocabulary import Vocabularies, load_vocabularies
from foundation.errors import UserError

MANIFEST, REQUESTS, EMBEDDING = "manifest.json", "requests.parquet", "embedding"
TRAIN, VALIDATION, TEST = 0, 1, 2
MICROSECONDS = 1_000_000
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One shard's columns. `M` members, `P` plays, `N` impressions, `C` candidates of all impressions together."""

    member_plays: np.ndarray
    """int64 (M + 1,): member m's plays are rows [m], up to [m + 1]."""
    member_impressions: np.ndarray
    """int64 (M + 1,): likewise for impressions."""
    play_title: np.ndarray
    """int32 (P,): title row."""
    play_artwork: np.ndarray
    """int32 (P,): row of the artwork it was clicked through, 0 where not logged."""
    play_watched: np.ndarray
    """float32 (P,): fraction watched, NaN where not logged."""
    play_time: np.ndarray
    """int64 (P,): microseconds since 1970, UTC."""
    impression_id: np.ndarray
    """uint8 (bytes,): the ids in UTF-8, end to end."""
    impression_id_start: np.ndarray
    """int64 (N + 1,): where each id starts in `impression_id`."""
    history_start: np.ndarray
    """int64 (N,): the member's first play."""
    history_end: np.ndarray
    """int64 (N,): one past the last play strictly before `shown_at`."""
    shown_at: np.ndarray
    """int64 (N,): microseconds since 1970, UTC."""
    title: np.ndarray
    """int32 (N,)."""
    candidate_start: np.ndarray
    """int64 (N + 1,): an impression's candidates are rows [n], up to [n + 1], of `candidate`."""
    candidate: np.ndarray
    """int32 (C,): artwork rows."""
    candidate_propensity: np.ndarray
    """float32 (C,): NaN where the log has only the shown artwork's."""
    shown: np.ndarray
    """int16 (N,): place of the shown artwork among the candidates."""
    propensity: np.ndarray
    """float32 (N,): of the shown artwork."""
    policy: np.ndarray
    """int16 (N,): policy row."""
    country: np.ndarray
    """int16 (N,)."""
    device: np.ndarray
    """int16 (N,)."""
    row: np.ndarray
    """int16 (N,): -1 where not logged."""
    column: np.ndarray
    """int16 (N,): -1 where not logged."""
    clicked: np.ndarray
    """int8 (N,)."""
    engaged: np.ndarray
    """int8 (N,): -1 where not logged."""
    split: np.ndarray
    """int8 (N,): 0 train, 1 validation, 2 test."""

    @property
    def impressions(self) -> int:
        """N."""
        return len(self.split)

    def ids(self) -> np.ndarray:
        """Impression ids as bytes, numpy dtype S, of shape (N,)."""
        start = self.impression_id_start
        length = np.diff(start)
        table = np.zeros((self.impressions, int(length.max(initial=1))), np.uint8)
        owner = np.repeat(np.arange(self.impressions), length)
        table[owner, np.arange(len(owner)) - start[owner]] = self.impression_id
        return table.view(f"S{table.shape[1]}").ravel()

    def padded_runs(self, start: np.ndarray, length: np.ndarray) -> dict[str, np.ndarray]:
        """Runs of plays, from rows `start` (M,) on, of some `length` (M,), padded on the right: (M, T), T at least 1.

        `play_title` and `play_artwork` int64, padded with 0, `play_watched` float32, with NaN.
        """
        within = np.arange(max(1, int(length.max(initial=0))))
        inside = within < length[:, None]
        play = np.where(inside, start[:, None] + within, 0)

        def padded(column: np.ndarray, fill: float, dtype: type) -> np.ndarray:
            return np.where(inside, column[play] if len(column) else fill, fill).astype(dtype)

        return {
            "play_title": padded(self.play_title, 0, np.int64),
            "play_artwork": padded(self.play_artwork, 0, np.int64),
            "play_watched": padded(self.play_watched, np.nan, np.float32),
        }

    def save(self, folder: Path) -> None:
        """Write each column as `folder/NAME.npy`."""
        folder.mkdir()
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def open(cls, folder: Path) -> "Shard":
        """Map every column into memory, read-only; an absent or cut file is a UserError."""
        columns: dict[str, np.ndarray] = {}
        for field in fields(cls):
            path = folder / f"{field.name}.npy"
            try:
                columns[field.name] = np.load(path, mmap_mode="r")
            except (OSError, ValueError) as error:
                raise UserError(f"{path}: cannot be mapped ({error}). Run keyart prepare again.") from None
        return cls(**columns)

    def release(self) -> None:
        """Give back the memory of what was read; what is read again comes from the file, mostly the system's copy of it."""
        for field in fields(self):
            mapped = getattr(self, field.name).base
            if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class Shards:
    """A folder that `prepare` wrote."""

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "Shards":
        """Read the manifest; a folder without one, or of another contract version, is a UserError."""
        path = folder / MANIFEST
        if not path.is_file():
            raise UserError(f"{folder}: no {MANIFEST}, so these are no shards. Make them with keyart prepare.")
        manifest = json.loads(path.read_text())
        version = manifest.get("contract_version")
        if version != CONTRACT_VERSION:
            raise UserError(
                f"{path}: contract version {version}, and this keyart reads version {CONTRACT_VERSION}. "
                "Run keyart prepare again."
            )
        return cls(folder, manifest)

    @property
    def fingerprint(self) -> str:
        """Identifies the log and how it was prepared."""
        return self.manifest["fingerprint"]

    @cached_property
    def vocabularies(self) -> Vocabularies:
        """By name: titles, artworks, people, genres, countries, devices, policies."""
        return load_vocabularies(self.folder / "vocabularies.json")

    @cached_property
    def catalogue(self) -> Catalogue:
        """Content of titles and artworks by row."""
        return Catalogue.load(self.folder / "catalogue")

    @cached_property
    def shards(self) -> list[Shard]:
        """Every shard, mapped."""
        return [Shard.open(self.folder / f"shard-{index:05d}") for index in range(self.manifest["shards"])]
