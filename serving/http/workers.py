"""`keyart serve --workers N`: several processes behind one port, with one bundle and one page of metrics.

The parent holds the port and starts the workers, each of which listens on it (SO_REUSEPORT, by which the system distributes
connections). A worker answers its parent and the others on a Unix socket of its own, one line of JSON a connection: its metrics,
which whichever worker is asked for /metrics adds up; and the two steps by which all take a new bundle: every worker loads it
beside the one that answers, and only when all have the same do all answer by it.
"""

import asyncio
import json
import multiprocessing
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from foundation.atomic import atomic_file
from foundation.errors import UserError
from serving.bundle.steady import identity
from serving.http.application import Service
from serving.http.config import ServeConfig
from serving.http.connections import SHUTDOWN_SECONDS, listen, run
from serving.http.generation import Generation
from serving.http.metrics import ServiceMetrics
from serving.http.process import banner, prepare_process

START_SECONDS, LOAD_SECONDS, METRICS_SECONDS = 120.0, 60.0, 1.0
"""Seconds for a worker to start, to load a bundle, and to give its metrics."""
POLL_SECONDS = 0.1
MAX_FOLDER = 60
"""Letters of the folder for temporary files: the path of a Unix socket has 107 at most."""
ENDED = "ended.json"
"""The file with the metrics of workers that ended, beside the sockets."""
ASK_SECONDS, MAX_SILENT = 5.0, 3
"""Seconds between two questions to every worker; one that is silent so often in a row is replaced."""
RETRY_SECONDS = 10.0
"""Seconds after which a worker that could not be started is tried again."""
MAX_RESTARTS, RESTART_WINDOW = 5, 30.0
"""Workers that may end by themselves within so many seconds; more end the service."""
Say = Callable[[str], None]


def serve_by_workers(folder: Path, config: ServeConfig, say: Say) -> None:
    """Answer by several processes until SIGTERM or Ctrl-C. UserError where the system or the folder does not allow it."""
    if sys.platform != "linux":  # others have SO_REUSEPORT too, and give all connections to one process
        raise UserError(f"workers={config.workers}: this system does not share a port between processes. Give 1.")
    if len(tempfile.gettempdir()) > MAX_FOLDER:
        raise UserError(f"TMPDIR={tempfile.gettempdir()}: is too long for sockets. Set TMPDIR=/tmp.")
    with tempfile.TemporaryDirectory(prefix="keyart-serve-") as sockets, _reserved_port(config) as reserved:
        config = replace(config, port=reserved.getsockname()[1])
        _Workers(folder, config, Path(sockets), say).serve()


def _reserved_port(config: ServeConfig) -> socket.socket:
    """A socket that is bound and does not listen: no connection reaches it, and the port stays the service's."""
    listening = listen(config)  # the refusals of one process
    port = listening.getsockname()[1]
    family = listening.family
    listening.close()
    reserved = socket.socket(family)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind((config.host, port))
    return reserved


@dataclass
class _Worker:
    """A process as its parent sees it."""

    process: SpawnProcess
    pipe: Connection
    """Says what the worker said when it started; its end tells the worker that the parent is gone."""
    path: Path
    """Its Unix socket."""
    digest: str = ""
    silent: int = 0
    """How often in a row it did not answer."""
    metrics: dict[str, Any] | None = None
    """Its last metrics."""


