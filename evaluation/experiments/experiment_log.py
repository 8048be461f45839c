"""The impressions of randomised tests, as arrays: which arm was shown, with which probability, and what came of it.

In: a dataset's `impressions/`, and a scores table where covariates shall come from a model. Out: `LoggedTraffic`, the whole log;
`arms_of_title` and `arms_of_policies`, the tests in it as `ExperimentLog`.

Legend: N impressions, K candidates (padded), A arms, P covariates.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamodules.contract.tables import IMPRESSIONS
from evaluation.logs.columns import integer_codes, read_columns, to_array
from evaluation.logs.logged_impressions import (
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    candidates_of,
    engaged_of,
    minutes_of,
    policy_of,
    propensities_of,
    shown_at_of,
    to_float,
)
from evaluation.logs.scored_log import SCORES
from foundation.choice import equal_within_rounding
from foundation.errors import UserError
from foundation.lists import Lists
from foundation.shell import shell_word

PRIOR_IMPRESSIONS = 20.0
"""A member's earlier click rate counts so many impressions of the mean rate beside its own."""
HISTORY, PREDICTION = "clicks before the test", "predicted click probability"
"""Names of the covariates."""


@dataclass(frozen=True, kw_only=True)
class ExperimentLog:
    """A test's impressions in order of time; arrays (N,) unless stated otherwise."""

    arms: tuple[str, ...]
    arm_N: NDArray[np.int64]
    """Index of the shown arm."""
    member_N: NDArray[np.int64]
    """Members as integers 0 .. members - 1."""
    weight_N: NDArray[np.float64]
    """Inverse propensity, 1 on average within an arm."""
    share_NA: NDArray[np.float64] | None
    """Probabilities of the arms, (N, A), rows summing to 1; None where not all of them are known."""
    constant_A: NDArray[np.float64] | None
    """Propensity of each arm, (A,), where only that of the shown artwork is known and it is the same within every arm."""
    rewards: dict[str, NDArray[np.float64]]
    """By name: clicked and, where the log has them, engaged and minutes."""
    shown_at_N: NDArray[np.int64]
    """Microseconds since 1970, UTC."""
    covariates: dict[str, NDArray[np.float64]]
    """Known before an arm was drawn, by name."""
    weighted: bool
    """Whether propensities vary within an arm."""
    left_out: int
    """Impressions of these arms that no random draw among all of them showed."""
    notes: list[str]
    """What a reader must know of the covariates."""

    def __len__(self) -> int:
        """N."""
        return len(self.arm_N)

    @property
    def impressions_A(self) -> NDArray[np.int64]:
        """Impressions of each arm, (A,)."""
        return np.bincount(self.arm_N, minlength=len(self.arms))


