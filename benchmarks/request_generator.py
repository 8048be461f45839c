"""Requests for `keyart serve` from a seed: valid, mutated, corrupted, huge, and not HTTP."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.bundle.bundle import Bundle

ODD_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1.5, -0.0, 1e308, -1e18, 2**31, 2**63, 2**70, float("nan"), float("inf")),
    *(
        "",
        " ",
        "\x00",
        "\u00a0",
        "\ud800",
        "\u202e\U0001f3ac",
        "NaN",
        "null",
        "a" * 70_000,
        "2090-01-01",
        "0001-01-01",
        "1e9",
    ),
    *("24:00", "2024-02-30", "greedy:1", "epsilon:2", "epsilon:nan", "softmax:0", "softmax:1e-300", "thompson:100000"),
    *("thompson:1:1e300", "thompson:0", [], {}, [[]], [None], {"": None}, [{}], ["a", 1], {"title": {"title": []}}),
]
"""Values of wrong types or ranges."""
IDS = [
    "\u00a0é",
    "a\x00",
    "🎬",
    "\ud83c",
    "é" * 300,
    "' OR 1=1 --",
    "<script>",
    "../../etc/passwd",
    "nul",
    "\u200f\u0301",
]
UNKNOWN_ID = "never heard of"
POLICIES = ["greedy", "epsilon:0.1", "softmax:0.5", "thompson", "thompson:16", "thompson:32:0.5"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Bytes to send, and the expected answer."""

    name: str
    message: bytes
    expected: int = 0
    """The expected status; 0: any below 500."""
    own_connection: bool = False
    """Whether it is sent on a connection of its own, which may be closed without an answer."""
    disconnects: bool = False
    """Whether the client disconnects without waiting for the answer."""


