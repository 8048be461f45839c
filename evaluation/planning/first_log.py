"""A first log, read for planning: who saw what when, which impressions were explored, and two policies on the explored ones.

In: a dataset, and scores tables where the user has them. Out: `FirstLog`.

Legend: N impressions with at least two candidates, n explored ones (ordered by member), K candidates (padded), A artworks.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from evaluation.logs.columns import integer_codes
from evaluation.logs.logged_impressions import (
    candidates_of,
    engaged_of,
    minutes_of,
    propensities_of,
    read_impressions,
    shown_at_of,
    to_float,
)
from evaluation.logs.scored_log import read_scored_log
from evaluation.off_policy.intervals import Sums, normal_interval
from evaluation.off_policy.reward_model import shrunk_rates
from evaluation.off_policy.valuation import BanditLog, PolicyProbabilities, WeightedLog, importance_weights
from foundation.choice import equal_within_rounding
from foundation.errors import UserError
from foundation.lists import Lists

Reward = Literal["clicked", "engaged", "minutes"]
POLICY, BASE = "scored", "base"
LEAST_DAYS = 2.0
ESTIMATORS = ("dr", "snips", "ips")
"""The main one of `keyart value` first."""
BEST_ARTWORK = "the artwork of each title with the best rate in this log"


@dataclass(frozen=True, kw_only=True)
class FirstLog:
    """A log for planning; arrays (N,) and (n,)."""

    member_N: NDArray[np.integer]
    shown_at_N: NDArray[np.int64]
    """Microseconds since 1970, UTC."""
    explored_N: NDArray[np.bool_]
    """Whether all candidates were equally likely."""
    reward_N: NDArray[np.floating]
    weighted_log: WeightedLog
    """The explored impressions, with the weights of `POLICY` and `BASE`."""
    without_scores: int
    """Impressions left out because a scores table lacks them."""

    @property
    def reward_n(self) -> NDArray[np.floating]:
        """Rewards of the explored impressions, ordered by member."""
        return next(iter(self.weighted_log.log.reward.values()))

    def influence_n(self, estimator: str) -> NDArray[np.float64]:
        """Each explored impression's influence on the policy's value minus the base's, (n,), 0 in the mean."""
        (reward,) = self.weighted_log.log.reward
        sides = []
        for name in (POLICY, BASE):
            weight_n = self.weighted_log.policy_weights[name].weight_N
            if estimator == "dr":
                sides.append(self.weighted_log.dr_scores_N(name, reward))
            elif estimator == "snips":
                value = float((weight_n * self.reward_n).sum() / weight_n.sum())
                sides.append(weight_n * (self.reward_n - value) / weight_n.mean())
            else:
                sides.append(weight_n * self.reward_n)
        difference_n = sides[0] - sides[1]
        return difference_n - difference_n.mean()

    def cost(self) -> tuple[float, float, float]:
        """Rewards that one explored impression costs, with the ends of a 95 % interval by member.

        What production earns on the impressions that were not explored, minus what exploring earns; where all was explored, the
        policy's value minus that.
        """
        order = np.argsort(self.member_N, kind="stable")
        reward_N, explored_N = self.reward_N[order], self.explored_N[order].astype(np.float64)
        if self.explored_N.all():
            weights = self.weighted_log.policy_weights
            members, reward_N = self.weighted_log.members, self.reward_n
            served = members.sums(((weights[POLICY].weight_N * reward_N, weights[POLICY].weight_N),))
            explored = members.sums(((reward_N, np.ones(len(reward_N))),))
        else:
            members = self.weighted_log.members.of(self.member_N[order])
            served = members.sums((((1 - explored_N) * reward_N, 1 - explored_N),))
            explored = members.sums(((explored_N * reward_N, explored_N),))
        return _difference(served, explored)


def _difference(one: Sums, other: Sums) -> tuple[float, float, float]:
    interval = normal_interval(one.value - other.value, one.influence_M - other.influence_M)
    return one.value - other.value, interval.low, interval.high


