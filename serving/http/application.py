"""The service as an ASGI application: the answers and refusals of each path.

Whatever a client sends gets an answer below 500, except 503 where the service is too busy: `RequestError` carries its status and
its line. Bodies are read with a limit of size and of time, ranked by `serving.http.lanes`, counted by `serving.http.metrics`.
"""

import asyncio
import hmac
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as Call
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foundation.errors import UserError
from serving.bundle.steady import identity
from serving.http.answers import cost
from serving.http.bodies import LARGE_BYTES, Bodies
from serving.http.choice_log import ChoiceLog
from serving.http.config import ServeConfig
from serving.http.drift_metrics import DriftMetrics
from serving.http.fields import RequestError
from serving.http.generation import Generation
from serving.http.interface import OTHER_PATHS
from serving.http.lanes import Lanes
from serving.http.metrics import ServiceMetrics
from serving.http.open_connections import OpenConnections
from serving.http.process import return_free_memory
from serving.http.requests import Request, ids_by_kind

KNOWN_PATHS = {"/rank", *OTHER_PATHS}
OPEN_PATHS = {"/health", "/ready"}
"""Paths that need no token."""
RETRY_SECONDS = 10.0
"""Seconds after which a bundle that could not be loaded is tried again, where the service looks by itself."""
STUCK_SECONDS, DEAD_SECONDS = 5.0, 30.0
"""Seconds of one batch from which the service is not ready, and from which it is not healthy and should be restarted."""
JSON_TYPES = ("application/json", "text/json")


