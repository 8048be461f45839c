"""Connections that are held, answers that are not read, and clients without a token take nothing from anybody else."""

import json
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from benchmarks.serve_load import Served, answered, post, serving
from foundation.errors import UserError
from foundation.times import duration
from serving.http.config import ServeConfig, read_token
from serving.http.open_connections import RESERVE
from serving.http.sticky import sticky_seed
from tests.served import GOOD, WITHOUT_TORCH

CONNECTIONS, MANY, TOKEN, ORIGIN = 8, 6, "a-token", "https://example.org"
LIMITED = """
from pathlib import Path
from rich.console import Console
from serving.http.config import ServeConfig
from serving.http.serve import serve
serve(Path({folder!r}), ServeConfig(port=0, connections={connections}, write_seconds=2, unsent_bytes=2**19, head_seconds=30,
      deadline=20, draws=50_000, token={token!r}, cors=({origin!r},), sticky_seconds=7 * 86400), Console())
"""
HEADERS = f"host: a\r\nauthorization: bearer {TOKEN}\r\n".encode()


@pytest.fixture(scope="module")
def limited(bundle: Path) -> Iterator[Served]:
    words = LIMITED.format(folder=str(bundle), connections=CONNECTIONS, token=TOKEN, origin=ORIGIN)
    with serving([sys.executable, "-c", WITHOUT_TORCH + words]) as served:
        yield served


def connect(to: Served) -> socket.socket:
    return socket.create_connection((to.host, to.port), timeout=20)


def exchange(connection: socket.socket, message: bytes) -> tuple[int, bytes]:
    """Status and whole text of the answer; 0 where the connection ends without one."""
    read = b""
    try:
        connection.sendall(message)
        while answered(read) is None and (part := connection.recv(65_536)):
            read += part
    except ConnectionError:
        pass
    return answered(read) or 0, read


def asked(to: Served, message: bytes) -> tuple[int, bytes]:
    with connect(to) as connection:
        return exchange(connection, message)


def rank(body: Any) -> bytes:
    return post(json.dumps(body).encode()).replace(b"host: load\r\n", HEADERS)


def get(path: str, headers: bytes = HEADERS) -> bytes:
    return b"GET %s HTTP/1.1\r\n%s\r\n" % (path.encode(), headers)


def answered_next(answers: BinaryIO) -> int:
    """The status of the next answer on a connection, which is read whole."""
    status, length = int(answers.readline().split()[1]), 0
    while (line := answers.readline()) not in (b"\r\n", b""):
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    answers.read(length)
    return status


def metric(to: Served, name: str) -> float:
    lines = asked(to, get("/metrics"))[1].decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)


def test_an_idle_connection_makes_room(limited: Served) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(connect(limited)) for _ in range(3 * CONNECTIONS)]
        for _ in range(5):
            assert asked(limited, rank(GOOD))[0] == 200
        assert held[0].recv(1) == b"", "the one that waited longest was ended"
        assert exchange(held[-1], rank(GOOD))[0] == 200
    assert metric(limited, 'keyart_connections_closed_total{reason="idle"}') >= 2 * CONNECTIONS


def test_probes_are_answered_where_all_connections_are_in_use(limited: Served) -> None:
    """In use: each has sent several requests that take a while, and they are answered one at a time."""
    long = rank({"title": "t", "artworks": [f"n{index}" for index in range(50)], "policy": "thompson:50000"})

    def statuses() -> list[int]:
        with connect(limited) as connection:
            connection.sendall(long * MANY)
            answers = connection.makefile("rb")
            return [answered_next(answers) for _ in range(MANY)]

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        busy = [threads.submit(statuses) for _ in range(CONNECTIONS)]
        time.sleep(0.2)
        for path in ("/health", "/ready", "/metrics"):
            assert asked(limited, get(path))[0] == 200
        status, text = asked(limited, rank(GOOD))
        assert (status, b"connections: all are in use" in text) == (503, True)
        for _ in range(RESERVE):
            assert asked(limited, rank(GOOD))[0] == 503, "what is refused leaves the reserve"
        assert asked(limited, get("/health"))[0] == 200
        assert [one.result() for one in busy] == [[200] * MANY] * CONNECTIONS
    assert metric(limited, 'keyart_http_requests_total{path="connection",status="503"}') >= 1 + RESERVE
    assert asked(limited, rank(GOOD))[0] == 200


