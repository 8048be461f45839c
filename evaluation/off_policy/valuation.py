"""Policies valued on one log by every estimator, with intervals, differences and a verdict: the core of `keyart value`.

In: a log as arrays, ordered by member, and policies as functions of its rows. Out: `Estimates`, lists of rows.
Arrays with a column per candidate are made for some hundred thousand impressions at a time; the rest is a few arrays (N,) per
policy, and sums by member.

Legend: N impressions, K candidates (padded), M members, D bootstrap draws, E estimates.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.off_policy import estimators as by
from evaluation.off_policy.estimate_rows import PointEstimate, estimate_rows, overlap_row
from evaluation.off_policy.intervals import DRAWS, Members, Sums, bootstrap, standard_error
from evaluation.off_policy.reward_model import (
    LoggedChoices,
    RewardModel,
    assign_folds,
    fit_reward_model,
)
from evaluation.off_policy.verdict import Overlap, Rewarded, UnbiasedReference
from evaluation.record.rows import Estimates, LeftOutRow, Parameter
from foundation.lists import Lists, Table, blocks

SELECTION_RULE = "least estimated squared error, bias at its 95 % bound"
GRID = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, float("inf"))
"""Weights at which to clip (clipped_ips) or to switch (switch_dr); squared, strengths of shrinkage (dr_os)."""

HEADLINE_ESTIMATOR, FALLBACK_ESTIMATOR = "dr", "snips"
"""The main estimator, unbiased as `ips` is, with less noise; and its replacement where the propensities it needs were not
logged."""
SAME_PROBABILITY = 1e-9
"""Largest difference of two policies' probabilities that is rounding: their values then differ by nothing."""
LOGGED = "logged"
"""The logging policy: its weights are 1, whatever was logged."""
NEEDS_ALL_PROPENSITIES = "needs the propensities of all candidates, and the log has only the shown artwork's"
NEEDS_RANDOMISED = "needs impressions whose candidates were all equally likely, and the log has none"
REPLAY_NOT_LOGGED = "uses randomised impressions, which were not the logging policy's choice"

PolicyProbabilities = Callable[[slice], NDArray]
"""Rows of a log -> the policy's probabilities over their candidates, (n, K)."""


@dataclass(frozen=True, kw_only=True)
class BanditLog:
    """A log as arrays; rows are impressions, ordered by member."""

    member_N: NDArray[np.integer]
    title_N: NDArray[np.integer]
    artwork_NK: Table
    """Candidates as integers, -1 in padding."""
    shown_N: NDArray[np.integer]
    """Index of the shown artwork among the candidates."""
    propensity_N: NDArray[np.floating]
    """Propensity of the shown artwork."""
    propensity_NK: Table | None
    """Propensities of all candidates; None where they were not logged."""
    score_NK: Table
    """A score of each candidate for the reward model, such as its click probability; 0 in padding."""
    randomised_N: NDArray[np.bool_]
    """Whether all candidates were equally likely."""
    reward: Mapping[str, NDArray[np.floating]]
    """Rewards by name, (N,) each."""

    def __len__(self) -> int:
        """N."""
        return len(self.shown_N)


@dataclass(frozen=True, kw_only=True)
class PolicyWeights:
    """A policy on a log, as arrays (N,)."""

    weight_N: NDArray[np.float64]
    chosen_N: NDArray[np.float64]
    """The policy's probability of the shown artwork."""
    expected: Mapping[str, NDArray[np.float64]] | None
    """By reward, the model's expectation under the policy; None where the policy's probabilities are not known."""
    unsupported_N: NDArray[np.float32] | None
    """The policy's probability on artworks with propensity 0; None where propensities were not logged."""
    overlap: Overlap

    def overlap_of(self, rows: NDArray[np.integer], members: Members) -> Overlap:
        """The overlap on some rows (n,), whose members are `members`: its own support and mean weight."""
        unsupported = float("nan") if self.unsupported_N is None else float(self.unsupported_N[rows].mean())
        return Overlap.of(self.weight_N[rows], members, unsupported)


