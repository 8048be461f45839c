"""`keyart prepare`: raw tables -> shards.

The relational work is two sorts and a few distincts, written once as Ibis expressions: plays and impressions leave the
engine ordered by (shard, member, time) and stream through Arrow into flat arrays. A history is then found by bisection
in its member's own plays, so that strictly-before holds by construction and no join can leak the future.
"""

# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false
# Ibis columns get the methods of their type, and pyarrow its compute functions, at run time: no checker sees them.

import glob
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.datatypes as dt
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ibis.backends.duckdb import Backend
from ibis.expr.types import Table as Relation
from rich.console import Console
from rich.progress import Progress

from datamodules.atomic import atomic_folder
from datamodules.catalogue import build_catalogue
from datamodules.contract import ARTWORKS, CONTRACT_VERSION, ENGINE_TYPES, IMPRESSIONS, PLAYS, TITLES, Table, UserError
from datamodules.fingerprint import dataset_fingerprint, fingerprint
from datamodules.progress import progress_bar
from datamodules.shards import EMBEDDING, MANIFEST, REQUESTS, SPLITS, TEST, TRAIN, VALIDATION, Shard
from datamodules.vocabulary import NAMES, Vocabularies, Vocabulary, save_vocabularies

LAYOUT = 1
"""Raised when the arrays change their meaning: older shards are then prepared again."""
ROWS_AT_ONCE = 200_000
HEX = "0123456789abcdef"


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How a log becomes shards."""

    validation: float = 0.15
    """Share of the impressions, by time, between training and test: for early stopping, calibration and choices."""
    test: float = 0.15
    """Share of the impressions, the newest: read by evaluation alone."""
    shard_count: int = 0
    """How many shards; 0: one per two million impressions."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (0 < self.validation < 1 and 0 < self.test < 1 and self.validation + self.test < 1):
            raise UserError(
                f"validation={self.validation}, test={self.test}: both must lie in (0, 1) and leave a share for training."
            )
        if not 0 <= self.shard_count <= 4096:
            raise UserError(f"shard_count={self.shard_count}: must lie in 0 .. 4096 (0: from the log's size).")


def shards_fingerprint(dataset: Path, config: PrepareConfig) -> str:
    """What the shards of this dataset under this config will carry as their fingerprint."""
    return fingerprint(dataset_fingerprint(dataset), config, CONTRACT_VERSION, LAYOUT)