class Service:
    """A folder's bundle, answering by path; the bundle may be replaced."""

    def __init__(self, folder: Path, config: ServeConfig, say: Callable[[str], None]) -> None:
        """`say`: prints one line about the service. UserError where the folder is not a bundle."""
        self.folder, self.config, self.say = folder, config, say
        self.service_metrics = ServiceMetrics()
        self.lanes = Lanes(
            max_batch=config.batch,
            gather_seconds=config.gather_seconds,
            waiting=config.waiting,
            deadline=config.deadline,
            on_batch=self.service_metrics.batch,
        )
        self.connections = OpenConnections(
            config.connections,
            config.write_seconds,
            config.unsent_bytes,
            lambda reason: self.service_metrics.count("closed", reason),
        )
        self.bodies = Bodies(config)
        self.background: list[Callable[[], Coroutine[Any, Any, None]]] = []
        """What runs beside, while requests are answered."""
        self.all_metrics: Callable[[], Awaitable[ServiceMetrics]] | None = None
        """The metrics of all workers, where there are several."""
        self.log = None if config.log is None else ChoiceLog(config.log, say)
        self.failure = self.said = ""
        """Why the bundle that is in the folder could not be loaded, and the line that said so."""
        self.identity = identity(folder)
        self.switch(Generation.load(folder, config))

    def switch(self, generation: Generation) -> None:
        """Answer by another bundle from now on; what was read for the one before is answered by that one."""
        if self.log is not None:
            self.log.reopen()
        self.generation = generation
        self.service_metrics.info = generation.info
        self.service_metrics.drift = DriftMetrics(generation.reference)

    async def reload(self) -> None:
        """Take the bundle that is in the folder now; where it cannot be read, say why: then the one before stays."""
        before = self.generation.digest[:12]
        generation = await self.load()
        if generation is None:
            line = f"serve: not reloaded: {self.failure}  Bundle {before} goes on answering."
            if line != self.said:
                self.say(line)
            self.said = line
        else:
            self.said = ""
            self.switch(generation)
            self.say(f"serve: {self.folder}: bundle {generation.digest[:12]} after {before}")

    async def load(self) -> Generation | None:
        """The bundle that is in the folder now, loaded beside the one that answers; None, and why, where it cannot be read."""
        self.identity = identity(self.folder)
        try:
            generation = await asyncio.to_thread(Generation.load, self.folder, self.config)
        except Exception as error:  # whatever is wrong with the new bundle, the old one goes on answering
            message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self.service_metrics.count("reloads", "failed")
            self.failure = message
            return None
        self.service_metrics.count("reloads", "done")
        return generation

    def application(self) -> ASGIApp:
        """The ASGI application for uvicorn."""
        routes = [
            Route("/rank", self.rank, methods=["POST"]),
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/metrics", self.metrics),
            Route("/openapi.json", self.openapi),
            Route("/docs", self.page),
            Route("/", self.paths),
        ]
        refusals: Any = {RequestError: _request_error, HTTPException: _http_error, Exception: _internal_error}
        starlette = Starlette(routes=routes, lifespan=self._lifespan, exception_handlers=refusals)
        starlette.router.redirect_slashes = False  # to a host that the client names
        app: ASGIApp = starlette
        app = _Guard(app, self.config.token)
        if self.config.cors:
            app = CORSMiddleware(
                app,
                allow_origins=self.config.cors,
                allow_methods=["GET", "POST"],
                allow_headers=["content-type", "authorization"],
            )
        return _MetricsMiddleware(app, self)

    async def rank(self, call: Call) -> Response:
        """Ranked artworks of one request, or of each of a list."""
        kind = call.headers.get("content-type", JSON_TYPES[0]).partition(";")[0].strip().lower()
        if kind not in JSON_TYPES:
            raise RequestError(415, f"content-type={kind[:60]}: is not JSON. Send content-type: application/json.")
        body = await self.bodies.receive(call)
        try:
            async with asyncio.timeout(self.config.deadline):
                if len(body) <= LARGE_BYTES:
                    return await self._ranked(body)
                async with self.bodies.large_bodies:
                    return await self._ranked(body)
        except TimeoutError:
            message = f"rank: not answered within {self.config.deadline:g} s. Retry in a second."
            raise RequestError(503, message) from None
        finally:
            self.bodies.release(body)

    async def _ranked(self, body: bytes) -> Response:
        generation, stages, begin = self.generation, self.service_metrics.stages, time.perf_counter()
        if len(body) > LARGE_BYTES:  # in a thread, so that the event loop goes on between two plays
            requests, is_list = await asyncio.to_thread(generation.reader.read, body, time.time())
        else:
            requests, is_list = generation.reader.read(body, time.time())
        for request in requests:
            generation.ranker.require(request)
        stages["read"].add(time.perf_counter() - begin)
        self._count_ids(requests)
        answers = await self.lanes.ask(requests, [cost(request) for request in requests], generation.ranker.answer)
        if generation is self.generation:  # else another bundle was taken meanwhile
            for request, answer in zip(requests, answers, strict=True):
                self.service_metrics.drift.add(len(request.history_titles), answer)
        begin = time.perf_counter()
        if self.log is not None:
            self.log.add(requests, answers)
        text = json.dumps(answers if is_list else answers[0])
        stages["write"].add(time.perf_counter() - begin)
        return _json(text)

    async def health(self, call: Call) -> Response:
        """Answer 200, and 503 where a batch hangs, so that the process should be restarted."""
        return self._state(not self.lanes.stuck(DEAD_SECONDS), "up", "a batch hangs")

    async def ready(self, call: Call) -> Response:
        """Answer 200 where requests are answered, and 503 where a batch takes long."""
        return self._state(not self.lanes.stuck(STUCK_SECONDS), "ready", "a batch takes long")

    async def metrics(self, call: Call) -> Response:
        """For Prometheus."""
        of_all = self.own_metrics() if self.all_metrics is None else await self.all_metrics()
        return Response(of_all.text(), media_type="text/plain; version=0.0.4")

    def own_metrics(self) -> ServiceMetrics:
        """The metrics of this process, gauges read now."""
        self.service_metrics.gauges = {
            "keyart_waiting_requests": (self.lanes.waiting, "Requests in the queues."),
            "keyart_connections": (len(self.connections.open), "Open connections."),
            "keyart_log_lost_lines": (0 if self.log is None else self.log.lost, "Choices that the log lacks."),
            "keyart_workers": (1, "Processes that answer."),
        }
        return self.service_metrics

    async def openapi(self, call: Call) -> Response:
        """The description."""
        return _json(self.generation.openapi)

    async def page(self, call: Call) -> Response:
        """The description as HTML."""
        return Response(self.generation.docs, media_type="text/html")

    async def paths(self, call: Call) -> Response:
        """The paths and their meaning."""
        return _json(
            json.dumps(
                {"POST /rank": "ranked artworks"} | {path: message for path, (message, _) in OTHER_PATHS.items()}
            )
        )

    def _state(self, fine: bool, name: str, otherwise: str) -> Response:
        return _json(json.dumps({"status": name if fine else otherwise} | self.generation.info), 200 if fine else 503)

    def _count_ids(self, requests: list[Request]) -> None:
        """Counts of ids by kind, and of those that the bundle does not know."""
        for kind, (given, unknown) in ids_by_kind(requests).items():
            self.service_metrics.count("ids", kind, by=given)
            self.service_metrics.count("unknown", kind, by=unknown)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self.lanes.run()), loop.create_task(self.connections.sweep())]
        tasks.append(loop.create_task(return_free_memory()))
        tasks += [loop.create_task(work()) for work in self.background]
        if self.config.reload_seconds and self.config.workers == 1:
            tasks.append(loop.create_task(self._watch()))
        for task in tasks:
            task.add_done_callback(self._end_with)
        if sys.platform != "win32" and self.config.workers == 1:
            reloading: set[asyncio.Task[Any]] = set()
            loop.add_signal_handler(signal.SIGHUP, lambda: reloading.add(loop.create_task(self.reload())))
        yield
        for task in tasks:
            task.cancel()

    def _end_with(self, task: asyncio.Task[Any]) -> None:
        """A service without one of its tasks would answer nothing: it ends, so that it is started again."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.say(f"serve: {type(error).__name__}: {error}: this is a defect of keyart. Stopping.")
            signal.raise_signal(signal.SIGTERM)

    async def _watch(self) -> None:
        """Reload whenever another bundle is in the folder."""
        while True:
            await asyncio.sleep(self.config.reload_seconds)
            now = identity(self.folder)
            if now not in (None, self.identity):
                await self.reload()
                if self.said:  # a copy may not be complete yet
                    self.identity = None
                    await asyncio.sleep(RETRY_SECONDS)


class _Guard:
    """An application behind the rules of every path: a host is named, and the token is right."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, f"bearer {token}".encode() if token else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        error = None
        if len(hosts) > 1 or (scope["http_version"] == "1.1" and hosts in ([], [b""])):
            error = RequestError(400, "host: HTTP/1.1 requests name their host, once. Send one header.")
        elif self.token and scope["path"] not in OPEN_PATHS and not self._is_known(dict(scope["headers"])):
            error = RequestError(401, "authorization: the token is missing or wrong. Send authorization: Bearer TOKEN.")
        if error is None:
            await self.app(scope, receive, send)
        else:
            await (await _request_error(None, error))(scope, receive, send)

    def _is_known(self, headers: dict[bytes, bytes]) -> bool:
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        return hmac.compare_digest(scheme.lower() + b" " + token.strip(), self.token)


