"""The service says what the bundle says, to one or to many at once; what it refuses is in test_serve_faults."""

import asyncio
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keyart
from benchmarks.request_generator import RequestGenerator
from benchmarks.serve_load import Served, load
from serving.bundle.bundle import Bundle
from serving.http.requests import RequestReader, inputs
from serving.scoring.compare_members import rank_histories
from serving.scoring.explain import reasons
from serving.scoring.thompson import Thompson
from tests.served import GOOD, ask, ranked


def by_artwork(answer: dict[str, Any], name: str) -> dict[str, float]:
    return {row["artwork"]: row[name] for row in answer["artworks"]}


def test_answers_are_the_bundles(at: Served, bundle: Path) -> None:
    """Beside code that makes its requests another way; unknown ids, no history, and one longer than is read among them."""
    opened, generator = Bundle.open(bundle), RequestGenerator(Bundle.open(bundle), 1)
    for plays, candidates in ((0, 1), (7, 5), (30, 40), (opened.history_length + 20, 3)):
        given = generator.request(plays, candidates)
        titles = [play["title"] for play in given["history"]]
        inputs = {
            "title": given["title"],
            "artworks": [*given["artworks"], "new"],
            "row": 0,
            "column": 0,
            "hour": 20,
        }
        answer = ranked(at, inputs | {"history": [{"title": title} for title in titles]})
        (expected,) = rank_histories(opened, [titles], [given["title"]], [inputs["artworks"]])
        probabilities = by_artwork(answer, "click_probability")
        np.testing.assert_allclose([probabilities[name] for name in inputs["artworks"]], expected, atol=1e-6)
        assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)
        assert answer["chosen"] == {"artwork": answer["artworks"][0]["artwork"], "propensity": 1.0}


def test_many_at_once_are_each_as_alone(at: Served, bundle: Path) -> None:
    generator, rng = RequestGenerator(Bundle.open(bundle), 2), np.random.default_rng(2)
    policies = ("greedy", "epsilon:0.2", "softmax:0.5", "thompson:32", "thompson:16:1")
    bodies = [
        generator.request(int(rng.integers(0, 60)), int(rng.integers(1, 30)))
        | {"policy": policies[i % 5], "seed": i, "explain": i % 7 == 0}
        for i in range(60)
    ]
    bodies.append({"title": "new", "artworks": [f"new {i}" for i in range(2000)]})
    alone = [ranked(at, body) for body in bodies]
    with ThreadPoolExecutor(30) as threads:
        together = list(threads.map(lambda body: ranked(at, body), bodies))
    _, metrics = ask(at, None, "/metrics")
    batches = {name: float(re.findall(rf"keyart_batch_requests_{name} (\d+)", metrics)[0]) for name in ("sum", "count")}
    assert batches["sum"] > 1.2 * batches["count"], "none were answered together"
    for answers in (together, ranked(at, bodies)):
        for one, other in zip(alone, answers, strict=True):
            np.testing.assert_allclose(numbers(one), numbers(other), atol=2e-6)
            assert one["chosen"]["artwork"] == other["chosen"]["artwork"]


def numbers(answer: Any) -> list[float]:
    """Every number of an answer, the artworks in the order of their names."""
    if isinstance(answer, dict):
        return [number for _, value in sorted(answer.items()) for number in numbers(value)]
    if isinstance(answer, list):
        rows = sorted(answer, key=lambda row: row.get("artwork") or row.get("name") or str(row["ago"]))
        return [number for row in rows for number in numbers(row)]
    return [answer] if isinstance(answer, int | float) else []


def test_the_choice_is_made_with_its_propensity(at: Served, bundle: Path) -> None:
    opened = Bundle.open(bundle)
    given = RequestGenerator(opened, 3).request(20, 4)
    requests, _ = RequestReader(opened).read(json.dumps(given).encode(), time.time())
    request, mask = inputs(requests)
    shares = Thompson(opened, 128, 0.5, 0.2).probabilities(request, opened.rank(request), mask)[0]
    answer = ranked(at, given | {"policy": "thompson:128:0.5:0.2"})
    propensities = by_artwork(answer, "propensity")
    np.testing.assert_allclose([propensities[name] for name in given["artworks"]], shares, atol=1e-6)
    seeded = [given | {"policy": "softmax:3", "seed": seed} for seed in range(200)]
    answers = ranked(at, seeded)
    assert answers == ranked(at, seeded)
    for artwork, propensity in by_artwork(answers[0], "propensity").items():
        chosen = [answer for answer in answers if answer["chosen"]["artwork"] == artwork]
        assert abs(len(chosen) / 200 - propensity) < 4 * np.sqrt(propensity * (1 - propensity) / 200)
        assert all(abs(answer["chosen"]["propensity"] - propensity) < 1e-6 for answer in chosen)