@dataclass(frozen=True, kw_only=True)
class WeightedLog:
    """A log with the importance weights of policies, from which values, slices and curves are computed."""

    log: BanditLog
    members: Members
    choices: LoggedChoices
    models: Mapping[str, RewardModel]
    """By reward."""
    policy_weights: Mapping[str, PolicyWeights]
    """By policy."""
    predicted: Mapping[str, NDArray]
    """By reward, the model's prediction for the shown artwork, (N,)."""
    differing: Mapping[tuple[str, str], int]
    """By pair of policies, in their order: on how many impressions their probabilities differ. Pairs with unknown
    probabilities are left out."""
    seed: int

    def alike(self, one: str, other: str) -> bool:
        """Whether two policies' probabilities are known and the same on every impression."""
        return one == other or self.differing.get((one, other), self.differing.get((other, one), 1)) == 0

    def dr_scores_N(self, policy: str, reward: str) -> NDArray[np.float64]:
        """Each impression's term of the `dr` estimate of a policy, (N,); the mean is its value. KeyError where it is left out."""
        arrays = self.policy_weights[policy]
        if arrays.expected is None:
            raise KeyError(policy)
        (terms,) = by.dr(self.log.reward[reward], arrays.weight_N, arrays.expected[reward], self.predicted[reward])
        return terms[0]


def value_policies(
    log: BanditLog,
    policies: Mapping[str, PolicyProbabilities | None],
    *,
    doubts: tuple[str, ...] = (),
    seed: int = 0,
    draws: int = DRAWS,
) -> Estimates:
    """Fit, weigh and estimate: `importance_weights`, then `estimate`."""
    return estimate(importance_weights(log, policies, seed=seed), doubts=doubts, draws=draws)


def importance_weights(
    log: BanditLog, policies: Mapping[str, PolicyProbabilities | None], *, seed: int = 0
) -> WeightedLog:
    """Fit the reward models and compute every policy's weights; `LOGGED` may be None where its propensities are not known."""
    members = Members.of(log.member_N)
    fold_N = np.repeat(assign_folds(len(members), seed), np.diff(np.append(members.start_M, len(log))))
    choices = LoggedChoices(
        artwork_NK=log.artwork_NK, score_NK=log.score_NK, shown_N=log.shown_N, title_N=log.title_N, fold_N=fold_N
    )
    artworks = 1 + max((int(log.artwork_NK[rows].max(initial=-1)) for rows in blocks(log.artwork_NK)), default=-1)
    models = {name: fit_reward_model(choices, reward_N, artworks) for name, reward_N in log.reward.items()}
    policy_weights, predicted, differing = _policy_weights(log, policies, choices, models, members)
    return WeightedLog(
        log=log,
        members=members,
        choices=choices,
        models=models,
        policy_weights=policy_weights,
        predicted=predicted,
        differing=differing,
        seed=seed,
    )


def estimate(
    weighted_log: WeightedLog,
    *,
    doubts: tuple[str, ...] = (),
    replay_doubts: tuple[str, ...] = (),
    draws: int = DRAWS,
) -> Estimates:
    """Every policy's value by every reward and estimator.

    `doubts`: defects of the log, in words; with any, no verdict is reliable. `replay_doubts`: the same of `replay` alone. In the
    result `low` and `high` of an estimate are the ends of its normal interval; the list `intervals` has both kinds.
    """
    log, members = weighted_log.log, weighted_log.members
    estimates: list[PointEstimate] = []
    left_out: list[LeftOutRow] = []
    for policy, arrays in weighted_log.policy_weights.items():
        for reward in log.reward:
            for estimator, estimate_or_reason in _estimates(
                log, members, policy, reward, arrays, weighted_log.predicted[reward]
            ):
                if isinstance(estimate_or_reason, str):
                    left_out.append(
                        {"policy": policy, "reward": reward, "estimator": estimator, "reason": estimate_or_reason}
                    )
                elif estimator == "replay":
                    estimates.append(replace(estimate_or_reason, doubts=replay_doubts))
                else:
                    estimates.append(estimate_or_reason)
    bootstrap_DE = bootstrap([point.sums for point in estimates], weighted_log.seed, draws)
    rows = estimate_rows(estimates, bootstrap_DE, weighted_log.alike, doubts)
    rows["overlap"] = [overlap_row(policy, arrays.overlap) for policy, arrays in weighted_log.policy_weights.items()]
    rows["left_out"] = left_out
    return rows


