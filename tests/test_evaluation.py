"""Metrics against straight lines, estimators against known truth, and the whole evaluation on a service whose law is known."""

import json
import re
import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from datamodules.contract.check import check
from datamodules.prepare.prepare import prepare
from evaluation.audits.metrics import auc, expected_calibration_error, log_loss, reliability
from evaluation.evaluate import evaluate, policy_table
from evaluation.logs.logging_policies import mixture_propensities
from evaluation.logs.scored_log import read_scored_log
from evaluation.off_policy.estimators import Terms, ips, snips
from evaluation.off_policy.intervals import Interval, Members, normal_interval
from evaluation.off_policy.verdict import kish_sample_size
from evaluation.report.value_page import main_estimate
from foundation.errors import UserError
from foundation.lists import Lists
from serving.bundle.bundle import Bundle
from serving.scoring.compare_members import share_flipped


def test_auc_is_the_share_of_ordered_pairs() -> None:
    rng = np.random.default_rng(0)
    p, y = rng.integers(0, 12, 200) / 12, rng.integers(0, 2, 200)
    pairs = [(a > b) + 0.5 * (a == b) for a in p[y == 1] for b in p[y == 0]]
    assert auc(p, y) == pytest.approx(np.mean(pairs))
    assert np.isnan(auc(p, np.ones(200)))


def test_log_loss_and_calibration_by_hand() -> None:
    p, y = np.array([0.2, 0.9, 0.6, 0.4]), np.array([0, 1, 0, 1])
    assert log_loss(p, y) == pytest.approx(-np.mean(np.log([0.8, 0.9, 0.4, 0.4])))
    assert expected_calibration_error(p, y, bins=2) == pytest.approx((abs(0.5 - 0.3) + abs(0.5 - 0.75)) / 2)
    assert reliability(p, y, bins=20).count.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("p", "y", "named"),
    [([0.1], [0, 1], "shape"), ([1.2], [0], r"0 \.\. 1"), ([np.nan], [0], "NaN"), ([0.5], [2], "labels")],
)
def test_bad_arrays_are_named(p: list[float], y: list[int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        log_loss(np.array(p), np.array(y))


def many_logs(replications: int = 400, members: int = 60, each: int = 12) -> tuple[np.ndarray, ...]:
    """Logs of correlated members under skewed propensities: rewards, weights and members, and the target's true value."""
    rng = np.random.default_rng(7)
    logging, target = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.2, 0.6])
    level = np.repeat(rng.normal(0, 0.12, (replications, members)), each, axis=1)
    shown = rng.choice(3, size=level.shape, p=logging)
    rate = np.clip(np.array([0.3, 0.4, 0.5])[shown] + level, 0, 1)
    reward = (rng.random(level.shape) < rate).astype(float)
    # of members drawn afresh, clipped rates included
    draw = np.clip(np.array([0.3, 0.4, 0.5]) + rng.normal(0, 0.12, (400_000, 1)), 0, 1)
    return reward, (target / logging)[shown], np.repeat(np.arange(members), each), np.array(draw.mean(0) @ target)


def estimate(terms: Terms, member_N: np.ndarray) -> tuple[float, Interval]:
    """A value, and the interval that reports give it."""
    sums = Members.of(member_N).sums(terms)
    return sums.value, normal_interval(sums.value, sums.influence_M)


@pytest.mark.parametrize("estimator", [ips, snips])
def test_estimators_find_the_truth_and_their_intervals_hold(estimator) -> None:
    reward_RN, weight_RN, member_N, truth = many_logs()
    estimates = [estimate(estimator(r, w), member_N) for r, w in zip(reward_RN, weight_RN, strict=True)]
    values = np.array([value for value, _ in estimates])
    assert abs(values.mean() - truth) < 4 * values.std() / np.sqrt(len(values))
    covered = np.mean([ends.low <= truth <= ends.high for _, ends in estimates])
    assert 0.92 <= covered <= 0.98


def test_intervals_by_impression_would_be_too_narrow() -> None:
    reward_RN, _, member_N, _ = many_logs()
    level_RN = np.clip(reward_RN * 0 + reward_RN.reshape(*reward_RN.shape[:1], -1, 12).mean(2).repeat(12, axis=1), 0, 1)
    one_N = np.ones(level_RN.shape[1])
    # all of a member's rewards alike: 60 observations, not 720
    ours = [estimate(ips(r, one_N), member_N) for r in level_RN]
    naive = [estimate(ips(r, one_N), np.arange(len(r))) for r in level_RN]
    spread = np.std([value for value, _ in ours])
    assert np.mean([(ends.high - ends.low) / (2 * 1.96) for _, ends in ours]) == pytest.approx(spread, rel=0.15)
    assert np.mean([(ends.high - ends.low) / (2 * 1.96) for _, ends in naive]) < 0.5 * spread


