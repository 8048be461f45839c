"""Estimators on logs whose truth is known, with members who differ so much that their impressions must not count alone.

Legend: R replications, N impressions, M members, K artworks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

from evaluation.logs.logged_impressions import Outcomes
from evaluation.logs.policies import best_fixed, greedy, uniform
from evaluation.logs.scored_log import ScoredLog
from evaluation.off_policy import estimators as by
from evaluation.off_policy.estimators import Terms
from evaluation.off_policy.intervals import (
    Members,
    bootstrap,
    degrees_of_freedom,
    normal_interval,
    percentile_interval,
    student_point,
)
from evaluation.off_policy.verdict import Overlap
from foundation.lists import Lists

MEMBERS, EACH, REPLICATIONS = 50, 8, 400
APPEAL_K = np.array([0.0, 0.05, 0.1, 0.25])
TARGET_K = np.array([0.1, 0.1, 0.2, 0.6])
UNIFORM_K = np.full(4, 0.25)
RARELY, MOSTLY = 0.05, 0.6
"""Click rates of the two kinds of member, before appeal."""


def true_value(policy_K: np.ndarray) -> float:
    """True value: half the members are of each kind."""
    return float((RARELY + MOSTLY) / 2 + policy_K @ APPEAL_K)


def logs(logging_K: np.ndarray, replications: int = REPLICATIONS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards (R, N), shown artworks (R, N) and members (N,) of many small logs."""
    rng = np.random.default_rng(11)
    member_N = np.repeat(np.arange(MEMBERS), EACH)
    level_RM = np.where(rng.random((replications, MEMBERS)) < 0.5, RARELY, MOSTLY)
    shown_RN = rng.choice(4, size=(replications, len(member_N)), p=logging_K)
    reward_RN = rng.random(shown_RN.shape) < level_RM[:, member_N] + APPEAL_K[shown_RN]
    return reward_RN.astype(float), shown_RN, member_N


@dataclass(frozen=True)
class Estimate:
    """A value with the interval that reports give it."""

    value: float
    low: float
    high: float


def estimate(terms: Terms, member_N: np.ndarray) -> Estimate:
    sums = Members.of(member_N).sums(terms)
    interval = normal_interval(sums.value, sums.influence_M)
    return Estimate(sums.value, interval.low, interval.high)


def coverage(estimates: list[Estimate], truth: float) -> float:
    return float(np.mean([e.low <= truth <= e.high for e in estimates]))


@pytest.mark.parametrize("estimator", [by.ips, by.snips])
@pytest.mark.parametrize("logging_K", [UNIFORM_K, np.array([0.4, 0.3, 0.2, 0.1])], ids=["uniform", "skewed"])
def test_values_are_right_on_average_and_intervals_hold(estimator: Callable, logging_K: np.ndarray) -> None:
    reward_RN, shown_RN, member_N = logs(logging_K)
    weight_RN = (TARGET_K / logging_K)[shown_RN]
    estimates = [estimate(estimator(r, w), member_N) for r, w in zip(reward_RN, weight_RN, strict=True)]
    values = np.array([e.value for e in estimates])
    assert abs(values.mean() - true_value(TARGET_K)) < 3.5 * values.std() / np.sqrt(len(values))
    assert 0.92 <= coverage(estimates, true_value(TARGET_K)) <= 0.98
    assert (Members.of(member_N).rows, len(Members.of(member_N))) == (MEMBERS * EACH, MEMBERS)


@pytest.mark.parametrize("estimator", [by.ips, by.snips])
def test_intervals_by_impression_miss_the_truth_too_often(estimator: Callable) -> None:
    """What counting every impression as independent would claim: 95 %; what it covers: less than 80 %."""
    reward_RN, shown_RN, member_N = logs(UNIFORM_K)
    weight_RN = np.ones(shown_RN.shape)
    alone = [estimate(estimator(r, w), np.arange(len(member_N))) for r, w in zip(reward_RN, weight_RN, strict=True)]
    ours = [estimate(estimator(r, w), member_N) for r, w in zip(reward_RN, weight_RN, strict=True)]
    assert coverage(alone, true_value(UNIFORM_K)) < 0.8
    assert 0.92 <= coverage(ours, true_value(UNIFORM_K)) <= 0.98


