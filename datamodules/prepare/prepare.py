"""`keyart prepare`: raw tables -> shards.

The engine reads, checks, filters and counts (`datamodules.prepare.relations`), and sends rows in any order; ids become rows of
the vocabularies on the way, and rows are written shard by shard (`datamodules.prepare.shard_spill`); each shard is then sorted
on its own (`datamodules.prepare.assemble`). A history is a range of positions in its member's own plays, so that strictly-before
holds by construction and no join can leak the future. Only a few batches and the shards in progress are in memory.
"""

import json
import shutil
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from datamodules.contract.check import require_valid
from datamodules.contract.engines import Engine, EngineConfig, RecentEngine, open_engine, spill_folder, to_arrow
from datamodules.contract.tables import CONTRACT_VERSION, dataset_fingerprint, tables_with
from datamodules.prepare.assemble import assemble
from datamodules.prepare.counts import ShardCounts
from datamodules.prepare.like import OUTCOME_DELAY, outcome_delay_of, require_same_context
from datamodules.prepare.relations import (
    MAX_SHARDS,
    DatasetTables,
    LogSize,
    earlier_rows,
    impression_rows,
    measure_log,
    period_counts,
    play_rows,
    rating_scale_of,
    times_at_ranks,
    vocabularies_of,
    warn_of_rounding,
    with_number_statistics,
)
from datamodules.prepare.shard_size import in_parallel, parallel_shards, require_memory, rows_at_once, shard_count
from datamodules.prepare.shard_spill import ShardSpill, encoder_of_earlier, encoder_of_impressions, encoder_of_plays
from datamodules.shards.catalogue import build_catalogue
from datamodules.shards.ratings import RatingScale
from datamodules.shards.shard import EMBEDDING, MANIFEST, REQUESTS, SPLITS, Shard, Shards
from datamodules.shards.vocabulary import Vocabularies, save_vocabularies
from foundation.atomic import atomic_folder, claimed_output
from foundation.context import ContextFeature, context_features, save_context
from foundation.errors import UserError
from foundation.fingerprint import fingerprint
from foundation.progress import progress_bar
from foundation.stored import FILES, files_beside
from foundation.times import duration, parse_time