def test_estimates_by_hand() -> None:
    reward, weight, member = np.array([1.0, 0.0, 1.0]), np.array([2.0, 1.0, 0.0]), np.array([5, 5, 9])
    assert estimate(ips(reward, weight), member)[0] == pytest.approx(2 / 3)
    assert estimate(snips(reward, weight), member)[0] == pytest.approx(2 / 3)
    assert estimate(snips(np.full(3, 0.25), weight), member)[0] == pytest.approx(0.25)
    assert kish_sample_size(weight) == pytest.approx(9 / 5)
    assert np.isnan(estimate(snips(reward, np.zeros(3)), member)[0])
    assert np.isnan(estimate(ips(reward, weight), np.zeros(3, int))[1].low), "one member alone gives no interval"
    assert np.isnan(estimate(snips(reward, weight), member)[1].low), "without member 5 no weight is left"


def since_of(bundle: Path) -> datetime:
    return datetime.fromisoformat(json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["test_from"])


def rewritten(scores: Path, out: Path, change) -> Path:
    """Scores with every row changed."""
    out.mkdir()
    rows = pads.dataset(sorted(scores.glob("*.parquet"))).to_table().to_pylist()
    rows = [new for row in rows if (new := change(dict(row))) is not None]
    schema = pads.dataset(sorted(scores.glob("*.parquet"))).schema
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), out / "part-0.parquet")
    return out


def test_the_evaluation_knows_the_truth(service: Path, scores: Path, bundle: Path, tmp_path: Path) -> None:
    since = since_of(bundle)
    report = evaluate(service, scores, tmp_path / "report", since=since)
    true = {row["policy"]: row["true_value"] or 0.0 for row in report["policies"] if row["reward"] == "clicked"}
    assert true["best_possible"] > max(v for k, v in true.items() if k != "best_possible")
    truth = pads.dataset(sorted((service / "truth").glob("*.parquet"))).to_table().to_pylist()
    truth = {row["impression_id"]: dict(zip(row["candidates"], row["p_click"], strict=True)) for row in truth}

    def oracle(row: dict) -> dict:
        p = [truth[row["impression_id"]][c] for c in row["candidates"]]
        return row | {"policy": [float(i == int(np.argmax(p))) for i in range(len(p))], "click_probability": p}

    def even(row: dict) -> dict:
        return row | {"policy": [1 / len(row["policy"])] * len(row["policy"])}

    best = evaluate(service, rewritten(scores, tmp_path / "best", oracle), tmp_path / "best-report", since=since)
    assert best["captured_lift"] == pytest.approx(1, abs=1e-6)
    flat = evaluate(service, rewritten(scores, tmp_path / "even", even), tmp_path / "even-report", since=since)
    assert flat["captured_lift"] == pytest.approx(0, abs=1e-6)
    flat_scored, flat_uniform = (main_estimate(flat["value"], name, "clicked") for name in ("scored", "uniform"))
    assert flat_scored is not None
    assert flat_uniform is not None
    assert flat_scored["value"] == pytest.approx(flat_uniform["value"])
    by_hand = np.mean(
        [np.mean(list(truth[i].values())) for i in read_scored_log(service, scores, since).impression_id.to_pylist()]
    )
    assert true["uniform"] == pytest.approx(by_hand, rel=1e-5)


def test_a_trained_ranker_captures_lift(service: Path, scores: Path, bundle: Path, tmp_path: Path) -> None:
    """On a service of 8,000 impressions; how much a whole one allows is the demo's figure."""
    report = evaluate(service, scores, tmp_path / "report", since=since_of(bundle))
    assert report["captured_lift"] is not None
    assert report["captured_lift"] > 0.3
    assert report["metrics"]["log_loss"] < report["metrics"]["log_loss_of_a_constant"]


def test_opposite_histories_flip_the_choice(service: Path, bundle: Path) -> None:
    """Chance would flip one pair in four; how many a whole service flips is the demo's figure."""
    assert share_flipped(Bundle.open(bundle), service, 60)["all"] > 0.4


