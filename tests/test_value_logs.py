"""Logs that lie are doubted and honest ones are not, on simulated logs of known truth; full replications: benchmarks.value_logs."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import log_behaviours as by
from benchmarks.simulated_logs import WIDTH, Logger, LoggerOf, Service, Traffic
from benchmarks.value_logs import SCENARIOS, Outcome, Scenario, draw_scenario, judge, levels_of, verdict_of
from evaluation.logs.log_faults import log_faults
from evaluation.logs.log_review import ALL_TRAFFIC, BALANCED_WEIGHTS, PER_POLICY_WEIGHTS, LogReview, review_log
from evaluation.logs.tail_bounds import bennett_tail, holm
from foundation.errors import UserError

SMALL = Service(impressions=8000, members=600)


def named(name: str) -> Scenario:
    return next(scenario for scenario in SCENARIOS if scenario.name == name)


def reviewed(scenario: Scenario, seed: int = 0) -> LogReview:
    drawn = draw_scenario(scenario, seed)
    return review_log(drawn.scored, levels_of(drawn), weights=scenario.weights)


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if not s.doubted], ids=lambda s: s.name)
def test_honest_logs_are_not_doubted(scenario: Scenario) -> None:
    small = replace(scenario, service=replace(scenario.service, impressions=8000))
    assert reviewed(small, seed=100).doubts == ()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("logged 1/K, prefers what members want", "propensities are not what was done"),
        ("logged as the average over page rows", "propensities are not what was done"),
        ("logged 1/K, members' favourites unknown to the scores", "saw the last time was shown again more often"),
        ("logged as the average over devices", ", device "),
        ("logged as the average over hours", "propensities are not what was done"),
        ("propensities of the candidate before", "propensities are not what was done"),
        ("propensities of the day before", "propensities are not what was done"),
        ("first of the list preferred", "the first candidate of the list was shown more often"),
        ("only clicked impressions", "every impression was clicked"),
        ("one artwork's impressions missing", "was shown 0 times"),
        ("candidate before, shown propensity alone", "propensities are not what was done"),
        ("5 % repeated under other ids", "repeat another of the same member, title, artwork and time"),
        ("impressions missing in the middle half", "no impression was logged from 2024-10-0"),
        ("clicks missing in the middle half", "no clicks were logged from 2024-10-0"),
        ("one member with 15 %", "one member has 15% of the impressions"),
        ("balanced weights, loggers by device", "who logs depends on"),
    ],
)
def test_logs_that_lie_are_doubted_in_words(name: str, words: str) -> None:
    assert any(words in doubt for doubt in reviewed(named(name)).doubts), reviewed(named(name)).doubts


def test_a_lie_moves_the_verdict() -> None:
    """Where a tenth of the impressions showed another artwork, no number is given; elsewhere it is weak."""
    gross = judge(named("logged 1/K, prefers what members want"), 1)
    assert verdict_of(gross.estimates, "uniform") == verdict_of(gross.estimates) == "unanswerable"
    reason = next(row["reason"] for row in gross.estimates["verdicts"])
    assert "of the impressions showed another artwork than they would have drawn" in reason
    small = judge(named("logged 1/K, prefers it a little"), 1)
    assert verdict_of(small.estimates, "uniform") == "weak"
    assert verdict_of(judge(named("uniform"), 1).estimates, "uniform") == "reliable"


def test_who_logs_by_device_does_not_bias() -> None:
    """Balanced weights, today's default then, are off by several standard errors; weights per policy are the default."""
    scenario = named("three loggers by device")
    own, mixed = (judge(replace(scenario, weights=weights), 3) for weights in ("auto", "balanced"))
    assert own.review.weights == PER_POLICY_WEIGHTS
    assert mixed.review.weights == BALANCED_WEIGHTS

    def row(outcome: Outcome) -> dict:
        rows = outcome.estimates["estimates"]
        return dict(
            next(r for r in rows if (r["policy"], r["estimator"], r["reward"]) == ("uniform", "ips", "clicked"))
        )

    truth, honest, biased = own.truth["uniform"], row(own), row(mixed)
    assert honest["verdict"] == "reliable"
    assert honest["low"] < truth < honest["high"]
    assert biased["verdict"] != "reliable"
    by_device = next(row for row in own.review.assignment if row["attribute"] == "device")
    assert by_device["chance"] < 1e-6


def test_weights_are_balanced_only_where_assignment_is_shown_to_be_random() -> None:
    random = replace(named("three loggers at random"), service=Service(impressions=30_000))
    assert reviewed(random).weights == BALANCED_WEIGHTS
    assert reviewed(replace(random, weights="per-policy")).weights == PER_POLICY_WEIGHTS
    assert reviewed(replace(random, service=SMALL)).weights == PER_POLICY_WEIGHTS, "too small to show it"
    assert reviewed(named("three loggers by member")).weights == PER_POLICY_WEIGHTS
    personal = Scenario(name="", logger=by.deterministic, service=SMALL, weights="balanced")
    two = replace(
        personal, logger=lambda t: replace(by.softmax_by_member(t), policy_N=t.device_N % 2, names=("a", "b"))
    )
    with pytest.raises(UserError, match="weights=balanced: a logging policy is personalised"):
        reviewed(two)


