"""Metrics of the service, in Prometheus' text format 0.0.4."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Histogram:
    """Cumulative counts of values by upper bound, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """One value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, help_: str) -> list[str]:
        """The lines of the text format."""
        lines, below = [f"# HELP {name} {help_}", f"# TYPE {name} histogram"], 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            below += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {below}')
        return [*lines, f"{name}_sum {self.sum:.9g}", f"{name}_count {below}"]


class ServiceMetrics:
    """Metrics of one process, since it started."""

    def __init__(self) -> None:
        self.responses: Counter[tuple[str, int]] = Counter()
        self.seconds, self.sizes = Histogram(SECONDS), Histogram(SIZES)

    def text(self, waiting: int) -> str:
        """The answer to GET /metrics; `waiting`: requests in the queue now."""
        lines = [
            "# HELP keyart_http_requests_total Requests answered, by path and status.",
            "# TYPE keyart_http_requests_total counter",
        ]
        lines += [
            f'keyart_http_requests_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self.responses.items())
        ]
        lines += self.seconds.lines("keyart_rank_seconds", "From the head of POST /rank to the end of its answer.")
        lines += self.sizes.lines("keyart_batch_requests", "Requests answered in one batch.")
        lines += ["# HELP keyart_waiting_requests Requests in the queue.", "# TYPE keyart_waiting_requests gauge"]
        return "\n".join([*lines, f"keyart_waiting_requests {waiting}", ""])
