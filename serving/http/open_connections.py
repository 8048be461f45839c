"""The open connections of a service, kept within limits of number, of time and of bytes that clients have not read.

Nobody can occupy the service by holding connections: of those that wait for a request, or for the end of one, the one that has
waited longest makes room for a new one; an answer that is not read in time ends its connection, and so do the slowest where all
unread answers together are too large. Where every connection is being answered, further ones are kept for probes.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

PROBES = (b"/health", b"/ready", b"/metrics")
"""Paths that are answered also where all connections are taken."""
RESERVE = 16
"""Connections beyond the limit that are kept open, for probes."""
SWEEP_SECONDS = 0.5


class Connection(Protocol):
    """What a connection offers."""

    transport: asyncio.Transport


class OpenConnections:
    """All of a process; used by its event loop alone."""

    def __init__(self, limit: int, write_seconds: float, unsent_bytes: int, on_end: Callable[[str], None]) -> None:
        """`limit`: connections; `write_seconds`: for an answer to be read; `unsent_bytes`: of unread answers together; `on_end`:
        called with the reason whenever a connection is ended here."""
        self.limit, self.write_seconds, self.unsent_bytes, self.on_end = limit, write_seconds, unsent_bytes, on_end
        self.open: set[Connection] = set()
        self.idle: OrderedDict[Connection, None] = OrderedDict()
        """Those that wait for a request or for the rest of one, the one that has waited longest first."""
        self.sending: OrderedDict[Connection, float] = OrderedDict()
        """Those whose client has not read its answer, the slowest first, and when the answer was written."""

    @property
    def full(self) -> bool:
        """Whether there are more connections than the limit: only probes are answered."""
        return len(self.open) > self.limit

    def admit(self, connection: Connection) -> bool:
        """Note a new connection; False where it must be refused, because all others and the reserve are in use."""
        if len(self.open) >= self.limit and self.idle:
            self._end(self.idle.popitem(last=False)[0], "idle")
        elif len(self.open) >= self.limit + RESERVE:
            self.on_end("full")
            return False
        self.open.add(connection)
        self.idle[connection] = None
        return True

    def asked(self, connection: Connection) -> None:
        """A request has arrived, its body included."""
        self.idle.pop(connection, None)
        self.sending.pop(connection, None)  # its next answer is counted anew

    def answered(self, connection: Connection) -> None:
        """An answer was written: the connection waits for the next request, or for its client to read."""
        if connection.transport.is_closing() and not connection.transport.get_write_buffer_size():
            return
        if connection.transport.get_write_buffer_size():
            self.sending.setdefault(connection, asyncio.get_running_loop().time())
            unsent = {other: other.transport.get_write_buffer_size() for other in self.sending}
            total = sum(unsent.values())
            while total > self.unsent_bytes and len(self.sending) > 1:
                slowest, _ = self.sending.popitem(last=False)
                total -= unsent[slowest]
                self._end(slowest, "unsent")
        else:
            self.idle[connection] = None

    def lost(self, connection: Connection) -> None:
        """A connection has ended."""
        self.open.discard(connection)
        self.idle.pop(connection, None)
        self.sending.pop(connection, None)

    async def sweep(self) -> None:
        """End connections whose answers were not read in time, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            for connection, since in list(self.sending.items()):
                if not connection.transport.get_write_buffer_size():
                    del self.sending[connection]
                    if connection in self.open and not connection.transport.is_closing():
                        self.idle[connection] = None
                elif loop.time() - since > self.write_seconds:
                    self._end(connection, "slow")

    def _end(self, connection: Connection, reason: str) -> None:
        self.on_end(reason)
        # what was written to an idle connection has been sent; what a slow client has not read is dropped
        if connection.transport.get_write_buffer_size():
            connection.transport.abort()
        else:
            connection.transport.close()
        self.lost(connection)
