"""A log joined with a scores table, as arrays: impressions and scores in one order, candidates aligned.

In: a dataset's `impressions/` (and `truth/`, where it is simulated) and a scores table. Out: a `ScoredLog`.

Legend: N impressions, K candidates (padded).
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamodules.contract.tables import Column
from evaluation.logs.columns import (
    first_id,
    flatten_lists,
    integer_code_lists,
    integer_codes,
    list_lengths,
    read_columns,
    to_array,
)
from evaluation.logs.logged_impressions import (
    candidates_of,
    engaged_of,
    minutes_of,
    policy_of,
    propensities_of,
    read_impressions,
    shown_at_of,
    to_float,
)
from foundation.choice import equal_within_rounding
from foundation.errors import UserError
from foundation.lists import Lists
from foundation.shell import shell_word

_KEY = (Column(name="impression_id", kind="string"), Column(name="candidates", kind="strings"))
SCORES = (
    *_KEY,
    Column(name="click_probability", kind="floats"),
    Column(name="policy", kind="floats"),
    Column(name="engaged_probability", kind="floats", required=False),
)
"""Columns of a scores table by the contract; the probability of a click that leads to a viewing is optional."""
TRUTH = (*_KEY, Column(name="p_click", kind="floats"), Column(name="p_engaged", kind="floats"))
"""Columns of a simulated dataset's `truth/`."""

TRUTH_REMEDY = "Simulate the dataset again."


def record_beside(scores: Path, name: str) -> Path:
    """Where `keyart score` keeps a record of a scores table: in the table's folder, or in that of its one file.

    `name`: begins with _, which readers of Parquet pass over; an older keyart wrote it without, and is read.
    """
    folder = scores if scores.is_dir() else scores.parent
    older = folder / name.removeprefix("_")
    return older if older.is_file() and not (folder / name).is_file() else folder / name


@dataclass(frozen=True, kw_only=True)
class ScoredLog:
    """Impressions of a period: the log's columns and the scores."""

    impression_id: pa.Array
    """string (N,)."""
    member: NDArray[np.integer]
    """(N,): members as integers."""
    title: NDArray[np.integer]
    """(N,): titles as integers."""
    artworks: pa.Array
    """string: every artwork that was a candidate."""
    artwork_NK: Lists
    """Candidates as indices into `artworks`, -1 in padding."""
    shown: NDArray[np.integer]
    """(N,): index of the shown artwork among the candidates."""
    propensity: NDArray[np.floating]
    """(N,): propensity of the shown artwork."""
    propensity_NK: Lists
    """Propensities of all candidates: NaN where only the shown artwork's was logged; 0 in padding."""
    shown_at: NDArray[np.int64]
    """(N,): microseconds since 1970, UTC."""
    logging_policy: NDArray[np.integer]
    """(N,): which policy logged it, an index into `logging_policies`."""
    logging_policies: tuple[str, ...]
    """Names of the logging policies."""
    missing: int
    """Number of impressions without scores, which are left out."""
    unknown: int
    """Number of scores of impressions that are not in the log's period."""
    randomised: NDArray[np.bool_]
    """(N,): True where there were at least two candidates, all equally likely, whatever the policy's name.

    Where only the shown artwork's propensity was logged, the test is that it is 1 / number of candidates. That can include an
    impression of another policy which gave this artwork exactly that probability; logging all propensities avoids it.
    """
    clicked: NDArray[np.floating]
    """(N,): 1 or 0."""
    engaged: NDArray[np.floating] | None
    """(N,): 1 or 0; None where the log does not say of every click whether it led to a real viewing."""
    minutes: NDArray[np.floating] | None = None
    """(N,): minutes played after a click, 0 without one; None where the log does not say for every click."""
    click_probability_NK: Lists
    """Click probabilities by the scores; 0 in padding."""
    policy_NK: Lists
    """The scored policy's probabilities; 0 in padding."""
    engaged_probability: NDArray[np.floating] | None
    """(N,): probability by the scores that the shown artwork is clicked and viewed; None where the scores lack it."""
    true_click_NK: Lists | None
    """True click probabilities, 0 in padding; None where they are not known."""
    true_engaged_NK: Lists | None
    """True probabilities of an engaged play, 0 in padding; None where they are not known."""
    policies: dict[str, Lists] = field(default_factory=dict)
    """Other policies to value on it, by name; probabilities (N, K)."""

    def __len__(self) -> int:
        """N."""
        return len(self.shown)

    @property
    def width(self) -> NDArray[np.int64]:
        """(N,): how many candidates each impression has."""
        return self.artwork_NK.width_N

    def where(self, keep_N: NDArray[np.bool_]) -> "ScoredLog":
        """The impressions that a mask selects; artworks keep their indices."""
        return self.take(np.flatnonzero(keep_N))

    def take(self, rows: NDArray[np.integer]) -> "ScoredLog":
        """The impressions at some rows, in that order; artworks keep their indices."""
        columns: dict[str, Any] = {"impression_id": self.impression_id.take(pa.array(rows))}
        for column in fields(self):
            value = getattr(self, column.name)
            if isinstance(value, np.ndarray):
                columns[column.name] = value[rows]
            elif isinstance(value, Lists):
                columns[column.name] = value.take(rows)
        columns["policies"] = {name: policy_NK.take(rows) for name, policy_NK in self.policies.items()}
        return replace(self, **columns)


