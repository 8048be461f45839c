"""Shards: a prepared log as flat arrays that numpy maps into memory, each member stored once.

`SHARDS/manifest.json` (contract version, counts, split dates, fingerprint), `vocabularies.json`, `catalogue/*.npy` and
one folder `shard-00000/` of `.npy` columns per shard. In a shard, plays are sorted by (member, played_at) and
impressions by (member, shown_at); an impression's history is `plays[history_start:history_end]`: exactly the member's
plays strictly before it was shown. Its past impressions are `past[past_start:past_end]`: those of the member whose outcome was
known by then.
"""

import mmap
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from datamodules.contract.tables import CONTRACT_VERSION
from datamodules.shards.catalogue import Catalogue
from datamodules.shards.padding import MAX_PAST, PAST_FILLS, PLAY_FILLS, padded_past, padded_plays
from datamodules.shards.ratings import RatingScale
from datamodules.shards.vocabulary import Vocabularies, load_vocabularies
from foundation.context import HOURS, ContextFeature, load_context
from foundation.errors import UserError
from foundation.stored import FILES, changed_file, read_json, warn_unverified

MANIFEST, REQUESTS, EMBEDDING = "manifest.json", "requests.parquet", "embedding"
TRAIN, VALIDATION, TEST = 0, 1, 2
MICROSECONDS, MICROSECONDS_AN_HOUR = 1_000_000, 3_600_000_000
SPLITS = ("train", "validation", "test")
FIELDS = ("fingerprint", "log_fingerprint", "shards", "splits", "validation_from", "test_from")
FIELDS += ("rating_scale", "outcome_delay")
"""What every manifest has; shards of older versions lack the last two."""
REMEDY = "Run keyart prepare again."


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One shard's columns. `M` members, `P` plays, `N` impressions, `J` past ones, `C` candidates of all impressions together."""

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
    play_rating: np.ndarray
    """float32 (P,): the rating, centred by member as `datamodules.shards.ratings` says, NaN where not rated."""
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
    past_artwork: np.ndarray
    """int32 (J,): row of the artwork shown by each of the members' impressions, those before the log's first included, by
    (member, time): what past impressions are positions in."""
    past_clicked: np.ndarray
    """int8 (J,)."""
    past_time: np.ndarray
    """int64 (J,): microseconds since 1970, UTC."""
    past_start: np.ndarray
    """int64 (N,): the member's first past impression."""
    past_end: np.ndarray
    """int64 (N,): one past the last whose outcome was known at `shown_at`: shown strictly before, by the outcome delay or more."""
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
    """int16 (N,): index of the shown artwork among the candidates."""
    propensity: np.ndarray
    """float32 (N,): propensity of the shown artwork."""
    policy: np.ndarray
    """int16 (N,): policy row."""
    context: dict[str, np.ndarray]
    """By context feature, (N,), in its `stored_dtype`: rows of a category's vocabulary, a number, an hour or a position;
    `ContextFeature.unknown` where not logged. Features computed from `shown_at` are not stored."""
    features: tuple[ContextFeature, ...]
    """The context features, in the order of a graph's inputs."""
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
        """Runs of plays from rows `start` (M,), with `length` (M,), padded on the right: (M, T), T at least 1.

        `play_title` and `play_artwork` int64, padded with 0, `play_watched` float32, with NaN.
        """
        return padded_plays({name: getattr(self, name) for name in PLAY_FILLS}, start, length)

    def past_impressions(self, rows: np.ndarray, most: int = MAX_PAST) -> dict[str, np.ndarray]:
        """The last `most` past impressions of some impressions, padded on the right with artwork row 0: `past_artwork` int64,
        `past_clicked` float32 and `past_hours` float32, hours from each to the impression, (N, J)."""
        end = self.past_end[rows]
        start = np.maximum(self.past_start[rows], end - most)
        columns = {name: getattr(self, name) for name in PAST_FILLS}
        return padded_past(columns, self.shown_at[rows], start, end - start)

    def context_at(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Context of some impressions by feature, in the order and types of a graph's inputs, each (N,)."""
        values = {}
        for feature in self.features:
            if feature.from_time:
                values[feature.name] = self.shown_at[rows] // MICROSECONDS_AN_HOUR % HOURS
            else:
                values[feature.name] = self.context[feature.name][rows].astype(feature.dtype)
        return values

    def columns(self) -> dict[str, np.ndarray]:
        """Every column by the name of its file."""
        own = {name: getattr(self, name) for name in COLUMNS}
        return own | {f"{CONTEXT_PREFIX}{name}": values for name, values in self.context.items()}

    def save(self, folder: Path) -> None:
        """Write each column as `folder/NAME.npy`."""
        folder.mkdir()
        for name, values in self.columns().items():
            np.save(folder / f"{name}.npy", values)

    @classmethod
    def open(cls, folder: Path, features: tuple[ContextFeature, ...]) -> "Shard":
        """Map every column into memory, read-only; an absent or cut file is a UserError."""

        def mapped(name: str) -> np.ndarray:
            path = folder / f"{name}.npy"
            try:
                return np.load(path, mmap_mode="r")
            except (OSError, ValueError) as error:
                raise UserError(f"{path}: cannot be mapped ({error}). {REMEDY}") from None

        stored = [feature.name for feature in features if not feature.from_time]
        context = {name: mapped(f"{CONTEXT_PREFIX}{name}") for name in stored}
        return cls(**{name: mapped(name) for name in COLUMNS}, context=context, features=features)

    def release(self) -> None:
        """Release the memory of pages that were read; reading them again comes from the file, mostly from the system's cache."""
        for values in self.columns().values():
            mapped = values.base
            if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)


