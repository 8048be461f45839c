"""Metrics of the service, in Prometheus' text format 0.0.4; those of several workers are added up."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from serving.http.drift_metrics import DriftMetrics
from serving.http.histogram import Histogram, header

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12)
SIZES = (1, 2, 4, 8, 16, 32, 64)
STAGES = ("read", "queue", "rank", "write")
"""Stages of POST /rank: a body parsed and checked; the first request of a batch waiting for its thread; the batch answered; the
answers of a body written as JSON."""

_COUNTERS = {
    "responses": ("keyart_http_requests_total", "Requests answered, by path and status.", ("path", "status")),
    "ids": ("keyart_ids_total", "Ids in requests that were ranked, by kind.", ("kind",)),
    "unknown": ("keyart_unknown_ids_total", "Of those, ids that the bundle does not know.", ("kind",)),
    "closed": (
        "keyart_connections_closed_total",
        "Connections that the service ended, by reason: idle (for a new one), slow (answer not read), unsent (too many "
        "unread bytes of all), full (no idle one to end).",
        ("reason",),
    ),
    "reloads": ("keyart_reloads_total", "Attempts to open a new bundle, by result.", ("result",)),
}
"""By attribute: name, meaning, and labels in the order of its keys."""


class ServiceMetrics:
    """Metrics of one process, since it started."""

    def __init__(self) -> None:
        self.counters: dict[str, Counter[tuple[str, ...]]] = {name: Counter() for name in _COUNTERS}
        self.seconds, self.sizes = Histogram(SECONDS), Histogram(SIZES)
        self.stages = {stage: Histogram(SECONDS) for stage in STAGES}
        self.drift = DriftMetrics()
        """What the bundle was asked that is served now; another bundle begins anew."""
        self.info: dict[str, str] = {}
        """Labels of `keyart_bundle_info`."""
        self.gauges: dict[str, tuple[float, str]] = {}
        """Values that are read when metrics are asked for, by name, and their meaning."""

    def count(self, counter: str, *labels: str, by: int = 1) -> None:
        """Add to a counter; `labels`: values of its labels."""
        self.counters[counter][labels] += by

    def batch(self, requests: int, waited: float, seconds: float) -> None:
        """A batch that was answered, after the first of its requests had waited."""
        self.sizes.add(requests)
        self.stages["queue"].add(waited)
        self.stages["rank"].add(seconds)

    def state(self) -> dict[str, Any]:
        """Everything as JSON values, to be added up by `total`."""
        return {
            "counters": {name: [[*key, n] for key, n in counter.items()] for name, counter in self.counters.items()},
            "histograms": {name: [*histogram.counts, histogram.sum] for name, histogram in self._histograms().items()},
            "reference": self.drift.reference,
            "gauges": self.gauges,
            "info": self.info,
        }

    @classmethod
    def total(cls, states: Iterable[Mapping[str, Any]]) -> "ServiceMetrics":
        """The metrics of several processes, added up; bundle and meanings of gauges are the first one's.

        What another bundle was asked, while processes take a new one, is left out.
        """
        total = cls()
        for index, state in enumerate(states):
            if not index:
                total.drift, total.info = DriftMetrics(state["reference"]), dict(state["info"])
            same_bundle = state["info"] == total.info
            for name, rows in state["counters"].items():
                for *key, n in rows:
                    total.counters[name][tuple(key)] += n
            for name, (*counts, summed) in state["histograms"].items():
                if name in total.drift.histograms and not same_bundle:
                    continue
                histogram = total._histograms()[name]
                histogram.counts = [a + b for a, b in zip(histogram.counts, counts, strict=True)]
                histogram.sum += summed
            for name, (value, meaning) in state["gauges"].items():
                total.gauges[name] = (total.gauges.get(name, (0.0, ""))[0] + value, meaning)
        return total

    def text(self) -> str:
        """The answer to GET /metrics."""
        lines = []
        for attribute, (name, meaning, labels) in _COUNTERS.items():
            lines += header(name, meaning, "counter")
            for key, n in sorted(self.counters[attribute].items()):
                pairs = ",".join(f'{label}="{value}"' for label, value in zip(labels, key, strict=True))
                lines.append(f"{name}{{{pairs}}} {n}")
        lines += header("keyart_rank_seconds", "From the head of POST /rank to the end of its answer.", "histogram")
        lines += self.seconds.lines("keyart_rank_seconds")
        lines += header("keyart_stage_seconds", "Of that, by stage: read, queue, rank (by batch), write.", "histogram")
        for stage, histogram in self.stages.items():
            lines += histogram.lines("keyart_stage_seconds", f'stage="{stage}"')
        lines += header("keyart_batch_requests", "Requests answered in one batch.", "histogram")
        lines += self.sizes.lines("keyart_batch_requests")
        lines += self.drift.lines()
        for name, (value, meaning) in self.gauges.items():
            lines += [*header(name, meaning, "gauge"), f"{name} {value:g}"]
        pairs = ",".join(f'{label}="{value}"' for label, value in self.info.items())
        lines += [
            *header("keyart_bundle_info", "The bundle that is served.", "gauge"),
            f"keyart_bundle_info{{{pairs}}} 1",
        ]
        return "\n".join([*lines, ""])

    def _histograms(self) -> dict[str, Histogram]:
        return {"seconds": self.seconds, "sizes": self.sizes} | self.stages | self.drift.histograms