def read_scored_log(
    dataset: Path,
    scores: Path,
    since: datetime | None,
    *,
    before: datetime | None = None,
    logged_by: str | None = None,
    allow_missing: bool = False,
    if_missing: str = "Score the log again.",
) -> ScoredLog:
    """Join a log with scores; UserError where scores are missing, for other candidates, or not probabilities.

    `since` .. `before`: the period; `logged_by`: the one logging policy to keep. With `allow_missing`, impressions without
    scores are left out and counted; else they are a UserError, whose remedy is `if_missing`.
    """
    log = read_impressions(dataset, since=since, before=before)
    if not len(log):
        raise UserError(f"{dataset}/impressions: no impression was shown since {since}. Name an earlier moment.")
    log = _of_one_policy(log, logged_by, dataset)
    ids = log["impression_id"]
    repeated = len(ids) - pc.count_distinct(ids).as_py()
    if repeated:
        raise UserError(
            f"{dataset}/impressions: {repeated} impression ids are repeated. Run keyart check {shell_word(dataset)}."
        )
    logged = len(ids)
    table = _rows_of(scores, SCORES, "Score the log again.")
    if allow_missing:
        log = log.filter(pc.is_in(ids, value_set=to_array(table["impression_id"]))).combine_chunks()
        ids = log["impression_id"]
        if not len(log):
            raise UserError(f"{scores}: has no impression of {dataset} in this period. Score the log again.")
    scored = _matching(scores, table, ids, if_missing)
    unknown = len(table) - len(log)
    del table
    names, artwork_NK, shown = candidates_of(log, dataset)

    order_C = _alignment(artwork_NK, integer_code_lists(scored["candidates"], names), ids, scores)
    click_NK, policy_NK = (
        artwork_NK.like(_aligned(scored, name, order_C, artwork_NK, scores).values_C.astype(np.float32))
        for name in ("click_probability", "policy")
    )
    engaged_N = None
    if "engaged_probability" in scored.column_names:
        engaged_N = _aligned(scored, "engaged_probability", order_C, artwork_NK, scores)[np.arange(len(ids)), shown]
    del scored, order_C
    off = ~equal_within_rounding(policy_NK.sums(), 1.0)
    if off.any():
        total = policy_NK.sums()[off][0]
        raise UserError(
            f"{scores}: {off.sum()} rows whose policy does not sum to 1 (first: {first_id(ids, off)}, sum {total:.3g}). "
            "Score the log again."
        )

    truth_click_NK, truth_engaged_NK = _truth(dataset, ids, artwork_NK, names)
    propensity, propensity_NK = propensities_of(log, shown, artwork_NK, dataset)
    log = log.drop_columns([name for name in ("candidates", "propensities") if name in log.column_names])
    width = artwork_NK.width_N
    # where only the shown artwork's propensity was logged, the others are NaN and compare as equal
    all_C = propensity_NK.values_C
    alike_NK = artwork_NK.like(equal_within_rounding(all_C, np.repeat(propensity, width)) | np.isnan(all_C))
    uniform = equal_within_rounding(propensity * width, 1.0)
    return ScoredLog(
        impression_id=to_array(ids),
        member=integer_codes(log["member_id"], None),
        title=integer_codes(log["title_id"], None),
        artworks=names,
        artwork_NK=artwork_NK.like(artwork_NK.values_C.astype(np.int32), padding=-1),
        shown=shown,
        propensity=propensity,
        propensity_NK=propensity_NK.like(all_C.astype(np.float32)),
        shown_at=shown_at_of(log),
        logging_policy=integer_codes(policy_of(log), None),
        logging_policies=tuple(pc.unique(to_array(policy_of(log))).to_pylist()),
        missing=logged - len(ids),
        unknown=unknown,
        randomised=uniform & (width > 1) & alike_NK.reduce(np.logical_and),
        clicked=to_float(log["clicked"]),
        engaged=engaged_of(log),
        minutes=minutes_of(log, dataset),
        click_probability_NK=click_NK,
        policy_NK=policy_NK,
        engaged_probability=engaged_N,
        true_click_NK=truth_click_NK,
        true_engaged_NK=truth_engaged_NK,
    )


