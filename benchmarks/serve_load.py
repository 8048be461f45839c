"""`keyart bench load`: `keyart serve` under load and under invalid requests, over loopback, by a client of a few sockets.

It starts the service, measures requests/s, p50 and p99 as the client sees them, then sends generated requests
(`benchmarks.request_generator`) and counts the answers. Client and service share the machine: the figures are for both
together.
"""

import asyncio
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.ranges import require_at_least
from benchmarks.request_generator import Case, RequestGenerator
from benchmarks.subprocess_usage import python
from benchmarks.table import OURS, Row
from foundation.errors import UserError
from serving.bundle.bundle import Bundle

NAME = "load"
DISTINCT_REQUESTS, WARMUP_SECONDS = 256, 3.0
"""Number of different requests of the load, and its warm-up seconds, at most."""
FUZZ_CONNECTIONS, PATIENCE = 8, 30.0
"""Connections that send generated cases, and the seconds that each waits for an answer."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the benchmark."""

    bundle: str = ""
    """A bundle's folder; default: a simulated service's, trained for one epoch."""
    seconds: float = 5.0
    """Duration of the load; 0: none."""
    connections: int = 50
    """Connections of the load, each of which sends its next request when it has an answer."""
    plays: int = 50
    """Plays of every history of the load."""
    candidates: int = 20
    """Candidates of every request of the load."""
    fuzz: int = 2000
    """Generated cases after the load; 0: none."""
    seed: int = 0
    """Seed of the generated cases."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_at_least(self, plays=0, candidates=1, connections=1, fuzz=0, seed=0, seconds=0)


def bench(config: Config, console: Console) -> list[Row]:
    """The load, then the generated cases; unexpected answers are printed on the console."""
    if find_spec("uvicorn") is None:
        console.print(f"bench {NAME}: left out: it needs the extra serve: uv sync --extra serve")
        return []
    with tempfile.TemporaryDirectory(prefix="keyart-bench-") as folder:
        bundle = Path(config.bundle) if config.bundle else demo_bundle(Path(folder), console)
        generator = RequestGenerator(Bundle.open(bundle), config.seed)
        bodies = [generator.valid(config.plays, config.candidates) for _ in range(DISTINCT_REQUESTS)]
        rows: list[Row] = []
        with serving(python("keyart", "serve", bundle, "--port", 0)) as service:
            if config.seconds:
                asyncio.run(
                    load(service, bodies, connections=config.connections, seconds=min(WARMUP_SECONDS, config.seconds))
                )
                rows += asyncio.run(
                    load(service, bodies, connections=config.connections, seconds=config.seconds)
                ).rows()
            if config.fuzz:
                result = asyncio.run(fuzz(service, generator, config.fuzz))
                rows += result.rows()
                for line in [*result.unanswered[:5], *result.unexpected[:5]]:
                    console.print(line, markup=False)
    return rows


def demo_bundle(work: Path, console: Console) -> Path:
    """The bundle of a simulated service, trained for one epoch."""
    # imports torch, which measuring a given bundle does not need
    from benchmarks.serve import trained
    from export.export import export
    from train.run import Run

    run = Run.open(trained(work, console))
    return export(run.model, run.vocabularies, work / "bundle", origin={}, console=Console(quiet=True)).folder


def _row(figure: str, unit: str, value: float) -> Row:
    return Row(benchmark=NAME, subject=OURS, figure=figure, unit=unit, value=float(value))


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running service."""

    host: str
    port: int
    process: "subprocess.Popen[str]"


@contextmanager
def serving(arguments: Sequence[str]) -> Iterator[Served]:
    """Run a serving command in a process of its own until the block ends. UserError where it does not start."""
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        try:
            result = re.search(r" at http://([\w.]+):(\d+),", first)
            if result is None:
                raise UserError(f"{' '.join(arguments[:4])} ...: does not serve: {first}{process.stdout.read()[-300:]}")
            yield Served(host=result[1], port=int(result[2]), process=process)
        finally:
            process.terminate()


@dataclass(frozen=True, kw_only=True)
class Load:
    """The client's measurements of a load."""

    requests: int
    seconds: float
    errors: int
    """Answers other than 200, and connections lost."""
    p50: float
    """Latencies in seconds, from the last byte sent to the last byte read, of half the requests at most."""
    p99: float

    def rows(self) -> list[Row]:
        """Its figures."""
        return [
            _row("load: requests", "1/s", self.requests / self.seconds),
            _row("load: p50", "ms", self.p50 * 1e3),
            _row("load: p99", "ms", self.p99 * 1e3),
            _row("load: errors", "requests", self.errors),
        ]


