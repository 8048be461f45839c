"""Every estimator against straight lines; intervals, tuning, weights of several loggers and the reward model by what must hold.

Legend: N impressions, K candidates, M members.
"""

import numpy as np
import pytest

from evaluation.logs.log_checks import calibration, drift
from evaluation.logs.logging_policies import mixture_propensities
from evaluation.off_policy import estimators as by
from evaluation.off_policy.estimators import Terms
from evaluation.off_policy.intervals import (
    Members,
    Z,
    bootstrap,
    degrees_of_freedom,
    normal_interval,
    percentile_interval,
    standard_error,
    student_point,
)
from evaluation.off_policy.reward_model import FOLDS, LoggedChoices, assign_folds, fit_reward_model, shrunk_rates
from evaluation.off_policy.valuation import argmin_squared_error, title_snips_bias
from foundation.lists import Lists

RNG = np.random.default_rng(3)
N = 240
MEMBER = np.sort(RNG.integers(0, 25, N))
REWARD = (RNG.random(N) < 0.3).astype(float)
WEIGHT = RNG.exponential(1.0, N) * (RNG.random(N) < 0.8)
CHOSEN = (RNG.random(N) < 0.4).astype(float)
EXPECTED, PREDICTED = RNG.random(N), RNG.random(N)
TITLE = RNG.integers(0, 6, N)
R, W, E, Q = (a.tolist() for a in (REWARD, WEIGHT, EXPECTED, PREDICTED))


def straight(name: str) -> float:
    """The estimator once more, impression by impression."""
    total, kept, count, titles = 0.0, 0.0, 0, {}
    expected = sum(E) / N
    for n in range(N):
        r, w, q, chosen = R[n], W[n], Q[n], CHOSEN[n]
        if name == "replay":
            if chosen == 1:
                total, kept = total + r, kept + 1
        elif name == "ips":
            total += w * r
        elif name == "clipped_ips":
            total += (w if w < 2 else 2) * r
        elif name == "snips":
            total, kept = total + w * r, kept + w
        elif name == "dm":
            total += E[n]
        elif name == "dr":
            total += E[n] + w * (r - q)
        elif name == "sndr":
            total, kept = total + w * (r - q), kept + w
        elif name == "switch_dr":
            total += E[n] + (w * (r - q) if w <= 1.5 else 0)
        elif name == "dr_os":
            total += E[n] + 3 * w / (w * w + 3) * (r - q)
        elif name == "title_snips":
            a, b, k = titles.get(TITLE[n], (0.0, 0.0, 0))
            titles[TITLE[n]] = (a + w * r, b + w, k + 1)
        count += 1
    if name in ("replay", "snips"):
        return total / kept
    if name == "sndr":
        return expected + total / kept
    if name == "title_snips":
        return sum(k / N * a / b for a, b, k in titles.values())
    return total / count


TERMS: dict[str, Terms] = {
    "replay": by.replay(REWARD, CHOSEN),
    "ips": by.ips(REWARD, WEIGHT),
    "clipped_ips": by.clipped_ips(REWARD, WEIGHT, 2.0),
    "snips": by.snips(REWARD, WEIGHT),
    "dm": by.dm(EXPECTED),
    "dr": by.dr(REWARD, WEIGHT, EXPECTED, PREDICTED),
    "sndr": by.sndr(REWARD, WEIGHT, EXPECTED, PREDICTED),
    "switch_dr": by.switch_dr(REWARD, WEIGHT, EXPECTED, PREDICTED, 1.5),
    "dr_os": by.dr_os(REWARD, WEIGHT, EXPECTED, PREDICTED, 3.0),
    "title_snips": by.title_snips(REWARD, WEIGHT, TITLE),
}


@pytest.mark.parametrize("name", TERMS)
def test_estimators_against_straight_lines(name: str) -> None:
    assert Members.of(MEMBER).sums(TERMS[name]).value == pytest.approx(straight(name), abs=1e-12)


@pytest.mark.parametrize("name", TERMS)
def test_what_a_member_moves_is_what_leaving_it_out_changes(name: str) -> None:
    members = Members.of(MEMBER)
    sums = members.sums(TERMS[name])
    keep = MEMBER[0] != MEMBER
    without = Members.of(MEMBER[keep]).sums(tuple((a[keep], b[keep]) for a, b in TERMS[name]))
    assert sums.influence_M[0] == pytest.approx(sums.value - without.value)


def test_bounds_that_bind_nothing_give_the_plain_estimator() -> None:
    def value(terms: Terms) -> float:
        return Members.of(MEMBER).sums(terms).value

    model = EXPECTED, PREDICTED
    assert value(by.clipped_ips(REWARD, WEIGHT, np.inf)) == value(TERMS["ips"])
    assert value(by.switch_dr(REWARD, WEIGHT, *model, np.inf)) == value(TERMS["dr"])
    assert value(by.dr_os(REWARD, WEIGHT, *model, np.inf)) == value(TERMS["dr"])
    assert value(by.dr_os(REWARD, WEIGHT, *model, 0.0)) == value(by.switch_dr(REWARD, WEIGHT, *model, -1.0)) == value(
        TERMS["dm"]
    )  # fmt: skip
    assert value(by.title_snips(REWARD, WEIGHT, np.zeros(N, int))) == pytest.approx(value(TERMS["snips"]))