def prepare(
    dataset: Path,
    out: Path,
    config: PrepareConfig | None = None,
    *,
    vocabularies: Vocabularies | None = None,
    since: datetime | None = None,
    keep_requests: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Write the shards of a valid dataset and return their manifest.

    With `vocabularies`, those are used instead of new ones; with `since`, only impressions shown at or after that
    moment are kept, with their members' whole histories; with `keep_requests`, each shard also keeps impression_id and
    candidates as they were logged, in `requests.parquet`: together they prepare a log for scoring.
    The dataset is read, never written to; `out` appears when it is complete, and an embedding it had stays with it.
    """
    config = config or PrepareConfig()
    engine = ibis.duckdb.connect()
    # Instants, not wall clocks: a session time zone must not move a split
    engine.raw_sql("SET TimeZone = 'UTC'")
    tables = {table.name: _read(engine, dataset, table) for table in (TITLES, ARTWORKS, PLAYS, IMPRESSIONS)}
    plays, impressions = tables["plays"], tables["impressions"]
    borders = _borders(impressions, config)
    if vocabularies is None:
        vocabularies = _vocabularies(tables, borders[0])
    if since is not None:
        impressions = impressions.filter(impressions.shown_at >= ibis.timestamp(since))
        plays = plays.semi_join(impressions.select("member_id").distinct(), "member_id")
    count = int(impressions.count().execute())
    if count == 0:
        raise UserError(f"{dataset}/impressions: no impression since {since}. Name an earlier date.")
    shard_count = config.shard_count or -(-count // 2_000_000)

    with atomic_folder(out, marker=MANIFEST) as folder, progress_bar(console or Console(stderr=True)) as progress:
        task = progress.add_task("prepare", total=int(plays.count().execute()) + count)
        play_parts = _stream(plays, ("played_at", "title_id"), shard_count, progress, task)
        play_shards = {s: _play_columns(t, vocabularies) for s, t in _by_shard(play_parts)}
        impression_parts = _stream(impressions, ("shown_at", "impression_id"), shard_count, progress, task)
        counts = np.zeros((len(SPLITS), 2), np.int64)
        totals = {"plays": 0, "members": 0, "randomised": 0}
        lengths: list[np.ndarray] = []
        empty = (pa.array([], pa.string()), _play_columns(plays.limit(0).to_pyarrow(), vocabularies)[1])
        done = set()
        for s, table in _by_shard(impression_parts):
            shard = _assemble(play_shards.pop(s, empty), table, vocabularies, borders)
            shard.save(folder / f"shard-{s:05d}")
            if keep_requests:
                pq.write_table(table.select(["impression_id", "candidates"]), folder / f"shard-{s:05d}" / REQUESTS)
            done.add(s)
            counts += np.stack([np.bincount(shard.split, shard.clicked == c, 3) for c in (0, 1)], 1).astype(np.int64)
            totals["plays"] += len(shard.play_title)
            totals["members"] += len(shard.member_plays) - 1
            totals["randomised"] += int(randomised(shard).sum())
            lengths.append(shard.history_end - shard.history_start)
        none_shown = impressions.limit(0).to_pyarrow()
        for s in range(shard_count):
            if s not in done:
                shard = _assemble(play_shards.pop(s, empty), none_shown, vocabularies, borders)
                shard.save(folder / f"shard-{s:05d}")
                totals["plays"] += len(shard.play_title)
                totals["members"] += len(shard.member_plays) - 1
        titles, artworks = tables["titles"].to_pyarrow(), tables["artworks"].to_pyarrow()
        build_catalogue(titles, artworks, vocabularies).save(folder / "catalogue")
        save_vocabularies(vocabularies, folder / "vocabularies.json")
        quantiles = np.quantile(np.concatenate(lengths), [0, 0.25, 0.5, 0.75, 0.99, 1]).astype(int).tolist()
        manifest = {
            "contract_version": CONTRACT_VERSION,
            "fingerprint": shards_fingerprint(dataset, config),
            "log_fingerprint": dataset_fingerprint(dataset),
            "config": asdict(config),
            "shards": shard_count,
            "validation_from": _instant(borders[0]),
            "test_from": _instant(borders[1]),
            "impressions": count,
            "plays": totals["plays"],
            "members": totals["members"],
            "share_randomised": totals["randomised"] / count,
            "history_length_quantiles": dict(zip(("0", ".25", ".5", ".75", ".99", "1"), quantiles, strict=True)),
            "splits": {
                name: {"impressions": int(counts[i].sum()), "clicks": int(counts[i, 1])}
                for i, name in enumerate(SPLITS)
            },
            "vocabularies": {n: {"values": len(v.values), "trained": v.trained} for n, v in vocabularies.items()},
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
        if (out / EMBEDDING).is_dir():  # cached by the images' bytes: `embed` takes from it what still fits
            shutil.copytree(out / EMBEDDING, folder / EMBEDDING)
    return manifest


def randomised(shard: Shard) -> np.ndarray:
    """bool (N,): impressions whose candidates were all equally likely, the part of a log made for judging others."""
    width = np.diff(shard.candidate_start)
    return (width > 1) & (np.abs(shard.propensity * width - 1) < 1e-3) & _level(shard)


def _level(shard: Shard) -> np.ndarray:
    """Whether no candidate's logged propensity differs from the shown one's; true where only that one was logged."""
    owner = np.repeat(np.arange(shard.impressions), np.diff(shard.candidate_start))
    apart = np.abs(shard.candidate_propensity - shard.propensity[owner]) > 1e-3 * shard.propensity[owner]
    return np.bincount(owner, apart, shard.impressions) == 0


def _read(engine: Backend, dataset: Path, table: Table) -> Relation:
    """A table with every column of the contract, in the contract's types; absent optional columns are null."""
    files = table.files(dataset)
    if not files:
        raise UserError(f"{dataset}: has no table {table.name}. Run keyart check {dataset}.")
    # A folder called country=NL is a place, not a column, and a * in a name is a letter
    paths = [glob.escape(str(path)) for path in files]
    raw = engine.read_parquet(paths, table_name=table.name, hive_partitioning=False)
    columns = {}
    for column in table.columns:
        type_ = dt.dtype(ENGINE_TYPES[column.kind])
        columns[column.name] = raw[column.name].cast(type_) if column.name in raw.columns else ibis.null(type_)
    return raw.select(**columns)


def _borders(impressions: Relation, config: PrepareConfig) -> tuple[int, int]:
    """First instants of validation and of test, in microseconds: of the newest shares, ties go to the newer side."""
    count = int(impressions.count().execute())
    if count == 0:
        raise UserError("impressions: the table is empty. Name a dataset with logged impressions.")
    ordered = impressions.select("shown_at").order_by("shown_at")
    places = (int(count * (1 - config.validation - config.test)), int(count * (1 - config.test)))
    found = [ordered.limit(1, offset=place).to_pyarrow()["shown_at"].cast(pa.int64())[0].as_py() for place in places]
    return found[0], found[1]


def _vocabularies(tables: dict[str, Relation], training_ends: int) -> Vocabularies:
    """Vocabularies of the training period; titles and artworks hold the rest of the catalogue behind it."""
    end = ibis.timestamp(datetime.fromtimestamp(training_ends / 1e6, UTC))
    plays = tables["plays"].filter(lambda t: t.played_at < end)
    impressions = tables["impressions"].filter(lambda t: t.shown_at < end)
    titles, artworks = tables["titles"].to_pyarrow(), tables["artworks"].to_pyarrow()

    def distinct(relation: Relation, column: str) -> pa.Array:
        return relation.select(value=relation[column]).distinct().to_pyarrow()["value"].combine_chunks()

    candidates = impressions.select(value=impressions.candidates.unnest()).distinct().to_pyarrow()["value"]
    seen_titles = pa.chunked_array([distinct(plays, "title_id"), distinct(impressions, "title_id")])
    known_titles = titles.filter(pc.is_in(titles["title_id"], value_set=seen_titles.combine_chunks()))
    known_artworks = artworks.filter(pc.is_in(artworks["artwork_id"], value_set=candidates.combine_chunks()))
    genres = Vocabulary.of(pc.list_flatten(known_titles["genres"]).to_pylist())
    people = pa.chunked_array(
        [*pc.list_flatten(known_titles["cast"]).chunks, *pc.list_flatten(known_artworks["depicts"]).chunks], pa.string()
    )
    moods = set(genres.values)
    found = {
        "titles": Vocabulary.of(known_titles["title_id"].to_pylist(), titles["title_id"].to_pylist()),
        "artworks": Vocabulary.of(known_artworks["artwork_id"].to_pylist(), artworks["artwork_id"].to_pylist()),
        "people": Vocabulary.of(name for name in pc.unique(people).to_pylist() if name not in moods),
        "genres": genres,
        "countries": Vocabulary.of(distinct(impressions, "country").to_pylist()),
        "devices": Vocabulary.of(distinct(impressions, "device").to_pylist()),
        "policies": Vocabulary.of(distinct(impressions, "policy").to_pylist()),
    }
    assert tuple(found) == NAMES
    return found


def _stream(
    relation: Relation, order: tuple[str, str], shard_count: int, progress: Progress, task: Any
) -> Iterator[pa.RecordBatch]:
    """Rows in the order (shard, member, time, id), a batch at a time."""
    digest = relation.member_id.hexdigest("md5")
    bucket = ibis.literal(0)
    for place in range(3):  # 4096 buckets: the same member in the same shard on any engine and machine
        bucket = bucket * 16 + ibis.literal(HEX).find(digest.substr(place, 1))
    ordered = relation.mutate(shard=(bucket % shard_count).cast("int32")).order_by("shard", "member_id", *order)
    for batch in ordered.to_pyarrow_batches(chunk_size=ROWS_AT_ONCE):
        progress.advance(task, batch.num_rows)
        yield batch


def _by_shard(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.Table]]:
    """Cut an ordered stream where the shard changes: (shard, its rows), shard by shard."""
    pending: list[pa.RecordBatch] = []
    current = -1
    for batch in batches:
        shard = np.asarray(batch["shard"])
        edges = [0, *(np.flatnonzero(np.diff(shard)) + 1).tolist(), len(shard)]
        for start, end in pairwise(edges):
            if start == end:
                continue
            if shard[start] != current and pending:
                yield current, pa.Table.from_batches(pending)
                pending = []
            current = int(shard[start])
            pending.append(batch.slice(start, end - start))
    if pending:
        yield current, pa.Table.from_batches(pending)


