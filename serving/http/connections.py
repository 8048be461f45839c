"""Sockets: listening, limits on each connection, and stopping.

uvicorn limits neither the size of a request's head, nor the time that it takes, nor how long a client takes to read an answer;
`serving.http.application` limits bodies.
"""

import asyncio
import json
import re
import signal
import socket
import sys
from typing import Any, NoReturn

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from foundation.errors import UserError
from serving.http.config import ServeConfig
from serving.http.metrics import ServiceMetrics
from serving.http.open_connections import PROBES, RESERVE, OpenConnections

HEAD_BYTES, SEND_BUFFER_BYTES = 65_536, 2**17
UPGRADE = re.compile(rb"^upgrade(?=[ \t]*:)", re.IGNORECASE | re.MULTILINE)
"""The name of the header that asks for another protocol, such as h2c, which Java's client sends with every first request."""
MAX_PIPELINE, MAX_TRAILERS = 16, 32
"""Requests of a connection that wait for the answer to the one before, and headers behind a body, at most."""
SHUTDOWN_SECONDS = 8
"""Seconds for requests in flight to be answered when the service stops."""
OTHER_FILES = 64
"""Files that a process has open beside its connections, at most."""


def listen(config: ServeConfig, *, shared: bool = False) -> socket.socket:
    """A listening socket, whose port other processes may share; UserError where the address cannot be used."""
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((config.host, config.port), family=family, backlog=2048, reuse_port=shared)
    except (OSError, OverflowError, ValueError) as error:
        message = getattr(error, "strerror", None) or error
        raise UserError(
            f"host={config.host}, port={config.port}: cannot listen ({message}). Give another --port."
        ) from None
    # asyncio sets this on sockets whose protocol is named, and create_server leaves it unnamed: an answer, sent as head and
    # body, then waited 40 ms for the client to acknowledge its head (900 requests/s over 50 connections instead of 3,000)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # connections inherit it; by itself the system keeps up to 4 MB for each client that does not read
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    return listening


def allow_files(connections: int) -> None:
    """Raise the process's limit of open files to what the connections need; UserError where the system does not let it."""
    if sys.platform == "win32":
        return
    import resource

    needed = connections + RESERVE + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise UserError(
                f"connections={connections:,}: need {needed:,} open files, and this process may have {hard:,}. Give fewer, or "
                "raise the limit: ulimit -n."
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def run(
    app: ASGIApp, listening: socket.socket, config: ServeConfig, connections: OpenConnections, metrics: ServiceMetrics
) -> None:
    """Serve until SIGTERM or Ctrl-C; requests received by then are answered, within SHUTDOWN_SECONDS."""
    attributes = {"seconds": config.head_seconds, "registry": connections, "metrics": metrics}
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=type("ServiceProtocol", (LimitedProtocol,), attributes),
            ws="none",
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_keep_alive=config.idle_seconds,  # pyright: ignore[reportArgumentType]  seconds of call_later
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
    )
    # uvicorn raises the signal again when it has stopped, for other handlers, of which there are none
    previous_handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run([listening])
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