def test_bodies_that_do_not_arrive_take_nothing_from_others(limited: Served) -> None:
    """More heads than connections, whose bodies do not come; then as many bytes of large bodies as are held, which stop."""
    with ExitStack() as stack:
        for _ in range(2 * CONNECTIONS):
            stack.enter_context(connect(limited)).sendall(rank(GOOD)[:-1])
        for _ in range(5):
            assert asked(limited, rank(GOOD))[0] == 200
    large = rank({"title": "t", "artworks": [f"n{index}" for index in range(4_000)]})
    with ExitStack() as stack:
        for _ in range(CONNECTIONS - 1):
            stalled = stack.enter_context(connect(limited))
            stalled.sendall(b"POST /rank HTTP/1.1\r\n%scontent-length: 1048570\r\n\r\n" % HEADERS + b" " * 1_040_000)
        time.sleep(1.5)
        assert len(large) > 2**15
        for _ in range(3):
            assert asked(limited, large)[0] == 200


def test_answers_that_are_not_read_are_dropped(limited: Served) -> None:
    large = rank({"title": "t", "artworks": [f"n{index}" for index in range(10_000)]})
    before = ended(limited)
    with ExitStack() as stack:
        for _ in range(4):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(20)
            stack.enter_context(connection).connect((limited.host, limited.port))
            connection.sendall(large)
        assert asked(limited, rank(GOOD))[0] == 200
        end = time.monotonic() + 20
        unsent = slow = 0.0
        while unsent + slow < 4 and time.monotonic() < end:
            time.sleep(0.2)
            unsent, slow = (now - then for now, then in zip(ended(limited), before, strict=True))
        assert (unsent + slow, unsent >= 1, slow >= 1) == (4, True, True)


def ended(to: Served) -> tuple[float, float]:
    """Connections that were ended because all unread answers were too large, and because one was not read in time."""
    name = "keyart_connections_closed_total"
    return metric(to, f'{name}{{reason="unsent"}}'), metric(to, f'{name}{{reason="slow"}}')


def test_a_token_is_wanted_and_a_page_of_another_origin_may_ask(limited: Served) -> None:
    assert asked(limited, post(json.dumps(GOOD).encode()))[0] == 401
    assert asked(limited, get("/docs", b"host: a\r\nauthorization: Basic a-token\r\n"))[0] == 401
    assert asked(limited, get("/docs", b"host: a\r\nauthorization: Bearer a-tokem\r\n"))[0] == 401
    assert asked(limited, get("/docs"))[0] == 200
    for path in ("/health", "/ready"):
        assert asked(limited, get(path, b"host: a\r\n"))[0] == 200
    preflight = f"OPTIONS /rank HTTP/1.1\r\nhost: a\r\norigin: {ORIGIN}\r\naccess-control-request-method: POST\r\n"
    preflight += "access-control-request-headers: authorization, content-type\r\n\r\n"
    status, text = asked(limited, preflight.encode())
    assert (status, f"access-control-allow-origin: {ORIGIN}".encode() in text.lower()) == (200, True)
    assert asked(limited, preflight.replace(ORIGIN, "https://example.com").encode())[0] == 400


def test_a_member_keeps_the_draw_of_a_title_for_a_period(limited: Served) -> None:
    body = GOOD | {"policy": "epsilon:1", "time": 1_700_000_000, "artworks": [f"a{index}" for index in range(50)]}

    def chosen(**more: Any) -> list[str]:
        requests = [body | {"member": f"m{index}"} | more for index in range(40)]
        answers = json.loads(asked(limited, rank(requests))[1].partition(b"\r\n\r\n")[2])
        return [answer["chosen"]["artwork"] for answer in answers]

    first = chosen()
    assert first == chosen() == chosen(history=[{"title": "x"}])
    assert len(set(first)) > 20, "members differ"
    for more in ({"title": "u"}, {"time": 1_700_000_000 + 8 * 86_400}, {"seed": 5}, {"member": None}):
        assert sum(a == b for a, b in zip(first, chosen(**more), strict=True)) < 20, more
    day = [sticky_seed("m", "t", 1_700_000_000 + 3600 * hour, 86_400) for hour in range(24)]
    assert len(set(day)) == 2, "the period begins at a moment of the member's own"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"draws": 0}, "draws=0: give 1"),
        ({"workers": 0}, "workers=0: give 1"),
        ({"deadline": 0.0}, "deadline=0.0: give seconds above 0"),
        ({"deadline": float("nan")}, "deadline=nan"),
        ({"connections": 0}, "connections=0"),
    ],
)
def test_options_out_of_range(given: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        ServeConfig(**given)


def test_durations_and_tokens(tmp_path: Path) -> None:
    assert [duration("sticky", text) for text in ("90s", "1.5h", "7d")] == [90, 5400, 604_800]
    for text in ("", "7", "d", "-1d", "nans", "infd", "7 days"):
        with pytest.raises(UserError, match="sticky="):
            duration("sticky", text)
    file = tmp_path / "token"
    file.write_text(" secret\n", encoding="utf-8")
    assert read_token(file) == "secret"
    for text in ("", "two words", "é"):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match="token="):
            read_token(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_token(tmp_path / "missing")
