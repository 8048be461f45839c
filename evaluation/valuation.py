"""Policies valued on one log by every estimator, with intervals, differences and a verdict: the core of `keyart value`.

In: a log as arrays, ordered by member, and policies as functions of its rows. Out: a `Valuation`, which is JSON but for
its name. What has a column per candidate is held for some hundred thousand impressions at a time; the rest is a handful of
arrays (N,) per policy, and sums by member.

Legend: N impressions, K candidates (padded), M members, D bootstrap draws, E estimates.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation import estimators as by
from evaluation.intervals import DRAWS, Members, Sums, bootstrap, standard_error
from evaluation.reward_model import AT_ONCE, LoggedChoices, RewardModel, deal_folds, fit_reward_model
from evaluation.tuning import GRID, RULE, least_error
from evaluation.value_rows import Estimated, overlap_row, told_rows
from evaluation.verdict import Overlap, Reference, effective

LOGGED = "logged"
"""The policy that made the log: its weights are 1, whatever was logged."""
WHOLE = "needs the propensities of all candidates, and the log has the shown artwork's alone"
NOT_RANDOMISED = "needs impressions whose candidates all had the same chance, and the log has none"
OF_ANOTHER = "is made of randomised impressions, which were not the logging policy's choice"

Policy = Callable[[slice], NDArray]
"""Rows of a log -> the policy's probabilities over their candidates, (n, K)."""


@dataclass(frozen=True, kw_only=True)
class Log:
    """A log as arrays; rows are impressions, ordered by member."""

    member_N: NDArray[np.integer]
    title_N: NDArray[np.integer]
    artwork_NK: NDArray[np.integer]
    """Candidates as integers, -1 in padding."""
    shown_N: NDArray[np.integer]
    """Place of the shown artwork."""
    propensity_N: NDArray[np.floating]
    """Of the shown artwork."""
    propensity_NK: NDArray[np.floating] | None
    """Of every candidate; None where that was not logged."""
    score_NK: NDArray[np.floating]
    """A score of each candidate for the reward model, such as its click probability; 0 in padding."""
    randomised_N: NDArray[np.bool_]
    """All candidates had the same chance."""
    reward: Mapping[str, NDArray[np.floating]]
    """By name, (N,) each."""

    def __len__(self) -> int:
        """N."""
        return len(self.shown_N)


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """A policy on a log, as arrays (N,)."""

    weight_N: NDArray[np.float64]
    chosen_N: NDArray[np.float64]
    """The policy's probability of what was shown."""
    expected: Mapping[str, NDArray[np.float64]] | None
    """By reward, what the model expects under the policy; None where the policy's probabilities are not known."""
    cluster_weight_N: NDArray[np.float64] | None
    """None where the log's own probabilities are not known."""
    overlap: Overlap
    cluster_overlap: Overlap | None


@dataclass(frozen=True, kw_only=True)
class Weighing:
    """Policies weighed on a log: what values, slices and curves are made of."""

    log: Log
    members: Members
    choices: LoggedChoices
    models: Mapping[str, RewardModel]
    """By reward."""
    weighed: Mapping[str, Weighed]
    """By policy."""
    predicted: Mapping[str, NDArray]
    """By reward, what the model expected of what was shown, (N,)."""
    seed: int

    def robust_N(self, policy: str, reward: str) -> NDArray[np.float64]:
        """What each impression says of a policy, (N,), by `dr`: their mean is the value. KeyError where it is left out."""
        arrays = self.weighed[policy]
        if arrays.expected is None:
            raise KeyError(policy)
        (terms,) = by.dr(self.log.reward[reward], arrays.weight_N, arrays.expected[reward], self.predicted[reward])
        return terms[0]


def value_policies(
    log: Log, policies: Mapping[str, Policy | None], *, doubts: tuple[str, ...] = (), seed: int = 0, draws: int = DRAWS
) -> dict[str, Any]:
    """`weigh` and `valued` in one."""
    return valued(weigh(log, policies, seed=seed), doubts=doubts, draws=draws)