def test_the_lift_is_right_and_surer_than_two_values_apart() -> None:
    reward_RN, shown_RN, member_N = logs(UNIFORM_K)
    truth = true_value(TARGET_K) / true_value(UNIFORM_K) - 1
    difference = true_value(TARGET_K) - true_value(UNIFORM_K)
    members = Members.of(member_N)
    lifts, differences, apart = [], [], []
    for reward_N, shown_N in zip(reward_RN, shown_RN, strict=True):
        policy, base = (
            members.sums(by.snips(reward_N, w)) for w in ((TARGET_K / UNIFORM_K)[shown_N], np.ones(len(member_N)))
        )
        drawn_DE = bootstrap([policy, base], 0)
        ends = percentile_interval(drawn_DE[:, 0] / drawn_DE[:, 1] - 1)
        lifts.append(Estimate(policy.value / base.value - 1, ends.low, ends.high))
        ends = normal_interval(policy.value - base.value, policy.influence_M - base.influence_M)
        differences.append(Estimate(policy.value - base.value, ends.low, ends.high))
        alone = [normal_interval(side.value, side.influence_M) for side in (policy, base)]
        apart.append(np.linalg.norm([(ends.high - ends.low) / 2 for ends in alone]))
    values = np.array([lift.value for lift in lifts])
    # a ratio of two estimates is biased by about its variance
    assert abs(values.mean() - truth) < 3.5 * values.std() / np.sqrt(len(values)) + values.var()
    assert 0.92 <= coverage(lifts, truth) <= 0.98
    assert 0.92 <= coverage(differences, difference) <= 0.98
    assert np.mean([(d.high - d.low) / 2 for d in differences]) < 0.8 * np.mean(apart)
    base_value = true_value(UNIFORM_K)
    assert np.mean([(lift.high - lift.low) / 2 for lift in lifts]) < 0.8 * np.mean(apart) / base_value


def student_probability(t: float, freedom: float) -> float:
    """Student's distribution function, by the trapezoid rule over its density."""
    x = np.linspace(0, t, 20_001)
    factor = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    return 0.5 + float(np.trapezoid(factor * (1 + x**2 / freedom) ** (-(freedom + 1) / 2), x))


@pytest.mark.parametrize("freedom", [1, 1.5, 2, 3, 3.7, 4, 5.5, 10, 49])
def test_the_factor_of_an_interval_is_students(freedom: float) -> None:
    assert student_probability(student_point(freedom), freedom) == pytest.approx(
        0.975, abs=1.5e-3 if freedom >= 2 else 4e-3
    )


def test_few_members_with_most_of_the_variance_leave_few_degrees_of_freedom() -> None:
    rng = np.random.default_rng(0)
    even_M = rng.normal(size=2000)
    assert degrees_of_freedom(even_M) > 1500
    few_M = np.r_[even_M, np.full(10, 40.0)]
    assert 2 < degrees_of_freedom(few_M) < 10, "ten members carry nearly all of it"
    assert degrees_of_freedom(np.zeros(9)) == 8
    assert np.isnan(degrees_of_freedom(np.zeros(1)))


def test_estimates_against_straight_lines() -> None:
    reward_RN, shown_RN, member_N = logs(np.array([0.4, 0.3, 0.2, 0.1]), 1)
    reward, member = reward_RN[0].tolist(), member_N.tolist()
    weight = (TARGET_K / [0.4, 0.3, 0.2, 0.1])[shown_RN[0]].tolist()
    rows = list(zip(member, weight, reward, strict=True))
    n, total = len(reward), sum(weight)
    for estimator, over in ((by.ips, lambda some: len(some)), (by.snips, lambda some: sum(w for _, w, _ in some))):

        def value_of_rows(some: list, over: Callable = over) -> float:
            return sum(w * r for _, w, r in some) / over(some)

        value = value_of_rows(rows)
        without = [value_of_rows([row for row in rows if row[0] != m]) for m in range(MEMBERS)]
        mean = sum(without) / MEMBERS
        error = (sum((v - mean) ** 2 for v in without) * (MEMBERS - 1) / MEMBERS) ** 0.5
        estimated = estimate(estimator(np.array(reward), np.array(weight)), member_N)
        assert estimated.value == pytest.approx(value)
        away = [v - mean for v in without]
        excess = MEMBERS * sum(x**4 for x in away) / sum(x**2 for x in away) ** 2 - 3
        freedom = (MEMBERS - 1) / (1 + 2 * max(excess, 0))
        assert (estimated.low + estimated.high) / 2 == pytest.approx(value)
        assert student_probability((estimated.high - value) / error, freedom) == pytest.approx(0.975, abs=2e-5)
    overlap = Overlap.of(np.array(weight), Members.of(member_N), 0.0)
    assert overlap.effective_sample_size == pytest.approx(total**2 / sum(w * w for w in weight))
    assert overlap.mean_weight == pytest.approx(total / n)
    assert overlap.largest_weight == max(weight)


def test_constant_rewards_are_their_own_value() -> None:
    rng = np.random.default_rng(4)
    weight_N, member_N = rng.exponential(size=60), np.sort(rng.integers(0, 9, 60))
    constant = estimate(by.snips(np.full(60, 0.3), weight_N), member_N)
    assert (constant.value, constant.low, constant.high) == pytest.approx((0.3, 0.3, 0.3))
    reward_N = rng.random(60)
    shifted = estimate(by.snips(reward_N + 5, weight_N), member_N)
    assert shifted.value == pytest.approx(estimate(by.snips(reward_N, weight_N), member_N).value + 5)


