"""A histogram in Prometheus' text format 0.0.4."""

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """Cumulative counts of values by upper bound, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """One value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: str = "") -> list[str]:
        """The lines of the text format; `labels`: such as `stage="read"`."""
        lines, below, comma = [], 0, "," if labels else ""
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            below += count
            lines.append(f'{name}_bucket{{{labels}{comma}le="{bound}"}} {below}')
        label = f"{{{labels}}}" if labels else ""
        return [*lines, f"{name}_sum{label} {self.sum:.9g}", f"{name}_count{label} {below}"]


def header(name: str, meaning: str, kind: str) -> list[str]:
    """The lines before a metric."""
    return [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