def weigh(log: Log, policies: Mapping[str, Policy | None], *, seed: int = 0) -> Weighing:
    """Fit the reward models and weigh every policy; `LOGGED` may be None where its propensities are not known."""
    members = Members.of(log.member_N)
    fold_N = np.repeat(deal_folds(len(members), seed), np.diff(np.append(members.start_M, len(log))))
    choices = LoggedChoices(
        artwork_NK=log.artwork_NK, score_NK=log.score_NK, shown_N=log.shown_N, title_N=log.title_N, fold_N=fold_N
    )
    artworks = int(log.artwork_NK.max(initial=-1)) + 1
    models = {name: fit_reward_model(choices, reward_N, artworks) for name, reward_N in log.reward.items()}
    weighed, predicted = _weigh(log, policies, choices, models, members)
    return Weighing(
        log=log, members=members, choices=choices, models=models, weighed=weighed, predicted=predicted, seed=seed
    )


def valued(weighing: Weighing, *, doubts: tuple[str, ...] = (), draws: int = DRAWS) -> dict[str, Any]:
    """Every policy's value by every reward and estimator.

    `doubts` are what is wrong with the log, in words: they keep a verdict from being reliable. Returns `estimates`,
    `differences`, `intervals` (of both kinds, by estimate; `low` and `high` of an estimate are the normal ones),
    `verdicts` (with reasons), `parameters` (as chosen), `overlap` and `left_out`, lists of rows.
    """
    log, members = weighing.log, weighing.members
    found: list[Estimated] = []
    left_out: list[dict[str, str]] = []
    for policy, arrays in weighing.weighed.items():
        for reward in log.reward:
            for estimator, made in _estimates(log, members, policy, reward, arrays, weighing.predicted[reward]):
                if isinstance(made, str):
                    left_out.append({"policy": policy, "reward": reward, "estimator": estimator, "reason": made})
                else:
                    found.append(made)
    drawn_DE = bootstrap([one.sums for one in found], weighing.seed, draws)
    return told_rows(found, drawn_DE, doubts) | {
        "overlap": [overlap_row(policy, arrays.overlap) for policy, arrays in weighing.weighed.items()],
        "left_out": left_out,
    }


def _weigh(
    log: Log,
    policies: Mapping[str, Policy | None],
    choices: LoggedChoices,
    models: Mapping[str, RewardModel],
    members: Members,
) -> tuple[dict[str, Weighed], dict[str, NDArray]]:
    """Each policy's arrays, and what the models expected of what was shown: all candidates once, by parts."""
    clusters = next(
        iter(models.values())
    )  # of one reward, the first, for all: weights are the policy's, not the reward's
    whole = log.propensity_NK is not None
    count = len(log)
    predicted = {reward: np.empty(count) for reward in models}
    chosen = {name: np.empty(count) for name in policies}
    expected = {name: {reward: np.empty(count) for reward in models} for name in policies}
    cluster_weight = {name: np.empty(count) for name in policies}
    lacking = {name: [0.0, 0.0] for name in policies}
    for rows in parts(count):
        place_n = np.arange(rows.stop - rows.start), log.shown_N[rows]
        model_nk = {reward: model.predict(choices, rows) for reward, model in models.items()}
        cluster_nk = clusters.cluster(choices, rows)
        same_nk = cluster_nk == cluster_nk[place_n][:, None]
        logging_nk = None if log.propensity_NK is None else log.propensity_NK[rows]
        for reward, q_nk in model_nk.items():
            predicted[reward][rows] = q_nk[place_n]
        for name, policy in policies.items():
            if policy is None:
                continue
            policy_nk = np.asarray(policy(rows), np.float64)
            chosen[name][rows] = policy_nk[place_n]
            for reward, q_nk in model_nk.items():
                expected[name][reward][rows] = np.einsum("nk,nk->n", policy_nk, q_nk)
            if logging_nk is not None:
                cluster_weight[name][rows] = (policy_nk * same_nk).sum(1) / (logging_nk * same_nk).sum(1)
                lacking[name][0] += policy_nk[logging_nk <= 0].sum()
                lacking[name][1] += _share_of_clusters_lacking(policy_nk, logging_nk, cluster_nk)
    weighed = {}
    for name, policy in policies.items():
        own = name == LOGGED
        weight_N = np.ones(count) if own else chosen[name] / log.propensity_N
        cluster_N = np.ones(count) if own else cluster_weight[name]
        unsupported = (
            [0.0, 0.0] if own else [share / max(count, 1) if whole else float("nan") for share in lacking[name]]
        )
        known = policy is not None
        weighed[name] = Weighed(
            weight_N=weight_N,
            chosen_N=chosen[name],
            expected=expected[name] if known else None,
            cluster_weight_N=cluster_N if known and whole else None,
            overlap=Overlap.of(weight_N, members, unsupported[0]),
            cluster_overlap=Overlap.of(cluster_N, members, unsupported[1]) if known and whole else None,
        )
    return weighed, predicted


