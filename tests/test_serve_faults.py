"""The service lives through whatever it is sent, and says in one line what was wrong with it."""

import asyncio
import json
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import keyart
from benchmarks.request_generator import RequestGenerator
from benchmarks.serve_load import Served, answered, fuzz, post, serving
from serving.bundle.bundle import Bundle
from serving.http.answers import ArtworkRanker, groups_of_similar_width
from serving.http.connections import MAX_PIPELINE
from serving.http.fields import RequestError
from serving.http.lanes import Lanes
from serving.http.requests import Request, RequestReader
from tests.served import GOOD, PLAYED, WITHOUT_TORCH, ask, ranked


def lanes_of(**given: Any) -> Lanes:
    limits: dict[str, Any] = {"max_batch": 2, "gather_seconds": 0.0, "waiting": 3, "deadline": 5.0}
    limits["on_batch"] = lambda *_: None
    return Lanes(**limits | given)


@pytest.fixture(scope="module")
def good(bundle: Path) -> Request:
    (request,), _ = RequestReader(Bundle.open(bundle)).read(json.dumps(GOOD).encode(), 0)
    return request


def test_too_many_are_refused_and_a_failure_is_its_requests_alone(good: Request) -> None:
    sizes: list[int] = []
    bad = replace(good, seed=7)

    def answer(some: Sequence[Request]) -> list[dict[str, Any]]:
        if bad in some:
            raise MemoryError
        return [{} for _ in some]

    async def ask_all() -> None:
        lanes = lanes_of(on_batch=lambda requests, waited, seconds: sizes.append(requests))
        asking = [asyncio.create_task(lanes.ask([one], [1e-4], answer)) for one in (good, bad, good)]
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="3 requests are waiting"):
            await lanes.ask([good], [1e-4], answer)
        running = asyncio.create_task(lanes.run())
        results = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(one) for one in results] == [list, MemoryError, list]
        assert await lanes.ask([good, good], [1e-4] * 2, answer) == [{}, {}]
        running.cancel()

    asyncio.run(ask_all())
    assert sizes == [2, 1, 1, 1, 2]


