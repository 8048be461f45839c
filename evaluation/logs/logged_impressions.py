"""Logged impressions as arrays: shown artwork, candidates, propensities and outcome.

In: a dataset's `impressions/`. Out: its columns as arrays, checked while reading; `Outcomes`, where no scores are needed.

Legend: N impressions, K candidates (padded).
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamodules.contract.tables import IMPRESSIONS
from evaluation.logs.columns import (
    first_id,
    flatten_lists,
    integer_code_lists,
    integer_codes,
    list_lengths,
    read_columns,
    to_array,
)
from foundation.choice import equal_within_rounding
from foundation.errors import UserError
from foundation.lists import Lists
from foundation.shell import shell_word

REQUIRED_COLUMNS = ("impression_id", "member_id", "title_id", "artwork_id", "candidates", "shown_at", "clicked")
OPTIONAL_COLUMNS = ("propensities", "propensity", "policy", "engaged", "minutes")
UNNAMED_POLICY = "unnamed"
"""The name of a logging policy without one."""


def read_impressions(dataset: Path, *, since: datetime | None = None, before: datetime | None = None) -> pa.Table:
    """Read the impressions shown in since .. before, ordered by id; optional columns that the log lacks are absent."""
    # a log of one policy need not name it
    columns = [
        replace(c, required=c.name in REQUIRED_COLUMNS)
        for c in IMPRESSIONS.columns
        if c.name in REQUIRED_COLUMNS + OPTIONAL_COLUMNS
    ]
    source, remedy = dataset / IMPRESSIONS.name, f"Run keyart check {shell_word(dataset)}."
    table = read_columns(source, IMPRESSIONS.files(dataset), columns, remedy=remedy, since=since, before=before)
    return table.sort_by("impression_id").combine_chunks()


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Shown artworks and their outcomes, without scores; arrays (N,)."""

    artworks: pa.Array
    """string: every artwork that was a candidate."""
    artwork: NDArray[np.integer]
    """Index of the shown artwork in `artworks`."""
    title: NDArray[np.integer]
    """Titles as integers; numbered otherwise than in a `ScoredLog`."""
    member: NDArray[np.integer]
    """Members as integers; numbered otherwise than in a `ScoredLog`."""
    width: NDArray[np.integer]
    """Number of candidates."""
    propensity: NDArray[np.floating]
    """Propensity of the shown artwork."""
    clicked: NDArray[np.floating]
    """1 or 0."""
    engaged: NDArray[np.floating] | None
    """1 or 0; None where the log does not say for every click whether it led to a real viewing."""
    minutes: NDArray[np.floating] | None = None
    """Minutes played after a click, 0 without one; None where the log does not say for every click."""
    shown_at: NDArray[np.int64]
    """Microseconds since 1970, UTC."""

    def shown_before(self, moment: datetime) -> "Outcomes | None":
        """Outcomes before a moment, with the artworks that were candidates before it; None if there were no impressions."""
        keep = self.shown_at < int(moment.timestamp() * 1e6)
        if not keep.any():
            return None
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: v[keep] for name, v in arrays.items() if isinstance(v, np.ndarray)})


def read_outcomes(dataset: Path, before: datetime | None = None) -> Outcomes | None:
    """Read all outcomes, or those before a moment; None if there were no impressions."""
    log = read_impressions(dataset, before=before)
    if not len(log):
        return None
    names, artwork_NK, shown = candidates_of(log, dataset)
    propensity, _ = propensities_of(log, shown, artwork_NK, dataset)
    return Outcomes(
        artworks=names,
        artwork=artwork_NK[np.arange(len(shown)), shown],
        title=integer_codes(log["title_id"], None),
        member=integer_codes(log["member_id"], None),
        width=artwork_NK.width_N,
        propensity=propensity,
        clicked=to_float(log["clicked"]),
        engaged=engaged_of(log),
        minutes=minutes_of(log, dataset),
        shown_at=shown_at_of(log),
    )


def shown_at_of(log: pa.Table) -> NDArray[np.int64]:
    """Time of each impression, (N,), microseconds since 1970, UTC."""
    return np.asarray(to_array(log["shown_at"].cast(pa.timestamp("us", "UTC"), safe=False)).cast(pa.int64()))