@dataclass(frozen=True, kw_only=True)
class LoggedTraffic:
    """The log in order of time; arrays (N,) unless stated otherwise."""

    source: Path
    names: pa.Array
    """string: every artwork that was a candidate."""
    artwork_NK: Lists
    """Candidates as indices into `names`."""
    shown_N: NDArray[np.int64]
    """Index of the shown candidate."""
    propensity_N: NDArray[np.float64]
    propensity_NK: Lists
    """NaN where only the shown artwork's was logged."""
    title_N: NDArray[np.int64]
    titles: list[str]
    policy_N: NDArray[np.int64]
    policies: list[str]
    member_N: NDArray[np.int64]
    shown_at_N: NDArray[np.int64]
    rewards: dict[str, NDArray[np.float64]]
    shown_before_N: NDArray[np.int64]
    """Impressions that the member had strictly earlier."""
    clicked_before_N: NDArray[np.float64]
    """Clicks on them."""
    prediction_N: NDArray[np.float64] | None
    """Mean click probability of the candidates by the scores, whichever was shown; NaN without a score."""

    def __len__(self) -> int:
        """N."""
        return len(self.shown_N)

    def shown_artwork(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """The shown artworks of some rows, as indices into `names`."""
        return np.asarray(self.artwork_NK[rows, self.shown_N[rows]], np.int64)


def read_traffic(dataset: Path, scores: Path | None, since: datetime | None, before: datetime | None) -> LoggedTraffic:
    """Read the log, ordered by time; UserError as `read_columns`, for an empty log, and for minutes below 0.

    `since` .. `before`: the period of the test. Earlier impressions are read too, for what members did before it.
    """
    names = REQUIRED_COLUMNS + OPTIONAL_COLUMNS
    columns = [replace(c, required=c.name in REQUIRED_COLUMNS) for c in IMPRESSIONS.columns if c.name in names]
    source, remedy = dataset / IMPRESSIONS.name, f"Run keyart check {shell_word(dataset)}."
    log = read_columns(source, IMPRESSIONS.files(dataset), columns, remedy=remedy, before=before)
    log = log.sort_by([("shown_at", "ascending"), ("impression_id", "ascending")]).combine_chunks()
    shown_at_N = shown_at_of(log)
    member_N = integer_codes(log["member_id"], None)
    clicked_N = to_float(log["clicked"])
    shown_before_N, clicked_before_N = _before(member_N, shown_at_N, clicked_N)
    if since is not None:
        first = int(np.searchsorted(shown_at_N, int(since.timestamp() * 1e6)))
        log = log.slice(first).combine_chunks()
        shown_at_N, member_N, clicked_N = shown_at_N[first:], member_N[first:], clicked_N[first:]
        shown_before_N, clicked_before_N = shown_before_N[first:], clicked_before_N[first:]
    if not len(log):
        raise UserError(f"{source}: no impression was shown in this period. Name another by --since and --before.")
    artworks, artwork_NK, shown_N = candidates_of(log, dataset)
    propensity_N, propensity_NK = propensities_of(log, shown_N, artwork_NK, dataset)
    titles, policies = (pc.unique(to_array(column)) for column in (log["title_id"], policy_of(log)))
    return LoggedTraffic(
        source=source,
        names=artworks,
        artwork_NK=artwork_NK,
        shown_N=shown_N,
        propensity_N=propensity_N,
        propensity_NK=propensity_NK,
        title_N=integer_codes(log["title_id"], titles),
        titles=titles.to_pylist(),
        policy_N=integer_codes(policy_of(log), policies),
        policies=policies.to_pylist(),
        member_N=member_N,
        shown_at_N=shown_at_N,
        rewards=_rewards(log, clicked_N, dataset),
        shown_before_N=shown_before_N,
        clicked_before_N=clicked_before_N,
        prediction_N=None if scores is None else _predictions(scores, log["impression_id"]),
    )


def _rewards(log: pa.Table, clicked_N: NDArray, dataset: Path) -> dict[str, NDArray[np.float64]]:
    rewards = {"clicked": clicked_N}
    engaged_N = engaged_of(log)
    if engaged_N is not None:
        rewards["engaged"] = engaged_N * clicked_N
    minutes_N = minutes_of(log, dataset)
    if minutes_N is not None:
        rewards["minutes"] = minutes_N
    return rewards


def _before(member_N: NDArray, shown_at_N: NDArray, clicked_N: NDArray) -> tuple[NDArray, NDArray]:
    """Each member's impressions strictly before each row's time, and the clicks on them; rows in any order."""
    order = np.lexsort((shown_at_N, member_N))
    member, at, clicked = member_N[order], shown_at_N[order], clicked_N[order]
    starts = np.concatenate([[True], (np.diff(member) != 0) | (np.diff(at) != 0)])[: len(order)]
    first_of_member = np.concatenate([[True], np.diff(member) != 0])[: len(order)]
    index = np.arange(len(order))
    first = np.maximum.accumulate(np.where(first_of_member, index, 0))
    tie = np.maximum.accumulate(np.where(starts, index, 0))
    total = np.concatenate([[0.0], np.cumsum(clicked)])
    shown_before_N, clicked_before_N = np.empty(len(order), np.int64), np.empty(len(order))
    shown_before_N[order] = tie - first
    clicked_before_N[order] = total[tie] - total[first]
    return shown_before_N, clicked_before_N


def _predictions(scores: Path, ids: pa.ChunkedArray) -> NDArray[np.float64]:
    """The mean of each impression's click probabilities, NaN where the scores lack it: no other than the arms' draw decides
    which of them belongs to the shown artwork, so that the mean is the same whatever was shown."""
    files = sorted(scores.glob("*.parquet")) if scores.is_dir() else [scores]
    columns = [column for column in SCORES if column.name in ("impression_id", "click_probability")]
    table = read_columns(scores, files, columns, remedy="Score the log again.")
    repeated = len(table) - pc.count_distinct(table["impression_id"]).as_py()
    if repeated:
        raise UserError(f"{scores}: {repeated} duplicate impressions. Write each once.")
    lists = to_array(table["click_probability"])
    values = Lists.of(np.asarray(lists.flatten(), np.float64), np.asarray(pc.list_value_length(lists)))
    mean = np.concatenate([values.sums() / np.maximum(values.width_N, 1), [np.nan]])
    index_N = np.asarray(
        pc.fill_null(pc.index_in(to_array(ids), value_set=to_array(table["impression_id"])), len(table))
    )
    return mean[index_N]


def randomised(traffic: LoggedTraffic, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Whether some rows were drawn: the shown artwork's propensity is below 1, and there was another candidate."""
    width = traffic.artwork_NK.start_N[rows + 1] - traffic.artwork_NK.start_N[rows]
    return (width > 1) & ~equal_within_rounding(traffic.propensity_N[rows], 1.0)


def arms_of_title(traffic: LoggedTraffic, rows: NDArray[np.integer], arms: Sequence[str]) -> ExperimentLog:
    """The test of some artworks on some rows (in order of time, all of one title).

    An impression belongs to it if it showed one of the arms, drawn while every arm was a candidate with a propensity above 0.
    Its probabilities are those of the arms, given that one of them was shown. Where only the shown artwork's propensity was
    logged, the others' are not known, and the weight is the inverse of the shown one's. UserError: an arm without impressions.
    """
    code_A = integer_codes(pa.array(list(arms), pa.string()), traffic.names)
    arm_of = np.full(len(traffic.names) + 1, -1)
    arm_of[code_A[code_A >= 0]] = np.flatnonzero(code_A >= 0)
    part_NK = traffic.artwork_NK.take(rows)
    propensity_NK = traffic.propensity_NK.take(rows)
    arm_C = arm_of[part_NK.values_C]
    known_N = ~np.isnan(propensity_NK.values_C[propensity_NK.start_N[:-1]])
    probability_C = np.where(np.isnan(propensity_NK.values_C), 1.0, propensity_NK.values_C)
    of_arm_C = arm_C >= 0
    share_NA = np.zeros((len(rows), len(arms)))
    np.maximum.at(share_NA, (part_NK.row_C[of_arm_C], arm_C[of_arm_C]), probability_C[of_arm_C])
    arm_N = arm_of[traffic.shown_artwork(rows)]
    drawn_N = (share_NA > 0).all(1) & randomised(traffic, rows)
    keep_N = (arm_N >= 0) & drawn_N
    share_NA = share_NA[keep_N] / np.maximum(share_NA[keep_N].sum(1, keepdims=True), 1e-12)
    kept, arm_N = rows[keep_N], arm_N[keep_N]
    known = bool(known_N[keep_N].all())
    propensity_N = share_NA[np.arange(len(kept)), arm_N] if known else traffic.propensity_N[kept]
    left_out = int(((arm_of[traffic.shown_artwork(rows)] >= 0) & ~drawn_N).sum())
    return _experiment(traffic, kept, tuple(arms), arm_N, propensity_N, share_NA if known else None, left_out)


def arms_of_policies(traffic: LoggedTraffic, rows: NDArray[np.integer], arms: Sequence[str]) -> ExperimentLog:
    """The test of some logging policies, to which impressions or members were assigned at random."""
    index = [traffic.policies.index(arm) if arm in traffic.policies else -2 for arm in arms]
    arm_of = np.full(len(traffic.policies), -1)
    arm_of[[code for code in index if code >= 0]] = [arm for arm, code in enumerate(index) if code >= 0]
    arm_N = arm_of[traffic.policy_N[rows]]
    kept = rows[arm_N >= 0]
    return _experiment(traffic, kept, tuple(arms), arm_N[arm_N >= 0], np.ones(len(kept)), None, 0, by_policy=True)


def _experiment(
    traffic: LoggedTraffic,
    rows: NDArray[np.integer],
    arms: tuple[str, ...],
    arm_N: NDArray[np.int64],
    propensity_N: NDArray[np.float64],
    share_NA: NDArray[np.float64] | None,
    left_out: int,
    *,
    by_policy: bool = False,
) -> ExperimentLog:
    count_A = np.bincount(arm_N, minlength=len(arms))
    if not count_A.all():
        absent = arms[int(np.argmin(count_A))]
        why = f" ({left_out:,} impressions were not drawn among all arms)" if left_out else ""
        raise UserError(
            f"{traffic.source}: arm {absent} has no impression of the test{why}. Leave it out by --arms, or name another period."
        )
    inverse_N = 1 / propensity_N
    mean_A = np.bincount(arm_N, inverse_N, len(arms)) / count_A
    weight_N = inverse_N / mean_A[arm_N]
    weighted = not bool(equal_within_rounding(weight_N, 1.0).all())
    constant_A = None if share_NA is not None or weighted or by_policy else 1 / mean_A
    _, member_N = np.unique(traffic.member_N[rows], return_inverse=True)
    member_N = member_N.reshape(-1)
    covariates, notes = _covariates(traffic, rows, member_N)
    return ExperimentLog(
        arms=arms,
        arm_N=arm_N,
        member_N=member_N,
        weight_N=weight_N if weighted else np.ones(len(rows)),
        share_NA=share_NA,
        constant_A=constant_A,
        rewards={name: reward_N[rows] for name, reward_N in traffic.rewards.items()},
        shown_at_N=traffic.shown_at_N[rows],
        covariates=covariates,
        weighted=weighted,
        left_out=left_out,
        notes=notes,
    )


def _covariates(
    traffic: LoggedTraffic, rows: NDArray[np.integer], member_N: NDArray[np.int64]
) -> tuple[dict[str, NDArray[np.float64]], list[str]]:
    """What was known before a test's arms were drawn: the member's click rate before its first impression of the test, and the
    scores' mean probability, of which a missing one counts as the mean of the others; and notes."""
    covariates: dict[str, NDArray[np.float64]] = {}
    notes: list[str] = []
    _, first_M = np.unique(member_N, return_index=True)  # rows are in order of time
    shown_N = traffic.shown_before_N[rows][first_M][member_N]
    clicked_N = traffic.clicked_before_N[rows][first_M][member_N]
    if shown_N.sum() > 0:
        mean = clicked_N.sum() / shown_N.sum()
        covariates[HISTORY] = (clicked_N + PRIOR_IMPRESSIONS * mean) / (shown_N + PRIOR_IMPRESSIONS)
    if traffic.prediction_N is not None:
        prediction_N = traffic.prediction_N[rows]
        missing_N = np.isnan(prediction_N)
        if missing_N.all():
            raise UserError(f"{traffic.source}: the scores have no impression of this test. Score the log again.")
        covariates[PREDICTION] = np.where(missing_N, np.nanmean(prediction_N), prediction_N)
        if missing_N.any():
            notes.append(f"{missing_N.sum():,} impressions have no score; the mean of the others stands for it.")
    return covariates, notes