def test_a_title_without_weight_is_left_out() -> None:
    terms = by.title_snips(np.array([1.0, 0.0, 1.0]), np.array([1.0, 1.0, 0.0]), np.array([0, 0, 1]))
    assert Members.of(np.arange(3)).sums(terms).value == pytest.approx(0.5)


def test_the_bias_of_small_titles_is_seen() -> None:
    """Titles have ten impressions each, whose rewarded impressions have the small weights."""
    rng = np.random.default_rng(0)
    title = np.repeat(np.arange(4000), 10)
    common = rng.random(len(title)) < 0.8
    weight = np.where(common, 0.625, 2.5)
    reward = (rng.random(len(title)) < np.where(common, 0.6, 0.2)).astype(float)
    truth = 0.8 * 0.625 * 0.6 + 0.2 * 2.5 * 0.2
    off = Members.of(np.arange(len(title))).sums(by.title_snips(reward, weight, title)).value - truth
    assert abs(off) > 0.02
    assert title_snips_bias(reward, weight, title) == pytest.approx(abs(off), rel=0.5)


def test_bootstrap_and_normal_intervals_agree() -> None:
    members = Members.of(MEMBER)
    sums = [members.sums(terms) for terms in TERMS.values()]
    bootstrap_DE = bootstrap(sums, seed=1, draws=4000)
    for e, one in enumerate(sums):
        assert np.std(bootstrap_DE[:, e]) == pytest.approx(standard_error(one.influence_M), rel=0.15)
        drawn, normal = percentile_interval(bootstrap_DE[:, e]), normal_interval(one.value, one.influence_M)
        factor = student_point(degrees_of_freedom(one.influence_M)) / Z  # percentiles know of no degrees of freedom
        assert factor * (drawn.high - drawn.low) == pytest.approx(normal.high - normal.low, rel=0.15)
    np.testing.assert_array_equal(bootstrap_DE, bootstrap(sums, seed=1, draws=4000))