async def refuse_connection(scope: Scope, receive: Receive, send: Send) -> None:
    """The application of a request for which no connection is left."""
    body = b'{"error": "connections: all are in use. Retry in a second."}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close"), (b"retry-after", b"1")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def without_upgrade(data: bytes) -> bytes:
    """The beginning of a head, whose wish for another protocol is not heard: its body would be taken for that protocol's."""
    end = data.find(b"\r\n\r\n")
    head = data if end < 0 else data[:end]
    if b"pgrade" not in head and b"PGRADE" not in head:
        return data
    return UPGRADE.sub(b"ignored", head) + data[len(head) :]


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with limits on time and size of a request's head and on the connections of all clients."""

    seconds = 10.0
    registry: OpenConnections
    metrics: ServiceMetrics
    deadline: asyncio.TimerHandle | None = None
    size = 0
    """Bytes of the present head so far."""
    head_is_complete = False
    """Whether what comes now belongs to a body, or to the headers behind it."""
    trailers = 0
    """Headers behind the present body so far."""
    refused = False
    """Whether the connection ends when the requests before the refused one are answered."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Admit the connection and start the deadline of its first head."""
        super().connection_made(transport)
        if self.registry.admit(self):
            self._start_header_deadline()
        else:
            self._refuse(503, "connections: all are in use. Retry in a second.")

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a head, not those of a body."""
        if self.deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._start_header_deadline()
        if self.refused:
            return
        if self.deadline is not None:
            self.size += len(data)
            data = without_upgrade(data)
        super().data_received(data)
        if self.deadline is not None and self.size > HEAD_BYTES:
            self._refuse(431, "head: too large.")

    def on_message_begin(self) -> None:
        """A request begins; nothing more is read from a connection that ends."""
        if self.transport.is_closing():
            raise ConnectionAbortedError
        if len(self.pipeline) >= MAX_PIPELINE:
            self._end("too many requests are sent without awaiting their answers.")
        self.head_is_complete, self.trailers = False, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Read a header of the head; those behind a body are dropped, and only so many are read."""
        if not self.head_is_complete:
            super().on_header(name, value)
            return
        self.trailers += 1
        if self.trailers > MAX_TRAILERS:
            self._end("too many headers behind the body.")

    def on_headers_complete(self) -> None:
        """Stop the deadline of the head; where connections are full, only probes are answered."""
        self._cancel_header_deadline()
        self.head_is_complete = True
        if self.parser is not None and self.parser.should_upgrade():
            self._end("another protocol than HTTP/1.1 is not offered.", 400)
        app = self.app
        if self.registry.full and self.url.partition(b"?")[0] not in PROBES:
            self.metrics.count("responses", "connection", "503")
            self.app: Any = refuse_connection
        try:
            super().on_headers_complete()
        finally:
            self.app = app

    def on_message_complete(self) -> None:
        """A request is here with its body; until then its connection counts as one that waits."""
        self.registry.asked(self)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Await the next request, or that the client reads its answer."""
        if not self.pipeline:
            self.registry.answered(self)
        elif self.transport.get_write_buffer_size():
            self.metrics.count("closed", "slow")
            self.transport.abort()  # asks for more answers without reading those it got
            return
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self._refuse(400, f"head: {msg.rstrip('.')}.")

    def shutdown(self) -> None:
        """The service stops: the connection ends, behind an answer where one is due."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._say_close()
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop any deadline."""
        self._cancel_header_deadline()
        self.registry.lost(self)
        super().connection_lost(exc)

    def _say_close(self) -> None:
        """Have the last answer's head say that the connection ends, which uvicorn 0.34 leaves out."""
        assert self.cycle is not None
        self.cycle.default_headers = [*self.cycle.default_headers, (b"connection", b"close")]

    def _start_header_deadline(self) -> None:
        self.size = 0
        self.deadline = self.loop.call_later(self.seconds, self._refuse, 408, "head: took too long.")

    def _cancel_header_deadline(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def _end(self, message: str, status: int = 431) -> NoReturn:
        """Refuse and stop parsing: the parser passes the exception on as one of its own."""
        self._refuse(status, message)
        raise ConnectionAbortedError

    def _refuse(self, status: int, message: str) -> None:
        self._cancel_header_deadline()
        if self.transport.is_closing() or self.refused:
            return
        self.metrics.count("responses", "connection", str(status))
        if self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete:
            # requests before it are being answered: the connection ends behind the last of their answers
            self.refused, self.cycle.keep_alive = True, False
            self._say_close()
            self.flow.pause_reading()
            return
        body = json.dumps({"error": message}).encode()
        reasons = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}
        head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\nconnection: close\r\n" % (
            status,
            reasons.get(status, b"Service Unavailable"),
        )
        self.transport.write(head + b"content-length: %d\r\n\r\n%s" % (len(body), body))
        self.transport.close()
