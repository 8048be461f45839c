"""What a log is good for, before anything is estimated from it: which impressions, which weights, which doubts.

In: a scored log, ordered by member, and its context in levels. Out: a `LogReview`: the impressions whose logging policies support
the evaluated policies, as arrays for the estimators, and every defect of the log in words.

Legend: N impressions, K candidates (padded), C candidates of all impressions, G groups of impressions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.logs.context_levels import ContextLevels
from evaluation.logs.log_checks import Calibration, calibration, drift
from evaluation.logs.log_faults import LogFault, log_faults
from evaluation.logs.logging_policies import Assignment, assignment_tests, certain_part, mixture_propensities
from evaluation.logs.propensity_tests import PropensityTests, check_propensities
from evaluation.logs.scored_log import ScoredLog
from evaluation.off_policy.estimators import snips
from evaluation.off_policy.intervals import Members, standard_error
from evaluation.off_policy.valuation import BanditLog
from evaluation.off_policy.verdict import UNSUPPORTED_WEAK
from evaluation.record.log_rows import AssignmentRow, LoggingPolicyRow, PeriodRow
from evaluation.record.rows import finite_or_none
from foundation.errors import UserError
from foundation.lists import Lists

WeightsOption = Literal["auto", "per-policy", "balanced"]

ALL_TRAFFIC = "all impressions of the period"
BALANCED_WEIGHTS = (
    "balanced: no logging policy is personalised, so an impression's weight divides by their mixture, assuming that "
    "impressions were assigned to policies at random"
)
PER_POLICY_WEIGHTS = "per policy: an impression's weight divides by the propensity of the policy that logged it"
CANNOT_BALANCE = (
    "weights=balanced: a logging policy is personalised, or only the shown artwork's propensity was logged, so that its "
    "propensities on the others' impressions are not known. Give --weights per-policy."
)
LEAST_SHARE = 0.2
"""Share of the impressions that support the scored policy which must support the uniform one too for the others to be left out."""
REWARD_ERRORS = 4.0
"""Standard errors by which the uniform policy's value may differ between the randomised impressions and the others."""
LOGGING_POLICY, MEMBER = "logging policy", "member"


@dataclass(frozen=True, kw_only=True)
class LogReview:
    """A log that was checked."""

    scored: ScoredLog
    """The impressions that are valued."""
    kept: NDArray[np.int64]
    """Their rows in the reviewed log."""
    log: BanditLog
    """They as arrays for the estimators."""
    weights: str
    """Which propensities weights divide by, in words."""
    traffic: str
    """Which impressions are valued, in words."""
    doubts: tuple[str, ...]
    """Defects of the log, for verdicts."""
    replay_doubts: tuple[str, ...]
    """Reasons why the randomised impressions do not stand for the others."""
    notes: list[str]
    policies: list[LoggingPolicyRow]
    assignment: list[AssignmentRow]
    propensity_tests: PropensityTests
    faults: list[LogFault]
    calibration: Calibration | None
    drift: Mapping[str, list[tuple[int, PeriodRow]]]
    """By reward, the uniform policy's value in parts of the period."""


def review_log(
    scored: ScoredLog,
    levels: Sequence[ContextLevels],
    *,
    weights: WeightsOption = "auto",
    slot_N: NDArray[np.integer] | None = None,
) -> LogReview:
    """Check a log. `scored`: ordered by member; `slot_N`: (N,) row and column of the page as one integer, where they were logged.

    UserError where weights are to be balanced and cannot be.
    """
    tests = check_propensities(scored, levels)
    faults, notes = log_faults(scored, slot_N)
    all_propensities = not np.isnan(scored.propensity_NK.values_C).any()
    calibrated = calibration(scored.propensity_NK, scored.shown) if all_propensities else None
    other_levels = [one for one in levels if one.name != LOGGING_POLICY]
    keep_N, policies, traffic = _supporting(scored, other_levels)
    kept = np.flatnonzero(keep_N)
    valued = scored if len(kept) == len(scored) else scored.take(kept)
    valued_levels = [one.take(kept) for one in other_levels]
    mixed_NK, words, assigned, weight_doubts = _weigh(valued, valued_levels, weights)
    log = _arrays(valued, mixed_NK)
    uniform_N = 1 / valued.width
    drifts = {
        reward: drift(reward_N, uniform_N / log.propensity_N, valued.shown_at, log.member_N)
        for reward, reward_N in log.reward.items()
    }
    doubts = [
        *tests.doubts,
        # bins of propensities say less than the tests
        *([calibrated.doubt] if calibrated is not None and calibrated.doubt and not tests.doubts else []),
        *(fault.text for fault in faults),
        *weight_doubts,
        *(doubt for _, doubt in drifts.values() if doubt),
    ]
    return LogReview(
        scored=valued,
        kept=kept,
        log=log,
        weights=words,
        traffic=traffic,
        doubts=tuple(dict.fromkeys(doubts)),
        replay_doubts=_replay_doubts(valued, valued_levels),
        notes=[*notes, *tests.notes, *([traffic] if traffic != ALL_TRAFFIC else [])],
        policies=policies,
        assignment=[] if assigned is None else assigned.rows,
        propensity_tests=tests,
        faults=faults,
        calibration=calibrated,
        drift={reward: parts for reward, (parts, _) in drifts.items()},
    )