class _MetricsMiddleware:
    """An application, its answers counted and marked with the bundle's digest."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service, self.metrics = app, service, service.service_metrics

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
            self.metrics.count("responses", path, str(status))
            if path == "/rank":
                self.metrics.seconds.add(time.perf_counter() - began)


def _json(text: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # ASCII, as json.dumps writes: half a surrogate pair in an id is answered as it came
    return Response(text, status, headers, "application/json")


async def _request_error(call: Call | None, error: RequestError) -> Response:
    # the rest of an unread body cannot be distinguished from the next request
    headers = {
        401: {"www-authenticate": "Bearer", "connection": "close"},
        408: {"connection": "close"},
        413: {"connection": "close"},
        415: {"connection": "close"},
        503: {"retry-after": "1"},
    }
    close = {"connection": "close"} if error.is_unread else {}
    return _json(json.dumps({"error": str(error)}), error.status, headers.get(error.status, {}) | close)


async def _http_error(call: Call, error: HTTPException) -> Response:
    message = f"{call.method} {call.url.path[:100]}: {error.detail}. GET / lists the paths."
    return _json(json.dumps({"error": message}), error.status_code, {**(error.headers or {}), "connection": "close"})


async def _internal_error(call: Call, error: Exception) -> Response:
    message = f"{type(error).__name__}: this is a defect of keyart; the service's output shows where."
    return _json(json.dumps({"error": message}), 500)
