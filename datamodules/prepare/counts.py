"""Counts of a preparation: rows in and out and why, members, histories, unknowns, splits.

In: every shard as it is made. Out: the counts of the manifest, and the table a user sees at the end.
"""

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as TextTable

from datamodules.shards.shard import SPLITS, Shard
from datamodules.shards.vocabulary import Vocabularies
from foundation.choice import equal_within_rounding

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.99, 1.0)
UNKNOWNS = {
    "play_title": "plays of a title that the training period does not know",
    "title": "impressions of a title that the training period does not know",
    "candidate": "candidates that the training period does not know",
}
UNKNOWN_CONTEXT = "impressions whose {} is not known"


class ShardCounts:
    """Sums over shards."""

    def __init__(self, vocabularies: Vocabularies) -> None:
        """`vocabularies`: those of the training period."""
        self.vocabularies = vocabularies
        self.splits = np.zeros((len(SPLITS), 4), np.int64)
        """By split: impressions, clicks, randomised, of one candidate."""
        self.plays = self.rated = self.members = self.candidates = 0
        self.lengths = np.zeros(1, np.int64)
        """Number of impressions by length of the history."""
        self.unknown: dict[str, int] = dict.fromkeys(UNKNOWNS, 0)

    def add(self, shard: Shard) -> None:
        """Add a shard's counts."""
        single_candidate = np.diff(shard.candidate_start) == 1
        for column, which in enumerate((None, shard.clicked > 0, randomised(shard), single_candidate)):
            rows = shard.split if which is None else shard.split[which]
            self.splits[:, column] += np.bincount(rows, minlength=len(SPLITS))
        self.plays += len(shard.play_title)
        self.rated += int((~np.isnan(shard.play_rating)).sum())
        self.members += len(shard.member_plays) - 1
        self.candidates += len(shard.candidate)
        lengths = np.bincount(shard.history_end - shard.history_start)
        if len(lengths) > len(self.lengths):
            self.lengths = np.pad(self.lengths, (0, len(lengths) - len(self.lengths)))
        self.lengths[: len(lengths)] += lengths
        for column, name in (("play_title", "titles"), ("title", "titles"), ("candidate", "artworks")):
            rows = getattr(shard, column)
            self.unknown[column] += int(((rows == 0) | (rows > self.vocabularies[name].trained)).sum())
        for feature in shard.features:
            if not feature.from_time:
                values = shard.context[feature.name]
                unknown = np.isnan(values) if feature.kind == "number" else values == feature.unknown
                self.unknown[feature.name] = self.unknown.get(feature.name, 0) + int(unknown.sum())

    def manifest(self) -> dict[str, Any]:
        """The counts as JSON values."""
        impressions = int(self.splits[:, 0].sum())
        # a quantile is a value that occurs: the first whose cumulative number of impressions reaches it
        reached = np.cumsum(self.lengths)
        ranks = [max(1, int(np.ceil(q * impressions))) for q in QUANTILES]
        quantiles = np.searchsorted(reached, ranks).tolist() if impressions else [0] * len(QUANTILES)
        return {
            "impressions": impressions,
            "plays": self.plays,
            "rated": self.rated,
            "members": self.members,
            "candidates": self.candidates,
            "one_candidate": int(self.splits[:, 3].sum()),
            "share_randomised": int(self.splits[:, 2].sum()) / max(1, impressions),
            "history_length_quantiles": {f"{q:g}": n for q, n in zip(QUANTILES, quantiles, strict=True)},
            "unknown": self.unknown,
            "splits": {
                name: {
                    "impressions": int(rows[0]),
                    "clicks": int(rows[1]),
                    "clicks_per_1000": round(1000 * int(rows[1]) / max(1, int(rows[0])), 3),
                    "randomised": int(rows[2]),
                }
                for name, rows in zip(SPLITS, self.splits, strict=True)
            },
        }


def randomised(shard: Shard) -> np.ndarray:
    """bool (N,): impressions whose candidates were all equally likely, from which other policies can be evaluated."""
    width = np.diff(shard.candidate_start)
    even = (width > 1) & equal_within_rounding(shard.propensity * width, 1.0)
    if not len(even):
        return even
    # and no candidate's propensity differs from the shown one's; where only that one was logged, it is all that is known
    alike = equal_within_rounding(shard.candidate_propensity, np.repeat(shard.propensity, width))
    differs = ~alike & ~np.isnan(shard.candidate_propensity)
    return even & (np.add.reduceat(differs, shard.candidate_start[:-1], dtype=np.int32) == 0)


def print_counts(manifest: dict[str, Any], console: Console) -> None:
    """Three small tables: rows in and out, splits, members and unknowns."""
    rows = TextTable(title="rows", title_justify="left")
    for heading in ("table", "in", "dropped", "left out", "out"):
        rows.add_column(heading, justify="left" if heading == "table" else "right")
    reasons = []
    for name, counts in manifest["rows"].items():
        dropped = sum(counts["dropped"].values())
        rows.add_row(name, *(f"{n:,}" for n in (counts["in"], dropped, counts["left_out"], counts["out"])))
        reasons += [f"dropped of {name}: {count:,} by {rule}" for rule, count in counts["dropped"].items()]
        reasons += [f"made null in {name}: {count:,} by {rule}" for rule, count in counts["made_null"].items()]
    console.print(rows)
    for reason in reasons:
        console.print(reason)

    splits = TextTable(title="splits", title_justify="left")
    for heading in ("split", "from", "impressions", "clicks per 1,000", "explored"):
        splits.add_column(heading, justify="left" if heading in ("split", "from") else "right")
    begins = ("", manifest["validation_from"], manifest["test_from"])
    for (name, split), begin in zip(manifest["splits"].items(), begins, strict=True):
        share = split["randomised"] / max(1, split["impressions"])
        count, rate = f"{split['impressions']:,}", f"{split['clicks_per_1000']:.1f}"
        splits.add_row(name, begin[:19].replace("T", " "), count, rate, f"{share:.1%}")
    console.print(splits)

    lines = [f"{manifest['members']:,} members in {manifest['shards']:,} {_plural('shard', manifest['shards'])}"]
    lengths = ", ".join(f"{n:,} at {float(q):.0%}" for q, n in manifest["history_length_quantiles"].items())
    lines.append(f"plays before an impression: {lengths}")
    if scale := manifest["rating_scale"]:
        lines.append(
            f"rated plays: {manifest['rated']:,}, on a scale from {scale['low']:g} to {scale['high']:g} whose mean in the training "
            f"period is {scale['mean']:.3g}"
        )
    single_candidate = manifest["one_candidate"]
    lines.append(
        f"impressions with one candidate: {single_candidate:,}; they teach clicks and say nothing about policies"
    )
    lines += [
        f"{UNKNOWNS.get(name) or UNKNOWN_CONTEXT.format(name)}: {count:,}"
        for name, count in manifest["unknown"].items()
        if count or name in UNKNOWNS
    ]
    for line in lines:
        console.print(line, soft_wrap=True)


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def summary(manifest: dict[str, Any]) -> str:
    """The counts in one line."""
    splits = ", ".join(f"{split['impressions']:,} {name}" for name, split in manifest["splits"].items())
    return (
        f"{manifest['impressions']:,} impressions ({splits}), {manifest['plays']:,} plays, "
        f"{manifest['members']:,} members, {manifest['share_randomised']:.0%} explored"
    )