def test_a_small_request_does_not_wait_for_large_ones_nor_a_batch_for_who_left(good: Request) -> None:
    answered_sizes: list[int] = []
    entered, leave = threading.Event(), threading.Event()

    def slow(some: Sequence[Request]) -> list[dict[str, Any]]:
        answered_sizes.append(len(some))
        entered.set()
        assert leave.wait(10)
        return [{} for _ in some]

    def quick(some: Sequence[Request]) -> list[dict[str, Any]]:
        return [{"quick": True} for _ in some]

    async def ask_all() -> None:
        lanes = lanes_of(waiting=100, deadline=0.5)
        running = asyncio.create_task(lanes.run())
        large = asyncio.create_task(lanes.ask([good], [0.3], slow))
        await asyncio.to_thread(entered.wait, 10)
        leaving = asyncio.create_task(lanes.ask([good] * 5, [0.01] * 5, slow))
        assert await lanes.ask([good], [1e-4], quick) == [{"quick": True}]
        assert lanes.stuck(0)
        # as much as would be answered after the deadline is refused at once
        with pytest.raises(RequestError, match=r"later than 0\.5 s"):
            await lanes.ask([good] * 5, [0.11] * 5, slow)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        leave.set()
        assert await large == [{}]
        assert await lanes.ask([good], [0.3], slow) == [{}]
        assert not lanes.stuck(0)
        running.cancel()

    asyncio.run(ask_all())
    assert answered_sizes == [1, 1]


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
        (GOOD | {"history": [PLAYED | {"time": 1_700_000_000_000}]}, 422, "seconds (not ms) since 1970"),
        (GOOD | {"hour": 24}, 422, "hour=24: give a whole number, 0 .. 23"),
        (GOOD | {"hour": 3, "time": 0}, 422, "hour=3: given beside time"),
        (GOOD | {"row": True}, 422, "row=true: give a whole number"),
        (GOOD | {"reward": "watched"}, 422, 'reward="watched": unknown reward. Give clicked or engaged'),
        (GOOD | {"reward": "engaged", "policy": "thompson"}, 422, "reward=engaged: the posterior is of clicks"),
        (GOOD | {"policy": ""}, 422, 'policy="": unknown policy'),
        (GOOD | {"reward": ""}, 422, 'reward="": unknown reward'),
        (GOOD | {"policy": "best"}, 422, 'policy="best": unknown policy. Give greedy'),
        (
            GOOD | {"policy": "thompson:100000", "artworks": [str(i) for i in range(100)]},
            422,
            "Give thompson:1024.",
        ),
        (GOOD | {"policy": "thompson:1025"}, 422, "Give thompson:1024."),
        (
            [GOOD | {"policy": "thompson:1024", "artworks": [str(i) for i in range(25)]}] * 101,
            422,
            "candidates x draws",
        ),
        ([GOOD | {"explain": True, "artworks": [str(i) for i in range(600)]}] * 2, 422, "explain: 1,200 candidates"),
        (GOOD | {"explain": True, "artworks": [str(i) for i in range(1001)]}, 422, "Explain at most 1,000"),
        (GOOD | {"member": 3}, 422, "member=3: must be a string"),
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
        (b"GET /nowhere HTTP/1.1\r\nhost: a\r\n\r\n", 404),
        (b"GET /rank HTTP/1.1\r\nhost: a\r\n\r\n", 405),
        (b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n", 400),
        (b"GET /health HTTP/1.0\r\n\r\n", 200),
        (b"GET /health HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n", 400),
        (b"POST /rank/ HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}", 404),
        (
            post(b"{}").replace(b"content-length: 2", b"transfer-encoding: chunked")[:-2] + b"0\r\n" + b"a: b\r\n" * 99,
            431,
        ),
        (post(b"{}").replace(b"host", b"content-type: text/csv\r\nhost"), 415),
        (b"POST /rank HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2000000\r\n\r\n", 413),
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


def test_a_client_that_does_not_await_its_answers_is_ended(at: Served) -> None:
    with socket.create_connection((at.host, at.port), timeout=10) as connection:
        connection.sendall(post(json.dumps(GOOD).encode()) + b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n" * 2000)
        read = b""
        try:
            while part := connection.recv(65_536):
                read += part
        except ConnectionError:
            pass
    assert 1 <= read.count(b"HTTP/1.1 200") <= MAX_PIPELINE + 1, "what it had asked before is answered"
    assert read.count(b"connection: close") == 1
    refused = re.findall(r'path="connection",status="431"\} (\d+)', ask(at, None, "/metrics")[1])
    assert int(refused[0]) >= 1
    assert ask(at, GOOD)[0] == 200


@pytest.mark.parametrize("cut", [0, 20, -3])
def test_a_wish_for_another_protocol_is_not_heard(at: Served, cut: int) -> None:
    """As Java's client sends with its first request; in one piece and in two."""
    more = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\nhost"
    message = post(json.dumps(GOOD).encode()).replace(b"host", more, 1)
    with socket.create_connection((at.host, at.port), timeout=10) as connection:
        for _ in range(2):
            connection.sendall(message[:cut])
            time.sleep(0.05)
            connection.sendall(message[cut:])
            read = b""
            while answered(read) is None:
                read += connection.recv(65_536)
            assert answered(read) == 200


def test_few_candidates_are_not_ranked_as_wide_as_many(good: Request) -> None:
    def wide(n: int) -> Request:
        return replace(good, names=[str(index) for index in range(n)])

    requests = [wide(n) for n in (310, *[1] * 49, 20, 22, 2000)]
    groups = list(groups_of_similar_width(requests))
    assert sorted(index for group in groups for index in group) == list(range(len(requests)))
    for group in groups:
        widths = [len(requests[index].names) for index in group]
        assert max(widths) * len(widths) <= 2 * sum(widths) + 64
    assert len(list(groups_of_similar_width([wide(n) for n in range(15, 30)]))) == 1


def test_clients_policies_leave_nothing_behind(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    ranker, reader = ArtworkRanker(opened, 64), RequestReader(opened, 64)
    assert ranker.posterior is not None
    drawn = ranker.posterior.weight_FS
    for policy in ("thompson:64:0.5", "thompson:3", "thompson:64:1.5:0", "thompson:1:9"):
        requests, _ = reader.read(json.dumps([GOOD | {"policy": policy}]).encode(), 0)
        assert sum(row["propensity"] for row in ranker.answer(requests)[0]["artworks"]) == pytest.approx(1)
        assert ranker.posterior.weight_FS is drawn


def test_an_artwork_of_another_title_is_refused(at: Served, bundle: Path) -> None:
    """And an unknown one is ranked, marked and counted."""
    opened = Bundle.open(bundle)
    owner, names = opened.tables["artwork_title"].tolist(), opened.vocabularies["artworks"].values
    titles = opened.vocabularies["titles"].values
    others = [name for name, row in zip(names, owner[1:], strict=True) if row > 1]
    own = [name for name, row in zip(names, owner[1:], strict=True) if row == 1]
    body = {"title": titles[0], "artworks": [*own, others[0]]}
    status, answer = ask(at, body)
    assert status == 422
    assert answer["error"].startswith(f'artworks[{len(own)}]="{others[0]}": is an artwork of title "')
    before = counted_unknown(at)
    answer = ranked(at, body | {"artworks": [*own, "new"], "country": "nowhere", "history": [PLAYED]})
    assert answer["title"] == {"id": titles[0], "known": True}
    assert {row["artwork"]: row["known"] for row in answer["artworks"]} == dict.fromkeys(own, True) | {"new": False}
    assert ranked(at, GOOD | {"artworks": [others[0]]})["title"] == {"id": "t", "known": False}
    gained = {kind: n - before.get(kind, 0) for kind, n in counted_unknown(at).items()}
    assert {kind: n for kind, n in gained.items() if n} == {"artwork": 1, "country": 1, "play": 1, "title": 1}


def counted_unknown(at: Served) -> dict[str, int]:
    rows = re.findall(r'keyart_unknown_ids_total\{kind="(\w+)"\} (\d+)', ask(at, None, "/metrics")[1])
    return {kind: int(n) for kind, n in rows}


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
        assert tried.startswith(f"curl -s http://{at.host}:{at.port}/rank -H 'content-type: application/json' -d '")
        assert ranked(at, json.loads(tried.partition("-d '")[2].rstrip("'\n")))["explanation"]
        message = post(json.dumps(GOOD).encode())
        asking.sendall(message[:-5])
        time.sleep(0.2)
        at.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        asking.sendall(message[-5:])
        # head and body may come apart; the service closes behind them
        read = b"".join(iter(lambda: asking.recv(65_536), b""))
        assert answered(read) == 200
        assert read.count(b"connection: close") == 1
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