def test_the_bootstrap_draws_members_poisson(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a straight Poisson bootstrap of one estimate, of more members than are held at a time."""
    monkeypatch.setattr("evaluation.off_policy.intervals.MEMBERS_PER_BLOCK", 7)
    members = Members.of(MEMBER)
    sums = members.sums(TERMS["snips"])
    drawn = bootstrap([sums], seed=0, draws=3000)[:, 0]
    counts = np.random.default_rng(9).poisson(1.0, (3000, len(members)))
    plain = counts @ sums.numerator_TM[0] / (counts @ sums.denominator_TM[0])
    assert np.quantile(drawn, [0.05, 0.5, 0.95]) == pytest.approx(np.quantile(plain, [0.05, 0.5, 0.95]), rel=0.04)


def test_members_must_be_together() -> None:
    with pytest.raises(ValueError, match="ordered"):
        Members.of(np.array([0, 1, 0]))


def test_one_member_has_no_interval() -> None:
    sums = Members.of(np.zeros(N, int)).sums(TERMS["ips"])
    assert sums.value == pytest.approx(straight("ips"))
    assert np.isnan(normal_interval(sums.value, sums.influence_M).low)


def test_student_is_wider_where_members_are_few() -> None:
    """Points by tables of the distribution."""
    for members, point in ((5, 2.776445), (11, 2.228139), (31, 2.042272), (1001, 1.962339)):
        moved = np.arange(members) - (members - 1) / 2
        half = normal_interval(0.0, moved).high
        assert half / standard_error(moved) == pytest.approx(point, rel=0.01 if members < 10 else 1e-4)


def test_the_least_squared_error_is_taken() -> None:
    assert argmin_squared_error([3.0, 1.0, 0.0], [1.0, 1.0, 2.0]) == 1
    assert argmin_squared_error([1.0, 0.0, 0.0], [1.0, 1.0, 1.0]) == 2, "of equals, what interferes least"
    nan = float("nan")
    assert argmin_squared_error([nan, nan, nan], [nan, nan, nan]) == 2


def test_balanced_weights_by_hand() -> None:
    """Two policies that are not personalised, one of which never shows the second artwork."""
    artwork_NK = np.array([[4, 5, -1]] * 3 + [[6, 7, 8]])
    propensity_NK = np.array([[1.0, 0, 0], [1.0, 0, 0], [0.4, 0.6, 0], [0.2, 0.3, 0.5]])
    mask_NK = artwork_NK >= 0

    def lists(table_NK: np.ndarray) -> Lists:
        return Lists.of_padded(table_NK, mask_NK)

    mixed = mixture_propensities(lists(propensity_NK), lists(artwork_NK), np.array([0, 0, 1, 1]))
    assert mixed is not None
    np.testing.assert_allclose(mixed[slice(None)], [[0.8, 0.2, 0]] * 3 + [[0.2, 0.3, 0.5]], rtol=1e-6)
    personalised = propensity_NK + np.array([[0], [-0.1], [0], [0]])
    assert mixture_propensities(lists(personalised), lists(artwork_NK), np.array([0, 0, 1, 1])) is None
    assert mixture_propensities(lists(propensity_NK), lists(artwork_NK), np.zeros(4, int)) is None, (
        "of one policy there is nothing to mix"
    )
    assert mixture_propensities(lists(propensity_NK * np.nan), lists(artwork_NK), np.array([0, 0, 1, 1])) is None


def choices(seed: int, impressions: int = 4000) -> tuple[LoggedChoices, np.ndarray, np.ndarray, np.ndarray]:
    """A log whose artworks differ, its rewards, members and the true probabilities."""
    rng = np.random.default_rng(seed)
    member = np.sort(rng.integers(0, 200, impressions))
    title = rng.integers(0, 10, impressions)
    artwork_NK = title[:, None] * 4 + np.arange(4)
    artwork_NK[title == 3, 3] = -1
    score_NK = np.where(artwork_NK >= 0, rng.random((impressions, 4)), 0.0)
    truth_NK = np.where(artwork_NK >= 0, np.linspace(0.05, 0.4, 40)[artwork_NK] + 0.3 * score_NK, 0.0)
    shown = (rng.random(impressions) * (artwork_NK >= 0).sum(1)).astype(int)
    reward = (rng.random(impressions) < truth_NK[np.arange(impressions), shown]).astype(float)
    log = LoggedChoices(
        artwork_NK=artwork_NK, score_NK=score_NK, shown_N=shown, title_N=title, fold_N=assign_folds(200, 0)[member]
    )
    return log, reward, member, truth_NK


def test_the_reward_model_predicts_the_truth() -> None:
    log, reward, _, truth_NK = choices(0, 30_000)
    model = fit_reward_model(log, reward, 40)
    predicted_NK = model.predict(log, slice(0, len(reward)))
    mask_NK = log.artwork_NK[slice(None)] >= 0
    assert (predicted_NK[~mask_NK] == 0).all()
    assert np.corrcoef(predicted_NK[mask_NK], truth_NK[mask_NK])[0, 1] > 0.97
    assert np.abs(predicted_NK[mask_NK] - truth_NK[mask_NK]).mean() < 0.02


def test_the_reward_model_never_sees_the_member_it_predicts() -> None:
    """Rewards of a whole fold turned round: what is predicted for that fold stays, for the others it changes."""
    log, reward, _, _ = choices(1)
    own = log.fold_N == 1
    before, after = (
        fit_reward_model(log, r, 40).predict(log, slice(0, len(reward)))
        for r in (reward, np.where(own, 1 - reward, reward))
    )
    np.testing.assert_array_equal(before[own], after[own])
    assert np.abs(before[~own] - after[~own]).mean() > 0.01
    assert set(np.bincount(assign_folds(10, 0), minlength=FOLDS)) == {3, 4}


def test_shrunk_rates_lie_between_their_own_and_their_priors() -> None:
    count, earned = np.array([0.0, 10, 1000, 1000]), np.array([0.0, 10, 100, 300])
    rates = shrunk_rates(count, earned, np.full(4, 0.2), 2010.0)
    assert rates[0] == 0.2
    assert 0.2 < rates[1] < 1
    assert 0.1 < rates[2] < 0.12
    assert 0.28 < rates[3] < 0.3


def test_wrong_propensities_are_reported() -> None:
    rng = np.random.default_rng(0)
    propensity = rng.dirichlet(np.full(4, 2.0), 20_000)
    shown = (propensity.cumsum(1) < rng.random(20_000)[:, None]).sum(1).clip(max=3)
    right = calibration(Lists.of(propensity.ravel(), np.full(20_000, 4)), shown)
    assert right.doubt == ""
    assert right.count_B.sum() == propensity.size
    assert (np.abs(right.shown_B - right.propensity_B) < 4 * right.error_B).all()
    assert (
        "not what happened"
        in calibration(Lists.of(np.roll(propensity, 1, axis=1).ravel(), np.full(20_000, 4)), shown).doubt
    )


def test_drifting_rewards_are_reported() -> None:
    rng = np.random.default_rng(0)
    member, time = np.sort(rng.integers(0, 300, 8000)), rng.permutation(8000)
    steady, rising = ((rng.random(8000) < rate).astype(float) for rate in (0.2, 0.1 + 0.2 * (time > 4000)))
    weight = np.ones(8000)
    rows, doubt = drift(steady, weight, time, member)
    assert doubt == ""
    assert [(part, row["impressions"]) for part, row in rows] == [(part, 2000) for part in (1, 2, 3, 4)]
    for _, row in rows:
        assert row["low"] is not None
        assert row["value"] is not None
        assert row["high"] is not None
        assert row["low"] < row["value"] < row["high"]
    assert "drift" in drift(rising, weight, time, member)[1]
