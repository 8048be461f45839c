"""Rows between the engine and their shards: ids encoded as rows of the vocabularies, spilled by shard.

In: Arrow batches in any order. Out: one Arrow file beside the output, each of whose batches belongs to one shard:
a shard is read back as its own batches.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from queue import Queue
from threading import Thread

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.shards.shard import CONTEXT_PREFIX
from datamodules.shards.vocabulary import Vocabularies, Vocabulary
from foundation.context import ContextFeature, categories_of
from foundation.errors import UserError

INT16_ROWS = 2**15
SHARD, SHOWN = "keyart_shard", "keyart_shown"
"""Columns that the engine adds to a log's: the shard of the row's member, and where the shown artwork is among the candidates."""
Encode = Callable[[pa.RecordBatch], pa.RecordBatch]


class ShardSpill:
    """One table's rows, by shard."""

    def __init__(self, path: Path, shards: int) -> None:
        """`path`: the file to write."""
        self.path = path
        self.schema: pa.Schema | None = None
        self.batches_written = self.rows = 0
        self.batches: list[list[int]] = [[] for _ in range(shards)]
        """By shard: its batches of the file."""

    def fill(self, batches: Iterable[pa.RecordBatch], encode: Encode, advance: Callable[[int], None]) -> None:
        """Encode and write every batch, while the engine works on the next ones. `advance`: called with each batch's rows."""
        writer = None
        try:
            with closing(_ahead(iter(batches))) as ahead:
                for batch in ahead:
                    shard = np.asarray(batch[SHARD])
                    encoded = encode(batch)
                    if len(self.batches) > 1:
                        order = np.argsort(shard, kind="stable")
                        encoded, shard = encoded.take(pa.array(order)), shard[order]
                    if writer is None:
                        self.schema = encoded.schema
                        writer = pa.ipc.new_file(str(self.path), encoded.schema)
                    edges = [0, *(np.flatnonzero(np.diff(shard)) + 1).tolist(), len(shard)]
                    for start, end in pairwise(edges):
                        if start < end:
                            writer.write_batch(encoded.slice(start, end - start))
                            self.batches[shard[start]].append(self.batches_written)
                            self.batches_written += 1
                    self.rows += batch.num_rows
                    advance(batch.num_rows)
        finally:
            if writer is not None:
                writer.close()

    def read(self, shard: int) -> pa.Table | None:
        """The rows of one shard, unordered; None where the whole table is empty."""
        if self.schema is None:
            return None
        # not mapped: pages of a map would count as held until it is closed
        with pa.OSFile(str(self.path)) as source:
            file = pa.ipc.open_file(source)
            return pa.Table.from_batches([file.get_batch(index) for index in self.batches[shard]], self.schema)


