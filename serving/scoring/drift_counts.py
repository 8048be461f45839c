"""Histograms of requests and choices: a sample of impressions of shards, ranked by a bundle and counted by `BOUNDS`.

Impressions of one member resemble each other, so that a log of few members says less than its number of impressions: counts come
with design effects, by which their number is divided.

Legend: N impressions, K candidates (padded), T plays (padded), M members, B bins.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from datamodules.shards.shard import Shard
from serving.bundle.bundle import Bundle
from serving.bundle.metadata import ReferenceHistogram
from serving.bundle.reference import BOUNDS
from serving.scoring.scorer import shard_requests

MAX_IMPRESSIONS, SEED = 20_000, 0
"""Number of impressions that are ranked and counted, at most, and the seed of their choice."""


@dataclass(frozen=True, eq=False)
class Counted:
    """Counts of values by bin, int64 (B,), and how values of one member resemble each other."""

    counts: np.ndarray
    design_effect: float = 1.0
    """Factor of the variance of shares against that of independent values, the mean over bins; 1 or more."""
    effect_spread: float = 0.0
    """Squared coefficient of variation of that factor over combinations of bins; 0 or more."""

    @property
    def total(self) -> int:
        """The number of values."""
        return int(self.counts.sum())

    @property
    def effective(self) -> float:
        """How many independent values say as much."""
        return self.total / self.design_effect

    @classmethod
    def of_reference(cls, histogram: ReferenceHistogram) -> "Counted":
        """The counts of a bundle's record."""
        counts = np.array(histogram["counts"], np.int64)
        return cls(counts, histogram["design_effect"], histogram["effect_spread"])

    @classmethod
    def of_members(cls, counts_MB: np.ndarray) -> "Counted":
        """Counts by member, summed.

        The generalised design effects are the eigenvalues of the covariance of shares relative to that of independent values:
        J. N. K. Rao and A. J. Scott, "On chi-squared tests for multiway contingency tables with cell proportions estimated from
        survey data", 1984.
        """
        counts_MB = counts_MB[counts_MB.any(1)]
        counts = counts_MB.sum(0)
        members, total = len(counts_MB), counts.sum()
        used = counts > 0
        if used.sum() < 2 or members < 2:
            return cls(counts, max(1.0, float(total) / max(1, members)))
        share_B = counts[used] / total
        residual_MB = (counts_MB[:, used] - counts_MB.sum(1, keepdims=True) * share_B) / np.sqrt(total * share_B)
        effects_BB = members / (members - 1) * residual_MB.T @ residual_MB
        mean = float(np.trace(effects_BB)) / (len(share_B) - 1)
        squares = float((effects_BB**2).sum()) / (len(share_B) - 1)
        return cls(counts, max(1.0, mean), max(0.0, squares / mean**2 - 1) if mean > 0 else 0.0)


@dataclass(frozen=True, eq=False)
class Observations:
    """Counts of bins by impression, int64 (N, B) by name of `BOUNDS`, and each impression's member, int64 (N,)."""

    member: np.ndarray
    bins: Mapping[str, np.ndarray]

    @property
    def impressions(self) -> int:
        """N."""
        return len(self.member)

    def counted(self) -> dict[str, Counted]:
        """The sums, by name."""
        members, index_N = np.unique(self.member, return_inverse=True)
        counted = {}
        for name, bins_NB in self.bins.items():
            counts_MB = np.zeros((len(members), bins_NB.shape[1]), np.int64)
            np.add.at(counts_MB, index_N, bins_NB)
            counted[name] = Counted.of_members(counts_MB)
        return counted

    def at(self, rows: np.ndarray) -> "Observations":
        """Those of some impressions: a mask, or rows."""
        return Observations(self.member[rows], {name: bins_NB[rows] for name, bins_NB in self.bins.items()})


def sampled(rows: Sequence[np.ndarray], most: int = MAX_IMPRESSIONS, seed: int = SEED) -> list[np.ndarray]:
    """At most `most` of the rows of several shards, drawn without replacement by their positions in all, in order."""
    lengths = [len(some) for some in rows]
    kept = np.zeros(sum(lengths), bool)
    kept[np.random.default_rng(seed).permutation(len(kept))[:most]] = True
    return [some[kept_here] for some, kept_here in zip(rows, np.split(kept, np.cumsum(lengths)[:-1]), strict=True)]


def observe(bundle: Bundle, shards: Sequence[Shard], rows: Sequence[np.ndarray]) -> Observations:
    """Rank and count some impressions: `rows` in each shard, whose ids are rows of the bundle's vocabularies."""
    members: list[np.ndarray] = [np.zeros(0, np.int64)]
    parts: dict[str, list[np.ndarray]] = {name: [np.zeros((0, len(BOUNDS[name]) + 1), np.int64)] for name in BOUNDS}
    before = 0
    for shard, indices in zip(shards, rows, strict=True):
        members.append(before + np.searchsorted(shard.member_impressions, indices, side="right") - 1)
        before += len(shard.member_impressions) - 1
        for bins in _observed(bundle, shard, indices):
            for name, bins_NB in bins.items():
                parts[name].append(bins_NB)
        shard.release()
    return Observations(np.concatenate(members), {name: np.concatenate(some) for name, some in parts.items()})


def _observed(bundle: Bundle, shard: Shard, indices: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """Bins (N, B) by name, for some impressions after the others."""
    begin = 0
    for request, mask_NK in shard_requests(shard, bundle.request_lengths, indices):
        here = indices[begin : begin + len(mask_NK)]
        begin += len(mask_NK)
        click_NK = np.where(mask_NK, bundle.rank(request, ["click_probability"])["click_probability"], -np.inf)
        title_NT = request["history_title"]
        played_NT = np.arange(title_NT.shape[1]) < request["history_length"][:, None]
        values = {
            "click_probability": click_NK.max(1),
            "history_length": request["history_length"],
            "chosen_rank": _ranks(click_NK, shard.shown[here].astype(np.int64)),
            "propensity": shard.propensity[here],
        }
        ids = {
            "unknown_titles": (shard.title[here, None] == 0, np.ones((len(here), 1), bool)),
            "unknown_artworks": (request["artworks"] == 0, mask_NK),
            "unknown_plays": (title_NT == 0, played_NT),
        }
        yield {name: _bins(values_N, BOUNDS[name]) for name, values_N in values.items()} | {
            name: np.stack([(~unknown & given).sum(1), (unknown & given).sum(1)], 1)
            for name, (unknown, given) in ids.items()
        }


def _ranks(click_NK: np.ndarray, shown_N: np.ndarray) -> np.ndarray:
    """The rank of the shown candidate, from 1, (N,): the first of equal ones is before the others."""
    shown_N1 = shown_N[:, None]
    of_shown_N1 = np.take_along_axis(click_NK, shown_N1, 1)
    earlier_NK = np.arange(click_NK.shape[1]) < shown_N1
    return 1 + ((click_NK > of_shown_N1) | ((click_NK == of_shown_N1) & earlier_NK)).sum(1)


def _bins(values_N: np.ndarray, bounds: Sequence[float]) -> np.ndarray:
    """One-hot bins, int64 (N, B); all zero for a value that is not known (NaN)."""
    bins_NB = np.zeros((len(values_N), len(bounds) + 1), np.int64)
    known_N = np.flatnonzero(~np.isnan(values_N))
    bins_NB[known_N, np.searchsorted(bounds, values_N[known_N].astype(np.float64), side="left")] = 1
    return bins_NB