@dataclass(frozen=True, kw_only=True)
class LogRows:
    """Columns of a log, whether it was joined with scores or not; (N,) or (N, K)."""

    member: NDArray[np.integer]
    title: NDArray[np.integer]
    shown_at: NDArray[np.int64]
    artwork_NK: Lists
    shown: NDArray[np.integer]
    randomised: NDArray[np.bool_]
    clicked: NDArray[np.floating]
    engaged: NDArray[np.floating] | None
    minutes: NDArray[np.floating] | None = None
    score_NK: Lists
    policy_NK: Lists | None
    base_NK: Lists | None
    without_scores: int


def read_first_log(dataset: Path, *, reward: Reward, scores: Path | None = None, base: Path | None = None) -> FirstLog:
    """Read a log; UserError where nothing can be planned from it.

    `scores`: the policy to plan for, else the best artwork of each title; `base`: what it is compared with, else uniform.
    """
    rows = _without_scores(dataset) if scores is None else _with_scores(dataset, scores, base)
    return first_log(rows, reward, str(dataset), str(scores or "the default policy"))


def first_log(rows: LogRows, reward: Reward, dataset: str, policy: str) -> FirstLog:
    """The first log from its columns, as `read_first_log`; `dataset` and `policy` are names for errors."""
    where = f"{dataset}/impressions"
    choice_N = rows.artwork_NK.width_N > 1
    if not choice_N.any():
        raise UserError(
            f"{where}: no impression offered two artworks, so there was nothing to choose. Name another log."
        )
    reward_N = {"clicked": rows.clicked, "engaged": rows.engaged, "minutes": rows.minutes}[reward]
    if reward_N is None:
        missing = "whether it led to a viewing" if reward == "engaged" else "how many minutes followed"
        raise UserError(f"reward={reward}: {where} does not say of every click {missing}. Plan for --reward clicked.")
    explored = np.flatnonzero(rows.randomised & choice_N)
    if not len(explored):
        raise UserError(
            f"{where}: no impression was randomised (all candidates equally likely), and a plan is made from such ones. "
            "Explore a little first: keyart score BUNDLE DATASET SCORES --policy epsilon:0.05."
        )
    span = int(np.ptp(rows.shown_at[choice_N])) / 86_400_000_000
    if span < LEAST_DAYS:
        raise UserError(
            f"{where}: spans {span:.1f} days, and how often members come back shows after {LEAST_DAYS:.0f} at least. "
            "Name a longer log."
        )
    explored = explored[np.argsort(rows.member[explored], kind="stable")]
    if len(np.unique(rows.member[explored])) < 2:
        raise UserError(
            f"{where}: a single member saw all explored impressions, and noise is between members. Name a larger log."
        )
    if not reward_N[explored].any():
        raise UserError(f"{where}: none of the {len(explored):,} explored impressions was {reward}. Name a longer log.")
    weighted_log = _weigh(rows, explored, reward, reward_N)
    kept = np.flatnonzero(choice_N)
    first = FirstLog(
        member_N=rows.member[kept],
        shown_at_N=rows.shown_at[kept],
        explored_N=rows.randomised[kept],
        reward_N=reward_N[kept],
        weighted_log=weighted_log,
        without_scores=rows.without_scores,
    )
    weights = weighted_log.policy_weights
    if np.allclose(weights[POLICY].weight_N, weights[BASE].weight_N, atol=1e-6):
        raise UserError(f"{policy}: is the base, and has no lift over it. Name another --scores.")
    if not weights[POLICY].weight_N.any():
        raise UserError(f"{policy}: no explored impression showed what the policy would. Name a longer log.")
    return first


def _weigh(rows: LogRows, explored: NDArray[np.integer], reward: Reward, reward_N: NDArray[np.floating]) -> WeightedLog:
    """The explored impressions, ordered by member, with the weights of both policies."""
    artwork_nk = rows.artwork_NK.take(explored)
    width_n = artwork_nk.width_N
    uniform_nk = artwork_nk.like(np.repeat(1 / width_n, width_n))
    log = BanditLog(
        member_N=rows.member[explored],
        title_N=rows.title[explored],
        artwork_NK=artwork_nk,
        shown_N=rows.shown[explored],
        propensity_N=1 / width_n,
        propensity_NK=uniform_nk,
        score_NK=rows.score_NK.take(explored),
        randomised_N=np.ones(len(explored), bool),
        reward={reward: reward_N[explored]},
    )
    policies: dict[str, PolicyProbabilities | None] = {
        POLICY: _rows_of(_best_artwork(log) if rows.policy_NK is None else rows.policy_NK.take(explored)),
        BASE: _rows_of(uniform_nk if rows.base_NK is None else rows.base_NK.take(explored)),
    }
    return importance_weights(log, policies)