def _policy_weights(
    log: BanditLog,
    policies: Mapping[str, PolicyProbabilities | None],
    choices: LoggedChoices,
    models: Mapping[str, RewardModel],
    members: Members,
) -> tuple[dict[str, PolicyWeights], dict[str, NDArray], dict[tuple[str, str], int]]:
    """Each policy's arrays; by reward the models' predictions for the shown artworks, (N,); and by pair of policies the number
    of impressions on which they differ. Computed by blocks of rows."""
    all_propensities = log.propensity_NK is not None
    count = len(log)
    predicted = {reward: np.empty(count) for reward in models}
    chosen = {name: np.empty(count) for name in policies}
    expected = {name: {reward: np.empty(count) for reward in models} for name in policies}
    unsupported = {name: np.zeros(count, np.float32) for name in policies}
    known = [name for name, policy in policies.items() if policy is not None]
    differing = dict.fromkeys(combinations(known, 2), 0)
    for rows in blocks(log.artwork_NK):
        shown_index_n = np.arange(rows.stop - rows.start), log.shown_N[rows]
        model_nk = {reward: model.predict(choices, rows) for reward, model in models.items()}
        none_nk = None if log.propensity_NK is None else log.propensity_NK[rows] <= 0
        for reward, q_nk in model_nk.items():
            predicted[reward][rows] = q_nk[shown_index_n]
        probabilities = {name: np.asarray(p(rows), np.float64) for name, p in policies.items() if p is not None}
        for name, policy_nk in probabilities.items():
            chosen[name][rows] = policy_nk[shown_index_n]
            for reward, q_nk in model_nk.items():
                expected[name][reward][rows] = np.einsum("nk,nk->n", policy_nk, q_nk)
            if none_nk is not None and name != LOGGED:
                unsupported[name][rows] = np.einsum("nk,nk->n", policy_nk, none_nk)
        for one, other in differing:
            apart_nk = np.abs(probabilities[one] - probabilities[other]) > SAME_PROBABILITY
            differing[one, other] += int(apart_nk.any(1).sum())
    policy_weights = {}
    for name in policies:
        weight_N = np.ones(count) if name == LOGGED else chosen[name] / log.propensity_N
        supported = name == LOGGED or all_propensities
        share = float(unsupported[name].mean()) if supported and count else 0.0 if supported else float("nan")
        policy_weights[name] = PolicyWeights(
            weight_N=weight_N,
            chosen_N=chosen[name],
            expected=expected[name] if name in known else None,
            unsupported_N=unsupported[name] if supported else None,
            overlap=Overlap.of(weight_N, members, share),
        )
    return policy_weights, predicted, differing


def _estimates(
    log: BanditLog, members: Members, policy: str, reward: str, arrays: PolicyWeights, predicted_N: NDArray
) -> Iterator[tuple[str, PointEstimate | str]]:
    """Pairs of an estimator's name and its estimate, or the reason why it cannot be computed."""
    reward_N, w_N = log.reward[reward], arrays.weight_N
    rewarded = Rewarded.of(w_N * reward_N, members)

    def estimate_of(name: str, sums: Sums, **more: Any) -> tuple[str, PointEstimate]:
        known: dict[str, Any] = {
            "overlap": arrays.overlap,
            "rewarded": rewarded,
            "weight_N": w_N,
            "reward_N": reward_N,
            "rows": members,
            "impressions": len(log),
            "members": len(members),
        }
        return name, PointEstimate(policy=policy, reward=reward, estimator=name, sums=sums, **(known | more))

    plain = members.sums(by.ips(reward_N, w_N))
    normalised = members.sums(by.snips(reward_N, w_N))
    yield _replay_estimate(log, members, policy, reward, arrays, estimate_of)
    yield estimate_of("ips", plain)
    clipped = [members.sums(by.clipped_ips(reward_N, w_N, clip)) for clip in GRID]
    yield estimate_of(
        "clipped_ips", **_tuned("clip", GRID, clipped, plain, "what was clipped", uses_reward_model=False)
    )
    yield estimate_of("snips", normalised)
    bias = title_snips_bias(reward_N, w_N, log.title_N)
    titled = members.sums(by.title_snips(reward_N, w_N, log.title_N))
    if arrays.expected is None:
        for name in ("dm", "dr", "sndr", "switch_dr", "dr_os"):
            yield name, NEEDS_ALL_PROPENSITIES
        yield estimate_of("title_snips", titled, bias=bias, bias_source="small titles' ratios")
        return
    model_NN = arrays.expected[reward], predicted_N
    robust = members.sums(by.dr(reward_N, w_N, *model_NN))
    direct = members.sums(by.dm(model_NN[0]))
    yield estimate_of("dm", direct, unbiased=robust, bias_source="the reward model", uses_reward_model=True)
    yield estimate_of("dr", robust)
    yield estimate_of("sndr", members.sums(by.sndr(reward_N, w_N, *model_NN)))
    switched = [members.sums(by.switch_dr(reward_N, w_N, *model_NN, tau)) for tau in GRID]
    yield estimate_of(
        "switch_dr",
        **_tuned("tau", GRID, switched, robust, "the model where weights are large", uses_reward_model=True),
    )
    squares = tuple(weight**2 for weight in GRID)
    shrunk = [members.sums(by.dr_os(reward_N, w_N, *model_NN, strength)) for strength in squares]
    yield estimate_of(
        "dr_os",
        **_tuned("lambda", squares, shrunk, robust, "the model where weights are shrunk", uses_reward_model=True),
    )
    yield estimate_of("title_snips", titled, bias=bias, bias_source="small titles' ratios")