def to_float(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A column of booleans as 1.0 or 0.0, (N,)."""
    return np.asarray(to_array(column).cast(pa.uint8()), np.float64)


def engaged_of(log: pa.Table) -> NDArray[np.float64] | None:
    """Whether each impression was engaged, 1 or 0, (N,): null without a click means 0; None if it is null after any click."""
    if "engaged" not in log.column_names or pc.any(pc.and_(log["clicked"], log["engaged"].is_null())).as_py():
        return None
    return to_float(pc.fill_null(log["engaged"], False))


def minutes_of(log: pa.Table, dataset: Path) -> NDArray[np.float64] | None:
    """Minutes played after each impression's click, (N,): 0 without a click; None if they are not known after any click.

    UserError for minutes below 0, infinite, or without a click.
    """
    if "minutes" not in log.column_names:
        return None
    minutes_N = np.asarray(to_array(log["minutes"]).cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)
    clicked_N = to_float(log["clicked"]) > 0
    wrong_N = (minutes_N < 0) | np.isinf(minutes_N) | (~clicked_N & (minutes_N > 0))
    if wrong_N.any():
        raise UserError(
            f"{dataset}/impressions: {wrong_N.sum()} rows whose minutes are below 0, infinite or without a click (first: "
            f"{first_id(log['impression_id'], wrong_N)}). Run keyart check {shell_word(dataset)}."
        )
    if np.isnan(minutes_N[clicked_N]).any():
        return None
    return np.where(clicked_N, minutes_N, 0.0)


def candidates_of(log: pa.Table, dataset: Path) -> tuple[pa.Array, Lists, NDArray]:
    """Ids of artworks, candidates as indices into them, (N, K), and the index of the shown candidate (N,)."""
    names = pc.unique(flatten_lists(log["candidates"]))
    artwork_NK = integer_code_lists(log["candidates"], names)
    own_N = integer_codes(log["artwork_id"], names)
    shown_N = artwork_NK.first(artwork_NK.values_C == np.repeat(own_N, artwork_NK.width_N))
    strange = shown_N < 0
    if strange.any():
        raise UserError(
            f"{dataset}/impressions: {strange.sum()} rows whose shown artwork is not among the candidates "
            f"(first: {first_id(log['impression_id'], strange)}). Run keyart check {shell_word(dataset)}."
        )
    return names, artwork_NK, shown_N


def policy_of(log: pa.Table) -> pa.ChunkedArray:
    """The name of the policy that logged each impression."""
    if "policy" not in log.column_names:
        return pa.chunked_array([pa.repeat(pa.scalar(UNNAMED_POLICY), len(log))])
    return pc.fill_null(log["policy"], UNNAMED_POLICY)


def propensities_of(log: pa.Table, shown: NDArray, artwork_NK: Lists, dataset: Path) -> tuple[NDArray, Lists]:
    """Propensity of the shown artwork (N,), and of every candidate (N, K), NaN where only the shown one's was logged."""
    propensity_NK = artwork_NK.like(np.full(len(artwork_NK.values_C), np.nan))
    propensity = np.full(len(shown), np.nan)
    if "propensities" in log.column_names:
        lists = log["propensities"]
        logged = np.asarray(lists.is_valid())
        odd = logged & (list_lengths(lists) != artwork_NK.width_N)
        if odd.any():
            raise UserError(
                f"{dataset}/impressions: {odd.sum()} rows with another number of propensities than candidates "
                f"(first: {first_id(log['impression_id'], odd)}). Run keyart check {shell_word(dataset)}."
            )
        logged_C = np.repeat(logged, artwork_NK.width_N)
        propensity_NK.values_C[logged_C] = flatten_lists(lists).to_numpy(zero_copy_only=False)
        total = propensity_NK.sums()
        # a list with nulls or NaN sums to NaN; negative values are invalid, whatever the sum
        wrong = logged & (
            ~equal_within_rounding(total, 1.0) | artwork_NK.like(propensity_NK.values_C < 0).reduce(np.logical_or)
        )
        if wrong.any():
            raise UserError(
                f"{dataset}/impressions: {wrong.sum()} rows whose propensities are not probabilities that sum to 1 (first: "
                f"{first_id(log['impression_id'], wrong)}, sum {total[wrong][0]:.3g}). Run keyart check {shell_word(dataset)}."
            )
        propensity = propensity_NK[np.arange(len(shown)), shown]
    if "propensity" in log.column_names:
        logged_alone = np.asarray(to_array(pc.fill_null(log["propensity"], np.nan)), np.float64)
        propensity = np.where(np.isnan(propensity), logged_alone, propensity)
    bad = ~(propensity > 0)
    if bad.any():
        raise UserError(
            f"{dataset}/impressions: {bad.sum()} rows without a propensity above 0 for the shown artwork "
            f"(first: {first_id(log['impression_id'], bad)}). Run keyart check {shell_word(dataset)}."
        )
    return propensity, propensity_NK