def test_the_policy_chooses_by_the_reward(at: Served, bundle: Path) -> None:
    """Among requests that differ in nothing else, answered together."""
    generator = RequestGenerator(Bundle.open(bundle), 8)
    bodies = [generator.request(20, 12) | {"hour": 20} for _ in range(40)]
    engaged = ranked(at, [body | {"reward": "engaged", "policy": "softmax:0.5"} for body in bodies])
    together = ranked(at, [*bodies, *(body | {"reward": "engaged"} for body in bodies)])
    clicked, chosen = together[:40], together[40:]
    for one, other, soft in zip(clicked, chosen, engaged, strict=True):
        assert by_artwork(one, "click_probability") == by_artwork(other, "click_probability")
        likely = by_artwork(other, "engaged_probability")
        assert other["chosen"]["artwork"] == max(likely, key=lambda name: likely[name])
        assert one["chosen"]["artwork"] == one["artworks"][0]["artwork"]
        odds = np.array([share / (1 - share) for share in likely.values()]) ** 2
        np.testing.assert_allclose(list(by_artwork(soft, "propensity").values()), odds / odds.sum(), rtol=1e-3)
    assert [one["chosen"] for one in clicked] != [one["chosen"] for one in chosen]


def test_explanations_are_the_bundles_and_keep_names(at: Served, bundle: Path) -> None:
    opened = Bundle.open(bundle)
    given = RequestGenerator(opened, 4).request(9, 3)
    given["history"][-1]["title"] = given["history"][-2]["title"]
    given["history"][0]["title"] = "brand new"
    requests, _ = RequestReader(opened).read(json.dumps(given).encode(), time.time())
    request, mask = inputs(requests)
    chosen = opened.rank(request)["click_probability"].argmax(1)
    (expected,) = reasons(opened, request, mask, chosen)
    explanation = ranked(at, given | {"explain": True})["explanation"]
    assert explanation["artwork"] == expected["artwork"] == given["artworks"][chosen[0]]
    assert explanation["appeal"] == pytest.approx(expected["appeal"], abs=1e-6)
    assert [play["title"] for play in explanation["plays"]] == [
        given["history"][-play["ago"]]["title"] for play in explanation["plays"]
    ]
    assert ranked(at, {"title": "a", "artworks": ["b"], "explain": True})["explanation"] is None


def test_a_time_is_a_time_however_it_is_written(at: Served, bundle: Path) -> None:
    given = RequestGenerator(Bundle.open(bundle), 7).request(6, 5)
    expected = ranked(at, given | {"hour": 20})
    for moment in ("2024-03-01T20:30:00", "2024-03-01T22:59:59.9+02:00", 1_709_325_000, 1_709_325_000.5):
        assert ranked(at, given | {"time": moment}) == expected
    plays = [play | {"time": "2020-09-13T12:26:40Z"} for play in given["history"]]
    same = [play | {"time": 1_600_000_000} for play in plays]
    assert ranked(at, given | {"history": plays}) == ranked(at, given | {"history": same})
    # a play need not have a time: what counts is their order
    unknown = [*same[:-2], same[-2] | {"time": None}, same[-1] | {"time": 1_600_200_000}]
    known = [*same[:-2], same[-2] | {"time": 1_600_113_600}, unknown[-1]]
    assert ranked(at, given | {"history": unknown}) == ranked(at, given | {"history": known})