def to_bandit_log(scored: ScoredLog) -> BanditLog:
    """A scored log, ordered by member, as arrays for the estimators, with weights per policy."""
    return _arrays(scored, None)


def rewards_of(scored: ScoredLog) -> dict[str, NDArray[np.floating]]:
    """Rewards by name, (N,): clicked, and engaged and minutes where the log has them."""
    known = {"clicked": scored.clicked, "engaged": scored.engaged, "minutes": scored.minutes}
    return {name: reward_N for name, reward_N in known.items() if reward_N is not None}


def _arrays(scored: ScoredLog, mixed_NK: Lists | None) -> BanditLog:
    all_propensities = not np.isnan(scored.propensity_NK.values_C).any()
    propensity_NK = scored.propensity_NK if mixed_NK is None else mixed_NK
    return BanditLog(
        member_N=scored.member,
        title_N=scored.title,
        artwork_NK=scored.artwork_NK,
        shown_N=scored.shown,
        propensity_N=scored.propensity if mixed_NK is None else mixed_NK[np.arange(len(scored)), scored.shown],
        propensity_NK=propensity_NK if all_propensities else None,
        score_NK=scored.click_probability_NK,
        randomised_N=scored.randomised,
        reward=rewards_of(scored),
    )


def _weigh(
    scored: ScoredLog, levels: Sequence[ContextLevels], weights: WeightsOption
) -> tuple[Lists | None, str, Assignment | None, list[str]]:
    """The mixture's propensities where weights are balanced, in words, the tests of the assignment, and doubts."""
    several = len(scored) > 0 and bool((scored.logging_policy != scored.logging_policy[0]).any())
    if not several:
        return None, PER_POLICY_WEIGHTS, None, []
    assigned = assignment_tests(scored.logging_policies, scored.logging_policy, scored.member, levels)
    if weights == "per-policy" or (weights == "auto" and not assigned.shown_random):
        return None, PER_POLICY_WEIGHTS, assigned, []
    mixed_NK = mixture_propensities(scored.propensity_NK, scored.artwork_NK, scored.logging_policy)
    if mixed_NK is None:
        if weights == "balanced":
            raise UserError(CANNOT_BALANCE)
        return None, PER_POLICY_WEIGHTS, assigned, []
    doubts = []
    if assigned.depends_on:
        doubts.append(
            "balanced weights assume that impressions were assigned to logging policies at random, and who logs depends on "
            + ", ".join(assigned.depends_on)
        )
    return mixed_NK, BALANCED_WEIGHTS, assigned, doubts


