"""The service lives through whatever it is sent, and says in one line what was wrong with it."""

import asyncio
import json
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import keyart
from benchmarks.request_generator import RequestGenerator
from benchmarks.serve_load import Served, answered, fuzz, post, serving
from serving.bundle.bundle import Bundle
from serving.http.answers import MAX_CACHED_POLICIES, ArtworkRanker
from serving.http.batches import RequestBatcher
from serving.http.requests import Request, RequestError, RequestReader
from serving.scoring.policies import MAX_DRAWS
from tests.served import GOOD, PLAYED, WITHOUT_TORCH, ask, ranked


def test_too_many_are_refused_and_a_defect_reaches_its_caller(bundle: Path) -> None:
    requests, _ = RequestReader(Bundle.open(bundle)).read(json.dumps([GOOD] * 2).encode(), 0)
    sizes: list[int] = []

    def answer(some: Sequence[Request]) -> list[dict[str, Any]]:
        if len(sizes) == 1:
            raise MemoryError
        return [{} for _ in some]

    async def ask_all() -> None:
        batches = RequestBatcher(answer, max_batch=2, seconds=0.0, waiting=3, on_batch=sizes.append)
        asking = [asyncio.create_task(batches.ask(requests[:1])) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="3 requests are waiting"):
            await batches.ask(requests[:1])
        running = asyncio.create_task(batches.run())
        results = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(one) for one in results] == [MemoryError, MemoryError, list]
        assert await batches.ask(requests) == [{}, {}]
        running.cancel()

    asyncio.run(ask_all())
    assert sizes == [2, 1, 2]


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (b"", 400, "body: invalid JSON"),
        (b'{"title": "t"', 400, "body: invalid JSON"),
        (b"\xff\xfe{}", 400, "body: invalid JSON"),
        (b"[" * 100_000, 400, "body: is nested too deep"),
        (b'{"title": NaN}', 400, "NaN is not JSON"),
        (b"7", 422, "body: is 7. Give an object"),
        ([GOOD, 7], 422, "[1]: is 7"),
        ([GOOD] * 257, 422, "body: 257 requests. Send at most 256"),
        ({"artworks": ["a"]}, 422, "title: is missing"),
        (GOOD | {"title": 3}, 422, "title=3: must be a string"),
        (GOOD | {"title": ""}, 422, 'title="": is blank'),
        (GOOD | {"title": "  "}, 422, 'title="  ": is blank'),
        (GOOD | {"title": "\u00a0\u200b"}, 422, "is blank"),
        (GOOD | {"artworks": ["a", " "]}, 422, 'artworks[1]=" ": invalid id'),
        (GOOD | {"history": [{"title": ""}]}, 422, 'history[0].title="": is blank'),
        (GOOD | {"artworks": []}, 422, "artworks=[]: holds no candidates"),
        (GOOD | {"artworks": ["a", 7]}, 422, "artworks[1]=7: invalid id"),
        (GOOD | {"artworks": ["a", "b", "a"]}, 422, 'artworks: duplicate candidate "a"'),
        (GOOD | {"artworks": [str(i) for i in range(10_001)]}, 422, "artworks: 10,001 candidates"),
        (GOOD | {"titel": "t"}, 422, '"titel": unknown field. Did you mean title?'),
        (
            GOOD | {"history": [PLAYED | {"whatched": 1}]},
            422,
            'history[0]."whatched": unknown field. Did you mean watched?',
        ),
        (GOOD | {"history": [PLAYED, "t"]}, 422, 'history[1]="t": invalid play'),
        (GOOD | {"history": [PLAYED | {"watched": 1.5}]}, 422, "history[0].watched=1.5: give a fraction"),
        (GOOD | {"history": [PLAYED | {"time": "2090-01-01"}]}, 422, "is after the request's time"),
        (GOOD | {"history": [PLAYED | {"time": 1_700_000_000_000}]}, 422, "seconds (not ms) since 1970"),
        (GOOD | {"history": [PLAYED | {"time": 9}, PLAYED | {"time": 8}]}, 422, "Give the oldest first"),
        (GOOD | {"hour": 24}, 422, "hour=24: give a whole number, 0 .. 23"),
        (GOOD | {"hour": 3, "time": 0}, 422, "hour=3: given beside time"),
        (GOOD | {"play_count": 0, "history": [PLAYED]}, 422, "play_count=0: is less than the 1 plays"),
        (GOOD | {"row": True}, 422, "row=true: give a whole number"),
        (GOOD | {"reward": "watched"}, 422, 'reward="watched": unknown reward. Give clicked or engaged'),
        (GOOD | {"reward": "engaged", "policy": "thompson"}, 422, "reward=engaged: the posterior is of clicks"),
        (GOOD | {"policy": "best"}, 422, 'policy="best": unknown policy. Give greedy'),
        (
            GOOD | {"policy": "thompson:100000", "artworks": [str(i) for i in range(100)]},
            422,
            "Give thompson:25600.",
        ),
        (GOOD | {"explain": 1}, 422, "explain=1: must be true or false"),
        (b" " * 1_100_000, 413, "body: more than 1,048,576 bytes"),
    ],
)
def test_a_fault_is_named_in_one_line(at: Served, body: Any, status: int, named: str) -> None:
    answered, answer = ask(at, body)
    assert (answered, list(answer)) == (status, ["error"])
    assert named in answer["error"]
    assert "\n" not in answer["error"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (post(b'{"title": ')[:-3], 408),
        (b"POST /rank HTTP/1.1\r\nhost:", 408),
        (b"", 408),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000, 431),
        (b"no such thing\r\n\r\n", 400),
        (b"GET /nowhere HTTP/1.1\r\n\r\n", 404),
        (b"GET /rank HTTP/1.1\r\n\r\n", 405),
    ],
)
def test_slow_huge_and_malformed_connections_end(at: Served, sent: bytes, status: int) -> None:
    with socket.create_connection((at.host, at.port), timeout=10) as connection:
        connection.sendall(sent)
        read = b""
        while part := connection.recv(65_536):
            read += part
    assert answered(read) == status
    assert ask(at, GOOD)[0] == 200


