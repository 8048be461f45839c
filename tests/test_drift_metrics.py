"""The service's histograms of what it is asked: they add up over workers, begin anew with another bundle, and show drift."""

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.request_generator import RequestGenerator
from serving.bundle.bundle import Bundle
from serving.bundle.reference import BOUNDS
from serving.http.application import Service
from serving.http.config import ServeConfig
from serving.http.drift_metrics import LEAST_REQUESTS, MEANINGS
from serving.http.generation import Generation
from serving.http.metrics import ServiceMetrics
from serving.scoring.drift import compare
from serving.scoring.drift_counts import Counted

CONFIG = ServeConfig(port=0)


@pytest.fixture
def live(bundle: Path) -> Service:
    return Service(bundle, CONFIG, print)


def answered(service: Service, requests: list[Any]) -> list[Any]:
    """Answers by the service's bundle, counted as those of POST /rank are."""
    generation = service.generation
    read, _ = generation.reader.read(json.dumps(requests).encode(), time.time())
    answers = generation.ranker.answer(read)
    for request, answer in zip(read, answers, strict=True):
        service.service_metrics.drift.add(len(request.history_titles), answer)
    return answers


def values(text: str, metric: str) -> dict[str, float]:
    """Values of a metric by its label."""
    return {label: float(value) for label, value in re.findall(rf'{metric}{{\w+="([^"]+)"}} ([\d.e+-]+)', text)}


def test_every_answer_is_counted(live: Service, bundle: Path) -> None:
    generator = RequestGenerator(Bundle.open(bundle), 3)
    requests = [json.loads(generator.valid(12, 6)) | {"policy": "softmax:1", "seed": seed} for seed in range(30)]
    answers = answered(live, requests)
    histograms = live.service_metrics.drift.histograms
    assert {name: sum(histogram.counts) for name, histogram in histograms.items()} == dict.fromkeys(MEANINGS, 30)
    ranks = [[row["artwork"] for row in one["artworks"]].index(one["chosen"]["artwork"]) + 1 for one in answers]
    expected = {
        "click_probability": [max(row["click_probability"] for row in one["artworks"]) for one in answers],
        "history_length": [one["history"]["plays"] for one in answers],
        "chosen_rank": ranks,
        "propensity": [one["chosen"]["propensity"] for one in answers],
    }
    assert len(set(ranks)) > 1
    for name, by_answer in expected.items():
        bins = np.bincount(np.searchsorted(BOUNDS[name], by_answer), minlength=len(BOUNDS[name]) + 1)
        assert histograms[name].counts == bins.tolist(), name
    assert "keyart_drift" not in live.own_metrics().text(), "too few requests to compare"


def test_drift_is_a_gauge_over_all_workers(live: Service, bundle: Path) -> None:
    """Members without histories, and the best artwork always: three workers count a share of the requests each."""
    generator = RequestGenerator(Bundle.open(bundle), 3)
    request = json.loads(generator.valid(0, 5)) | {"policy": "greedy"}
    requests = 256 * [request]
    answered(live, requests)
    state = json.loads(json.dumps(live.own_metrics().state()))
    assert 2 * len(requests) >= LEAST_REQUESTS
    total = ServiceMetrics.total([state, state])
    assert total.drift.histograms["history_length"].counts[0] == 512
    text = total.text()
    indices, limits = values(text, "keyart_drift_psi"), values(text, "keyart_drift_limit")
    assert set(indices) == set(limits) == set(MEANINGS)
    assert indices["history_length"] > limits["history_length"]
    reference = live.generation.reference
    assert reference is not None
    expected = {name: Counted.of_reference(reference["histograms"][name]) for name in MEANINGS}
    for one in compare(
        BOUNDS,
        expected,
        {
            name: Counted(np.array(total.drift.histograms[name].counts), was.design_effect, was.effect_spread)
            for name, was in expected.items()
        },
    ):
        assert indices[one.name] == pytest.approx(one.psi, rel=1e-4)
    assert values(text, "keyart_history_length_bucket")["+Inf"] == 512


def test_another_bundle_begins_anew(live: Service, bundle: Path, refreshed: Path) -> None:
    generator = RequestGenerator(Bundle.open(bundle), 3)
    answered(live, [json.loads(generator.valid(4, 4))])
    before = json.loads(json.dumps(live.own_metrics().state()))
    live.switch(Generation.load(refreshed, CONFIG))
    assert sum(live.service_metrics.drift.histograms["propensity"].counts) == 0
    answered(live, [json.loads(generator.valid(4, 4))])
    # one of two workers has not yet taken it
    total = ServiceMetrics.total([live.own_metrics().state(), before])
    assert sum(total.drift.histograms["propensity"].counts) == 1
    assert total.info["bundle"] == Bundle.open(refreshed).digest
    assert total.drift.reference == Bundle.open(bundle).metadata.get("reference"), "a refresh keeps it"
