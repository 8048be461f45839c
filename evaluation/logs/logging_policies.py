"""Several logging policies in one log: which propensity a weight divides by, which of them support a policy, who logs what.

Per-policy weights divide by the propensity of the policy that logged the impression: always known, always unbiased, and the
default. Balanced weights divide by the mixture of all policies that logged this choice (the balance heuristic of Veach and
Guibas, 1995; Agarwal et al., 2017, Effective evaluation using logged bandit feedback from multiple loggers), which lowers the
weights of artworks that one policy rarely showed and another often did. They need each policy's propensities on the others'
impressions. Nobody logs those; they are known where no policy is personalised, that is, where each policy gives
one list of candidates the same propensities every time. They also assume that impressions were assigned to policies at random,
which `assignment_tests` puts to the test: not by member, device, day or anything else that was logged.

Legend: N impressions, K candidates (padded), C candidates of all impressions, G lists of candidates x policies, E their
candidates, L lists of candidates (or levels of an attribute), J their candidates, P logging policies, T tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.logs.context_levels import ContextLevels
from evaluation.logs.tail_bounds import bennett_tail, holm
from evaluation.record.log_rows import AssignmentRow
from foundation.choice import PROBABILITY_ROUNDING, equal_within_rounding
from foundation.lists import Lists

ASSIGNMENT_ERROR_RATE = 0.01
"""Share of logs with random assignment in which any test rejects, at most."""
MEMBER = "member"
MEMBER_SHARE = 0.02
"""Share of the variance of who logs that may lie between members (upper bound) where assignment counts as shown to be random."""
LEVEL_SHARE = 0.1
"""Difference of a policy's share in a level from that in the log (upper bound) where assignment counts as shown to be random."""
LEAST = 200
"""Impressions of a level below which its share is not bounded."""
BOUND_ERRORS = 2.0
MOST_POLICIES = 8
"""Logging policies whose shares are tested, the largest first."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Whether who logs an impression depends on its context."""

    rows: list[AssignmentRow]
    """The level of each attribute that differs most, those that reject first."""
    depends_on: tuple[str, ...]
    """Attributes on which it depends."""
    shown_random: bool
    """Whether nothing rejects and the log is large enough to bound what could have been missed."""


def assignment_tests(
    names: Sequence[str], group_N: NDArray[np.integer], member_N: NDArray[np.integer], levels: Sequence[ContextLevels]
) -> Assignment:
    """Test which of some groups, such as logging policies, an impression belongs to, against its member and its context.

    `group_N`: index into `names`; `member_N`: ordered. By member: whether two impressions in a row of one member share a group more
    often than two of the log. By level of an attribute: the group's share of it, with standard errors by member.
    """
    count = len(group_N)
    share_P = np.bincount(group_N, minlength=len(names)) / max(count, 1)
    pair_N = member_N[1:] == member_N[:-1]
    same, pairs, expected = (
        float((group_N[1:] == group_N[:-1])[pair_N].sum()),
        int(pair_N.sum()),
        float((share_P**2).sum()),
    )
    variance = pairs * expected * (1 - expected)
    # the shares are the sample's own, which allows two in a row to be alike a little less often: no matter among many members
    p_values = [float(bennett_tail(max(same - pairs * expected, 0.0), variance, 1.0))]
    excess, error = same / max(pairs, 1) - expected, variance**0.5 / max(pairs, 1)
    between = (excess + BOUND_ERRORS * error) / max(1 - expected, 1e-9)
    bounded = pairs > 0 and between < MEMBER_SHARE
    most = int(share_P.argmax())
    rows: list[AssignmentRow] = [
        _row(names[most], MEMBER, "two in a row", excess + expected, expected, excess / max(error, 1e-12))
    ]
    attributes = [MEMBER]
    # the share of the last policy follows from the others'
    tested = [
        int(policy) for policy in np.argsort(-share_P, kind="stable")[: min(MOST_POLICIES, (share_P > 0).sum() - 1)]
    ]
    for attribute in levels:
        for policy in tested:
            in_level = np.bincount(attribute.code_N, minlength=len(attribute.levels)).astype(np.float64)
            sum_L, variance_L, largest_L = _surplus(group_N == policy, share_P[policy], attribute, member_N)
            error_L = np.sqrt(np.maximum(variance_L, 1e-12))
            large_L = in_level >= LEAST
            if large_L.any():
                widest_L = (np.abs(sum_L) + BOUND_ERRORS * error_L)[large_L] / in_level[large_L]
                bounded &= bool((widest_L < LEVEL_SHARE).all())
            (at,) = np.nonzero(in_level > 0)
            p_L = bennett_tail(sum_L[at], variance_L[at], largest_L[at])
            best = int(p_L.argmin())
            p_values.append(min(1.0, float(p_L[best]) * len(at)))
            level = int(at[best])
            share = share_P[policy] + sum_L[level] / in_level[level]
            rows.append(
                _row(
                    names[policy],
                    attribute.name,
                    attribute.levels[level],
                    share,
                    share_P[policy],
                    sum_L[level] / error_L[level],
                )
            )
            attributes.append(attribute.name)
    adjusted = holm(np.array(p_values))
    for row, p in zip(rows, adjusted, strict=True):
        row["chance"] = float(p)
    reject = adjusted <= ASSIGNMENT_ERROR_RATE
    depends_on = tuple(dict.fromkeys(name for name, rejects in zip(attributes, reject, strict=True) if rejects))
    order = np.argsort(adjusted, kind="stable")
    return Assignment(
        rows=[rows[index] for index in order], depends_on=depends_on, shown_random=bounded and not depends_on
    )


