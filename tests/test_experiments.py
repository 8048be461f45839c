"""The statistics of `keyart test` against straight lines and known truth, and the answers on simulated tests."""

from typing import Any

import numpy as np
import pytest

from benchmarks import value_tests
from benchmarks.value_tests import Setting, answer, draw, looked_at, misses
from evaluation.experiments.contrasts import ArmCounts, Ratio, UnitSums
from evaluation.experiments.sequences import (
    anytime_p_value,
    discoveries,
    e_value,
    fixed_radius,
    radius,
    times_more,
)

CLICKED = Ratio(numerator="clicked")


def test_the_e_value_is_a_mixture_of_likelihood_ratios() -> None:
    """By summation over the mixture's true differences, for several estimates and errors."""
    delta = np.linspace(-6, 6, 200_001)
    for estimate, error, spread in ((0.3, 0.1, 0.3), (-0.05, 0.2, 0.1), (0.0, 0.05, 0.5)):
        prior = np.exp(-((delta / spread) ** 2) / 2) / (spread * np.sqrt(2 * np.pi))
        ratio = np.exp(-(((estimate - delta) / error) ** 2) / 2 + (estimate / error) ** 2 / 2)
        assert e_value(estimate, error, spread) == pytest.approx(
            float((prior * ratio).sum() * (delta[1] - delta[0])), rel=1e-6
        )


@pytest.mark.parametrize("level", [0.2, 0.05, 0.001])
def test_intervals_and_e_values_say_the_same(level: float) -> None:
    for error in (0.01, 0.1, 1.0):
        half = radius(error, level)
        assert e_value(half * 1.0001, error) > 1 / level > e_value(half * 0.9999, error)
        assert anytime_p_value(half, error) == pytest.approx(level)
        assert half > fixed_radius(error, level)
    assert e_value(float("nan"), 0.1) == e_value(1.0, float("inf")) == 0
    assert radius(float("inf"), level) == float("inf")


def test_how_many_more_impressions() -> None:
    bounds = (float(np.log(0.98)), float(np.log(1.02)))
    more = times_more(0.1, 0.1, 0.05, bounds)
    assert radius(0.1 / np.sqrt(more), 0.05) == pytest.approx(0.1, rel=1e-3), "the estimate alone leaves 0 out then"
    even = times_more(0.0, 0.05, 0.05, bounds)
    assert radius(0.05 / np.sqrt(even), 0.05) == pytest.approx(np.log(1.02), rel=1e-3), (
        "the interval lies within the bounds"
    )
    assert times_more(0.001, 5.0, 0.05, bounds) == float("inf")


def test_discoveries_are_those_of_e_bh() -> None:
    assert discoveries([50, 30, 12, 1], 0.1) == 2, "4 / (.1 x 2) = 20 <= 30, and 4 / (.1 x 3) > 12"
    assert discoveries([1, 2, 3], 0.05) == discoveries([], 0.05) == 0


