"""Bodies of requests, within limits of size, of time, and of all bodies together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect
from starlette.requests import Request as Call

from serving.http.config import ServeConfig
from serving.http.requests import RequestError

DRAIN_FACTOR = 16
"""Bodies of so many times the limit are read to their end and dropped, so that the client reads why it was refused."""
LARGE_BYTES, LARGE_BODIES = 2**15, 2
"""Bodies of more bytes are parsed and answered so many at a time: what they become takes ten times their bytes, and parsing one
takes the event loop several milliseconds."""


class Bodies:
    """The bodies that a process receives and answers."""

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.held_bytes = 0
        """Bytes of bodies that are being received or answered."""
        self.large_bodies = asyncio.Semaphore(LARGE_BODIES)

    @asynccontextmanager
    async def body(self, call: Call) -> AsyncIterator[bytes]:
        """A request's body, to be answered within the block; RequestError where it is too large, too slow, or one too many."""
        parts: list[bytes] = []
        try:
            await self._receive(call, parts)
            async with self._deadline():
                if sum(map(len, parts)) > LARGE_BYTES:
                    async with self.large_bodies:
                        yield b"".join(parts)
                else:
                    yield b"".join(parts)
        finally:
            self.held_bytes -= sum(map(len, parts))

    async def _receive(self, call: Call, parts: list[bytes]) -> None:
        max_bytes, size = self.config.body_bytes, 0
        too_large = RequestError(
            413, f"body: more than {max_bytes:,} bytes. Send fewer requests or candidates at a time."
        )
        length = call.headers.get("content-length", "0")
        if "expect" in call.headers and length.isdigit() and int(length) > max_bytes:
            raise too_large  # before the client is asked to continue
        try:
            async with asyncio.timeout(self.config.body_seconds):
                async for part in call.stream():
                    size += len(part)
                    if size <= max_bytes:
                        parts.append(part)
                        self.held_bytes += len(part)
                        if self.held_bytes > self.config.bodies_bytes and size > LARGE_BYTES:
                            raise RequestError(503, "body: too many large ones are waiting. Retry in a second.")
                    elif size > DRAIN_FACTOR * max_bytes:
                        break
        except TimeoutError:
            raise RequestError(
                408, f"body: incomplete after {self.config.body_seconds:g} s. Send it at once."
            ) from None
        except ClientDisconnect:
            raise RequestError(400, "body: ended early. Send all of it.") from None
        if size > max_bytes:
            raise too_large

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        """RequestError (503) where what is done within takes longer than the deadline."""
        try:
            async with asyncio.timeout(self.config.deadline):
                yield
        except TimeoutError:
            raise RequestError(
                503, f"rank: not answered within {self.config.deadline:g} s. Retry in a second."
            ) from None