@dataclass
class _Workers:
    """The parent."""

    folder: Path
    config: ServeConfig
    sockets: Path
    say: Say
    workers: list[_Worker] = field(default_factory=list)
    started: int = 0
    """Workers started so far: the number in the next one's socket's name."""
    signals: list[int] = field(default_factory=list)
    failure: str = ""
    """The line that said why the last reload failed."""

    def serve(self) -> None:
        """Until a signal ends it."""
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        previous_handlers = {n: signal.signal(n, lambda number, _: self.signals.append(number)) for n in numbers}
        try:
            self.workers = [self._start() for _ in range(self.config.workers)]
            curls = [self._await_start(worker) for worker in self.workers]
            self.say(banner(self.folder, self.config, curls[0]))
            self._require_one_bundle()
            self._supervise()
        finally:
            self._stop()
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)

    def _supervise(self) -> None:
        ended: list[float] = []
        missing_since = asked = time.monotonic()
        seen, looked = identity(self.folder), time.monotonic()
        while not self.is_ending:
            time.sleep(POLL_SECONDS)
            now = time.monotonic()
            for worker in [worker for worker in self.workers if not worker.process.is_alive()]:
                ended = [*(moment for moment in ended if now - moment < RESTART_WINDOW), now]
                if len(ended) > MAX_RESTARTS:
                    raise UserError(
                        f"workers: {len(ended)} ended by themselves within {RESTART_WINDOW:g} s, the last with exit code "
                        f"{worker.process.exitcode}. Look above for why, and start again."
                    )
                self.say(f"serve: a worker ended with exit code {worker.process.exitcode}; another is started")
                worker.path.unlink(missing_ok=True)
                self.workers.remove(worker)
                self._keep_metrics(worker)
                missing_since = now - RETRY_SECONDS
            if len(self.workers) < self.config.workers and now - missing_since >= RETRY_SECONDS:
                missing_since = now
                self._add_worker()
            if now - asked > ASK_SECONDS:
                asked = now
                self._end_silent_workers()
            watching = self.config.reload_seconds and now - looked > self.config.reload_seconds
            if watching:
                looked = now
            if signal.SIGHUP in self.signals or (watching and identity(self.folder) not in (None, seen)):
                self.signals = [number for number in self.signals if number != signal.SIGHUP]
                seen = identity(self.folder)
                if not self._reload():  # a copy may not be complete yet
                    seen, looked = None, now + RETRY_SECONDS

    def _add_worker(self) -> None:
        """Start one more; where it cannot start, as beside a broken bundle, the others go on. UserError where there are none."""
        worker = self._start()
        try:
            self._await_start(worker)
        except UserError as error:
            worker.process.kill()
            if not self.workers:
                raise
            self.say(f"serve: a worker does not start: {error}  {len(self.workers)} go on; tried again in a while.")
            return
        self.workers.append(worker)
        self._require_one_bundle()

    def _keep_metrics(self, worker: _Worker) -> None:
        """Add what a worker that ended had counted, when it was last asked, to the metrics of the service."""
        if worker.metrics is None:
            return
        path = self.sockets / ENDED
        states = [json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []
        total = ServiceMetrics.total([*states, worker.metrics | {"gauges": {}}]).state()
        with atomic_file(path) as file:
            file.write_text(json.dumps(total), encoding="utf-8")

    def _end_silent_workers(self) -> None:
        """Kill workers that have not answered several times: they are replaced as those that ended."""
        for worker, reply in zip(self.workers, self._ask_all("metrics", METRICS_SECONDS), strict=True):
            worker.silent = worker.silent + 1 if "error" in reply else 0
            worker.metrics = worker.metrics if "error" in reply else reply
            if worker.silent >= MAX_SILENT:
                self.say("serve: a worker does not answer; it is killed")
                worker.process.kill()
                worker.process.join(1)

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        path = self.sockets / f"worker-{self.started}"
        self.started += 1
        process = context.Process(
            target=_serve_as_worker, args=(self.folder, self.config, path, theirs), name=path.name, daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours, path)

    def _await_start(self, worker: _Worker) -> str:
        """A command line to try the service; UserError where the worker did not start."""
        try:
            if not worker.pipe.poll(START_SECONDS):
                raise UserError(f"workers: one did not start within {START_SECONDS:g} s. Give fewer --workers.")
            message = worker.pipe.recv()
        except EOFError:
            worker.process.join(1)
            raise UserError(f"workers: one ended with exit code {worker.process.exitcode} when it started.") from None
        if "error" in message:
            raise UserError(message["error"])
        worker.digest = message["digest"]
        return message["curl"]

    def _require_one_bundle(self) -> None:
        """A worker that started later may have read a newer bundle: then all read it."""
        if len({worker.digest for worker in self.workers}) > 1:
            self._reload()

    def _reload(self) -> bool:
        """Let all workers answer by the bundle that is in the folder now, or none: then False, and why is said once."""
        before = self.workers[0].digest
        replies = self._ask_all("load", LOAD_SECONDS)
        digests = {reply.get("digest", "") for reply in replies}
        errors = [reply["error"] for reply in replies if "error" in reply]
        if errors or len(digests) > 1:
            self._ask_all("drop", LOAD_SECONDS)
            reason = errors[0] if errors else "the workers read different bundles."
            line = f"serve: not reloaded: {reason}  Bundle {before[:12]} goes on answering."
            if line != self.failure:
                self.say(line)
            self.failure = line
            return False
        self.failure = ""
        for worker, reply in zip(self.workers, self._ask_all("switch", LOAD_SECONDS), strict=True):
            worker.digest = reply.get("digest", "")
            if worker.digest != replies[0]["digest"]:  # nobody knows by which bundle it answers: it is replaced
                worker.process.kill()
        self.say(f"serve: {self.folder}: bundle {replies[0]['digest'][:12]} after {before[:12]}")
        return True

    def _ask_all(self, command: str, seconds: float) -> list[dict[str, Any]]:
        """The reply of every worker; where the service is to end meanwhile, those that are not there yet are errors."""
        threads = ThreadPoolExecutor(max(1, len(self.workers)))
        asked = [threads.submit(_ask_blocking, worker.path, command, seconds) for worker in self.workers]
        threads.shutdown(wait=False)
        while not all(one.done() for one in asked) and not self.is_ending:
            wait(asked, POLL_SECONDS)
        return [one.result() if one.done() else {"error": "workers: the service ends."} for one in asked]

    @property
    def is_ending(self) -> bool:
        """Whether a signal has asked for the end."""
        return bool({signal.SIGTERM, signal.SIGINT} & set(self.signals))

    def _stop(self) -> None:
        for worker in self.workers:
            if worker.process.is_alive():
                worker.process.terminate()
        end = time.monotonic() + SHUTDOWN_SECONDS + 1
        for worker in self.workers:
            worker.process.join(max(0.1, end - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join(1)


def _ask_blocking(path: Path, command: str, seconds: float) -> dict[str, Any]:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(seconds)
            connection.connect(str(path))
            connection.sendall(command.encode() + b"\n")
            with connection.makefile("rb") as lines:
                return json.loads(lines.readline())
    except (OSError, ValueError) as error:
        return {"error": f"{path.name}: does not answer ({error})."}


def _serve_as_worker(folder: Path, config: ServeConfig, path: Path, pipe: Connection) -> None:
    """A worker's process."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # its parent asks it
    prepare_process()
    try:
        service = Service(folder, config, partial(print, flush=True))
        # only now: connections that wait for a process that ends are reset
        listening = listen(config, shared=True)
    except UserError as error:
        pipe.send({"error": str(error)})
        return
    control = _Control(service, path)
    service.background = [control.answer, lambda: _end_with_parent(pipe)]
    service.all_metrics = control.all_metrics
    control.on_start = lambda: pipe.send({"digest": service.generation.digest, "curl": service.generation.curl})
    with listening, suppress(KeyboardInterrupt):
        run(service.application(), listening, config, service.connections, service.service_metrics)


async def _end_with_parent(pipe: Connection) -> None:
    """Stop the process when its parent is gone."""
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), gone.set)
    await gone.wait()
    signal.raise_signal(signal.SIGTERM)


@dataclass
class _Control:
    """A worker's Unix socket."""

    service: Service
    path: Path
    loaded: Generation | None = None
    on_start: Callable[[], None] = lambda: None

    async def answer(self) -> None:
        """Answer until cancelled."""
        async with await asyncio.start_unix_server(self._answer_one, self.path):
            self.on_start()
            await asyncio.Event().wait()

    async def all_metrics(self) -> ServiceMetrics:
        """Metrics of all workers that answer in time, added up."""
        folder = self.path.parent
        others = [path for path in folder.glob("worker-*") if path != self.path]
        states = [
            state for state in await asyncio.gather(*(_ask(path, "metrics") for path in others)) if "error" not in state
        ]
        if (ended := folder / ENDED).exists():
            states.append(json.loads(ended.read_text(encoding="utf-8")))
        return ServiceMetrics.total([self.service.own_metrics().state(), *states])

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commands: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
            "metrics": self._metrics,
            "load": self._load,
            "switch": self._switch,
            "drop": self._drop,
        }
        with suppress(ConnectionError):  # who asked has given up
            command = (await reader.readline()).decode().strip()
            writer.write(json.dumps(await commands[command]()).encode() + b"\n")
            await writer.drain()
        writer.close()

    async def _metrics(self) -> dict[str, Any]:
        return self.service.own_metrics().state()

    async def _load(self) -> dict[str, Any]:
        self.loaded = await self.service.load()
        return {"error": self.service.failure} if self.loaded is None else {"digest": self.loaded.digest}

    async def _switch(self) -> dict[str, Any]:
        if self.loaded is not None:
            self.service.switch(self.loaded)
        return await self._drop() | {"digest": self.service.generation.digest}

    async def _drop(self) -> dict[str, Any]:
        self.loaded = None
        return {}


async def _ask(path: Path, command: str) -> dict[str, Any]:
    try:
        async with asyncio.timeout(METRICS_SECONDS):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(command.encode() + b"\n")
            reply = json.loads(await reader.readline())
            writer.close()
            return reply
    except (OSError, ValueError, TimeoutError) as error:
        return {"error": f"{path.name}: {error}"}