def parts(count: int) -> Iterator[slice]:
    """Rows, some hundred thousand at a time."""
    return (slice(first, min(first + AT_ONCE, count)) for first in range(0, count, AT_ONCE))


def _share_of_clusters_lacking(policy_nk: NDArray, logging_nk: NDArray, cluster_nk: NDArray) -> float:
    """Sum over rows of the policy's probability in clusters the log had no probability for."""
    total = 0.0
    for cluster in range(int(cluster_nk.max(initial=-1)) + 1):
        of_nk = cluster_nk == cluster
        none_n = (logging_nk * of_nk).sum(1) <= 0
        total += float((policy_nk * of_nk).sum(1)[none_n].sum())
    return total


def _estimates(
    log: Log, members: Members, policy: str, reward: str, arrays: Weighed, predicted_N: NDArray
) -> Iterator[tuple[str, Estimated | str]]:
    """(name, estimate), or the reason why there is none."""
    reward_N, w_N, cluster_N = log.reward[reward], arrays.weight_N, arrays.cluster_weight_N
    rewarded = effective(w_N * reward_N)

    def made(name: str, sums: Sums, **more: Any) -> tuple[str, Estimated]:
        known: dict[str, Any] = {
            "overlap": arrays.overlap,
            "rewarded": rewarded,
            "impressions": len(log),
            "members": len(members),
        }
        return name, Estimated(policy=policy, reward=reward, estimator=name, sums=sums, **(known | more))

    plain = members.sums(by.ips(reward_N, w_N))
    normalised = members.sums(by.snips(reward_N, w_N))
    yield _replayed(log, members, policy, reward, arrays, made)
    yield made("ips", plain)
    clipped = [members.sums(by.clipped_ips(reward_N, w_N, clip)) for clip in GRID]
    yield made("clipped_ips", **_chosen("clip", GRID, clipped, plain, "what was clipped", by_model=False))
    yield made("snips", normalised)
    bias = title_snips_bias(reward_N, w_N, log.title_N)
    titled = members.sums(by.title_snips(reward_N, w_N, log.title_N))
    if arrays.expected is None:
        for name in ("dm", "dr", "sndr", "switch_dr", "dr_os", "mips", "offcem"):
            yield name, WHOLE
        yield made("title_snips", titled, bias=bias, told="small titles' ratios")
        return
    model_NN = arrays.expected[reward], predicted_N
    robust = members.sums(by.dr(reward_N, w_N, *model_NN))
    direct = members.sums(by.dm(model_NN[0]))
    yield made("dm", direct, unbiased=robust, told="the reward model", by_model=True)
    yield made("dr", robust)
    yield made("sndr", members.sums(by.sndr(reward_N, w_N, *model_NN)))
    switched = [members.sums(by.switch_dr(reward_N, w_N, *model_NN, tau)) for tau in GRID]
    yield made(
        "switch_dr", **_chosen("tau", GRID, switched, robust, "the model where weights are large", by_model=True)
    )
    squares = tuple(weight**2 for weight in GRID)
    shrunk = [members.sums(by.dr_os(reward_N, w_N, *model_NN, strength)) for strength in squares]
    yield made(
        "dr_os", **_chosen("lambda", squares, shrunk, robust, "the model where weights are shrunk", by_model=True)
    )
    if cluster_N is None or arrays.cluster_overlap is None:
        yield "mips", WHOLE
        yield "offcem", WHOLE
    else:
        by_cluster = {"overlap": arrays.cluster_overlap, "rewarded": effective(cluster_N * reward_N)}
        marginal = members.sums(by.mips(reward_N, cluster_N))
        told = "artworks of a cluster, taken to earn alike,"
        yield made("mips", marginal, unbiased=robust, told=told, **by_cluster)
        conjunct = members.sums(by.offcem(reward_N, cluster_N, *model_NN))
        told = "the model within a cluster"
        yield made("offcem", conjunct, unbiased=robust, told=told, by_model=True, **by_cluster)
    yield made("title_snips", titled, bias=bias, told="small titles' ratios")


