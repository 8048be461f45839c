"""Sockets: listening, limits on time and size of the head of a request, and stopping.

uvicorn limits neither the size of a head nor the time it takes; `serving.http.application` limits bodies.
"""

import asyncio
import signal
import socket

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from foundation.errors import UserError
from serving.http.config import ServeConfig

HEAD_BYTES = 65_536
IDLE_SECONDS = 75
"""Seconds that an idle connection is kept: longer than the 60 of proxies, which would otherwise use a closed one."""
SHUTDOWN_SECONDS = 10


def listen(config: ServeConfig) -> socket.socket:
    """A listening socket; UserError where the address cannot be used."""
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((config.host, config.port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        message = getattr(error, "strerror", None) or error
        raise UserError(
            f"host={config.host}, port={config.port}: cannot listen ({message}). Give another --port."
        ) from None
    # asyncio sets this on sockets whose protocol is named, and create_server leaves it unnamed: an answer, sent as head and
    # body, then waited 40 ms for the client to acknowledge its head (900 requests/s over 50 connections instead of 3,000)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def run(app: ASGIApp, listening: socket.socket, config: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C; requests received by then are answered."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=type("HeaderLimitProtocol", (HeaderLimitProtocol,), {"seconds": config.head_seconds}),
            ws="none",
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            limit_concurrency=config.connections,
        )
    )
    # uvicorn raises the signal again when it has stopped, for other handlers, of which there are none
    previous_handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run([listening])
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


class HeaderLimitProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a limit on time and size of a request's head."""

    seconds = 10.0
    deadline: asyncio.TimerHandle | None = None
    size = 0
    """Bytes of the present head so far."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline of the first head."""
        super().connection_made(transport)
        self._start_header_deadline()

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a head, not those of a body."""
        if self.deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._start_header_deadline()
        if self.deadline is not None:
            self.size += len(data)
        super().data_received(data)
        if self.deadline is not None and self.size > HEAD_BYTES:
            self._refuse(b"431 Request Header Fields Too Large", b"head: too large.")

    def on_headers_complete(self) -> None:
        """Stop the deadline of the head."""
        self._cancel_header_deadline()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop any deadline."""
        self._cancel_header_deadline()
        super().connection_lost(exc)

    def _start_header_deadline(self) -> None:
        self.size = 0
        self.deadline = self.loop.call_later(
            self.seconds, self._refuse, b"408 Request Timeout", b"head: took too long."
        )

    def _cancel_header_deadline(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def _refuse(self, status: bytes, message: bytes) -> None:
        self._cancel_header_deadline()
        if not self.transport.is_closing():
            head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\nconnection: close\r\n" % status
            body = b'{"error": "%s"}' % message
            self.transport.write(head + b"content-length: %d\r\n\r\n%s" % (len(body), body))
            self.transport.close()