def test_member_ids_are_names_only() -> None:
    terms = by.ips(np.array([1.0, 0.0, 1.0, 0.0]), np.array([1.0, 2.0, 0.5, 1.0]))
    assert estimate(terms, np.array([7, 7, 900, -3])) == estimate(terms, np.array([0, 0, 1, 2]))


def test_nothing_to_go_by_is_not_a_number() -> None:
    none = np.zeros(0)
    values = [estimate(terms, none.astype(int)).value for terms in (by.ips(none, none), by.snips(none, none))]
    assert np.isnan(values).all()
    base = Members.of(np.arange(3)).sums(by.snips(np.zeros(3), np.ones(3)))
    with np.errstate(invalid="ignore"):
        drawn_DE = bootstrap([base, base], 0)
        lift = percentile_interval(drawn_DE[:, 0] / drawn_DE[:, 1] - 1)
    assert np.isnan([lift.low, lift.high]).all(), "no click under the base policy: a lift over nothing"


EVERY = slice(None)


def one_impression(*artworks: str) -> ScoredLog:
    """A log of one impression with these candidates and one column of padding."""
    mask_NK = np.arange(len(artworks) + 1)[None] < len(artworks)
    numbers_NK = np.where(mask_NK, np.arange(len(artworks) + 1), -1)
    nothing_NK = Lists.of_padded(np.zeros(mask_NK.shape), mask_NK)
    return ScoredLog(
        impression_id=pa.array(["i0"]),
        member=np.array([0]),
        title=np.array([0]),
        artworks=pa.array(artworks),
        artwork_NK=Lists.of_padded(numbers_NK, mask_NK, padding=-1),
        shown=np.array([0]),
        propensity=np.array([0.5]),
        propensity_NK=nothing_NK,
        shown_at=np.array([0]),
        logging_policy=np.array([0]),
        logging_policies=("explore",),
        missing=0,
        unknown=0,
        randomised=np.array([True]),
        clicked=np.array([0.0]),
        engaged=None,
        click_probability_NK=nothing_NK,
        engaged_probability=None,
        policy_NK=nothing_NK,
        true_click_NK=None,
        true_engaged_NK=None,
    )


def past(*artworks: tuple[str, float, int, int]) -> Outcomes:
    """What was shown before, of one title: (artwork, propensity, impressions, clicks)."""
    names = sorted({artwork for artwork, *_ in artworks})
    counts = [count for _, _, count, _ in artworks]
    artwork = np.repeat([names.index(name) for name, *_ in artworks], counts)
    return Outcomes(
        artworks=pa.array(names),
        artwork=artwork,
        title=np.zeros(len(artwork), int),
        clicked=np.concatenate([np.arange(count) < clicks for _, _, count, clicks in artworks]).astype(float),
        propensity=np.repeat([propensity for _, propensity, _, _ in artworks], counts),
        member=np.arange(len(artwork)),
        width=np.full(len(artwork), len(names)),
        engaged=None,
        shown_at=np.zeros(len(artwork), np.int64),
    )


def test_best_for_everybody_is_not_what_an_older_policy_aimed_well() -> None:
    """Half the members click on a (.9) where the others do not (.1); all click on b at .6. A was aimed at the former."""
    aimed = past(("a", 0.9, 900, 810), ("b", 0.1, 100, 60), ("a", 0.1, 100, 10), ("b", 0.9, 900, 540))
    assert best_fixed(one_impression("a", "b"), aimed)[EVERY].tolist() == [[0, 1]]


def test_one_lucky_impression_does_not_make_a_winner() -> None:
    known = past(("a", 0.5, 2000, 800), ("b", 0.5, 2000, 600), ("c", 0.5, 1, 1))
    assert best_fixed(one_impression("c", "a", "b"), known)[EVERY].tolist() == [[0, 1, 0]]
    assert best_fixed(one_impression("c", "b"), known)[EVERY].tolist() == [[1, 0]], "between one and the title's rate"


def test_an_artwork_never_seen_stands_at_the_mean_of_the_others() -> None:
    known = past(("a", 0.5, 2000, 800), ("b", 0.5, 2000, 600))
    assert best_fixed(one_impression("new", "b", "a"), known)[EVERY].tolist() == [[0, 0, 1]]
    assert best_fixed(one_impression("new", "newer"), known)[EVERY].tolist() == [[1, 0]], "nothing is known of either"


def test_policies_give_nothing_to_padding() -> None:
    log = one_impression("a", "b")
    assert uniform(log)[EVERY].tolist() == [[0.5, 0.5]]
    beside_longer = Lists.of(np.array([-2.0, -1.0, -3.0, -3.0, -4.0]), np.array([2, 3]))
    assert greedy(beside_longer)[EVERY].tolist() == [[0, 1, 0], [1, 0, 0]]