def unit_sums(seed: int = 0, covariates: int = 0) -> tuple[UnitSums, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    arrays = {
        "unit": rng.integers(0, 300, 3000),
        "arm": rng.integers(0, 2, 3000),
        "weight": rng.uniform(0.5, 1.5, 3000),
        "clicked": rng.integers(0, 2, 3000).astype(float),
    }
    x_PN = rng.normal(0, 1, (covariates, 3000))
    if covariates:
        arrays["covariate"] = x_PN[0]
    sums = UnitSums.empty(300, 2, ("impressions", "clicked"), covariates)
    for rows in (slice(0, 1000), slice(1000, 3000)):  # in two looks
        values = {"clicked": arrays["clicked"][rows]}
        sums.add(arrays["unit"][rows], arrays["arm"][rows], arrays["weight"][rows], values, x_PN[:, rows])
    return sums, arrays


def test_the_delta_method_against_a_jackknife_by_unit() -> None:
    sums, a = unit_sums()

    def log_ratio(keep: np.ndarray) -> float:
        rates = [np.average(a["clicked"][m], weights=a["weight"][m]) for m in (keep & (a["arm"] == k) for k in (1, 0))]
        return float(np.log(rates[0] / rates[1]))

    contrast = sums.contrast(CLICKED, 1, 0)
    without = np.array([log_ratio(a["unit"] != unit) for unit in range(300)])
    assert contrast.estimate == pytest.approx(log_ratio(a["unit"] >= 0))
    assert contrast.error == pytest.approx(np.sqrt(((without - without.mean()) ** 2).sum() * 299 / 300), rel=1e-6)


def test_counts_are_sums_of_single_impressions() -> None:
    clicked_A, impressions_A = np.array([30.0, 45.0]), np.array([400.0, 420.0])
    arm_N = np.repeat([0, 1], impressions_A.astype(int))
    clicked_N = np.concatenate([np.arange(n) < k for n, k in zip(impressions_A, clicked_A, strict=True)]).astype(float)
    sums = UnitSums.empty(len(arm_N), 2, ("impressions", "clicked"), 0)
    sums.add(np.arange(len(arm_N)), arm_N, np.ones(len(arm_N)), {"clicked": clicked_N}, np.zeros((0, len(arm_N))))
    counts = ArmCounts(columns={"impressions": impressions_A, "clicked": clicked_A})
    one, other = (each.contrast(CLICKED, 1, 0) for each in (sums, counts))
    assert one.estimate == pytest.approx(other.estimate)
    assert one.error == pytest.approx(other.error, rel=1e-9)
    assert one.effective == pytest.approx(other.effective, rel=1e-6)
    assert other.effective == pytest.approx(2 * 36, rel=0.1), (
        "about two rewarded units in the smaller arm each count one"
    )


def test_covariates_by_a_straight_line() -> None:
    """One covariate: its difference between the arms, unit by unit, times the slope of the other half of the units."""
    sums, a = unit_sums(covariates=1)
    contrast = sums.contrast(CLICKED, 1, 0)
    x_N, weight_N = a["covariate"], a["weight"]
    centred_N = x_N - np.average(x_N, weights=weight_N)
    parts, influences = np.zeros(300), np.zeros(300)
    for arm, sign in ((1, 1), (0, -1)):
        of_arm = a["arm"] == arm
        exposure, clicks = weight_N[of_arm].sum(), (weight_N * a["clicked"])[of_arm].sum()
        for unit in range(300):
            own = of_arm & (a["unit"] == unit)
            parts[unit] += sign * (weight_N * centred_N)[own].sum() / exposure
            without = np.log((clicks - (weight_N * a["clicked"])[own].sum()) / (exposure - weight_N[own].sum()))
            influences[unit] += sign * (np.log(clicks / exposure) - without)
    shift = 0.0
    for half in (0, 1):
        other = sums.fold_M != half
        slope = (parts[other] * influences[other]).sum() / (parts[other] ** 2).sum()
        shift += slope * parts[~other].sum()
    assert contrast.estimate == pytest.approx(contrast.plain_estimate - shift, rel=1e-6)
    assert contrast.variance_reduction == pytest.approx(0, abs=0.02), "noise explains nothing"


def test_no_interval_without_rewards_on_both_sides() -> None:
    counts = ArmCounts(columns={"impressions": np.array([100.0, 100.0]), "clicked": np.array([0.0, 5.0])})
    assert np.isnan(counts.contrast(CLICKED, 1, 0).estimate)
    assert counts.contrast(CLICKED, 1, 0).error == float("inf")


@pytest.mark.parametrize("by_member", [False, True])
def test_peeking_every_day_is_allowed(by_member: bool) -> None:
    """Arms alike; the full replication is `benchmarks.value_tests`: 1,000 tests."""
    setting = Setting(members=400, mean_impressions=8, by_member=by_member)
    seen = [misses(looked_at(draw(setting, seed)), 0.0) for seed in range(40)]
    assert np.mean([each.anytime for each in seen]) <= 0.05
    assert np.mean([each.peeking for each in seen]) >= 0.12, "the usual interval, looked at every day"


def test_intervals_hold_the_true_lift_and_covariates_narrow_them() -> None:
    setting = Setting(members=1500, lifts=(0.0, 0.2))
    logs = [draw(setting, seed) for seed in range(25)]
    contrasts = [looked_at(log) for log in logs]
    truth = float(np.log(1.2))
    assert sum(misses(each, truth).anytime for each in contrasts) <= 3, "of 25, at 5 %"
    last = [each[-1] for each in contrasts]
    assert np.mean([c.variance_reduction for c in last]) > 0.05
    spread = np.std([c.estimate for c in last]) / np.std([c.plain_estimate for c in last])
    assert spread < 1.02, "and the estimates really scatter less"
    assert abs(np.mean([c.estimate for c in last]) - truth) < 3 * np.std([c.estimate for c in last]) / 5


def test_a_prediction_that_knows_the_member_removes_half_of_the_noise() -> None:
    """Members who click in nine of ten impressions or in one: the covariate explains nearly all that differs between members."""
    log = draw(Setting(members=2000, taste=2.0, click_rate=0.3, by_member=True), 1)
    assert looked_at(log)[-1].variance_reduction > 0.5


def test_the_answer_on_arms_alike_and_apart() -> None:
    test = answer(draw(Setting(members=3000, lifts=(0.0, 0.3, -0.3)), 0))
    assert [row["answer"] for row in test["arms"]] == ["control", "winner", "worse"]
    assert test["headline"].startswith("arm 1 is the winner: +")
    alike = answer(draw(Setting(members=6000, mean_impressions=20), 0), worth=0.2)
    assert alike["arms"][1]["answer"] == "no difference"
    assert alike["headline"].startswith("No difference worth 20 %")
    row: dict[str, Any] = dict(answer(draw(Setting(members=300, lifts=(0.0, 0.05)), 0))["arms"][1])
    assert row["answer"] == "not yet"
    assert row["more_impressions"] > 0
    assert row["low"] < 0 < row["high"]


def test_two_arms_that_both_win_are_separated_or_said_to_be_alike() -> None:
    alike = answer(draw(Setting(members=4000, lifts=(0.0, 0.4, 0.4)), 0))
    assert [row["answer"] for row in alike["arms"]] == ["control", "preferred", "preferred"]
    assert "not separated from arm 2" in alike["arms"][1]["reason"]
    apart = answer(draw(Setting(members=4000, lifts=(0.0, 0.3, 0.9)), 0))
    assert [row["answer"] for row in apart["arms"]] == ["control", "preferred", "winner"]
    (pair,) = apart["pairs"]
    assert (pair["arm"], pair["against"]) == ("arm 1", "arm 2")
    assert pair["high"] is not None
    assert pair["high"] < 0


def test_clicked_and_not_watched_is_no_winner() -> None:
    bait = answer(draw(Setting(members=3000, lifts=(0.0, 0.3), watched=(0.5, 0.25)), 0), with_looks=False)
    assert bait["arms"][1]["answer"] == "clicked, not watched"
    assert "no winner" in bait["headline"]
    states = {row["reward"]: row["state"] for row in bait["arms"][1]["guardrails"]}
    assert states == {"engaged": "fails", "engaged of those clicked": "fails"}
    mild = answer(draw(Setting(members=3000, lifts=(0.0, 0.3), watched=(0.5, 0.36)), 0), with_looks=False)
    assert mild["arms"][1]["answer"] in ("clicked, not watched", "preferred"), "more clicks, no more viewings"
    turned = answer(draw(Setting(members=3000, lifts=(0.0, -0.3), watched=(0.25, 0.5)), 0), with_looks=False)
    assert turned["arms"][0]["answer"] == "clicked, not watched", "the control may be the bait"


@pytest.mark.parametrize(("by_member", "lost"), [(False, 0.1), (True, 0.15)])
def test_a_mismatch_of_shares_comes_first(by_member: bool, lost: float) -> None:
    setting = Setting(members=6000, mean_impressions=1, spread=0.5, lifts=(0.0, 0.5), by_member=by_member, lost=lost)
    test = answer(draw(setting, 0), with_looks=False)
    assert test["mismatch"]["mismatched"]
    assert {row["answer"] for row in test["arms"]} == {"mismatch"}
    assert test["headline"].startswith("Sample ratio mismatch, and no arm is compared: arm")
    assert "winner" not in test["headline"]
    honest = [answer(draw(Setting(members=400, by_member=by_member), seed), with_looks=False) for seed in range(30)]
    assert not any(each["mismatch"]["mismatched"] for each in honest)
    assert all(each["by_member"] == by_member for each in honest)
    assert {each["mismatch"]["counted"] for each in honest} == {"members" if by_member else "impressions"}


@pytest.mark.shared_data
@pytest.mark.skipif(not value_tests.UPWORTHY.is_file(), reason="shared/data/upworthy is not beside the checkout")
def test_real_arms_split_in_two_are_rarely_separated() -> None:
    """A thousand real arms, looked at on 30 days; and pairs of real images, stopped at the first look that separates them."""
    alike = value_tests.upworthy_alike(1000)
    assert np.mean([each.anytime for each in alike]) <= 0.05
    assert np.mean([each.peeking for each in alike]) > 0.08
    pairs = value_tests.upworthy_pairs(300)
    stopped = [pair for pair in pairs if pair.anytime]
    assert stopped
    assert not any(pair.anytime * pair.usual < 0 for pair in pairs)
    assert np.mean([pair.used for pair in stopped]) < 0.9