PlayColumns = tuple[pa.Array, dict[str, np.ndarray]]


def _play_columns(table: pa.Table, vocabularies: Vocabularies) -> PlayColumns:
    """Member ids (one per play) and the play columns of a shard."""
    table = table.combine_chunks()
    return _plain(table["member_id"]), {
        "play_title": vocabularies["titles"].rows(_plain(table["title_id"])),
        "play_artwork": vocabularies["artworks"].rows(_plain(table["artwork_id"])),
        "play_watched": pc.fill_null(_plain(table["watched"]), np.nan)
        .to_numpy(zero_copy_only=False)
        .astype(np.float32),
        "play_time": _microseconds(table["played_at"]),
    }


def _assemble(plays: PlayColumns, table: pa.Table, vocabularies: Vocabularies, borders: tuple[int, int]) -> Shard:
    """One shard from its ordered plays and impressions."""
    table = table.combine_chunks()
    play_member, play_columns = plays
    shown_member = _plain(table["member_id"])
    members = pa.array(
        sorted(set(pc.unique(play_member).to_pylist()) | set(pc.unique(shown_member).to_pylist())), pa.string()
    )
    member_plays = _offsets(play_member, members)
    member_impressions = _offsets(shown_member, members)

    shown_at = _microseconds(table["shown_at"])
    owner = np.repeat(np.arange(len(members)), np.diff(member_impressions))
    history_start = member_plays[owner]
    history_end = _first_not_before(play_columns["play_time"], history_start, member_plays[owner + 1], shown_at)

    candidates = _plain(table["candidates"])
    start = candidates.offsets.to_numpy().astype(np.int64)
    flat = candidates.values[start[0] : start[-1]] if len(candidates) else candidates.values[:0]
    start = start - start[0] if len(start) else np.zeros(1, np.int64)
    width = np.diff(start)
    parent = np.repeat(np.arange(len(width)), width)
    is_shown = np.asarray(pc.equal(flat, _plain(table["artwork_id"]).take(pa.array(parent))), bool)
    shown = np.zeros(len(width), np.int64)
    shown[parent[is_shown]] = np.flatnonzero(is_shown) - start[parent[is_shown]]

    propensities = _plain(table["propensities"])
    each = np.full(len(flat), np.nan, np.float32)
    logged = np.repeat(np.asarray(pc.is_valid(propensities)), width)
    each[logged] = np.asarray(pc.list_flatten(propensities))
    alone = pc.fill_null(_plain(table["propensity"]), np.nan).to_numpy(zero_copy_only=False)
    of_shown = each[start[:-1] + shown] if len(width) else np.zeros(0, np.float32)
    impression_ids = _plain(table["impression_id"]).cast(pa.binary())
    id_start = np.frombuffer(impression_ids.buffers()[1], np.int32, len(width) + 1, impression_ids.offset * 4)
    id_bytes = np.frombuffer(impression_ids.buffers()[2] or b"", np.uint8)

    def small(name: str, fill: int, dtype: type = np.int16) -> np.ndarray:
        return np.asarray(pc.fill_null(_plain(table[name]).cast(pa.int32()), fill)).astype(dtype)

    split = np.full(len(width), TRAIN, np.int8)
    split[shown_at >= borders[0]] = VALIDATION
    split[shown_at >= borders[1]] = TEST
    return Shard(
        **play_columns,
        member_plays=member_plays,
        member_impressions=member_impressions,
        impression_id=id_bytes[id_start[0] : id_start[-1]],
        impression_id_start=(id_start - id_start[0]).astype(np.int64),
        history_start=history_start,
        history_end=history_end,
        shown_at=shown_at,
        title=vocabularies["titles"].rows(_plain(table["title_id"])),
        candidate_start=start,
        candidate=vocabularies["artworks"].rows(flat),
        candidate_propensity=each,
        shown=shown.astype(np.int16),
        propensity=np.where(np.isnan(of_shown), alone, of_shown).astype(np.float32),
        policy=vocabularies["policies"].rows(_plain(table["policy"])).astype(np.int16),
        country=vocabularies["countries"].rows(_plain(table["country"])).astype(np.int16),
        device=vocabularies["devices"].rows(_plain(table["device"])).astype(np.int16),
        row=small("row", -1),
        column=small("column", -1),
        clicked=small("clicked", 0, np.int8),
        engaged=small("engaged", -1, np.int8),
        split=split,
    )


def _first_not_before(times: np.ndarray, low: np.ndarray, high: np.ndarray, at: np.ndarray) -> np.ndarray:
    """First place in `times[low:high]`, sorted, that is not before `at`; bisection over all rows at once."""
    low, high = low.copy(), high.copy()
    while (open_ := low < high).any():
        middle = (low + high) // 2
        before = open_.copy()
        before[open_] = times[middle[open_]] < at[open_]
        low = np.where(before, middle + 1, low)
        high = np.where(open_ & ~before, middle, high)
    return low


def _offsets(ordered: pa.Array, members: pa.Array) -> np.ndarray:
    """int64 (M + 1,): where each member's rows start in a column ordered by member."""
    counts = np.bincount(np.asarray(pc.index_in(ordered, value_set=members)).astype(np.int64), minlength=len(members))
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One contiguous array with 32-bit offsets, starting at its buffers' start."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    return pa.concat_arrays([array])


def _microseconds(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(_plain(column).cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()), np.int64)


def _instant(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat()