SHARDS_VERSION = 4
"""Raised when the arrays change their meaning: older shards are then prepared again."""
SPILL = "spill"


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Options of preparing a log."""

    validation: float = 0.15
    """Share of the impressions, by time, between training and test: for early stopping, calibration and choices."""
    test: float = 0.15
    """Share of the impressions, the newest: read by evaluation only."""
    validation_from: str = ""
    """Date or time (ISO 8601, UTC) at which validation begins; with `test_from`, instead of the shares."""
    test_from: str = ""
    """Date or time at which test begins."""
    shards: int = 0
    """How many shards; 0: from the log's size."""
    outcome_delay: str = OUTCOME_DELAY
    """After which time the outcome of an impression is known, such as 90s, 30m or 1h: from then on it is history of the member's
    later impressions."""
    context: list[ContextFeature] = field(default_factory=list)
    """Further columns of impressions/ that are context features, such as [{name: language, kind: category}]."""
    drop_invalid: bool = False
    """Leave out rows that break the contract, and count them by rule; otherwise they stop the work before it starts."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (0 < self.validation < 1 and 0 < self.test < 1 and self.validation + self.test < 1):
            raise UserError(
                f"validation={self.validation}, test={self.test}: both must lie in (0, 1) and leave a share for training."
            )
        context_features(self.context)
        duration("outcome_delay", self.outcome_delay)
        if not 0 <= self.shards <= MAX_SHARDS:
            raise UserError(f"shards={self.shards}: must lie in 0 .. {MAX_SHARDS} (0: from the log's size).")
        if bool(self.validation_from) != bool(self.test_from):
            raise UserError("validation_from, test_from: give both dates, or neither for shares.")
        if self.validation_from and not (
            parse_time("validation_from", self.validation_from) < parse_time("test_from", self.test_from)
        ):
            raise UserError(
                f"validation_from={self.validation_from}, test_from={self.test_from}: validation must begin before test."
            )


def shards_fingerprint(dataset: Path, config: PrepareConfig, *made_like: Any) -> str:
    """The fingerprint of the shards of this dataset under this config."""
    return fingerprint(dataset_fingerprint(dataset), config, CONTRACT_VERSION, SHARDS_VERSION, *made_like)


def prepare(
    dataset: Path,
    out: Path,
    config: PrepareConfig | None = None,
    *,
    like: Path | None = None,
    vocabularies: Vocabularies | None = None,
    features: tuple[ContextFeature, ...] | None = None,
    rating_scale: RatingScale | None = None,
    since: datetime | None = None,
    keep_requests: bool = False,
    engine: Engine | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Write the shards of a valid dataset and return their manifest.

    With `like`, the vocabularies of those shards are used, new titles and artworks appended, and their image encoder, context
    features, scale of ratings and outcome delay are copied; with `vocabularies`, `features` and `rating_scale`, only those are
    used, and without a scale ratings count as not given. With `since`, only impressions shown at or after that moment are kept,
    with their members' whole histories, and the splits are shares of them. With `keep_requests`, each shard also keeps
    impression_id and candidates as they were logged, in `requests.parquet`.
    The dataset is read, never written to; `out` appears when it is complete, and keeps an embedding that it had.
    """
    config, console = config or PrepareConfig(), console or Console(stderr=True)
    log_fingerprint = dataset_fingerprint(dataset)
    model = None if like is None else Shards.open(like)
    if model is not None:
        require_same_context(model, config.context)
        features = model.context
    features = features or context_features(config.context)
    tables = tables_with(features)
    with (
        claimed_output(out, MANIFEST, dataset=dataset),
        nullcontext(engine) if engine else open_engine(spill=spill_folder(out)) as working,
    ):
        _require_own_manifest(out)
        log = DatasetTables.read(
            RecentEngine.of(working, since, tables), dataset, drop_invalid=config.drop_invalid, features=features
        )
        size = measure_log(log)
        if not size.impressions:
            raise UserError(f"{dataset}/impressions: {_why_empty(log, since)}")
        split_times = _split_times(log, size, config, dataset)
        if vocabularies is None:  # else for a bundle to score, which has no use for splits
            _require_splits(log, split_times, config, dataset)
        titles, artworks = to_arrow(log.titles), to_arrow(log.artworks)
        if model is not None:
            rating_scale = model.rating_scale
            vocabularies = dict(model.vocabularies)
            for name, table in (("titles", titles), ("artworks", artworks)):
                vocabularies[name] = vocabularies[name].extended(table[f"{name[:-1]}_id"].to_pylist())
        elif vocabularies is None:
            rating_scale = rating_scale_of(log, split_times[0])
            vocabularies = vocabularies_of(log, split_times[0], features)
            features = with_number_statistics(log, split_times[0], features)
            warn_of_rounding(features, console)
        delay_text = outcome_delay_of(model, config.outcome_delay)
        outcome_delay = round(duration("outcome_delay", delay_text) * 1_000_000)
        shards = config.shards or shard_count(size)
        require_memory(size, shards, working.memory)
        at_once = rows_at_once(size, working.memory)
        encode_plays = encoder_of_plays(vocabularies)
        encode_impressions = encoder_of_impressions(vocabularies, features, keep_requests=keep_requests)

        with atomic_folder(out, marker=MANIFEST) as folder, progress_bar(console) as progress:
            task = progress.add_task("prepare: rows", total=size.plays + size.impressions)
            (folder / SPILL).mkdir()
            plays = ShardSpill(folder / SPILL / "plays.arrow", shards)
            plays.fill(
                working.batches(play_rows(log, shards), at_once), encode_plays, lambda n: progress.advance(task, n)
            )
            impression_spill = ShardSpill(folder / SPILL / "impressions.arrow", shards)
            impression_spill.fill(
                working.batches(impression_rows(log, shards), at_once),
                encode_impressions,
                lambda n: progress.advance(task, n),
            )
            _require_complete(size, plays.rows, impression_spill.rows, out)
            earlier = ShardSpill(folder / SPILL / "earlier.arrow", shards)
            if since is not None:
                every = working.engine if isinstance(working, RecentEngine) else working
                rows = earlier_rows(every, dataset, since, log, shards)
                earlier.fill(working.batches(rows, at_once), encoder_of_earlier(vocabularies), lambda n: None)
            task = progress.add_task("prepare: shards", total=shards)
            shard_counts = ShardCounts(vocabularies)

            def make(s: int) -> Shard:
                rows = impression_spill.read(s)
                shard, order = assemble(
                    plays.read(s), rows, split_times, features, rating_scale, outcome_delay, earlier.read(s)
                )
                target = folder / f"shard-{s:05d}"
                shard.save(target)
                if keep_requests:
                    _save_requests(rows, order, target / REQUESTS)
                return shard

            for shard in in_parallel(make, shards, parallel_shards(size, shards, working.memory)):
                shard_counts.add(shard)
                progress.advance(task)
            shutil.rmtree(folder / SPILL)
            build_catalogue(titles, artworks, vocabularies).save(folder / "catalogue")
            save_vocabularies(vocabularies, folder / "vocabularies.json")
            save_context(features, folder)
            counted = shard_counts.manifest()
            if dataset_fingerprint(dataset) != log_fingerprint:
                raise UserError(f"{dataset}: changed while it was read. Prepare it again when no process writes to it.")
            manifest = {
                "contract_version": CONTRACT_VERSION,
                "fingerprint": shards_fingerprint(
                    dataset,
                    config,
                    *([] if since is None else [since]),
                    *([] if model is None else [model.fingerprint]),
                ),
                "log_fingerprint": log_fingerprint,
                "config": asdict(config),
                "shards": shards,
                "since": None if since is None else since.isoformat(),
                "like": None if model is None else model.fingerprint,
                "outcome_delay": delay_text,
                "validation_from": _instant(split_times[0]),
                "test_from": _instant(split_times[1]),
                "rating_scale": None if rating_scale is None else asdict(rating_scale),
                **counted,
                "rows": _rows(
                    log, {"plays": counted["plays"], "impressions": counted["impressions"]}, since is not None
                ),
                "vocabularies": {n: {"values": len(v.values), "trained": v.trained} for n, v in vocabularies.items()},
                FILES: files_beside(folder, _files_within(folder)),
            }
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            for previous in (out, like):  # cached by the images' bytes: `embed` takes from it what still fits
                if previous is not None and (previous / EMBEDDING).is_dir() and not (folder / EMBEDDING).exists():
                    shutil.copytree(previous / EMBEDDING, folder / EMBEDDING)
    return manifest