def test_shuffled_candidates_are_aligned(service: Path, scores: Path, bundle: Path, tmp_path: Path) -> None:
    def reversed_(row: dict) -> dict:
        return row | {name: row[name][::-1] for name in ("candidates", "click_probability", "policy")}

    one = read_scored_log(service, scores, since_of(bundle))
    two = read_scored_log(service, rewritten(scores, tmp_path / "scores", reversed_), since_of(bundle))
    np.testing.assert_array_equal(one.policy_NK.values_C, two.policy_NK.values_C)
    np.testing.assert_array_equal(one.click_probability_NK.values_C, two.click_probability_NK.values_C)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda row: None if row["impression_id"].endswith("1") else row,
            r"impressions of the log are missing \(first: ",
        ),
        (lambda row: row | {"candidates": ["x"] * len(row["candidates"])}, "candidates are not the log's"),
        (
            lambda row: row | {"policy": [0.93 / len(row["policy"])] * len(row["policy"])},
            "does not sum to 1 .* sum 0.93",
        ),
        (
            lambda row: row | {"click_probability": [float("nan")] * len(row["policy"])},
            "click_probability is not a probability",
        ),
        (lambda row: row | {"policy": row["policy"][1:]}, "not as long as their candidates"),
    ],
)
def test_scores_that_do_not_fit_are_refused(
    service: Path, scores: Path, bundle: Path, tmp_path: Path, change, named: str
) -> None:
    with pytest.raises(UserError, match=named):
        read_scored_log(service, rewritten(scores, tmp_path / "scores", change), since_of(bundle))


def test_a_log_of_single_propensities(service: Path, scores: Path, bundle: Path, tmp_path: Path) -> None:
    """Where only the shown artwork's propensity was logged, the randomised part and the estimates are the same."""
    alone = tmp_path / "alone"
    shutil.copytree(service, alone)
    for part in (alone / "impressions").glob("*.parquet"):
        table = pq.read_table(part)
        shown = [
            p[c.index(a)]
            for p, c, a in zip(
                *(table[n].to_pylist() for n in ("propensities", "candidates", "artwork_id")), strict=True
            )
        ]
        table = table.drop_columns("propensities").append_column("propensity", pa.array(shown, pa.float32()))
        pq.write_table(table, part)
    one, two = (read_scored_log(folder, scores, since_of(bundle)) for folder in (service, alone))
    np.testing.assert_array_equal(one.randomised, two.randomised)
    assert 0.2 < one.randomised.mean() < 0.4
    np.testing.assert_allclose(one.propensity, two.propensity)


@pytest.mark.parametrize(("rounding", "same"), [(4e-4, True), (5e-3, False)])
def test_rounded_propensities_are_judged_alike_everywhere(
    service: Path, scores: Path, bundle: Path, tmp_path: Path, rounding: float, same: bool
) -> None:
    """The contract, the counts of the shards, the randomised part and the mixture of policies go by one rounding."""
    rounded = tmp_path / "rounded"
    shutil.copytree(service, rounded)

    def moved(p: list[float]) -> list[float]:
        return p if len(set(p)) > 1 or len(p) == 1 else [p[0] * (1 - rounding), *p[1:-1], p[-1] * (1 + rounding)]

    for part in (rounded / "impressions").glob("*.parquet"):
        table = pq.read_table(part)
        lists = pa.array([moved(p) for p in table["propensities"].to_pylist()], table["propensities"].type)
        pq.write_table(table.set_column(table.column_names.index("propensities"), "propensities", lists), part)
    assert check(rounded, images=False).ok
    randomised = {}
    for folder in (service, rounded):
        manifest = prepare(folder, tmp_path / f"shards-{folder.name}")
        log = read_scored_log(folder, scores, since_of(bundle))
        randomised[folder] = manifest["splits"]["test"]["randomised"], int(log.randomised.sum())
        assert randomised[folder][0] == randomised[folder][1]
    assert (randomised[service] == randomised[rounded]) == same
    assert randomised[service][0] > 100
    propensity_NK = np.array([moved([0.25] * 4), [0.25] * 4, [0.4, 0.3, 0.2, 0.1]])
    artwork_NK = Lists.of(np.tile(np.arange(4), 3), np.full(3, 4))
    mixed = mixture_propensities(artwork_NK.like(propensity_NK.ravel()), artwork_NK, np.array([0, 0, 1]))
    assert (mixed is not None) == same, "within rounding, a policy is not personalised"


def test_the_report_is_one_file(service: Path, scores: Path, bundle: Path, tmp_path: Path) -> None:
    report = evaluate(service, scores, tmp_path / "report", since=since_of(bundle))
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'https?:|(src|href)="(?!#|data:)', page)
    assert "prefers-color-scheme: dark" in page
    for row in report["policies"]:
        assert row["label"] in page
    assert policy_table(report).row_count == 5
    assert json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8")) == report