CONTEXT_PREFIX = "context_"
"""Prefix of the files of context features."""
COLUMNS = tuple(field.name for field in fields(Shard) if field.name not in ("context", "features"))
"""Columns that every shard has, by the names of their files."""


@dataclass(frozen=True)
class Shards:
    """A folder of shards, written by `datamodules.prepare`."""

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "Shards":
        """Read the manifest; a folder without one, or of another contract version, is a UserError."""
        path = folder / MANIFEST
        if not path.is_file():
            raise UserError(f"{folder}: has no {MANIFEST}, so it does not hold shards. Make them with keyart prepare.")
        manifest = read_json(path, REMEDY)
        version = manifest.get("contract_version")
        if version != CONTRACT_VERSION:
            raise UserError(
                f"{path}: contract version {version}, and this keyart reads version {CONTRACT_VERSION}. {REMEDY}"
            )
        return cls(folder, read_json(path, REMEDY, FIELDS))

    def verify(self, console: Console | None = None) -> None:
        """Raise a UserError where a byte of any file is not as prepare wrote it; reads all, at 1.5 GB a second on one core.

        Shards of older versions hold no digests: a line on the console says so.
        """
        warn_unverified(self.folder / MANIFEST, self.manifest, REMEDY, console)
        if changed := changed_file(self.folder, self.manifest.get(FILES, {})):
            raise UserError(
                f"{self.folder / changed}: is missing or is not the file that keyart prepare wrote. {REMEDY}"
            )

    @property
    def fingerprint(self) -> str:
        """Identifies the log and how it was prepared."""
        return self.manifest["fingerprint"]

    @cached_property
    def vocabularies(self) -> Vocabularies:
        """By name: titles, artworks, people, genres, policies, and of every context feature that is a category."""
        return load_vocabularies(self.folder / "vocabularies.json", REMEDY)

    @cached_property
    def context(self) -> tuple[ContextFeature, ...]:
        """The context features, in the order of a graph's inputs."""
        return load_context(self.folder, REMEDY)

    @property
    def rating_scale(self) -> RatingScale | None:
        """The scale of ratings; None where no play of the training period is rated."""
        record = self.manifest["rating_scale"]
        return None if record is None else RatingScale(**record)

    @cached_property
    def catalogue(self) -> Catalogue:
        """Content of titles and artworks by row."""
        return Catalogue.load(self.folder / "catalogue", REMEDY)

    @cached_property
    def shards(self) -> list[Shard]:
        """Every shard, mapped."""
        return [
            Shard.open(self.folder / f"shard-{index:05d}", self.context) for index in range(self.manifest["shards"])
        ]
