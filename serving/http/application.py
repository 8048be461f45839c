"""The service as an ASGI application: the answers and refusals of each path.

Whatever a client sends gets an answer below 500: `RequestError` carries its status and its line. Bodies are read with a limit
of size and of time, ranked by `serving.http.batches`, counted by `serving.http.metrics`.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Call
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.bundle.bundle import Bundle
from serving.http.answers import ArtworkRanker
from serving.http.batches import RequestBatcher
from serving.http.config import ServeConfig
from serving.http.interface import OTHER_PATHS, example, openapi, page
from serving.http.metrics import ServiceMetrics
from serving.http.requests import RequestError, RequestReader

DRAIN_FACTOR = 16
"""Bodies of so many times the limit are read to their end and dropped, so that the client reads why it was refused."""
KNOWN_PATHS = {"/rank", *OTHER_PATHS}


class Service:
    """One bundle's answers by path."""

    def __init__(self, bundle: Bundle, config: ServeConfig) -> None:
        self.config, self.service_metrics = config, ServiceMetrics()
        self.reader, self.answers = RequestReader(bundle), ArtworkRanker(bundle)
        self.batches = RequestBatcher(
            self.answers.answer,
            max_batch=config.batch,
            seconds=config.gather_seconds,
            waiting=config.waiting,
            on_batch=self.service_metrics.sizes.add,
        )
        spec = openapi(bundle, version("keyart"))
        self.spec, self.docs = json.dumps(spec), page(spec, curl(bundle, config.url))
        self.up = json.dumps({"status": "up", "fingerprint": bundle.metadata.get("fingerprint", "")})
        # one request beforehand, so that the first client does not wait for lazily read tables
        self.answers.answer(self.reader.read(json.dumps(example(bundle)).encode(), time.time())[0])

    def application(self) -> ASGIApp:
        """The ASGI application for uvicorn."""
        routes = [
            Route("/rank", self.rank, methods=["POST"]),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/openapi.json", self.openapi),
            Route("/docs", self.page),
            Route("/", self.paths),
        ]
        refusals: Any = {RequestError: _request_error, HTTPException: _http_error, Exception: _internal_error}
        return _MetricsMiddleware(
            Starlette(routes=routes, lifespan=self._lifespan, exception_handlers=refusals), self.service_metrics
        )

    async def rank(self, call: Call) -> Response:
        """Ranked artworks of one request, or of each of a list."""
        requests, is_list = self.reader.read(await self._body(call), time.time())
        for request in requests:
            self.answers.require(request)
        answers = await self.batches.ask(requests)
        return _json(json.dumps(answers if is_list else answers[0]))

    async def health(self, call: Call) -> Response:
        """Answer 200 while batches are being answered."""
        return _json(self.up)

    async def metrics(self, call: Call) -> Response:
        """For Prometheus."""
        return Response(self.service_metrics.text(self.batches.queue.qsize()), media_type="text/plain; version=0.0.4")

    async def openapi(self, call: Call) -> Response:
        """The description."""
        return _json(self.spec)

    async def page(self, call: Call) -> Response:
        """The description as HTML."""
        return Response(self.docs, media_type="text/html")

    async def paths(self, call: Call) -> Response:
        """The paths and their meaning."""
        return _json(
            json.dumps(
                {"POST /rank": "ranked artworks"} | {path: message for path, (message, _) in OTHER_PATHS.items()}
            )
        )

    async def _body(self, call: Call) -> bytes:
        """The body of a request; RequestError where it is too large or too slow."""
        max_bytes, parts, size = self.config.body_bytes, [], 0
        try:
            async with asyncio.timeout(self.config.body_seconds):
                async for part in call.stream():
                    size += len(part)
                    if size <= max_bytes:
                        parts.append(part)
                    elif size > DRAIN_FACTOR * max_bytes:
                        break
        except TimeoutError:
            raise RequestError(
                408, f"body: incomplete after {self.config.body_seconds:g} s. Send it at once."
            ) from None
        except ClientDisconnect:
            raise RequestError(400, "body: ended early. Send all of it.") from None
        if size > max_bytes:
            raise RequestError(
                413, f"body: more than {max_bytes:,} bytes. Send fewer requests or candidates at a time."
            )
        return b"".join(parts)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(self.batches.run())
        yield
        task.cancel()


def curl(bundle: Bundle, url: str) -> str:
    """A command line to try the service."""
    body = json.dumps(example(bundle) | {"explain": True}).replace("'", "\\u0027")
    return f"curl -s {url}/rank -d '{body}'"


class _MetricsMiddleware:
    """An application, its answers counted."""

    def __init__(self, app: ASGIApp, service_metrics: ServiceMetrics) -> None:
        self.app, self.service_metrics = app, service_metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def counted_send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, counted_send)
        finally:
            path = scope["path"] if scope["path"] in KNOWN_PATHS else "other"
            self.service_metrics.responses[path, status] += 1
            if path == "/rank":
                self.service_metrics.seconds.add(time.perf_counter() - began)


def _json(text: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # ASCII, as json.dumps writes: half a surrogate pair in an id is answered as it came
    return Response(text, status, headers, "application/json")


async def _request_error(call: Call, error: RequestError) -> Response:
    # the rest of an unread body cannot be distinguished from the next request
    headers = (
        {"connection": "close"} if error.status in (408, 413) else {"retry-after": "1"} if error.status == 503 else {}
    )
    return _json(json.dumps({"error": str(error)}), error.status, headers)


async def _http_error(call: Call, error: HTTPException) -> Response:
    message = f"{call.method} {call.url.path[:100]}: {error.detail}. GET / lists the paths."
    return _json(json.dumps({"error": message}), error.status_code, {**(error.headers or {}), "connection": "close"})


async def _internal_error(call: Call, error: Exception) -> Response:
    message = f"{type(error).__name__}: this is a defect of keyart; the service's output shows where."
    return _json(json.dumps({"error": message}), 500)