def test_draws_that_are_kept_have_a_bound(bundle: Path) -> None:
    answers = ArtworkRanker(Bundle.open(bundle))
    first = answers.thompson(16, 0.25)
    assert answers.thompson(16, 0.25) is first
    for draws in (*range(1, 40), 60_000, MAX_DRAWS, 60_000, 50_000, 16):
        assert answers.thompson(draws, 0.25).draws == draws
        kept = [policy.draws for policy in answers.drawn.values()]
        assert len(kept) <= MAX_CACHED_POLICIES
        assert sum(kept) <= MAX_DRAWS
    assert answers.thompson(16, 0.25) is not first


def test_nothing_that_is_sent_breaks_it(at: Served, bundle: Path) -> None:
    result = asyncio.run(fuzz(at, RequestGenerator(Bundle.open(bundle), 6), 300))
    assert result.requests == 300
    assert result.unanswered == []
    assert result.unexpected == []
    assert {200, 400, 422} <= set(result.statuses)
    assert result.memory[-1] < result.memory[0] + 400e6
    assert at.process.poll() is None


def test_the_front_door_answers_what_was_asked_before_it_stops(bundle: Path) -> None:
    """With torch not to be had; SIGTERM comes in the middle of a body."""
    words = f"{WITHOUT_TORCH}import keyart; sys.exit(keyart.main(['serve', {str(bundle)!r}, '--port', '0']))"
    with (
        serving([sys.executable, "-c", words]) as at,
        socket.create_connection((at.host, at.port), timeout=10) as asking,
    ):
        assert at.process.stdout is not None
        tried = at.process.stdout.readline()
        assert tried.startswith(f"curl -s http://{at.host}:{at.port}/rank -d '")
        assert ranked(at, json.loads(tried.partition("-d '")[2].rstrip("'\n")))["explanation"]
        message = post(json.dumps(GOOD).encode())
        asking.sendall(message[:-5])
        time.sleep(0.2)
        at.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        asking.sendall(message[-5:])
        # head and body may come apart; the service closes behind them
        assert answered(b"".join(iter(lambda: asking.recv(65_536), b""))) == 200
        assert at.process.wait(15) == 0
        assert at.process.stdout.read() == "Stopped.\n"


@pytest.mark.parametrize(
    ("words", "missing", "named"),
    [
        (["BUNDLE"], "uvicorn", "uvicorn is not installed. Install the extra: uv sync --extra serve."),
        (["BUNDLE", "--port", "TAKEN"], None, "Give another --port."),
        (["BUNDLE", "--port", "70000"], None, "port=70000: give 0 .. 65535."),
        (["BUNDLE", "--host", "no.such.host.invalid"], None, "host=no.such.host.invalid"),
        (["."], None, "is not a bundle: no bundle.json"),
    ],
)
def test_what_keeps_it_from_starting_is_said_in_one_line(
    at: Served,
    bundle: Path,
    words: Sequence[str],
    missing: str | None,
    named: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if missing:
        monkeypatch.delitem(sys.modules, "serving.http.connections", raising=False)
        monkeypatch.setitem(sys.modules, missing, None)
    given = {"BUNDLE": str(bundle), "TAKEN": str(at.port)}
    assert keyart.main(["serve", *(given.get(word, word) for word in words)]) == 1
    error = capfd.readouterr().err
    assert named in error
    assert error.count("\n") == 1
