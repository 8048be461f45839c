"""A log beside somebody's scores of it, as arrays: impressions and scores joined, candidates aligned.

In: a dataset's `impressions/` (and `truth/`, where it is simulated) and a scores table. Out: a `ScoredLog`.

Legend: N impressions, K candidates (padded).
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import NDArray

from datamodules.contract import IMPRESSIONS, UserError

OPTIONAL = ("propensities", "propensity", "engaged")


@dataclass(frozen=True, kw_only=True)
class ScoredLog:
    """Impressions of a period with what was logged and what somebody's scores say of them."""

    impression_id: pa.Array
    """string (N,)."""
    member: NDArray[np.integer]
    """(N,): members as integers."""
    title: NDArray[np.integer]
    """(N,): titles as integers."""
    artworks: pa.Array
    """string: every artwork that was a candidate."""
    artwork_NK: NDArray[np.integer]
    """Candidates as places in `artworks`, -1 where there are no more."""
    there_NK: NDArray[np.bool_]
    shown: NDArray[np.integer]
    """(N,): place of the shown artwork."""
    propensity: NDArray[np.floating]
    """(N,): of the shown artwork."""
    propensity_NK: NDArray[np.floating]
    """NaN where the log has the shown artwork's alone; 0 in padding."""
    randomised: NDArray[np.bool_]
    """(N,): every candidate was equally likely, whatever the policy was called."""
    clicked: NDArray[np.floating]
    engaged: NDArray[np.floating] | None
    click_probability_NK: NDArray[np.floating]
    policy_NK: NDArray[np.floating]
    true_click_NK: NDArray[np.floating] | None
    true_engaged_NK: NDArray[np.floating] | None

    def __len__(self) -> int:
        """N."""
        return len(self.shown)


def read_impressions(dataset: Path, *, since: datetime | None = None, before: datetime | None = None) -> pa.Table:
    """Impressions shown in since .. before, ordered by id; optional columns the log lacks are absent."""
    files = IMPRESSIONS.files(dataset)
    if not files:
        raise UserError(f"{dataset}/impressions: no Parquet file. Name a dataset with a log.")
    source = pads.dataset(files)
    columns = ["impression_id", "member_id", "title_id", "artwork_id", "candidates", "clicked"]
    columns += [name for name in OPTIONAL if name in source.schema.names]
    keep = pads.scalar(True)
    if since is not None:
        keep = keep & (pads.field("shown_at") >= since)
    if before is not None:
        keep = keep & (pads.field("shown_at") < before)
    table = source.to_table(columns=columns, filter=keep)
    if not len(table):
        raise UserError(f"{dataset}/impressions: no impression in the period from {since} to {before}. Name another.")
    return table.sort_by("impression_id").combine_chunks()


def read_scored_log(dataset: Path, scores: Path, since: datetime) -> ScoredLog:
    """Join a log with scores; UserError where scores are missing, of other candidates, or no probabilities."""
    log = read_impressions(dataset, since=since)
    ids = log["impression_id"]
    scored = _matching(
        scores, ids, ("impression_id", "candidates", "click_probability", "policy"), "Score the log again."
    )
    width = _widths(log["candidates"])
    there_NK = np.arange(width.max()) < width[:, None]
    names, artwork_NK = _as_integers(log["candidates"], there_NK, None)
    shown_artwork = _index(log["artwork_id"], names)
    shown = (artwork_NK == shown_artwork[:, None]).argmax(1)
    if not (artwork_NK[np.arange(len(shown)), shown] == shown_artwork).all():
        raise UserError(
            f"{dataset}/impressions: a shown artwork is not among its candidates. Run keyart check {dataset}."
        )

    _, their_NK = _as_integers(scored["candidates"], None, names)
    order_NK = _alignment(artwork_NK, their_NK, there_NK, ids, scores)
    click_NK = _aligned(scored["click_probability"], order_NK, there_NK, scores, ids)
    policy_NK = _aligned(scored["policy"], order_NK, there_NK, scores, ids)
    for name, values in (("click_probability", click_NK), ("policy", policy_NK)):
        bad = np.asarray(~((values >= 0) & (values <= 1)).all(1))
        if bad.any():
            raise UserError(f"{scores}: {bad.sum()} rows whose {name} is no probability (first: {_first(ids, bad)}).")
    off = np.asarray(np.abs(policy_NK.sum(1) - 1) > 1e-3)
    if off.any():
        total = policy_NK.sum(1)[off][0]
        raise UserError(
            f"{scores}: {off.sum()} rows whose policy does not sum to 1 (first: {_first(ids, off)}, sum {total:.3g})."
        )

    truth = _truth(dataset, ids, artwork_NK, there_NK, names)
    propensity, propensity_NK = _propensities(log, shown, there_NK, dataset)
    with np.errstate(invalid="ignore"):
        level = np.where(there_NK, np.abs(propensity_NK - propensity[:, None]) <= 1e-4 * propensity[:, None], True)
    alone = np.isnan(propensity_NK).any(1)
    even = np.abs(propensity * width - 1) <= 1e-3
    return ScoredLog(
        impression_id=ids.combine_chunks(),
        member=_index(log["member_id"], None),
        title=_index(log["title_id"], None),
        artworks=names,
        artwork_NK=artwork_NK,
        there_NK=there_NK,
        shown=shown,
        propensity=propensity,
        propensity_NK=propensity_NK,
        randomised=even & (width > 1) & (alone | level.all(1)),
        clicked=log["clicked"].to_numpy().astype(np.float64),
        engaged=_engaged(log),
        click_probability_NK=click_NK,
        policy_NK=policy_NK,
        true_click_NK=None if truth is None else truth[0],
        true_engaged_NK=None if truth is None else truth[1],
    )