def _files_within(folder: Path) -> list[str]:
    """The files of shards that are written so far, by their paths in the folder, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def check_and_prepare(
    dataset: Path,
    out: Path,
    config: PrepareConfig,
    engine_config: EngineConfig,
    *,
    like: Path | None,
    since: datetime | None,
    console: Console,
) -> dict[str, Any]:
    """Check a dataset and prepare it, by one engine. UserError where it breaks a rule of the contract."""
    with (
        claimed_output(out, MANIFEST, dataset=dataset),
        open_engine(engine_config, spill_folder(out)) as opened,
    ):
        _require_own_manifest(out)
        tables = tables_with(Shards.open(like).context if like else context_features(config.context))
        # with `like` and `since`, only new rows are checked; else the whole log
        engine = RecentEngine.of(opened, since, tables) if like else opened
        checked = require_valid(
            dataset, images=False, drop_invalid=config.drop_invalid, console=console, engine=engine, tables=tables
        )
        manifest = prepare(dataset, out, config, like=like, since=since, engine=engine, console=console)
        if checked.coverage:
            console.print(f"prepare: {checked.coverage.line()}", markup=False, soft_wrap=True)
        return manifest


def _require_own_manifest(out: Path) -> None:
    """Raise a UserError where `out` has a manifest that is not one of shards."""
    manifest = out / MANIFEST
    if manifest.is_file() and '"contract_version"' not in manifest.read_text(errors="replace", encoding="utf-8"):
        raise UserError(
            f"{manifest}: is not a manifest of shards, so keyart did not write it. Name a new or empty folder."
        )


def _require_complete(size: LogSize, plays: int, impressions: int, out: Path) -> None:
    """Raise where the engine sent fewer rows than it counted."""
    if (plays, impressions) != (size.plays, size.impressions):
        raise UserError(
            f"{out}: {plays:,} of {size.plays:,} plays and {impressions:,} of {size.impressions:,} impressions came back from "
            "the engine. The dataset and OUT must lie where every machine that works on it sees them."
        )


def _why_empty(log: DatasetTables, since: datetime | None) -> str:
    dropped = [f"{count:,} by {rule}" for rule, count in log.dropped.get("impressions", {}).items()]
    if dropped:
        return f"no impression is left after rows were dropped: {', '.join(dropped)}. Run keyart check."
    if since is not None:
        return f"no impression since {since:%Y-%m-%d %H:%M}. Name an earlier date."
    return "the table is empty. Name a dataset with logged impressions."


def _split_times(log: DatasetTables, size: LogSize, config: PrepareConfig, dataset: Path) -> tuple[int, int]:
    """First instants of validation and of test, in microseconds: of the newest shares, ties go to the newer side."""
    if config.validation_from:
        moments = (
            parse_time("validation_from", config.validation_from),
            parse_time("test_from", config.test_from),
        )
        first = times_at_ranks(log, size, (0,))[0]
        split_times = tuple(round(moment.timestamp() * 1_000_000) for moment in moments)
        if split_times[0] <= first:
            raise UserError(
                f"validation_from={config.validation_from}: {dataset} has no impression before it, and none to learn from. "
                f"Its first is of {_instant(first)}."
            )
        return split_times[0], split_times[1]
    count = size.impressions
    split_times = times_at_ranks(
        log, size, (int(count * (1 - config.validation - config.test)), int(count * (1 - config.test)))
    )
    return split_times[0], split_times[1]


def _require_splits(log: DatasetTables, split_times: tuple[int, int], config: PrepareConfig, dataset: Path) -> None:
    """UserError where a period would have no impression, before any work."""
    counts, last, times = period_counts(log, split_times)
    empty = [name for name, count in zip(SPLITS, counts, strict=True) if not count]
    if not empty:
        return
    which = f"the {' and the '.join(empty)} period would be empty"
    if config.validation_from:
        raise UserError(
            f"validation_from={config.validation_from}, test_from={config.test_from}: {which}; the last impression of {dataset} is "
            f"of {_instant(last)}. Name dates that leave impressions to each period."
        )
    raise UserError(
        f"{dataset}/impressions: {which}: {sum(counts):,} impressions have {times:,} different shown_at, and those of one time are "
        "not torn apart. Log shown_at to the second, prepare a longer log, or give --validation-from and --test-from."
    )


def _save_requests(rows: pa.Table | None, order: np.ndarray, path: Path) -> None:
    """The requests as they were logged, in the shard's order."""
    columns = {"impression_id": pa.string(), "candidates": pa.list_(pa.string())}
    ordered = None if rows is None else rows.select(list(columns)).take(pa.array(order))
    pq.write_table(pa.schema(columns).empty_table() if ordered is None else ordered, path)


def _rows(log: DatasetTables, out: dict[str, int], since: bool) -> dict[str, Any]:
    """By table: rows in, rows dropped by reason, rows that `since` left out, rows out."""
    counts = {}
    for name, rows in log.rows.items():
        dropped = log.dropped.get(name, {})
        valid = rows - sum(dropped.values())
        left_out = valid - out.get(name, valid)
        assert since or not left_out, f"{left_out} rows of {name} were lost on the way"
        nulled = log.nulled.get(name, {})
        counts[name] = {
            "in": rows,
            "dropped": dropped,
            "made_null": nulled,
            "left_out": left_out,
            "out": valid - left_out,
        }
    return counts


def _instant(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat()