def _unsupported(scored: ScoredLog, policy_NK: Lists, certain_N: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The policy's probability on artworks with propensity 0, (N,); NaN where propensities are not known."""
    p_C, policy_C = scored.propensity_NK.values_C, policy_NK.values_C.astype(np.float64)
    lost_N = policy_NK.like(np.where(np.isnan(p_C), np.nan, np.where(p_C <= 0, policy_C, 0.0))).reduce(np.add)
    # shown for certain: the others had no probability, logged or not
    return np.where(np.isnan(lost_N) & certain_N, 1 - policy_NK[np.arange(len(scored)), scored.shown], lost_N)


def _supporting(
    scored: ScoredLog, levels: Sequence[ContextLevels]
) -> tuple[NDArray[np.bool_], list[LoggingPolicyRow], str]:
    """The impressions whose logging policies support the evaluated ones, (N,), a row by logging policy, and words on the traffic.

    A logging policy that shows artworks for certain in some impressions counts as two. All impressions are kept where they support
    every evaluated policy together, or where no logging policy supports the scored one.
    """
    width_N = scored.width
    certain_N = certain_part(scored.propensity) & (width_N > 1)
    group_N = 2 * scored.logging_policy + certain_N
    groups = 2 * len(scored.logging_policies)
    count_G = np.bincount(group_N, minlength=groups)
    even_NK = scored.artwork_NK.like(np.repeat(1 / width_N, width_N))
    evaluated = {"scored": scored.policy_NK, **scored.policies, "uniform": even_NK}
    lost_G = {}
    fits = True
    for name, policy_NK in evaluated.items():
        lost_N = np.nan_to_num(_unsupported(scored, policy_NK, certain_N))
        fits &= bool(lost_N.mean() <= UNSUPPORTED_WEAK)
        lost_G[name] = np.bincount(group_N, lost_N, groups) / np.maximum(count_G, 1)
    every_G = np.all([lost <= UNSUPPORTED_WEAK for lost in lost_G.values()], axis=0) & (count_G > 0)
    own_G = np.all([lost <= UNSUPPORTED_WEAK for name, lost in lost_G.items() if name != "uniform"], axis=0) & (
        count_G > 0
    )
    use_G = every_G if count_G[every_G].sum() >= LEAST_SHARE * max(count_G[own_G].sum(), 1) else own_G
    if fits or not use_G.any():
        use_G = count_G > 0
    unknown_N = np.isnan(_unsupported(scored, scored.policy_NK, certain_N))
    unknown_G = np.bincount(group_N, unknown_N, groups) > 0
    rows: list[LoggingPolicyRow] = [
        {
            "policy": scored.logging_policies[group // 2],
            "impressions": int(count_G[group]),
            "certain": bool(group % 2),
            "unsupported": finite_or_none(float("nan") if unknown_G[group] else float(lost_G["scored"][group])),
            "used": bool(use_G[group]),
        }
        for group in np.flatnonzero(count_G)
    ]
    keep_N = use_G[group_N]
    return keep_N, rows, ALL_TRAFFIC if keep_N.all() else _traffic(scored, keep_N, rows, levels)


def _traffic(
    scored: ScoredLog, keep_N: NDArray[np.bool_], rows: Sequence[LoggingPolicyRow], levels: Sequence[ContextLevels]
) -> str:
    """Words on the impressions that are valued: whether they stand for all."""
    left_out = [
        f"{row['policy']}{' where it shows an artwork for certain' if row['certain'] else ''}"
        for row in rows
        if not row["used"]
    ]
    share = keep_N.mean()
    text = (
        f"Valued on {keep_N.sum():,} impressions, {share:.0%} of the traffic; {(~keep_N).sum():,} are left out, logged by "
        f"{', '.join(left_out)}, which never shows what the evaluated policies would"
    )
    assigned = assignment_tests(("left out", "valued"), keep_N.astype(np.int64), scored.member, levels)
    context = [name for name in assigned.depends_on if name != MEMBER]
    if context:
        names = ", ".join(context)
        return (
            f"{text}. Which impressions are valued depends on {names}: the value is of that part, not of all traffic."
        )
    if MEMBER in assigned.depends_on:
        return (
            f"{text}. Whole members are valued or left out, alike in all that was logged of them: the value is that of all traffic "
            "if members were assigned at random."
        )
    return f"{text}. Which impressions are valued does not depend on anything that was logged: the value is that of all traffic."


def _replay_doubts(scored: ScoredLog, levels: Sequence[ContextLevels]) -> tuple[str, ...]:
    """Reasons why the randomised impressions do not stand for all: their context, or the uniform policy's value on them."""
    part_N = scored.randomised
    if not part_N.any() or part_N.all():
        return ()
    doubts = []
    assigned = assignment_tests(("others", "randomised"), part_N.astype(np.int64), scored.member, levels)
    context = [name for name in assigned.depends_on if name != MEMBER]
    if context:
        doubts.append(
            f"which impressions are randomised depends on {', '.join(context)}: they do not stand for the others"
        )
    values, errors = [], []
    for some_N in (part_N, ~part_N):
        weight_N = 1 / (scored.width * scored.propensity)[some_N]
        members = Members.of(scored.member[some_N])
        sums = members.sums(snips(scored.clicked[some_N], weight_N))
        values.append(sums.value)
        errors.append(standard_error(sums.influence_M))
    if abs(values[0] - values[1]) > REWARD_ERRORS * float(np.hypot(*errors)):
        doubts.append(
            f"the uniform policy earns {values[0]:.4f} on the randomised impressions and {values[1]:.4f} on the others"
        )
    return tuple(doubts)