def _row(policy: str, attribute: str, level: str, share: float, overall: float, errors: float) -> AssignmentRow:
    return {
        "policy": policy,
        "attribute": attribute,
        "level": level,
        "share": float(share),
        "overall": float(overall),
        "standard_errors": float(errors),
        "chance": 1.0,
    }


def _surplus(
    in_group_N: NDArray[np.bool_], share: float, attribute: ContextLevels, member_N: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """By level, impressions of a group beyond its share, its variance, by draws or by member, the larger one, and the largest
    term, (L,) each.

    Members, where whole members are assigned: then a member's impressions are one draw. The variance is that of the difference
    from the other levels, whose impressions determine the share too.
    """
    levels, members = len(attribute.levels), int(member_N.max()) + 1
    gap_N = in_group_N - share
    key_N = attribute.code_N * members + member_N
    sum_LM = np.bincount(key_N, gap_N, levels * members).reshape(levels, members)
    in_level = np.bincount(attribute.code_N, minlength=levels) / len(member_N)
    total_M = sum_LM.sum(0)
    influence_LM = sum_LM - in_level[:, None] * total_M
    by_draw_L = share * (1 - share) * in_level * (1 - in_level) * len(member_N)
    by_member_L = (influence_LM**2).sum(1)
    largest_L = np.where(by_member_L > 2 * by_draw_L, np.abs(influence_LM).max(1), 1.0)
    return sum_LM.sum(1), np.maximum(by_draw_L, by_member_L), largest_L


def certain_part(propensity_N: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether the shown artwork was shown for certain, (N,): a logging policy that did not draw."""
    return propensity_N >= 1 - PROBABILITY_ROUNDING


def mixture_propensities(
    propensity_NK: Lists, artwork_NK: Lists, logging_policy_N: NDArray[np.integer]
) -> Lists | None:
    """Propensities of the mixture, (N, K), or None where weights must be per policy.

    Within one list of candidates, the mixture is sum_l n_l / n propensity_l, over the policies that logged it. None where
    one policy logged all, where whole propensities were not logged (NaN), or where a policy is personalised.
    """
    if (
        len(logging_policy_N) == 0
        or (logging_policy_N == logging_policy_N[0]).all()
        or np.isnan(propensity_NK.values_C).any()
    ):
        return None
    list_N = _lists(artwork_NK)
    _, index_N, list_of_G = _pairs(list_N, logging_policy_N)
    width_N = artwork_NK.width_N
    width_L = np.zeros(int(list_N.max()) + 1, np.int64)
    width_L[list_N] = width_N
    start_G, start_L = (np.cumsum(width) - width for width in (width_L[list_of_G], width_L))
    item_C = np.repeat(start_G[index_N], width_N) + artwork_NK.index_C
    min_E, max_E = np.full((2, int(width_L[list_of_G].sum())), np.nan)
    for bound_E, function in ((min_E, np.fmin), (max_E, np.fmax)):
        function.at(bound_E, item_C, propensity_NK.values_C.astype(np.float64))
    if not equal_within_rounding(min_E, max_E).all():
        return None
    count_G = np.bincount(index_N, minlength=len(list_of_G))
    width_G = width_L[list_of_G]
    item_of_E = np.repeat(start_L[list_of_G] - start_G, width_G) + np.arange(len(min_E))
    mixed_J = np.zeros(int(width_L.sum()))
    np.add.at(mixed_J, item_of_E, min_E * np.repeat(count_G, width_G))
    mixed_J /= np.repeat(np.bincount(list_of_G, count_G, len(width_L)), width_L)
    return artwork_NK.like(mixed_J.astype(np.float32)[np.repeat(start_L[list_N], width_N) + artwork_NK.index_C])


def _lists(artwork_NK: Lists) -> NDArray[np.int64]:
    """Lists of candidates as integers, by a 64-bit hash of each."""
    longest = int(artwork_NK.width_N.max(initial=0))
    factor_K = np.random.default_rng(0).integers(1, 2**63, longest + 1, np.uint64) | np.uint64(1)
    product_C = (artwork_NK.values_C.astype(np.int64) + 2).astype(np.uint64) * factor_K[artwork_NK.index_C]
    hash_N = artwork_NK.like(product_C).reduce(np.add) + artwork_NK.width_N.astype(np.uint64) * factor_K[-1]
    return np.unique(hash_N, return_inverse=True)[1].reshape(-1)


def _pairs(list_N: NDArray, logging_policy_N: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Distinct pairs of list and policy as integers, each impression's index among them, (N,), and each pair's list, (G,)."""
    policy_count = int(logging_policy_N.max()) + 1
    distinct, index_N = np.unique(list_N * policy_count + logging_policy_N, return_inverse=True)
    return distinct, index_N.reshape(-1), distinct // policy_count
