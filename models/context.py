"""What context features add to a term: the sum of one table row per feature.

A category has a row by value, an hour and a position one by number, row 0 where not known. A number is standardised by the
training period; what it adds is learned at `KNOTS` and linear between them, so that it may rise, fall or bend.

Legend: N impressions, D width of what is added, R rows of a table.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from foundation.context import HOURS, KNOTS, MAX_POSITION, ContextFeature, Term
from models.layers import table
from models.types import Sizes

Context = Mapping[str, Tensor]
"""By context feature, (N,): int64, of a number float32, NaN where not known; and `play_count`, int64 (N,)."""


class TableLookup(NamedTuple):
    """Rows of a feature's table, (N,) int64, and for numbers the share of the second of two rows, (N,) float32."""

    rows: Tensor
    rows_above: Tensor | None = None
    share_above: Tensor | None = None


def lookup(feature: ContextFeature, context: Context, categories: Mapping[str, int]) -> TableLookup:
    """The rows of a feature's values in its table; `categories`: rows of every category, by name."""
    value_N = context[feature.name]
    if feature.kind == "category":
        return TableLookup(value_N)
    if feature.kind == "hour":
        # a request over rows may hold any number; another one would be a row of another table where tables are stacked
        return TableLookup(value_N.clamp(-1, HOURS - 1) + 1)
    if feature.kind == "position":
        row_N = value_N.clamp(-1, MAX_POSITION) + 1
        crossed = feature.crossed_with
        return TableLookup(row_N * categories[crossed] + context[crossed] if crossed else row_N)
    z_N = (value_N - float(feature.mean or 0.0)) / float(feature.std or 1.0)
    known_N = ~torch.isnan(z_N)
    # row 1 is the first knot; knots lie 1 apart
    at_N = torch.where(known_N, z_N, 0.0).clamp(KNOTS[0], KNOTS[-1]) - KNOTS[0]
    below_N = at_N.clamp(max=len(KNOTS) - 1.001).long()
    rows_N = torch.where(known_N, below_N + 1, 0)
    return TableLookup(rows_N, torch.where(known_N, rows_N + 1, 0), at_N - below_N)


class ContextSum(nn.Module):
    """The sum of the table rows of all features that one term reads, (N, D)."""

    def __init__(self, sizes: Sizes, term: Term, width: int, std: float) -> None:
        """`std`: standard deviation of the tables' initial weights."""
        super().__init__()
        self.features = tuple(feature for feature in sizes.context if term in feature.read_by)
        self.categories, self.width = sizes.categories, width
        self.tables = nn.ModuleDict(
            # no feature's bare name: some, such as "type", are attributes of every module
            {f"{feature.name}_rows": table(feature.rows(sizes.categories), width, std) for feature in self.features}
        )

    def forward(self, context: Context) -> Tensor:
        """(N, D)"""
        total_ND = torch.zeros_like(context["play_count"], dtype=torch.float32).unsqueeze(-1)  # also of no feature
        for feature in self.features:
            rows, above, share = lookup(feature, context, self.categories)
            added_ND = self.weights(feature)(rows)
            if above is not None and share is not None:
                added_ND = torch.lerp(added_ND, self.weights(feature)(above), share.unsqueeze(-1))
            total_ND = total_ND + added_ND
        return total_ND

    def weights(self, feature: ContextFeature) -> nn.Embedding:
        """A feature's table."""
        embedding = self.tables[f"{feature.name}_rows"]
        assert isinstance(embedding, nn.Embedding)
        return embedding


def zero_context(features: Iterable[ContextFeature], rows: int) -> dict[str, Tensor]:
    """The context of impressions that are alike: category 0, number 0, hour 0, position 0, no play; each (N,)."""
    zeros = {f.name: torch.zeros(rows, dtype=getattr(torch, f.dtype)) for f in features}
    return zeros | {"play_count": torch.zeros(rows, dtype=torch.int64)}
