"""The best of many policies: simultaneous intervals, guaranteed values, and what `keyart value` says of several scores tables."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keyart
from benchmarks.replications import Replicated, figures_of, modules
from benchmarks.value_selection import Setting, replicate
from evaluation.off_policy.intervals import Interval, normal_interval
from evaluation.off_policy.lower_bound import STRENGTHS_J, guaranteed_value
from evaluation.off_policy.selection import simultaneous_intervals
from evaluation.off_policy.student import exceedance, student_quantile
from evaluation.record.records import read_value
from tests.made_service import best, even, scores, service


def number(value: float | None) -> float:
    """A number that is there."""
    assert value is not None
    return value


@pytest.mark.parametrize(
    ("upper", "freedom", "point"),
    [(0.025, 1, 12.7062), (0.025, 4, 2.77645), (0.005, 3, 5.84091), (0.025, 10, 2.22814), (0.0005, 30, 3.64596)],
)
def test_student_quantiles_are_those_of_tables(upper: float, freedom: float, point: float) -> None:
    assert student_quantile(upper, freedom) == pytest.approx(point, rel=2e-5)
    assert exceedance(point, freedom) == pytest.approx(upper, rel=2e-4)
    assert student_quantile(upper, 1e7) == pytest.approx(student_quantile(upper, 9e4), rel=1e-3)


def drawn_influences(rng: np.random.Generator, statistics: int, shared: float, members: int = 400) -> list[np.ndarray]:
    """Influences of members, normal, with the same correlation for all pairs of statistics."""
    common_M = rng.normal(size=members) * np.sqrt(shared)
    return [(common_M + rng.normal(size=members) * np.sqrt(1 - shared)) / members for _ in range(statistics)]


def half_width(interval: Interval) -> float:
    return (interval.high - interval.low) / 2


def test_one_statistic_needs_no_wider_interval_and_equal_ones_neither() -> None:
    (influence_M,) = drawn_influences(np.random.default_rng(0), 1, 0.0)
    alone = normal_interval(1.0, influence_M)
    (one,) = simultaneous_intervals([1.0], [influence_M])
    assert half_width(one) == pytest.approx(half_width(alone), rel=2e-3)
    for interval in simultaneous_intervals([1.0] * 3, [influence_M] * 3):
        assert half_width(interval) == pytest.approx(half_width(alone), rel=0.02)
    assert simultaneous_intervals([], []) == []
    assert np.isnan(simultaneous_intervals([1.0], [np.zeros(1)])[0].low)
    (still, _) = simultaneous_intervals([0.5, 1.0], [np.zeros(400), influence_M])
    assert (still.low, still.high) == (0.5, 0.5)


def test_simultaneous_intervals_hold_at_once_and_are_narrower_than_bonferroni() -> None:
    rng = np.random.default_rng(1)
    held, alone_held, widths = [], [], []
    for _ in range(70):
        influences = drawn_influences(rng, 10, 0.6, members=100)
        values = [float(influence_M.sum()) for influence_M in influences]  # the truth is 0
        intervals = simultaneous_intervals(values, influences)
        held.append(all(interval.low <= 0 <= interval.high for interval in intervals))
        largest = int(np.argmax(values))
        own = normal_interval(values[largest], influences[largest])
        alone_held.append(own.low <= 0 <= own.high)
        widths.append(half_width(intervals[0]) / half_width(normal_interval(values[0], influences[0])))
    bonferroni = student_quantile(0.0025, 99) / student_quantile(0.025, 99)
    assert np.mean(held) >= 0.91
    assert np.mean(alone_held) < 0.93, "the best-looking one's own interval holds too rarely"
    assert 1.1 < np.mean(widths) < 0.97 * bonferroni


def test_the_guaranteed_value_is_the_least_one_that_the_evidence_leaves() -> None:
    rng = np.random.default_rng(2)
    count_M = rng.integers(1, 30, 200)
    total_M = np.where(rng.random(200) < 0.7, rng.exponential(2.0, 200) * count_M / 10, 0.0)
    bound = guaranteed_value(total_M, count_M, 0.05)
    most = count_M.max()

    def evidence(theta: float) -> float:
        factors_JM = 1 + STRENGTHS_J[:, None] / (theta * most) * (total_M - theta * count_M)
        assert (factors_JM > 0).all()
        return float(factors_JM.prod(1).mean())

    assert evidence(bound) == pytest.approx(20.0, rel=1e-6)
    assert 0 < bound < total_M.sum() / count_M.sum()
    assert guaranteed_value(total_M, count_M, 0.005) < bound
    assert guaranteed_value(2 * total_M, count_M, 0.05) == pytest.approx(2 * bound)
    assert guaranteed_value(0 * total_M, count_M, 0.05) == 0.0
    single = np.r_[5.0, np.zeros(199)]
    assert 0 <= guaranteed_value(single, count_M, 0.05) < single.sum() / count_M.sum()


@pytest.mark.parametrize(
    ("total", "count", "risk"), [([-1.0], [1], 0.05), ([1.0], [0], 0.05), ([1.0, 1.0], [1], 0.05), ([1.0], [1], 0.0)]
)
def test_what_no_bound_can_be_computed_from(total: list[float], count: list[int], risk: float) -> None:
    with pytest.raises(ValueError, match="must"):
        guaranteed_value(np.array(total), np.array(count), risk)


def test_the_guarantee_holds_under_heavy_tails() -> None:
    """Weights up to 80 and lognormal activity, where a normal interval's lower end fails."""
    rng = np.random.default_rng(3)
    held = []
    for _ in range(400):
        count_M = 1 + rng.poisson(8 * np.exp(rng.normal(-0.5, 1.0, 80)))
        # rewards of 0.1 in the mean, weights of 1 / p with probability p
        weight = 80.0
        totals = rng.binomial(count_M, 0.1 / weight) * weight * 0.5 + rng.binomial(count_M, 0.05)
        held.append(guaranteed_value(totals.astype(float), count_M, 0.05) <= 0.1)
    assert np.mean(held) >= 0.95