def _of_one_policy(log: pa.Table, logged_by: str | None, dataset: Path) -> pa.Table:
    """The impressions that one policy logged; UserError where it logged none."""
    if logged_by is None:
        return log
    names = policy_of(log)
    of_policy = log.filter(pc.equal(names, logged_by))
    if not len(of_policy):
        available = ", ".join(sorted(pc.unique(to_array(names)).to_pylist()))
        raise UserError(
            f"log-policy={logged_by}: logged no impression of {dataset}/impressions in this period. Policies: {available}."
        )
    return of_policy.combine_chunks()


def _rows_of(source: Path, columns: tuple[Column, ...], remedy: str) -> pa.Table:
    """A table of one file or of a folder."""
    files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    return read_columns(source, files, columns, remedy=remedy)


def _matching(source: Path, table: pa.Table, ids: pa.ChunkedArray, remedy: str) -> pa.Table:
    """Rows of a table by impression_id, in the order of `ids`; missing or repeated ones are a UserError."""
    theirs = to_array(table["impression_id"])
    position = to_array(pc.index_in(ids, value_set=theirs))
    if position.null_count:
        missing = np.asarray(position.is_null())
        raise UserError(
            f"{source}: {missing.sum()} impressions of the log are missing (first: {first_id(ids, missing)}). {remedy}"
        )
    matched = theirs.filter(pc.is_in(theirs, value_set=to_array(ids)))
    if len(matched) > len(ids):
        counts = pc.value_counts(matched)
        again = np.asarray(counts.field("counts")) > 1
        raise UserError(
            f"{source}: {again.sum()} duplicate impressions of the log "
            f"(first: {first_id(counts.field('values'), again)}). Write each once."
        )
    return table.take(position).combine_chunks()


def _alignment(ours_NK: Lists, theirs_NK: Lists, ids: pa.ChunkedArray, source: Path) -> NDArray[np.int64]:
    """Where each of the log's candidates is among the items of the other table's lists, (C,); UserError where they differ."""
    if np.array_equal(ours_NK.start_N, theirs_NK.start_N) and np.array_equal(ours_NK.values_C, theirs_NK.values_C):
        return np.arange(len(ours_NK.values_C))
    # a row and a candidate as one number; those of no artwork of the log are -2
    artworks = 3 + max(int(lists.values_C.max(initial=0)) for lists in (ours_NK, theirs_NK))
    our_key_C, their_key_C = (lists.row_C * artworks + lists.values_C + 2 for lists in (ours_NK, theirs_NK))
    order_C = np.argsort(their_key_C, kind="stable")
    sorted_C = their_key_C[order_C]
    at_C = np.minimum(np.searchsorted(sorted_C, our_key_C), max(len(sorted_C) - 1, 0))
    lost_C = sorted_C[at_C] != our_key_C if len(sorted_C) else np.ones(len(our_key_C), bool)
    other = ours_NK.like(lost_C).reduce(np.logical_or) | (theirs_NK.width_N != ours_NK.width_N)
    if other.any():
        raise UserError(
            f"{source}: {other.sum()} rows whose candidates are not the log's (first: {first_id(ids, other)}). Score the log again."
        )
    return order_C[at_C]


def _aligned(table: pa.Table, name: str, order_C: NDArray, ours_NK: Lists, source: Path) -> Lists:
    """Lists of probabilities (N, K) in the order of the log's candidates; UserError for invalid ones."""
    ids = table["impression_id"]
    odd = list_lengths(table[name]) != ours_NK.width_N
    if odd.any():
        raise UserError(
            f"{source}: {odd.sum()} rows whose lists are not as long as their candidates (first: {first_id(ids, odd)}: {name})."
        )
    values_C = flatten_lists(table[name]).to_numpy(zero_copy_only=False)
    # a softmax in float32 may round to slightly above 1, which is allowed; NaN is not
    bad_C = ~((values_C >= -1e-6) & (values_C <= 1 + 1e-6))
    bad = ours_NK.like(bad_C).reduce(np.logical_or)
    if bad.any():
        raise UserError(
            f"{source}: {bad.sum()} rows whose {name} is not a probability (first: {first_id(ids, bad)}, "
            f"{values_C[bad_C][0]:.4g}). Write numbers from 0 to 1."
        )
    return ours_NK.like(np.clip(values_C, 0.0, 1.0)[order_C])


def _truth(
    dataset: Path, ids: pa.ChunkedArray, artwork_NK: Lists, names: pa.Array
) -> tuple[Lists | None, Lists | None]:
    """True click and engaged probabilities (N, K) of a simulated dataset with `truth/`; None for others."""
    folder = dataset / "truth"
    if not folder.is_dir():
        return None, None
    table = _matching(folder, _rows_of(folder, TRUTH, TRUTH_REMEDY), ids, TRUTH_REMEDY)
    order_C = _alignment(artwork_NK, integer_code_lists(table["candidates"], names), ids, folder)
    click, engaged = (_aligned(table, name, order_C, artwork_NK, folder) for name in ("p_click", "p_engaged"))
    return click, engaged