def _replay_estimate(
    log: BanditLog,
    members: Members,
    policy: str,
    reward: str,
    arrays: PolicyWeights,
    estimate_of: Callable[..., tuple[str, PointEstimate]],
) -> tuple[str, PointEstimate | str]:
    """Replay on the randomised impressions, compared with SNIPS on the same ones."""
    part = log.randomised_N
    if policy == LOGGED:
        return "replay", REPLAY_NOT_LOGGED
    if not part.any():
        return "replay", NEEDS_RANDOMISED
    # other impressions count 0, so that all estimates have the same members; every candidate of a randomised one had 1 / width
    width_N = log.artwork_NK.width_N if isinstance(log.artwork_NK, Lists) else (log.artwork_NK >= 0).sum(1)
    reward_N, chosen_N, weight_N = log.reward[reward], arrays.chosen_N * part, arrays.chosen_N * width_N * part
    sums = members.sums(by.replay(reward_N, chosen_N))
    own = Members.of(log.member_N[part])
    return estimate_of(
        "replay",
        sums,
        unbiased=members.sums(by.snips(reward_N, weight_N)),
        bias_source="that titles have different numbers of candidates",
        overlap=Overlap.of(weight_N[part], own, 0.0),
        rewarded=Rewarded.of(chosen_N * reward_N, members),
        weight_N=weight_N,
        impressions=own.rows,
        members=len(own),
    )


def title_snips_bias(reward_N: NDArray, weight_N: NDArray, title_N: NDArray) -> float:
    """Approximate bias of `title_snips`, each title's ratio having the bias -sum w^2 (r - V) / (sum w)^2."""
    titles = int(title_N.max(initial=-1)) + 1
    count_T, weight_T, earned_T, square_T, square_earned_T = (
        np.bincount(title_N, v, titles)
        for v in (None, weight_N, weight_N * reward_N, weight_N**2, weight_N**2 * reward_N)
    )
    seen = weight_T > 0
    value_T = earned_T[seen] / weight_T[seen]
    bias_T = (square_earned_T[seen] - value_T * square_T[seen]) / weight_T[seen] ** 2
    return float(abs((count_T[seen] * bias_T).sum()) / max(count_T[seen].sum(), 1))


def _tuned(
    name: str,
    grid: tuple[float, ...],
    sums_by_parameter: list[Sums],
    unbiased: Sums,
    bias_source: str,
    *,
    uses_reward_model: bool,
) -> dict[str, Any]:
    """Arguments of a `PointEstimate` with the parameter of least estimated squared error."""
    reference = UnbiasedReference(
        value=unbiased.value,
        influence_M=unbiased.influence_M,
        bias_source=bias_source,
        uses_reward_model=uses_reward_model,
    )
    influences = [sums.influence_M for sums in sums_by_parameter]
    biases = [
        reference.bias(sums.value, influence_M) for sums, influence_M in zip(sums_by_parameter, influences, strict=True)
    ]
    index = argmin_squared_error(biases, [standard_error(influence_M) for influence_M in influences])
    # JSON has no infinity: null means no bound
    json_grid = [None if np.isinf(number) else number for number in grid]
    parameter = Parameter(parameter=name, chosen=json_grid[index], rule=SELECTION_RULE, of=json_grid)
    return {
        "sums": sums_by_parameter[index],
        "unbiased": unbiased,
        "bias_source": bias_source,
        "uses_reward_model": uses_reward_model,
        "parameter": parameter,
    }


def argmin_squared_error(biases_L: Sequence[float], errors_L: Sequence[float]) -> int:
    """Index of the least bias^2 + error^2; the last of equals, which changes the weights least, also where none is finite."""
    squared = np.asarray(biases_L, np.float64) ** 2 + np.asarray(errors_L, np.float64) ** 2
    squared = np.where(np.isfinite(squared), squared, np.inf)
    return int(np.flatnonzero(squared <= squared.min())[-1])
