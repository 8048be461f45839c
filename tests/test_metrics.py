"""Ranking and calibration at their edges: ties, certainty, bins that do not divide; against straight lines."""

import math

import numpy as np
import pytest

from evaluation.audits.metrics import auc, expected_calibration_error, log_loss, null_calibration_error, reliability


@pytest.mark.parametrize(
    ("p", "y", "expected"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 1.0),
        ([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1], 0.0),
        ([0.5, 0.5, 0.5, 0.5], [0, 1, 0, 1], 0.5),  # nothing told apart
        ([0.3, 0.5, 0.5, 0.7], [0, 0, 1, 1], (3 + 0.5) / 4),  # one pair of four is tied
        ([0.5, 0.5, 0.5, 0.1], [1, 1, 0, 0], (2 + 2 * 0.5) / 4),
    ],
)
def test_auc_by_hand(p: list[float], y: list[int], expected: float) -> None:
    assert auc(np.array(p), np.array(y)) == pytest.approx(expected)


def test_auc_sees_order_alone() -> None:
    rng = np.random.default_rng(1)
    p, y = rng.random(500).round(2), rng.integers(0, 2, 500)
    order = rng.permutation(500)
    assert auc(p**3, y) == pytest.approx(auc(p, y))
    assert auc(p[order], y[order]) == pytest.approx(auc(p, y))
    assert auc(1 - p, y) == pytest.approx(1 - auc(p, y))


def test_a_wrong_certainty_costs_much_but_not_infinity() -> None:
    assert log_loss(np.array([0.0, 1.0]), np.array([1, 0])) == pytest.approx(-math.log(1e-12), rel=1e-3)
    assert log_loss(np.array([0.0, 1.0]), np.array([0, 1])) == pytest.approx(0, abs=1e-9)


def test_log_loss_and_calibration_against_straight_lines() -> None:
    rng = np.random.default_rng(2)
    p = rng.random(103)  # no multiple of the bins
    y = (rng.random(103) < p**2).astype(bool)
    told = sum(-math.log(a if b else 1 - a) for a, b in zip(p.tolist(), y.tolist(), strict=True)) / 103
    assert log_loss(p, y) == pytest.approx(told)

    pairs, error = sorted(zip(p.tolist(), y.tolist(), strict=True)), 0.0
    for b in range(20):
        inside = pairs[int(b * 103 / 20) : int((b + 1) * 103 / 20)]
        gap = sum(a for a, _ in inside) / len(inside) - sum(c for _, c in inside) / len(inside)
        error += len(inside) / 103 * abs(gap)
    assert expected_calibration_error(p, y) == pytest.approx(error)
    points = reliability(p, y)
    assert points.count.sum() == 103
    assert set(points.count.tolist()) == {5, 6}
    assert (np.diff(points.predicted) > 0).all()


def test_calibration_is_small_where_probabilities_are_right_and_large_where_not() -> None:
    rng = np.random.default_rng(3)
    p = rng.uniform(0.05, 0.5, 20_000)
    y = rng.random(20_000) < p
    by_chance = np.sqrt(2 * 20 * 0.27 * 0.73 / (np.pi * 20_000))
    assert 0.5 * by_chance < expected_calibration_error(p, y) < 2 * by_chance
    assert expected_calibration_error(p + 0.2, y) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("metric", [auc, log_loss, reliability, expected_calibration_error])
@pytest.mark.parametrize(
    ("p", "y", "named"),
    [
        ([], [], "N > 0"),
        ([0.1, 0.2], [1], "shape"),
        ([[0.1]], [[1]], "shape"),
        ([-0.1], [0], r"0 \.\. 1"),
        ([np.nan], [0], "NaN"),
        ([0.5], [np.nan], "labels"),
    ],
)
def test_every_metric_names_what_is_wrong(metric, p: list, y: list, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        metric(np.array(p, float), np.array(y, float))


def test_no_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="bins=0"):
        reliability(np.array([0.5]), np.array([1]), bins=0)


def test_right_probabilities_err_as_much_as_chance_says() -> None:
    rng = np.random.default_rng(4)
    p = rng.beta(1, 12, 20_000)
    low, high = null_calibration_error(p)
    errors = [expected_calibration_error(p, (rng.random(len(p)) < p).astype(float)) for _ in range(200)]
    held = np.mean([(low <= error <= high) for error in errors])
    assert 0.9 <= held <= 0.99
    assert expected_calibration_error(np.clip(1.3 * p, 0, 1), (rng.random(len(p)) < p).astype(float)) > high