def _rows_of(policy_NK: Lists) -> Callable[[slice], NDArray]:
    return policy_NK.__getitem__


def _best_artwork(log: BanditLog) -> Lists:
    """Probability 1 for the artwork with the highest rate, shrunk to that of its title (Efron and Morris, 1973)."""
    artwork_NK = log.artwork_NK
    assert isinstance(artwork_NK, Lists)
    shown_N = artwork_NK[np.arange(len(log)), log.shown_N]
    artworks, (reward_N,) = int(artwork_NK.values_C.max()) + 1, log.reward.values()
    title_A = np.zeros(artworks, np.int64)
    title_A[artwork_NK.values_C] = np.repeat(log.title_N, artwork_NK.width_N)
    count_A, earned_A = np.bincount(shown_N, minlength=artworks), np.bincount(shown_N, reward_N, artworks)
    count_T, earned_T = (np.bincount(title_A, v)[title_A] for v in (count_A, earned_A))
    title_rate_A = np.divide(earned_T, count_T, out=np.full(artworks, reward_N.mean()), where=count_T > 0)
    rate_A = shrunk_rates(count_A, earned_A, title_rate_A, count_T)
    return artwork_NK.one_hot(artwork_NK.like(rate_A[artwork_NK.values_C]).best())


def _without_scores(dataset: Path) -> LogRows:
    log = read_impressions(dataset)
    if not len(log):
        raise UserError(f"{dataset}/impressions: is empty. Name a dataset with logged impressions.")
    _, artwork_NK, shown = candidates_of(log, dataset)
    propensity, propensity_NK = propensities_of(log, shown, artwork_NK, dataset)
    width_N, all_C = artwork_NK.width_N, propensity_NK.values_C
    # where only the shown artwork's propensity was logged, the others are NaN and count as alike
    alike_NK = artwork_NK.like(equal_within_rounding(all_C, np.repeat(propensity, width_N)) | np.isnan(all_C))
    return LogRows(
        member=integer_codes(log["member_id"], None),
        title=integer_codes(log["title_id"], None),
        shown_at=shown_at_of(log),
        artwork_NK=artwork_NK.like(artwork_NK.values_C, padding=-1),
        shown=shown,
        randomised=equal_within_rounding(propensity * width_N, 1.0) & alike_NK.reduce(np.logical_and),
        clicked=to_float(log["clicked"]),
        engaged=engaged_of(log),
        minutes=minutes_of(log, dataset),
        score_NK=artwork_NK.like(np.zeros(len(all_C))),
        policy_NK=None,
        base_NK=None,
        without_scores=0,
    )


def _with_scores(dataset: Path, scores: Path, base: Path | None) -> LogRows:
    scored = read_scored_log(dataset, scores, None, allow_missing=True)
    without, base_NK = scored.missing, None
    if base is not None:
        other = read_scored_log(dataset, base, None, allow_missing=True)
        index_N = pc.fill_null(pc.index_in(scored.impression_id, value_set=other.impression_id), -1)
        index_N = np.asarray(index_N, np.int64)
        kept = np.flatnonzero(index_N >= 0)
        if not len(kept):
            raise UserError(f"{base}: has no impression that {scores} has. Score the same log.")
        without += len(scored) - len(kept)
        scored, base_NK = scored.take(kept), other.policy_NK.take(index_N[kept])
    return LogRows(
        member=scored.member,
        title=scored.title,
        shown_at=scored.shown_at,
        artwork_NK=scored.artwork_NK,
        shown=scored.shown,
        randomised=scored.randomised,
        clicked=scored.clicked,
        engaged=scored.engaged,
        minutes=scored.minutes,
        score_NK=scored.click_probability_NK,
        policy_NK=scored.policy_NK,
        base_NK=base_NK,
        without_scores=without,
    )