def _replayed(
    log: Log,
    members: Members,
    policy: str,
    reward: str,
    arrays: Weighed,
    made: Callable[..., tuple[str, Estimated]],
) -> tuple[str, Estimated | str]:
    """Replay, on the randomised part, held against SNIPS there."""
    part = log.randomised_N
    if policy == LOGGED:
        return "replay", OF_ANOTHER
    if not part.any():
        return "replay", NOT_RANDOMISED
    # the others count nothing, so that all estimates have the same members
    reward_N, chosen_N, weight_N = log.reward[reward], arrays.chosen_N * part, arrays.weight_N * part
    sums = members.sums(by.replay(reward_N, chosen_N))
    own = Members.of(log.member_N[part])
    return made(
        "replay",
        sums,
        unbiased=members.sums(by.snips(reward_N, weight_N)),
        told="that titles have different numbers of candidates",
        overlap=Overlap.of(arrays.weight_N[part], own, arrays.overlap.unsupported),
        rewarded=effective(chosen_N * reward_N),
        impressions=own.rows,
        members=len(own),
    )


def title_snips_bias(reward_N: NDArray, weight_N: NDArray, title_N: NDArray) -> float:
    """About how far off `title_snips` is, each title's ratio being biased by -sum w^2 (r - V) / (sum w)^2."""
    titles = int(title_N.max(initial=-1)) + 1
    count_T, weight_T, earned_T, square_T, square_earned_T = (
        np.bincount(title_N, v, titles)
        for v in (None, weight_N, weight_N * reward_N, weight_N**2, weight_N**2 * reward_N)
    )
    seen = weight_T > 0
    value_T = earned_T[seen] / weight_T[seen]
    bias_T = (square_earned_T[seen] - value_T * square_T[seen]) / weight_T[seen] ** 2
    return float(abs((count_T[seen] * bias_T).sum()) / max(count_T[seen].sum(), 1))


def _chosen(
    name: str, grid: tuple[float, ...], found: list[Sums], unbiased: Sums, told: str, *, by_model: bool
) -> dict[str, Any]:
    """The one of least estimated squared error."""
    reference = Reference(value=unbiased.value, moved_M=unbiased.moved_M, told=told, by_model=by_model)
    moved = [sums.moved_M for sums in found]
    biases = [reference.bias(sums.value, moved_M) for sums, moved_M in zip(found, moved, strict=True)]
    place = least_error(biases, [standard_error(moved_M) for moved_M in moved])
    # as JSON has no infinity: null is no bound at all
    grid_told = [None if np.isinf(number) else number for number in grid]
    parameter = {"parameter": name, "chosen": grid_told[place], "rule": RULE, "of": grid_told}
    return {"sums": found[place], "unbiased": unbiased, "told": told, "by_model": by_model, "parameter": parameter}