def test_times_are_the_order_of_plays_and_none_is_later_than_the_request(at: Served, bundle: Path) -> None:
    """As in training, which shows no play at or after an impression's time."""
    given: dict[str, Any] = RequestGenerator(Bundle.open(bundle), 7).request(9, 5) | {"time": 1_700_000_001}
    expected = ranked(at, given)
    assert expected["history"] == {"plays": 9, "left_out": 0}
    assert ranked(at, given | {"history": given["history"][::-1]}) == expected
    later = {"title": given["history"][0]["title"], "time": 1_800_000_000}
    assert ranked(at, given | {"history": [later, *given["history"]]}) == expected | {
        "history": {"plays": 9, "left_out": 1}
    }
    untimed = [{"title": play["title"]} for play in given["history"]]
    assert ranked(at, given | {"history": untimed[::-1]}) != ranked(at, given | {"history": untimed})
    assert ranked(at, given | {"play_count": 3}) == expected


def test_what_it_offers_is_described(at: Served, bundle: Path) -> None:
    status, spec = ask(at, None, "/openapi.json")
    assert status == 200
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(spec)):
        assert name in spec["components"]["schemas"]
    content = spec["paths"]["/rank"]["post"]["requestBody"]["content"]["application/json"]
    answer, parts = ranked(at, content["example"] | {"explain": True}), spec["components"]["schemas"]
    assert set(answer) == set(parts["Answer"]["properties"])
    assert set(answer["artworks"][0]) == set(parts["Ranked"]["properties"])
    assert set(answer["explanation"]) == set(parts["Explanation"]["properties"])
    for path in spec["paths"]:
        assert path == "/rank" or ask(at, None, path)[0] == 200
        assert path in str(ask(at, None, "/")[1])
    _, page = ask(at, None, "/docs")
    assert all(field in page for schema in parts.values() for field in schema["properties"])
    assert not re.search(r"<script|<link|<img|src=|@import|url\(", page)


def test_metrics_add_up(at: Served) -> None:
    ask(at, GOOD)
    before = counted(at)
    for body in (GOOD, GOOD, b"{", GOOD | {"hour": 24}):
        ask(at, body)
    after = counted(at)
    for status, more in (("200", 2), ("400", 1), ("422", 1)):
        name = f'keyart_http_requests_total{{path="/rank",status="{status}"}}'
        assert after[name] - before.get(name, 0) == more
    assert after["keyart_rank_seconds_count"] == after['keyart_rank_seconds_bucket{le="+Inf"}']
    buckets = [value for name, value in after.items() if name.startswith("keyart_rank_seconds_bucket")]
    assert buckets == sorted(buckets)
    assert after["keyart_rank_seconds_count"] - before["keyart_rank_seconds_count"] == 4
    assert after["keyart_waiting_requests"] == 0
    for name in ("click_probability", "history_length", "chosen_rank", "propensity"):
        assert after[f"keyart_{name}_count"] - before[f"keyart_{name}_count"] == 2


def counted(at: Served) -> dict[str, float]:
    lines = ask(at, None, "/metrics")[1].splitlines()
    assert all(re.fullmatch(r"# (HELP|TYPE) \w+ .+|\w+(\{[^}]*\})? [\d.e+-]+", line) for line in lines)
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_under_load_every_request_is_answered(at: Served, bundle: Path) -> None:
    generator = RequestGenerator(Bundle.open(bundle), 5)
    measured = asyncio.run(load(at, [generator.valid(50, 20) for _ in range(20)], connections=50, seconds=2))
    assert measured.errors == 0
    assert measured.requests >= 50
    assert 0 < measured.p50 <= measured.p99 < 10, measured


def test_the_benchmark_says_what_it_saw(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.json"
    words = ["--bundle", str(bundle), "--seconds", "0.5", "--connections", "4", "--fuzz", "60", "--json", str(out)]
    assert keyart.main(["bench", "load", *words]) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))
    value_of = {row["figure"]: row["value"] for row in rows}
    assert {(row["benchmark"], row["subject"]) for row in rows} == {("load", "keyart")}
    assert value_of["load: requests"] > 0
    assert value_of["load: errors"] == value_of["fuzz: unanswered"] == value_of["fuzz: unexpected"] == 0
    assert sum(value for figure, value in value_of.items() if re.match(r"fuzz: (answered|left)", figure)) == 60
    assert "fuzz: memory at most" in capsys.readouterr().out
    assert keyart.main(["bench", "load", "--connections", "0"]) == 1
    assert "connections=0: must be at least 1" in capsys.readouterr().err