def test_ten_policies_on_logs_of_known_truth() -> None:
    """A fast version of `python -m benchmarks.value_selection`."""
    tally = replicate(Setting(better=True, members=100), 6, truth_draws=1)
    assert np.mean(tally.values) >= 0.75
    assert np.mean(tally.differences) >= 0.75
    assert np.mean(tally.at_least) >= 0.87
    assert np.mean(tally.regret_of_chosen) <= np.mean(tally.regret_of_largest)
    assert 0.2 < np.mean(tally.guaranteed) < 1


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, three scores tables, and what is said of them. Read it, never write into it."""
    folder = tmp_path_factory.mktemp("compared")
    service(folder / "service", truth=False)
    scores(folder / "best.parquet", best)
    scores(folder / "uniform", even)
    scores(folder / "first.parquet", lambda p: [float(i == 0) for i in range(len(p))])
    tables = [str(folder / name) for name in ("best.parquet", "uniform", "first.parquet")]
    assert keyart.main(["value", str(folder / "service"), *tables, str(folder / "out")]) == 0
    return folder


def test_several_tables_are_compared_with_one_another(compared: Path) -> None:
    record: dict[str, Any] = dict(read_value(compared / "out"))
    clicked, engaged = record["selection"]
    assert (clicked["reward"], engaged["reward"], clicked["base"]) == ("clicked", "engaged", "uniform")
    assert clicked["chosen"] == clicked["largest_estimate"] == "scored"
    rows = {Path(row["scores"]).name: row for row in clicked["rows"]}
    assert set(rows) == {"best.parquet", "uniform", "first.parquet"}
    estimates = {(e["policy"], e["reward"], e["estimator"]): e for e in record["estimates"]}
    for row in clicked["rows"]:
        own = estimates[row["policy"], "clicked", "dr"]
        assert row["value"] == own["value"]
        ends = (row["low"], own["low"], own["high"], row["high"])
        assert None not in ends
        assert sorted(map(number, ends)) == list(ends), "wider, to hold at once"
        assert 0 < number(row["at_least"]) < number(row["value"])
        assert row["verdict"] == own["verdict"]
    assert number(rows["best.parquet"]["above_base_low"]) > 0
    assert rows["best.parquet"]["above_chosen"] is None
    assert number(rows["first.parquet"]["above_chosen_high"]) < 0
    assert (rows["uniform"]["above_base"], rows["uniform"]["above_base_low"]) == (0.0, 0.0), "equal but for rounding"
    page = (compared / "out" / "value.html").read_text(encoding="utf-8")
    assert "<h2>The best of many</h2>" in page
    assert "best.parquet guarantees most" in page


def test_with_one_table_nothing_changes(compared: Path, tmp_path: Path) -> None:
    words = [str(compared / "service"), str(compared / "best.parquet"), str(tmp_path / "out")]
    assert keyart.main(["value", *words]) == 0
    alone, several = (
        json.loads((folder / "value.json").read_text("utf-8")) for folder in (tmp_path / "out", compared / "out")
    )
    assert "selection" not in alone
    further = {row["policy"] for row in several["selection"][0]["rows"]} - {"scored"}
    for name in ("verdict", "attribution", "stability", "exposure", "holds"):
        assert alone[name] == several[name], name
    own = [row for row in several["estimates"] if row["policy"] not in further]
    assert [(row["policy"], row["value"]) for row in alone["estimates"]] == [(r["policy"], r["value"]) for r in own]


def test_a_folder_may_be_called_as_a_policy_of_keyart_and_no_table_is_named_twice(
    compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(compared)
    assert keyart.main(["value", "service", "best.parquet", "uniform", str(tmp_path / "out")]) == 0
    (clicked, _) = read_value(tmp_path / "out").get("selection", [])
    assert [(row["policy"], row["scores"]) for row in clicked["rows"]] == [
        ("scored", "best.parquet"),
        ("./uniform", "uniform"),
    ]
    printed = capfd.readouterr().out
    assert "guarantees most" in printed
    for words, named in (
        (["best.parquet", "./best.parquet", str(tmp_path / "other")], "best.parquet: is named twice."),
        (["best.parquet", "uniform"], "uniform: is a file, and the output is a folder."),
        ([str(tmp_path / "other")], "give DATASET SCORES ... OUT."),
    ):
        assert keyart.main(["value", "service", *words]) == 1
        error = capfd.readouterr().err
        assert named in error
        assert error.count("\n") == 1
    assert not (tmp_path / "other").exists()


def test_modules_of_replications_join_by_their_names() -> None:
    assert set(modules()) == {f"value_{name}" for name in ("audits", "logs", "plan", "selection", "tests", "verdicts")}
    assert all(callable(import_module(f"benchmarks.{name}").rows) for name in modules())
    line = Replicated("a log", "95 %", "94.5% of 1,000 hold", 1000)
    assert list(figures_of(line)) == [("a log: 94.5% of 1,000 hold (wanted: 95 %)", "%", 94.5)]
    assert list(figures_of(line._replace(measured="none"))) == []
