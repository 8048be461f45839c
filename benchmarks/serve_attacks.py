"""`keyart bench attacks`: what `keyart serve` gives everybody else while somebody means it no good.

Three attacks, each over loopback on a service of its own process: bodies that cost as much as the limits allow, or would without
them; connections that are held open without a request, and answers that are never read; and the bundle replaced again and again
under clients, where every answer must be one bundle's. Client and service share the machine: the figures are for both together.
"""

import asyncio
import json
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.ranges import require_at_least
from benchmarks.request_generator import RequestGenerator
from benchmarks.serve_load import Served, answered, demo_bundle, post, resident, serving
from benchmarks.subprocess_usage import python
from benchmarks.table import OURS, Row
from foundation.errors import UserError
from serving.bundle.bundle import Bundle

NAME = "attacks"
PATIENCE = 60.0
"""Seconds that a client waits for an answer."""
PAUSE = 0.01
"""Seconds between two innocent requests of a client."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the benchmark."""

    bundle: str = ""
    """A bundle's folder; default: a simulated service's, trained for one epoch."""
    other: str = ""
    """Another bundle, to be exchanged with it; default: the part is left out, which is said."""
    seconds: float = 10.0
    """Duration of the costly bodies, and of the held connections."""
    idle: int = 1030
    """Idle connections."""
    slow: int = 100
    """Clients that never read their answer."""
    reloads: int = 20
    """Exchanges of the two bundles."""
    clients: int = 30
    """Clients that ask meanwhile."""
    seed: int = 0
    """Seed of the requests."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_at_least(self, seconds=0.1, idle=0, slow=0, reloads=0, clients=1, seed=0)


def bench(config: Config, console: Console) -> list[Row]:
    """The attacks, one after the other."""
    if find_spec("uvicorn") is None:
        console.print(f"bench {NAME}: left out: it needs the extra serve: uv sync --extra serve")
        return []
    with tempfile.TemporaryDirectory(prefix="keyart-bench-") as folder:
        bundle = Path(config.bundle) if config.bundle else demo_bundle(Path(folder), console)
        generator = RequestGenerator(Bundle.open(bundle), config.seed)
        command = python("keyart", "serve", bundle, "--port", 0)
        rows: list[Row] = []
        with serving(command) as service:
            rows += asyncio.run(costly_bodies(service, generator, config.seconds)).rows("costly bodies")
        with serving(command) as service:
            rows += asyncio.run(held_connections(service, generator, config)).rows("held connections")
        if config.other and config.reloads:
            live = Path(folder) / "live"
            shutil.copytree(bundle, live)
            with serving(python("keyart", "serve", live, "--port", 0)) as service:
                rows += asyncio.run(replaced_bundles(service, live, Path(config.other), generator, config)).rows()
        else:
            console.print(f"bench {NAME}: replaced bundles are left out: name another bundle by --other")
    return rows


def _row(figure: str, unit: str, value: float) -> Row:
    return Row(benchmark=NAME, subject=OURS, figure=figure, unit=unit, value=float(value))


@dataclass
class Beside:
    """What innocent clients saw while others attacked."""

    seconds: list[float] = field(default_factory=list)
    """Latencies of innocent requests, new connections included."""
    lost: int = 0
    """Innocent requests without an answer of status 200."""
    attack_seconds: list[float] = field(default_factory=list)
    """Until an attacker was answered or refused."""
    statuses: dict[int, int] = field(default_factory=dict)
    """Answers to attackers by status; 0: none."""
    memory: list[int] = field(default_factory=list)
    """Resident bytes of the service, before and while."""

    def rows(self, attack: str) -> list[Row]:
        """Its figures."""
        p50, p99, most = np.quantile(self.seconds or [np.nan], (0.5, 0.99, 1.0))
        rows = [
            _row(f"{attack}: innocent requests", "requests", len(self.seconds)),
            _row(f"{attack}: of them lost", "requests", self.lost),
            _row(f"{attack}: innocent p50", "ms", p50 * 1e3),
            _row(f"{attack}: innocent p99", "ms", p99 * 1e3),
            _row(f"{attack}: innocent at most", "ms", most * 1e3),
        ]
        if self.attack_seconds:
            rows.append(_row(f"{attack}: attacker answered at most", "ms", max(self.attack_seconds) * 1e3))
        rows += [
            _row(f"{attack}: attacker answered {status}", "requests", n) for status, n in sorted(self.statuses.items())
        ]
        gained = [(sample - self.memory[0]) / 1e6 for sample in self.memory]
        return [
            *rows,
            _row(f"{attack}: memory gained at most", "MB", max(gained)),
            _row(f"{attack}: memory gained at the end", "MB", gained[-1]),
        ]


def costly(generator: RequestGenerator) -> dict[str, bytes]:
    """Bodies that cost the most, by name: beyond the limits, and as near to them as it goes."""

    def requests(n: int, candidates: int, policies: Sequence[str] = ("greedy",), **more: object) -> bytes:
        request = generator.request(50, candidates) | {"title": "new"}
        request["artworks"] = [f"new {index}" for index in range(candidates)]
        bodies = [request | {"policy": policy} | more for policy, _ in zip(cycle(policies), range(n), strict=False)]
        for body in bodies[1:]:
            body["history"] = []
        return json.dumps(bodies).encode()

    return {
        "256 widths of 100,000 draws": requests(256, 25, [f"thompson:100000:{0.1 + i / 1e3:.3f}" for i in range(256)]),
        "60,000 draws": requests(256, 39, ["thompson:60000"]),
        "10,000 candidates explained": requests(1, 10_000, explain=True),
        "256 widths of 256 draws": requests(256, 25, [f"thompson:256:{0.1 + i / 1e3:.3f}" for i in range(256)]),
        "256 x 39 x 256 draws": requests(256, 39, ["thompson:256"]),
        "10,000 candidates x 256 draws": requests(1, 10_000, ["thompson:256"]),
        "1,000 candidates explained": requests(1, 1_000, explain=True),
        "256 explanations": requests(256, 3, explain=True),
        "10,000 candidates": requests(1, 10_000),
    }


async def costly_bodies(service: Served, generator: RequestGenerator, seconds: float) -> Beside:
    """Two clients send the costly bodies in turn, one innocent client small requests."""
    seen, end = Beside(memory=[resident(service.process.pid)]), time.perf_counter() + seconds
    bodies = list(costly(generator).values())
    await asyncio.gather(
        _attack(service, bodies, seen, end),
        _attack(service, bodies[::-1], seen, end),
        _innocent(service, generator, seen, end),
        _sample_memory(service, seen, end),
    )
    return seen


async def held_connections(service: Served, generator: RequestGenerator, config: Config) -> Beside:
    """Connections without a request, and clients that ask for large answers and read none of them."""
    await _asked(service, post(json.dumps({"title": "a", "artworks": [f"n{i}" for i in range(10_000)]}).encode()))
    seen, end = Beside(memory=[resident(service.process.pid)]), time.perf_counter() + config.seconds
    large = post(json.dumps({"title": "a", "artworks": [f"n{i}" for i in range(10_000)]}).encode())
    writers = []
    for number in range(config.idle + config.slow):
        _, writer = await asyncio.open_connection(service.host, service.port, limit=2**12)
        writers.append(writer)
        if number >= config.idle:
            writer.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue]  a transport of sockets
            writer.write(large)
    try:
        await asyncio.gather(_innocent(service, generator, seen, end, health=True), _sample_memory(service, seen, end))
    finally:
        for writer in writers:
            writer.transport.abort()
    return seen


@dataclass
class Replaced:
    """What clients saw while the bundle was replaced."""

    answers: int = 0
    lost: int = 0
    mixed: int = 0
    """Answers whose numbers are not those of the bundle they name."""
    reloads: int = 0
    """Exchanges after which the other bundle answered."""
    seconds: list[float] = field(default_factory=list)

    def rows(self) -> list[Row]:
        """Its figures."""
        figures = [("answers", self.answers), ("lost", self.lost), ("mixed", self.mixed), ("reloads", self.reloads)]
        return [
            *(_row(f"replaced bundles: {figure}", "requests", value) for figure, value in figures),
            _row("replaced bundles: p99", "ms", float(np.quantile(self.seconds or [np.nan], 0.99)) * 1e3),
        ]


async def replaced_bundles(
    service: Served, live: Path, other: Path, generator: RequestGenerator, config: Config
) -> Replaced:
    """The two bundles are exchanged under clients that ask for the same request; SIGHUP says so to the service."""
    seen, ended = Replaced(), asyncio.Event()
    body = json.dumps(generator.request(20, 10) | {"policy": "thompson:64", "seed": 1, "hour": 20, "explain": True})
    message = post(body.encode())
    expected: dict[str, object] = {}
    for bundle in (live, other):
        with serving(python("keyart", "serve", bundle, "--port", 0)) as alone:
            answer = json.loads((await _asked(alone, message))[1])
        expected[answer["bundle"]] = _rounded(answer)
    if len(expected) < 2:
        raise UserError(f"other={other}: is the same bundle. Name another one.")

    async def client() -> None:
        while not ended.is_set():
            began = time.perf_counter()
            status, text = await _asked(service, message)
            seen.seconds.append(time.perf_counter() - began)
            seen.answers += 1
            answer = json.loads(text) if status == 200 else {}
            seen.lost += status != 200
            seen.mixed += status == 200 and expected.get(answer["bundle"]) != _rounded(answer)
            await asyncio.sleep(PAUSE)

    async def exchange() -> None:
        spare = live.parent / "spare"
        shutil.copytree(other, spare)
        for _ in range(config.reloads):
            before = json.loads((await _asked(service, message))[1])["bundle"]
            live.rename(live.parent / "away")
            spare.rename(live)
            (live.parent / "away").rename(spare)
            service.process.send_signal(signal.SIGHUP)
            limit = time.perf_counter() + PATIENCE
            while time.perf_counter() < limit:
                await asyncio.sleep(5 * PAUSE)
                status, text = await _asked(service, message)
                if status == 200 and json.loads(text)["bundle"] != before:
                    seen.reloads += 1
                    break
        ended.set()

    await asyncio.gather(exchange(), *(client() for _ in range(config.clients)))
    return seen


def _rounded(answer: dict[str, object]) -> str:
    """An answer's numbers to five digits: batches of other sizes differ in the last bits."""
    return json.dumps(json.loads(json.dumps(answer), parse_float=lambda text: round(float(text), 5)))


