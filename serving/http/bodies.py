"""Bodies of requests, within limits of size, of time, and of all bodies together."""

import asyncio

from starlette.requests import ClientDisconnect
from starlette.requests import Request as Call

from serving.http.config import ServeConfig
from serving.http.fields import RequestError

DRAIN_FACTOR = 16
"""Bodies of so many times the limit are read to their end and dropped, so that the client reads why it was refused."""
SILENT_SECONDS = 1.0
"""Seconds without a byte after which a body makes room for others, where room is needed."""
LARGE_BYTES, LARGE_BODIES = 2**15, 2
"""Bodies of more bytes are parsed and answered so many at a time: what they become takes ten times their bytes, and parsing one
takes the event loop several milliseconds."""


class Bodies:
    """The bodies that a process receives and answers."""

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.held_bytes = 0
        """Bytes of bodies that are being received or answered."""
        self.arrivals: dict[asyncio.Timeout, float] = {}
        """When the last bytes of each body arrived that is being received, by its time limit."""
        self.large_bodies = asyncio.Semaphore(LARGE_BODIES)

    async def receive(self, call: Call) -> bytes:
        """A request's body, to be released when it is answered; RequestError where it is too large, too slow, or one too many."""
        parts: list[bytes] = []
        try:
            await self._receive(call, parts)
        except BaseException:
            self.held_bytes -= sum(map(len, parts))
            raise
        return b"".join(parts)

    def release(self, body: bytes) -> None:
        """A body was answered."""
        self.held_bytes -= len(body)

    async def _receive(self, call: Call, parts: list[bytes]) -> None:
        max_bytes, size = self.config.body_bytes, 0
        too_large = RequestError(
            413, f"body: more than {max_bytes:,} bytes. Send fewer requests or candidates at a time."
        )
        length = call.headers.get("content-length", "0")
        if "expect" in call.headers and length.isdigit() and int(length) > max_bytes:
            raise too_large  # before the client is asked to continue
        now = asyncio.get_running_loop().time
        limit = asyncio.timeout(self.config.body_seconds)
        try:
            async with limit:
                self.arrivals[limit] = now()
                async for part in call.stream():
                    size += len(part)
                    if size <= max_bytes:
                        parts.append(part)
                        self.held_bytes += len(part)
                        self.arrivals[limit] = now()
                        if self.held_bytes > self.config.bodies_bytes and size > LARGE_BYTES:
                            self._make_room(limit, now())
                    elif size > DRAIN_FACTOR * max_bytes:
                        break
        except TimeoutError:
            raise RequestError(
                408, f"body: incomplete after {self.config.body_seconds:g} s, or too slow. Send it at once."
            ) from None
        except ClientDisconnect:
            raise RequestError(400, "body: ended early. Send all of it.") from None
        finally:
            self.arrivals.pop(limit, None)
        if size > max_bytes:
            raise too_large

    def _make_room(self, limit: asyncio.Timeout, now: float) -> None:
        """End the body that has been silent for longest; RequestError where all arrive, or are being answered."""
        others = {other: arrived for other, arrived in self.arrivals.items() if other is not limit}
        silent = min(others, key=others.__getitem__, default=None)
        if silent is None or now - others[silent] < SILENT_SECONDS:
            raise RequestError(503, "body: too many large ones are waiting. Retry in a second.", is_unread=True)
        del self.arrivals[silent]
        silent.reschedule(now)