@pytest.mark.parametrize(
    ("logger", "words"),
    [
        (by.deterministic, "the value is that of all traffic."),
        (lambda t: by.deterministic(t, names=False), "the value is that of all traffic."),
        (by.deterministic_by_member, "that of all traffic if members were assigned at random"),
        (by.deterministic_by_device, "depends on device: the value is of that part"),
    ],
)
def test_deterministic_production_is_answered_from_what_was_explored(logger: LoggerOf, words: str) -> None:
    outcome = judge(Scenario(name="", logger=logger), 5)
    review = outcome.review
    assert words in review.traffic
    assert review.traffic in review.notes
    assert [row["used"] for row in review.policies] in ([False, True], [True, False])
    assert len(review.scored) == review.scored.randomised.sum() == len(review.kept)
    assert verdict_of(outcome.estimates) == "reliable"
    rows = [row for row in outcome.estimates["estimates"] if row["reward"] == "clicked" and row["estimator"] == "dr"]
    if "device" not in words:
        for row in rows:
            assert row["low"] is not None
            assert row["high"] is not None
            assert row["low"] - 0.01 < outcome.truth[row["policy"]] < row["high"] + 0.01


def test_where_no_policy_supports_the_scored_one_nothing_is_left_out() -> None:
    outcome = judge(Scenario(name="", logger=lambda t: by.deterministic(t, np.zeros(len(t), bool)), service=SMALL), 0)
    assert outcome.review.traffic == ALL_TRAFFIC
    assert verdict_of(outcome.estimates) == "unanswerable"


def test_replay_has_its_own_support_and_says_where_its_part_stands_for_no_other() -> None:
    def logger(by_device: bool) -> LoggerOf:
        def of(t: Traffic) -> Logger:
            explored_N = t.device_N == 0 if by_device else t.rng.random(len(t)) < 0.4
            return Logger(
                true_NK=np.where(explored_N[:, None], 1 / WIDTH, 0.9 * by.softmax_by_member(t).true_NK + 0.1 / WIDTH),
                policy_N=explored_N.astype(np.int64),
                names=("production", "explore"),
            )

        return of

    part, other = (judge(Scenario(name="", logger=logger(by_device)), 2) for by_device in (True, False))
    reasons = [row["reason"] for row in part.estimates["verdicts"] if row["estimator"] == "replay"]
    assert all("which impressions are randomised depends on device" in reason for reason in reasons)
    assert verdict_of(part.estimates) == "reliable", "weights do not need the randomised part"
    assert verdict_of(other.estimates, "uniform", "replay") == "reliable"
    replay = next(
        row for row in other.estimates["estimates"] if row["estimator"] == "replay" and row["policy"] == "uniform"
    )
    assert (replay["mean_weight"], replay["largest_weight"]) == pytest.approx((1.0, 1.0))


def test_propensities_of_shown_artworks_alone_are_those_of_all_where_they_are_one_of_k() -> None:
    full = reviewed(Scenario(name="", service=SMALL))
    alone = reviewed(Scenario(name="", logger=by.alone(by.honest_uniform), service=SMALL))
    assert full.propensity_tests.tests == alone.propensity_tests.tests
    some = reviewed(Scenario(name="", logger=by.alone(by.softmax_by_member), service=SMALL))
    assert 0 < some.propensity_tests.tests < full.propensity_tests.tests


@pytest.mark.parametrize("change", ["growth", "weekends off", "two days"])
def test_traffic_that_grows_or_rests_is_not_missing(change: str) -> None:
    """A service that begins slowly, one that rests at weekends, and a quiet night of a short log: no impressions are missing."""
    scored = draw_scenario(Scenario(name="", service=Service(impressions=20_000)), 4).scored
    hour = 3_600_000_000
    rng, begin = np.random.default_rng(2), int(scored.shown_at.min()) // (24 * hour) * 24 * hour
    if change == "growth":
        at_N = begin + (60 * 24 * hour * rng.random(len(scored)) ** 0.1).astype(np.int64)
    elif change == "weekends off":
        day_N = rng.integers(0, 28, len(scored))
        at_N = begin + (day_N - np.where(day_N % 7 >= 5, 3, 0)) * 24 * hour + rng.integers(0, 24 * hour, len(scored))
    else:
        at_N = begin + rng.integers(0, 2, len(scored)) * 24 * hour + rng.integers(7 * hour, 24 * hour, len(scored))
        at_N = np.where(
            rng.random(len(scored)) < 0.01, at_N - at_N % (24 * hour) + rng.integers(0, 7 * hour, len(scored)), at_N
        )
    faults, _ = log_faults(replace(scored, shown_at=at_N))
    assert [fault.kind for fault in faults] == []


def test_the_tail_is_bounded() -> None:
    """Sums of centred draws, frequent and rare: the bound is exceeded no more often than it says."""
    rng = np.random.default_rng(3)
    for p, count in ((0.25, 400), (0.002, 1000), (0.9, 50)):
        drawn = rng.binomial(count, p, 20_000) - count * p
        bound = bennett_tail(drawn, count * p * (1 - p), 1.0)
        for rate in (0.05, 0.01, 0.001):
            assert (bound <= rate).mean() <= rate
    assert bennett_tail(60.0, 100.0, 1.0) < 1e-6
    assert bennett_tail(np.array([0.0, 1.0]), np.zeros(2), 1.0).tolist() == [1.0, 0.0]


def test_holm_by_hand() -> None:
    assert holm(np.array([0.04, 0.01, 0.03])).tolist() == pytest.approx([0.06, 0.03, 0.06])
