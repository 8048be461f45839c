"""Drift: counts of a log or of a service against the reference histograms of a bundle, by the population stability index.

The index, PSI = sum over bins of (q - p) ln(q / p) for shares p of the reference and q of the log, is read by the usual rule: .1 is
a moderate change, .25 a large one. In a small log noise alone exceeds that, so that the limit is raised to what noise exceeds
rarely: without drift PSI is about chi-square with bins - 1 degrees of freedom, times 1 / n + 1 / m for n and m independent values
(B. Yurdakul and J. Naranjo, "Statistical properties of the population stability index", 2020); both numbers are divided by the
design effects of members. Nothing here reads a file.

Legend: B bins.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from serving.scoring.drift_counts import Counted

MODERATE, LARGE = 0.1, 0.25
"""PSI from which on a change is moderate, and large."""
FALSE_ALARMS = 0.02
"""Share of logs without drift, by theory, in which noise exceeds the limit of any histogram; `tests/test_drift.py` holds alarms in
random parts of one period's members to .05."""
LEAST_IN_A_BIN, LEAST_VALUES = 5, 20
"""Independent values that a bin has, at least, in both: smaller ones are joined with the next; and values to judge by."""
MAX_MOVED = 3
LEAST = {"history_length": 0, "chosen_rank": 1}
"""The smallest values of whole numbers."""

Verdict = Literal["steady", "moderate", "large", "too few", "not logged"]
DRIFTED: tuple[Verdict, ...] = ("moderate", "large")


@dataclass(frozen=True, kw_only=True)
class Move:
    """A bin whose share changed: values above `low` (None: all below) up to `high` (None: all above), and both shares."""

    low: float | None
    high: float | None
    share: float
    reference: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A histogram against the reference; `psi` and `limit` are None where there is too little to compare."""

    name: str
    verdict: Verdict
    values: int
    psi: float | None = None
    limit: float | None = None
    """The PSI that is called drift: the larger of MODERATE and of what noise exceeds rarely."""
    moved: tuple[Move, ...] = ()
    """Where it drifted: the bins whose shares changed most, largest change first."""

    @property
    def drifted(self) -> bool:
        """Whether it changed by more than noise and by more than is usual."""
        return self.verdict in DRIFTED

    def words(self) -> str:
        """What moved, such as `history_length: 61% in 33 .. 64 (reference 12%)`; empty where nothing did."""
        return f"{self.name}: {'; '.join(_words(self.name, move) for move in self.moved)}" if self.moved else ""


def compare(
    bounds: Mapping[str, Sequence[float]], reference: Mapping[str, Counted], log: Mapping[str, Counted]
) -> list[Comparison]:
    """Compare every histogram of `log` with the one of the reference of that name; without drift, any of them is said to drift
    in about a share FALSE_ALARMS of logs, or fewer."""
    of_one = FALSE_ALARMS / max(1, len(log))
    return [_compared(name, bounds[name], reference[name], counted, of_one) for name, counted in log.items()]


def names_of_drift(comparisons: Iterable[Comparison]) -> list[str]:
    """The names of the histograms that drifted."""
    return [comparison.name for comparison in comparisons if comparison.drifted]


def psi(reference_B: np.ndarray, log_B: np.ndarray) -> np.ndarray:
    """What each bin adds to the population stability index, (B,); half a value is added to every bin, so that none is empty."""
    p_B, q_B = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (reference_B, log_B))
    return (q_B - p_B) * np.log(q_B / p_B)


def _noise(reference: Counted, log: Counted, freedom: int, probability: float) -> float:
    """The quantile of PSI without drift, by the second-order correction of Rao and Scott: fewer degrees of freedom where members
    move some bins more than others. Of the two covariances' sum, the spread is at most the one taken here."""
    mean = 1 / log.effective + 1 / reference.effective
    root = (1 + log.effect_spread) ** 0.5 / log.effective + (1 + reference.effect_spread) ** 0.5 / reference.effective
    inflation = min((root / mean) ** 2, freedom)
    return mean * inflation * chi_square_quantile(probability, freedom / inflation)


def chi_square_quantile(probability: float, freedom: float) -> float:
    """The quantile, by the approximation of E. B. Wilson and M. M. Hilferty, "The distribution of chi-square", 1931: within 1 %
    from a probability of .9 on."""
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + NormalDist().inv_cdf(probability) * spread**0.5) ** 3


def _compared(name: str, bounds: Sequence[float], reference: Counted, log: Counted, false_alarms: float) -> Comparison:
    if not log.total or not reference.total:
        return Comparison(name=name, verdict="not logged", values=log.total)
    fewest = min(log.effective, reference.effective)
    if fewest < LEAST_VALUES:
        return Comparison(name=name, verdict="too few", values=log.total)
    starts = _joined((log.counts / log.total + reference.counts / reference.total) / 2 * fewest)
    reference_B, log_B = (np.add.reduceat(counted.counts, starts) for counted in (reference, log))
    index, limit = float(psi(reference_B, log_B).sum()), MODERATE
    if len(starts) > 1:
        limit = max(limit, _noise(reference, log, len(starts) - 1, 1 - false_alarms))
    if index <= limit:
        return Comparison(name=name, verdict="steady", values=log.total, psi=index, limit=limit)
    lows = [None if start == 0 else float(bounds[start - 1]) for start in starts]
    highs = [*lows[1:], None]
    change_B = log_B / log.total - reference_B / reference.total
    moved = [
        Move(
            low=lows[part],
            high=highs[part],
            share=float(log_B[part] / log.total),
            reference=float(reference_B[part] / reference.total),
        )
        for part in sorted(range(len(starts)), key=lambda part: (-abs(change_B[part]), -change_B[part]))[:MAX_MOVED]
        if change_B[part]
    ]
    verdict: Verdict = "large" if index > LARGE else "moderate"
    return Comparison(name=name, verdict=verdict, values=log.total, psi=index, limit=limit, moved=tuple(moved))


def _joined(expected_B: np.ndarray) -> list[int]:
    """First bins of runs of bins that have LEAST_IN_A_BIN values each; what is left at the end joins the last run."""
    starts, begin, sums = [], 0, 0.0
    for index, values in enumerate(expected_B.tolist()):
        sums += values
        if sums >= LEAST_IN_A_BIN:
            starts.append(begin)
            begin, sums = index + 1, 0.0
    return starts or [0]


def _words(name: str, move: Move) -> str:
    shares = f"{move.share:.0%} {{}} (reference {move.reference:.0%})"
    if name.startswith("unknown_"):
        return shares.format("known" if move.low is None else "unknown")
    low = move.low
    if name in LEAST:
        low = LEAST[name] if low is None else low + 1
        if low == move.high:
            return shares.format(f"at {low:g}")
    if move.high is None:
        return shares.format(
            "everywhere" if move.low is None else f"from {low:g}" if name in LEAST else f"above {low:g}"
        )
    return shares.format(f"up to {move.high:g}" if low is None else f"in {low:g} .. {move.high:g}")
