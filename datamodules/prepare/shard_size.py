"""How large shards are: their number, how many are made at a time, and how much is read at once, by the memory there is.

In: how large a log is, and the bytes that a command may use. Out: numbers of shards and rows; UserError where a shard does not fit.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from datamodules.prepare.relations import MAX_SHARDS, LogSize
from datamodules.shards.shard import Shard
from foundation.errors import UserError
from foundation.machine import available_cores

SHARD_BYTES = 50_000_000
"""About as much as a shard holds by default."""
THREADS = "keyart-shards"
"""How the names of the threads that make shards begin."""
WORKING_COPIES = 5
"""Memory of a shard in progress as a multiple of its own bytes: rows as read, sorted, and the memory of sorting."""


def rows_at_once(size: LogSize, memory: int) -> int:
    """Rows per batch, such that four batches, between the engine and their shards, take an eighth of the memory."""
    bytes_a_row = 200 + 64 * size.candidates // max(1, size.impressions)
    return max(1024, min(131_072, memory // 32 // bytes_a_row))


def _bytes(size: LogSize) -> int:
    """Approximate bytes of a log's arrays."""
    return 100 * size.impressions + 8 * size.candidates + 34 * size.plays


def shard_count(size: LogSize) -> int:
    """Number of shards of about `SHARD_BYTES` each."""
    return min(MAX_SHARDS, max(1, -(-_bytes(size) // SHARD_BYTES)))


def parallel_shards(size: LogSize, shards: int, memory: int) -> int:
    """How many shards may be in progress at a time."""
    return max(1, min(available_cores(), memory // 2 // max(1, WORKING_COPIES * _bytes(size) // shards)))


def require_memory(size: LogSize, shards: int, memory: int) -> None:
    """Refuse shards too large for the memory, before any work."""
    needed = WORKING_COPIES * _bytes(size) // shards
    if needed > memory // 2:  # the other half is the engine's
        raise UserError(
            f"shards={shards}: one of them would take about {needed / 1e9:.1f} GB to make, and memory is "
            f"{memory / 1e9:.1f} GB. Give --shards {shard_count(size)} or more, or more --memory."
        )


def in_parallel(make: Callable[[int], Shard], shards: int, at_once: int) -> Iterator[Shard]:
    """The shards in order, `at_once` of them in progress. When it ends, by an exception too, no thread writes any more."""
    try:
        with ThreadPoolExecutor(at_once, THREADS) as threads:
            todo = iter(range(shards))
            running = [threads.submit(make, s) for s in islice(todo, at_once)]
            try:
                while running:
                    shard = running.pop(0).result()
                    running += [threads.submit(make, s) for s in islice(todo, 1)]
                    yield shard
            finally:
                for future in running:
                    future.cancel()
    finally:
        # the executor does not wait for a thread in whose start a signal arrived
        for thread in threading.enumerate():
            if thread.name.startswith(THREADS):
                thread.join()