async def load(service: Served, bodies: Sequence[bytes], *, connections: int, seconds: float) -> Load:
    """Send requests on every connection, each after the answer to the one before, until the time is over."""
    loop = asyncio.get_running_loop()
    messages = cycle([post(body) for body in bodies])
    start = time.perf_counter()
    clients = [_Client(messages, start + seconds) for _ in range(connections)]
    for client in clients:
        await loop.create_connection(lambda client=client: client, service.host, service.port)
    await asyncio.gather(*(client.done.wait() for client in clients))
    latencies = np.array([second for client in clients for second in client.seconds] or [np.nan])
    return Load(
        requests=sum(len(client.seconds) for client in clients),
        seconds=time.perf_counter() - start,
        errors=sum(client.errors for client in clients),
        p50=float(np.quantile(latencies, 0.5)),
        p99=float(np.quantile(latencies, 0.99)),
    )


class _Client(asyncio.Protocol):
    """One connection; a protocol instead of streams, so that the client costs little."""

    def __init__(self, messages: Iterator[bytes], end: float) -> None:
        self.messages, self.end, self.seconds, self.errors = messages, end, [], 0
        self.done, self.read, self.sent = asyncio.Event(), b"", 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self.read += data
        if (status := answered(self.read)) is None:
            return
        now = time.perf_counter()
        self.seconds.append(now - self.sent)
        self.errors += status != 200
        if now < self.end:
            self._ask()
        else:
            self.end = 0.0
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.errors += self.end != 0.0
        self.done.set()

    def _ask(self) -> None:
        self.read, self.sent = b"", time.perf_counter()
        self.transport.write(next(self.messages))


def post(body: bytes, path: str = "/rank") -> bytes:
    """The bytes of an HTTP POST request."""
    return b"POST %s HTTP/1.1\r\nhost: load\r\ncontent-length: %d\r\n\r\n%s" % (path.encode(), len(body), body)


def answered(read: bytes) -> int | None:
    """The status of a complete answer; None while it is incomplete."""
    head, ended, body = read.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    if not ended or (length is not None and len(body) < int(length[1])):
        return None
    return int(head[9:12])


@dataclass
class Fuzz:
    """Answers to the generated cases."""

    statuses: Counter[int] = field(default_factory=Counter)
    unanswered: list[str] = field(default_factory=list)
    """Valid HTTP requests without an answer."""
    unexpected: list[str] = field(default_factory=list)
    """Valid requests not answered by 200, and invalid ones answered by 5xx."""
    memory: list[int] = field(default_factory=list)
    """Resident bytes of the service, sampled throughout."""

    @property
    def requests(self) -> int:
        """Number of requests that were sent."""
        return sum(self.statuses.values())

    def rows(self) -> list[Row]:
        """Its figures."""
        last = len(self.memory) - 1
        counts = [
            (f"fuzz: answered {status}" if status else "fuzz: left or closed", count)
            for status, count in sorted(self.statuses.items())
        ]
        counts += [("fuzz: unanswered", len(self.unanswered)), ("fuzz: unexpected", len(self.unexpected))]
        return [
            *(_row(figure, "requests", count) for figure, count in counts),
            *(
                _row(f"fuzz: memory after {part:.0%}", "MB", self.memory[round(last * part)] / 1e6)
                for part in (0.05, 0.25, 0.5, 0.75, 1)
            ),
            _row("fuzz: memory at most", "MB", max(self.memory) / 1e6),
        ]


async def fuzz(service: Served, generator: RequestGenerator, count: int) -> Fuzz:
    """Send `count` generated cases over several connections and count the answers."""
    result, cases = Fuzz(), iter(generator.case() for _ in range(count))
    result.memory.append(resident(service.process.pid))
    await asyncio.gather(*(_fuzzer(service, cases, result, max(1, count // 200)) for _ in range(FUZZ_CONNECTIONS)))
    result.memory.append(resident(service.process.pid))
    return result


async def _fuzzer(service: Served, cases: Iterator[Case], result: Fuzz, every: int) -> None:
    streams = None
    for case in cases:
        if streams is None or case.own_connection:
            if streams is not None:
                streams[1].close()
            streams = await asyncio.open_connection(service.host, service.port, limit=2**24)
        reader, writer = streams
        read = b""
        try:
            writer.write(case.message)
            if case.disconnects:
                await writer.drain()
            while not case.disconnects and answered(read) is None:
                part = await asyncio.wait_for(reader.read(2**20), PATIENCE)
                if not part:
                    break
                read += part
        except (ConnectionError, TimeoutError):
            pass
        status = answered(read) or 0
        result.statuses[status] += 1
        if not status and not case.own_connection:
            result.unanswered.append(case.name)
        if status >= 500 or (case.expected and status != case.expected):
            result.unexpected.append(f"{case.name}: {status}, {case.message[:2000]!r}, {read[-300:]!r}")
        if case.own_connection or not status or b"connection: close" in read[:1000]:
            writer.close()
            streams = None
        if sum(result.statuses.values()) % every == 0:
            result.memory.append(resident(service.process.pid))
    if streams is not None:
        streams[1].close()


def resident(pid: int) -> int:
    """Resident bytes of a process."""
    status = Path(f"/proc/{pid}/status")
    if status.is_file():
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status.read_text(encoding="utf-8"))[0]) * 1024
    done = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    return int(done.stdout) * 1024