class RequestGenerator:
    """Generates cases for one bundle, reproducible by seed."""

    def __init__(self, bundle: Bundle, seed: int) -> None:
        self.words = {name: vocabulary.values for name, vocabulary in bundle.vocabularies.items()}
        self.artwork_title = bundle.tables["artwork_title"]
        self.rng = np.random.default_rng(seed)

    def case(self) -> Case:
        """The next case."""
        kinds: list[tuple[float, Callable[[], Case]]] = [
            (0.30, self._valid),
            (0.35, self._mutated),
            (0.15, self._corrupted),
            (0.08, self._unicode),
            (0.02, self._huge),
            (0.10, self._no_http),
        ]
        return kinds[int(self.rng.choice(len(kinds), p=[share for share, _ in kinds]))][1]()

    def request(self, plays: int, candidates: int) -> dict[str, Any]:
        """A valid request, of ids that the bundle knows and some that it does not."""
        times = np.sort(self.rng.integers(1_600_000_000, 1_700_000_000, plays)).tolist()
        title = int(self.rng.integers(1, len(self.words["titles"]) + 1))
        owned = np.flatnonzero(self.artwork_title[1:] == title)
        # more than the title has are those of any titles, for one that the bundle does not know
        known = 0 < candidates <= len(owned)
        artworks = self.rng.permutation(owned if known else len(self.words["artworks"]))[:candidates]
        return {
            "title": self.words["titles"][title - 1] if known else UNKNOWN_ID,
            "artworks": [self.words["artworks"][row] for row in artworks] or ["new"],
            "history": [
                {
                    "title": self._random_id("titles"),
                    "artwork": self._random_id("artworks"),
                    "watched": 0.5,
                    "time": time,
                }
                for time in times
            ],
            "country": self._random_id("country"),
            "device": self._random_id("device"),
            "row": 2,
            "column": 3,
        }

    def valid(self, plays: int, candidates: int) -> bytes:
        """The body of a valid request."""
        return json.dumps(self.request(plays, candidates)).encode()

    def _random_id(self, kind: str) -> str:
        values = self.words[kind]
        row = int(self.rng.integers(0, len(values) + 1))
        return values[row] if row < len(values) else UNKNOWN_ID

    def _choose(self, of: list[Any]) -> Any:
        return of[int(self.rng.integers(len(of)))]

    def _random_request(self) -> dict[str, Any]:
        request = self.request(int(self.rng.integers(0, 60)), int(self.rng.integers(1, 30)))
        policy = self._choose(POLICIES)
        reward = "clicked" if policy.startswith("thompson") else self._choose(["clicked", "engaged"])
        more = {"policy": policy, "reward": reward, "explain": bool(self.rng.random() < 0.2), "seed": 7, "hour": 20}
        return request | {name: value for name, value in more.items() if self.rng.random() < 0.5}

    def _valid(self) -> Case:
        several = self.rng.random() < 0.1
        body = (
            [self._random_request() for _ in range(int(self.rng.integers(0, 9)))] if several else self._random_request()
        )
        return Case(name="in order", message=_post(json.dumps(body).encode()), expected=200)

    def _mutated(self) -> Case:
        """A request with one to three values changed, removed or added."""
        request: Any = self._random_request()
        for _ in range(int(self.rng.integers(1, 4))):
            holder = request
            while True:
                names = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
                if not names:
                    break
                name = self._choose(names)
                if isinstance(holder[name], dict | list) and holder[name] and self.rng.random() < 0.7:
                    holder = holder[name]
                    continue
                if self.rng.random() < 0.15:
                    del holder[name]
                elif isinstance(holder, dict) and self.rng.random() < 0.1:
                    holder[str(self._choose(IDS))] = deepcopy(self._choose(ODD_VALUES))
                else:
                    holder[name] = deepcopy(self._choose(ODD_VALUES))
                break
        document = self._choose(ODD_VALUES) if self.rng.random() < 0.03 else request
        return Case(name="bent", message=_post(json.dumps(document).encode()))

    def _corrupted(self) -> Case:
        """A body that is truncated, or with bytes changed or added."""
        body = bytearray(json.dumps(self._random_request()).encode())
        for _ in range(int(self.rng.integers(1, 5))):
            index = int(self.rng.integers(len(body))) if body else 0
            kind = self.rng.random()
            if kind < 0.3:
                del body[index:]
            elif kind < 0.7:
                body[index : index + 1] = self.rng.bytes(1)
            else:
                body[index:index] = self._choose(
                    [b"[", b"]", b"{", b"}", b'"', b",", b"\\u", b"\xff", b"\xef\xbb\xbf", b"1e9999"]
                )
        return Case(name="broken", message=_post(bytes(body)))

    def _unicode(self) -> Case:
        """A valid request with ids of every script."""
        request = self._random_request()
        request["title"], request["country"] = self._choose(IDS), self._choose(IDS)
        request["artworks"] = IDS[: int(self.rng.integers(1, len(IDS)))]
        request["history"] = [{"title": name} for name in IDS]
        request.pop("policy", None)
        return Case(name="unicode", message=_post(json.dumps(request).encode()), expected=200)

    def _huge(self) -> Case:
        many = [f"new {index}" for index in range(10_001)]
        deep, digits = b"[" * 100_000, b'{"title": "a", "artworks": ["b"], "seed": ' + b"9" * 10_000 + b"}"
        plays = [{"title": "a", "time": 1_600_000_000 + index} for index in range(5_000)]
        cases = [
            Case(name="10,000 candidates", message=_post(_json(title="a", artworks=many[1:])), expected=200),
            Case(name="10,001 candidates", message=_post(_json(title="a", artworks=many)), expected=422),
            Case(name="5,000 plays", message=_post(_json(title="a", artworks=["b"], history=plays)), expected=200),
            Case(name="300 requests", message=_post(json.dumps([self._random_request()] * 300).encode()[:1_000_000])),
            Case(name="nested", message=_post(deep), expected=400),
            Case(name="digits", message=_post(digits), expected=400),
            Case(name="2 MB", message=_post(b" " * 2_000_000), expected=413),
            Case(name="many draws", message=_post(_json(title="a", artworks=many[:2000], policy="thompson:1000"))),
        ]
        return self._choose(cases)

    def _no_http(self) -> Case:
        """Invalid HTTP, or another path."""
        body = self.request(3, 3)
        post = _post(json.dumps(body).encode())
        choices = [
            Case(
                name="bytes", message=self.rng.bytes(int(self.rng.integers(1, 3000))) + b"\r\n\r\n", own_connection=True
            ),
            Case(name="half", message=post[: int(self.rng.integers(len(post)))], own_connection=True, disconnects=True),
            Case(name="left", message=post, own_connection=True, disconnects=True),
            Case(name="length", message=post.replace(b"length: ", b"length: -"), own_connection=True),
            Case(name="two lengths", message=post.replace(b"host", b"content-length: 3\r\nhost"), own_connection=True),
            Case(name="chunks", message=CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n", own_connection=True),
            Case(name="chunked", message=CHUNKED + b"4\r\nnull\r\n0\r\n\r\n", expected=422),
            Case(name="method", message=post.replace(b"POST", b"PATCH"), expected=405),
            Case(name="path", message=post.replace(b"/rank", b"/rank/%ff/../x?a=\xc3"), own_connection=True),
            Case(name="head", message=b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", own_connection=True),
            Case(name="heads", message=b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n", own_connection=True),
            Case(
                name="upgrade",
                message=b"GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
                own_connection=True,
            ),
            Case(name="connect", message=b"CONNECT a:1 HTTP/1.1\r\n\r\n", own_connection=True),
            *(
                Case(name=path, message=b"GET %s HTTP/1.1\r\nhost: a\r\n\r\n" % path.encode(), expected=200)
                for path in ("/", "/health", "/metrics", "/openapi.json", "/docs")
            ),
        ]
        return self._choose(choices)


CHUNKED = b"POST /rank HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"


def _json(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def _post(body: bytes) -> bytes:
    return b"POST /rank HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