async def _attack(service: Served, bodies: Sequence[bytes], seen: Beside, end: float) -> None:
    for body in cycle(bodies):
        if time.perf_counter() > end:
            return
        began = time.perf_counter()
        status, _ = await _asked(service, post(body))
        seen.attack_seconds.append(time.perf_counter() - began)
        seen.statuses[status] = seen.statuses.get(status, 0) + 1


async def _innocent(
    service: Served, generator: RequestGenerator, seen: Beside, end: float, *, health: bool = False
) -> None:
    """A new connection for every request, as a client that was not there before."""
    messages = [post(generator.valid(20, 20)) for _ in range(20)]
    if health:
        messages += [b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"] * 20
    for message in cycle(messages):
        if time.perf_counter() > end:
            return
        began = time.perf_counter()
        status, _ = await _asked(service, message)
        seen.seconds.append(time.perf_counter() - began)
        seen.lost += status != 200
        await asyncio.sleep(PAUSE)


async def _sample_memory(service: Served, seen: Beside, end: float) -> None:
    while time.perf_counter() < end:
        seen.memory.append(resident(service.process.pid))
        await asyncio.sleep(0.25)


async def _asked(service: Served, message: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to a message on a connection of its own; 0 where there is none."""
    read = bytearray()
    writer = None
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(service.host, service.port)
            writer.write(message)
            while (status := answered(bytes(read))) is None:
                part = await reader.read(2**20)
                if not part:
                    return 0, b""
                read += part
        return status, bytes(read).partition(b"\r\n\r\n")[2]
    except (OSError, TimeoutError):
        return 0, b""
    finally:
        if writer is not None:
            writer.close()