@dataclass(frozen=True, kw_only=True)
class PastLog:
    """What was shown and clicked before a period, for what can be learned without personalisation; arrays (N,)."""

    artworks: pa.Array
    """string: every artwork that was shown."""
    artwork: NDArray[np.integer]
    """The shown artwork, a place in `artworks`."""
    title: NDArray[np.integer]
    clicked: NDArray[np.floating]
    propensity: NDArray[np.floating]


def read_past(dataset: Path, before: datetime) -> PastLog:
    """Impressions shown before a moment."""
    log = read_impressions(dataset, before=before)
    width = _widths(log["candidates"])
    there_NK = np.arange(width.max()) < width[:, None]
    names, artwork_NK = _as_integers(log["candidates"], there_NK, None)
    artwork = _index(log["artwork_id"], names)
    shown = (artwork_NK == artwork[:, None]).argmax(1)
    propensity, _ = _propensities(log, shown, there_NK, dataset)
    clicked = log["clicked"].to_numpy().astype(np.float64)
    return PastLog(
        artworks=names, artwork=artwork, title=_index(log["title_id"], None), clicked=clicked, propensity=propensity
    )


def _engaged(log: pa.Table) -> NDArray | None:
    """Whether each impression was engaged; None where the log leaves it open anywhere."""
    if "engaged" not in log.column_names or log["engaged"].null_count:
        return None
    return log["engaged"].to_numpy().astype(np.float64)


def _first(ids: pa.ChunkedArray, where: NDArray) -> str:
    return ids[int(np.flatnonzero(where)[0])].as_py()


def _matching(source: Path, ids: pa.ChunkedArray, columns: tuple[str, ...], remedy: str) -> pa.Table:
    """Rows of a table by impression_id, in the order of `ids`; missing or repeated ones are a UserError."""
    files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    if not files or not files[0].is_file():
        raise UserError(f"{source}: no Parquet file. {remedy}")
    data = pads.dataset(files)
    lacking = [name for name in columns if name not in data.schema.names]
    if lacking:
        raise UserError(f"{source}: has no column {lacking[0]}; a scores table has {', '.join(columns)}.")
    table = data.to_table(columns=list(columns))
    place = pc.index_in(ids, value_set=table["impression_id"].combine_chunks())
    if place.null_count:
        missing = np.asarray(place.is_null())
        raise UserError(
            f"{source}: {missing.sum()} impressions of the log are missing (first: {_first(ids, missing)}). {remedy}"
        )
    found = table.take(place.combine_chunks()).combine_chunks()
    kept = pc.is_in(table["impression_id"], value_set=ids.combine_chunks())
    repeated = pc.sum(kept).as_py() - len(ids)
    if repeated:
        raise UserError(f"{source}: {repeated} impressions of the log are there more than once. {remedy}")
    return found


def _widths(lists: pa.ChunkedArray) -> NDArray:
    return pc.list_value_length(lists).to_numpy().astype(np.int64)


def _flat(lists: pa.ChunkedArray) -> pa.Array:
    flat = pc.list_flatten(lists)
    return flat.combine_chunks() if isinstance(flat, pa.ChunkedArray) else flat