def _ahead(batches: Iterator[pa.RecordBatch], depth: int = 2) -> Generator[pa.RecordBatch]:
    """The same batches, fetched by a thread that stays `depth` ahead; an error in it is raised here."""
    queue: Queue[pa.RecordBatch | BaseException | None] = Queue(depth)
    stopped = False

    def fetch() -> None:
        try:
            for batch in batches:
                if stopped:
                    return
                queue.put(batch)
            queue.put(None)
        except BaseException as error:  # raised in the thread that waits
            queue.put(error)

    thread = Thread(target=fetch, daemon=True)
    thread.start()
    try:
        while (item := queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped = True
        while thread.is_alive():  # it may be waiting for room
            while not queue.empty():
                queue.get()
            thread.join(0.01)


def encoder_of_plays(vocabularies: Vocabularies) -> Encode:
    """Plays as the engine sends them -> member_id, time, title, artwork, watched, rating as it was given."""

    def encode(batch: pa.RecordBatch) -> pa.RecordBatch:
        return pa.record_batch(
            {
                "member_id": _strings(batch["member_id"]),
                "time": microseconds(batch["played_at"]),
                "title": vocabularies["titles"].rows(batch["title_id"]),
                "artwork": vocabularies["artworks"].rows(batch["artwork_id"]),
                "watched": pc.fill_null(batch["watched"].cast(pa.float32()), np.nan),
                "rating": pc.fill_null(batch["rating"].cast(pa.float32()), np.nan),
            }
        )

    return encode


def encoder_of_earlier(vocabularies: Vocabularies) -> Encode:
    """Earlier impressions as the engine sends them -> member_id, time, artwork, clicked."""

    def encode(batch: pa.RecordBatch) -> pa.RecordBatch:
        return pa.record_batch(
            {
                "member_id": _strings(batch["member_id"]),
                "time": microseconds(batch["shown_at"]),
                "artwork": vocabularies["artworks"].rows(batch["artwork_id"]),
                "clicked": _filled(batch["clicked"], 0, np.int8),
            }
        )

    return encode


def encoder_of_impressions(
    vocabularies: Vocabularies, features: tuple[ContextFeature, ...], *, keep_requests: bool
) -> Encode:
    """Impressions as the engine sends them -> columns of a `Shard` before sorting.

    `candidate` and `candidate_propensity` are lists of the same lengths. With `keep_requests` the candidates stay as
    they were logged too, in `candidates`. UserError where a small vocabulary has more values than fit into 16 bits.
    """
    for name in ("policies", *categories_of(features)):
        require_few_values(name, len(vocabularies[name]) - 1)

    def encode(batch: pa.RecordBatch) -> pa.RecordBatch:
        candidates = batch["candidates"]
        start = candidates.offsets.to_numpy().astype(np.int64)
        width = np.diff(start)
        values = candidates.values.slice(start[0], start[-1] - start[0])
        offsets = (start - start[0]).astype(np.int32)
        propensities, shown_propensity = _propensities(batch, offsets, width)
        lists = {"candidate": vocabularies["artworks"].rows(values), "candidate_propensity": propensities}
        columns = {
            "member_id": _strings(batch["member_id"]),
            "impression_id": _strings(batch["impression_id"]),
            "time": microseconds(batch["shown_at"]),
            "title": vocabularies["titles"].rows(batch["title_id"]),
            **{name: pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)) for name, flat in lists.items()},
            "shown": np.asarray(batch[SHOWN]).astype(np.int16),
            "propensity": shown_propensity,
            "policy": _small(vocabularies["policies"], batch["policy"]),
            **{
                f"{CONTEXT_PREFIX}{feature.name}": _context_values(feature, vocabularies, batch[feature.source])
                for feature in features
                if not feature.from_time
            },
            "clicked": _filled(batch["clicked"], 0, np.int8),
            "engaged": _filled(batch["engaged"], -1, np.int8),
        }
        if keep_requests:
            columns["candidates"] = candidates.cast(pa.list_(pa.string()))
        return pa.record_batch(columns)

    return encode


def require_few_values(name: str, values: int) -> None:
    """UserError where a category has more values than fit into 16 bits."""
    if values >= INT16_ROWS:
        raise UserError(
            f"impressions: {values:,} different values of {name}, and at most {INT16_ROWS - 1:,} are possible. Write the "
            "rare ones as one value, or null."
        )


def _context_values(feature: ContextFeature, vocabularies: Vocabularies, column: pa.Array) -> np.ndarray:
    """A context feature's column in its `stored_dtype`."""
    if feature.kind == "category":
        return _small(vocabularies[feature.name], column)
    if feature.kind == "number":
        return pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy(zero_copy_only=False).astype(np.float32)
    values = np.asarray(pc.fill_null(column.cast(pa.int64()), -1))
    assert not len(values) or -1 <= values.min() <= values.max() <= feature.maximum, "a row rule says so"
    return values.astype(feature.stored_dtype)


def _propensities(batch: pa.RecordBatch, start: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every candidate's propensity, NaN where it was not logged, and the shown artwork's."""
    lists = batch["propensities"]
    propensities = np.full(start[-1], np.nan, np.float32)
    logged = np.repeat(np.asarray(pc.is_valid(lists)), width)
    propensities[logged] = np.asarray(pc.list_flatten(lists))
    shown = propensities[start[:-1] + np.asarray(batch[SHOWN])]
    logged_alone = pc.fill_null(batch["propensity"].cast(pa.float32()), np.nan).to_numpy(zero_copy_only=False)
    return propensities, np.where(np.isnan(shown), logged_alone, shown).astype(np.float32)


def _strings(column: pa.Array) -> pa.Array:
    return column if pa.types.is_string(column.type) else column.cast(pa.string())


def _small(vocabulary: Vocabulary, column: pa.Array) -> np.ndarray:
    return vocabulary.rows(column).astype(np.int16)


def _filled(column: pa.Array, fill: int, dtype: type) -> np.ndarray:
    return np.asarray(pc.fill_null(column.cast(pa.int32()), fill)).astype(dtype)


def microseconds(column: pa.Array) -> np.ndarray:
    """int64: since 1970, UTC."""
    return np.asarray(column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()), np.int64)