def _index(values: pa.ChunkedArray, names: pa.Array | None) -> NDArray:
    """Strings as integers: places in `names`, or in the order of appearance."""
    plain = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    plain = pa.concat_arrays(plain.chunks) if isinstance(plain, pa.ChunkedArray) else plain
    among: pa.Array = pc.unique(plain) if names is None else names
    return pc.fill_null(pc.index_in(plain.cast(among.type), value_set=among), -2).to_numpy().astype(np.int64)


def _as_integers(lists: pa.ChunkedArray, there_NK: NDArray | None, names: pa.Array | None) -> tuple[pa.Array, NDArray]:
    """Lists of strings as (names, integers (N, K) with -1 in padding)."""
    flat = _flat(lists)
    names = pc.unique(flat) if names is None else names
    width = _widths(lists)
    there_NK = np.arange(width.max()) < width[:, None] if there_NK is None else there_NK
    table = np.full(there_NK.shape, -1, np.int64)
    table[there_NK] = _index(flat, names)
    return names, table


def _alignment(ours_NK: NDArray, theirs_NK: NDArray, there_NK: NDArray, ids: pa.ChunkedArray, source: Path) -> NDArray:
    """Where each of our candidates stands in their list, (N, K)."""
    if theirs_NK.shape == ours_NK.shape and (ours_NK == theirs_NK).all():
        return np.broadcast_to(np.arange(ours_NK.shape[1]), ours_NK.shape)
    same_NKJ = ours_NK[:, :, None] == theirs_NK[:, None, :]
    other = (there_NK & ~same_NKJ.any(2)).any(1) | ((theirs_NK != -1).sum(1) != there_NK.sum(1))
    if other.any():
        raise UserError(
            f"{source}: {other.sum()} rows whose candidates are not the log's (first: {_first(ids, other)}). Score the log again."
        )
    return same_NKJ.argmax(2)


def _aligned(
    lists: pa.ChunkedArray, order_NK: NDArray, there_NK: NDArray, source: Path, ids: pa.ChunkedArray
) -> NDArray:
    """Lists of numbers as (N, K) in our candidates' order, 0 in padding."""
    width = there_NK.sum(1)
    odd = _widths(lists) != width
    if odd.any():
        raise UserError(
            f"{source}: {odd.sum()} rows whose lists are not as long as their candidates (first: {_first(ids, odd)})."
        )
    values = np.zeros(there_NK.shape)
    values[there_NK] = _flat(lists).to_numpy(zero_copy_only=False)
    return np.where(there_NK, np.take_along_axis(values, order_NK, axis=1), 0.0)


def _propensities(log: pa.Table, shown: NDArray, there_NK: NDArray, dataset: Path) -> tuple[NDArray, NDArray]:
    """Propensity of the shown artwork (N,), and of every candidate (N, K)."""
    propensity_NK = np.where(there_NK, np.nan, 0.0)
    propensity = np.full(len(shown), np.nan)
    if "propensities" in log.column_names:
        lists = log["propensities"]
        logged = np.asarray(lists.is_valid())
        mask = there_NK & logged[:, None]
        propensity_NK[mask] = _flat(lists).to_numpy(zero_copy_only=False)
        propensity = propensity_NK[np.arange(len(shown)), shown]
    if "propensity" in log.column_names:
        alone = pc.fill_null(log["propensity"], np.nan).to_numpy()
        propensity = np.where(np.isnan(propensity), alone, propensity)
    bad = ~(propensity > 0)
    if bad.any():
        raise UserError(
            f"{dataset}/impressions: {bad.sum()} rows without a propensity above 0 for the shown artwork "
            f"(first: {_first(log['impression_id'], bad)}). Run keyart check {dataset}."
        )
    return propensity, propensity_NK


def _truth(
    dataset: Path, ids: pa.ChunkedArray, artwork_NK: NDArray, there_NK: NDArray, names: pa.Array
) -> tuple[NDArray, NDArray] | None:
    """True click and engaged probabilities (N, K), where the dataset is simulated and `truth/` lies in it."""
    folder = dataset / "truth"
    if not folder.is_dir():
        return None
    table = _matching(
        folder, ids, ("impression_id", "candidates", "p_click", "p_engaged"), "Simulate the dataset again."
    )
    _, their_NK = _as_integers(table["candidates"], None, names)
    order_NK = _alignment(artwork_NK, their_NK, there_NK, ids, folder)
    click, engaged = (_aligned(table[name], order_NK, there_NK, folder, ids) for name in ("p_click", "p_engaged"))
    return click, engaged
