"""`keyart test`: intervals against straight lines and known truth, the answers on logs made by hand, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import keyart
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
from evaluation.record.experiments import TEST_VERSION, read_test
from foundation.errors import UserError

CLICKED = Ratio(numerator="clicked")
START = 1_767_225_600_000_000
HOUR = 3_600_000_000


def write_log(
    folder: Path,
    *,
    rates: tuple[float, ...] = (0.1, 0.15),
    watched: tuple[float, ...] = (0.5, 0.5),
    count: int = 8000,
    members: int = 800,
    by_member: bool = False,
    propensities: Callable[[np.ndarray], np.ndarray] | None = None,
    shown_shares: tuple[float, ...] = (),
    minutes: bool = False,
    seed: int = 0,
    change: Callable[[pa.Table], pa.Table] = lambda table: table,
) -> Path:
    """A dataset of one title, t0, whose artworks a0, a1, .. have some click rates, and of another with one artwork.

    `propensities`: of every impression's member, (N, A), else even ones; `shown_shares`: what was done, where it is not them.
    """
    rng = np.random.default_rng(seed)
    arms = len(rates)
    member_N = rng.integers(0, members, count)
    share_NA = np.full((count, arms), 1 / arms) if propensities is None else propensities(member_N)
    done_NA = np.broadcast_to(shown_shares, share_NA.shape) if shown_shares else share_NA
    shown_N = np.minimum((rng.random(count)[:, None] > done_NA.cumsum(1)).sum(1), arms - 1)
    if by_member:
        shown_N = rng.integers(0, arms, members)[member_N]
    appetite_N = np.where(member_N % 2, 1.4, 0.6)
    clicked_N = rng.random(count) < np.array(rates)[shown_N] * appetite_N
    engaged_N = rng.random(count) < np.array(watched)[shown_N]
    names = [f"a{k}" for k in range(arms)]
    at_N = START + np.sort(rng.integers(0, 20 * 24, count)) * HOUR
    columns = {
        "impression_id": [f"i{n:06d}" for n in range(count + 50)],
        "member_id": [f"m{m}" for m in member_N] + ["m0"] * 50,
        "title_id": ["t0"] * count + ["t1"] * 50,
        "artwork_id": [names[k] for k in shown_N] + ["b0"] * 50,
        "shown_at": pa.array([*at_N.tolist(), *[START] * 50], pa.timestamp("us", "UTC")),
        "candidates": [names] * count + [["b0"]] * 50,
        "propensities": pa.array([*share_NA.tolist(), *[[1.0]] * 50], pa.list_(pa.float32())),
        "policy": ["explore" if n % 2 else "other" for n in range(count)] + ["explore"] * 50,
        "clicked": [*clicked_N.tolist(), *[False] * 50],
        "engaged": [*[bool(e) if c else None for c, e in zip(clicked_N, engaged_N, strict=True)], *[None] * 50],
    }
    if minutes:
        played_N = clicked_N * engaged_N * rng.exponential(40, count)
        columns["minutes"] = pa.array([*played_N.tolist(), *[None] * 50], pa.float32())
    (folder / "impressions").mkdir(parents=True)
    pq.write_table(change(pa.table(columns)), folder / "impressions" / "part-0.parquet")
    return folder


def read(dataset: Path, out: Path, *words: str) -> dict[str, Any]:
    """The record of the one test; it must be JSON without NaN."""
    assert keyart.main(["test", str(dataset), str(out), *words]) == 0

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads((out / "test.json").read_text(encoding="utf-8"), parse_constant=refuse)


def answers(record: dict[str, Any]) -> list[str]:
    return [row["answer"] for row in record["tests"][0]["arms"]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artwork a1 is clicked half as much again. Read it, never write into it."""
    return write_log(tmp_path_factory.mktemp("made") / "log")


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


def test_covariates_by_a_straight_line_and_without_use() -> None:
    sums, a = unit_sums(covariates=1)
    contrast = sums.contrast(CLICKED, 1, 0)
    assert contrast.plain_estimate != contrast.estimate
    assert abs(contrast.estimate - contrast.plain_estimate) < 0.2 * contrast.plain_error, "noise explains nothing"
    assert contrast.variance_reduction == pytest.approx(0, abs=0.02)
    del a


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


def test_the_command_on_a_log(dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    record = read(dataset, tmp_path / "out", "--title", "t0")
    printed = " ".join(capfd.readouterr().out.split())
    assert next(iter(record)) == "headline"
    assert record["schema_version"] == TEST_VERSION
    assert read_test(tmp_path / "out")["headline"] == record["headline"]
    assert answers(record) == ["control", "winner"]
    (test,) = record["tests"]
    arm = test["arms"][1]
    assert arm["low"] < 0.5 < arm["high"], "the true lift"
    assert arm["low"] < arm["fixed_low"] < arm["fixed_high"] < arm["high"]
    assert test["mismatch"]["source"] == "logged propensities"
    assert len(test["looks"]) == 20
    assert test["looks"][-1]["impressions"] == test["impressions"] == 8000
    assert test["looks"][-1]["arms"][0]["low"] == arm["low"]
    for words in ("a1 is the winner", "Shares are as expected", "Next: keyart test"):
        assert words in printed
    page = (tmp_path / "out/test.html").read_text(encoding="utf-8")
    for words in ("<svg", "a1 is the winner", "anytime-valid", "Guardrails", "one look"):
        assert words in page
    assert "<script" not in page


def test_a_prefix_of_a_running_test_is_read_out_as_it_stood(dataset: Path, tmp_path: Path) -> None:
    """A look of the finished test is what a read-out of that day said."""
    whole = read(dataset, tmp_path / "whole", "--title", "t0")["tests"][0]
    early = read(dataset, tmp_path / "early", "--title", "t0", "--before", "2026-01-11")["tests"][0]
    assert early["impressions"] == whole["looks"][9]["impressions"]
    assert early["arms"][1]["lift"] == pytest.approx(whole["looks"][9]["arms"][0]["lift"], rel=0.2)
    late = read(dataset, tmp_path / "late", "--title", "t0", "--since", "2026-01-11")["tests"][0]
    assert late["impressions"] == whole["impressions"] - early["impressions"]
    assert late["covariates"] == ["clicks before the test"], "what members did before the period"


def test_all_titles_and_policies(dataset: Path, tmp_path: Path) -> None:
    every = read(dataset, tmp_path / "all")
    assert [test["test"] for test in every["tests"]] == ["title t0"], "t1 has nothing to choose"
    policies = read(dataset, tmp_path / "policies", "--by", "policy", "--title", "t0")
    assert policies["arms_are"] == "logging policies"
    assert answers(policies) == ["control", "not yet"], "both show the same artworks"
    assert "equal shares" in policies["tests"][0]["mismatch"]["source"]
    stated = read(dataset, tmp_path / "stated", "--by", "policy", "--arms", "explore,other", "--split", "90,10")
    assert set(answers(stated)) == {"mismatch"}
    assert "stated by --split" in stated["headline"]
    page = (tmp_path / "stated/test.html").read_text(encoding="utf-8")
    assert "Sample ratio mismatch" in page
    assert "<svg" not in page, "a lift that means nothing is not drawn"


def test_propensities_that_vary_are_weighted_and_said(tmp_path: Path) -> None:
    """Members who click more are shown a1 more often; both artworks are alike."""

    def aimed(member_N: np.ndarray) -> np.ndarray:
        of_a1 = np.where(member_N % 2, 0.8, 0.2)
        return np.stack([1 - of_a1, of_a1], 1)

    log = write_log(tmp_path / "log", rates=(0.2, 0.2), count=20_000, propensities=aimed)
    (test,) = read(log, tmp_path / "out", "--title", "t0")["tests"]
    arm, control = test["arms"][1], test["arms"][0]
    assert arm["low"] < 0 < arm["high"]
    assert abs(arm["lift"]) < 0.1, "unweighted it is +65 %"
    assert any("inverse propensity" in note for note in test["notes"])
    assert not test["mismatch"]["mismatched"]
    assert arm["rate"] == pytest.approx(0.2, abs=0.02)
    assert control["rate"] == pytest.approx(0.2, abs=0.02)


def test_what_was_not_done_is_seen(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", shown_shares=(0.56, 0.44))
    assert set(answers(read(log, tmp_path / "out", "--title", "t0"))) == {"mismatch"}


def test_minutes(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", minutes=True, rates=(0.2, 0.35), count=12_000)
    record = read(log, tmp_path / "out", "--title", "t0", "--metric", "minutes")
    assert answers(record) == ["control", "winner"]
    clicks = read(log, tmp_path / "clicks", "--title", "t0")
    guards = {row["reward"] for row in clicks["tests"][0]["arms"][1]["guardrails"]}
    assert guards == {"engaged", "minutes", "engaged of those clicked"}
    short = write_log(tmp_path / "short", minutes=True, rates=(0.2, 0.35), watched=(0.9, 0.1), count=12_000)
    assert answers(read(short, tmp_path / "bait", "--title", "t0")) == ["control", "clicked, not watched"]


def test_members_who_keep_their_artwork(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", by_member=True)
    (test,) = read(log, tmp_path / "out", "--title", "t0")["tests"]
    assert test["by_member"]
    assert test["mismatch"]["counted"] == "members"
    (single,) = read(log, tmp_path / "single", "--title", "t0", "--unit", "impression")["tests"]
    assert any("Use --unit member" in note for note in single["notes"])


def scores_of(path: Path, count: int, least: int = 0) -> Path:
    """Scores that know which members click more, of the impressions from `least` on."""
    ids = [f"i{n:06d}" for n in range(least, count)]
    rng = np.random.default_rng(0)
    table = {
        "impression_id": ids,
        "click_probability": [[float(p), float(p)] for p in rng.uniform(0, 0.4, len(ids))],
    }
    pq.write_table(pa.table(table), path)
    return path


def test_scores_are_a_covariate(dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = scores_of(tmp_path / "scores.parquet", 8000, least=10)
    record = read(dataset, tmp_path / "out", "--title", "t0", "--scores", str(table))
    (test,) = record["tests"]
    assert "predicted click probability" in test["covariates"]
    assert any("no record of when their model was trained" in note for note in record["notes"])
    assert any(note.startswith("10 impressions have no score") for note in test["notes"])
    (tmp_path / "scores.json").write_text(json.dumps({"test_from": "2026-01-05T00:00:00+00:00"}), encoding="utf-8")
    words = ["test", str(dataset), str(tmp_path / "late"), "--scores", str(table)]
    assert keyart.main(words) == 1
    assert "their model was trained on clicks until 2026-01-05" in capfd.readouterr().err
    assert keyart.main([*words, "--since", "2026-01-05"]) == 0


TABLE = {"arm": ["A", "B", "C"], "impressions": [20_000, 20_000, 20_000], "clicks": [400, 560, 410]}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_of_counts(suffix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"counts.{suffix}"
    write = pyarrow.csv.write_csv if suffix == "csv" else pq.write_table
    write(pa.table(TABLE), path)
    record = read(path, tmp_path / "out")
    assert answers(record) == ["control", "winner", "not yet"]
    arm = record["tests"][0]["arms"][1]
    error = np.sqrt(1 / 560 + 1 / 400 - 2 / 20_000 + 1 / 560**2 + 1 / 400**2)
    assert arm["lift"] == pytest.approx(0.4)
    assert np.log1p(arm["high"]) == pytest.approx(np.log(1.4) + radius(error, 0.025), rel=1e-4), (
        "two comparisons share the level"
    )
    assert np.log1p(arm["fixed_high"]) == pytest.approx(np.log(1.4) + 2.2414 * error, rel=1e-4)
    assert "--scores" not in capfd.readouterr().out


def test_a_test_that_has_just_begun(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    pyarrow.csv.write_csv(pa.table({"arm": ["A", "B"], "impressions": [90, 100], "clicks": [0, 9]}), path)
    record = read(path, tmp_path / "out")
    assert answers(record) == ["control", "not yet"]
    assert record["headline"] == "Not yet: too little clicked for an interval, about ten in each arm (B; control A)."
    arm = record["tests"][0]["arms"][1]
    assert (arm["lift"], arm["low"], arm["high"], arm["fixed_low"], arm["more_impressions"]) == (None,) * 5


def test_days_and_several_tests_of_a_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"test": f"test {t}", "day": str(d), "arm": arm, "impressions": 2000, "clicks": int(rng.binomial(2000, rate))}
        for t in range(20)
        for d in range(1, 12)
        for arm, rate in (("A", 0.02), ("B", 0.04 if t < 2 else 0.02))
    ]
    path = tmp_path / "counts.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    record = read(path, tmp_path / "all")
    won = [test["test"] for test in record["tests"] if test["arms"][1]["answer"] == "winner"]
    assert won == ["test 0", "test 1"]
    assert record["headline"] == "20 tests: 2 with a winner."
    assert record["tests"][0]["level"] == pytest.approx(0.05 * 2 / 20)
    single = read(path, tmp_path / "one", "--title", "test 0")["tests"][0]
    assert [look["until"] for look in single["looks"]] == [str(day) for day in range(1, 12)], "10 comes after 9"
    assert single["level"] == 0.05


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--title", "t9"], "title=t9: has no impression in"),
        (["--title", "t1"], "title t1 has no randomised impressions"),
        (["--arms", "a0"], "arms=a0: is one arm"),
        (["--arms", "a0,a0"], "arms=a0,a0: a0 is named 2 times, and arms must not overlap"),
        (["--arms", "a0,,a1"], "arms=a0,,a1: an arm is empty"),
        (["--arms", "a0,a9"], "arm a9: is no candidate of title t0"),
        (["--arms", "a9,a0"], "arm a9: was no candidate in"),
        (["--arms", "explore,none", "--by", "policy"], "arm none: logged nothing in"),
        (["--title", "t1", "--by", "policy"], "explore logged every impression, which is one arm"),
        (["--title", "t0", "--control", "a7"], "control=a7: is none of the arms a0, a1"),
        (["--title", "t0", "--split", "50"], "split: 1 shares for 2 arms"),
        (["--title", "t0", "--split", "50,x"], "split=50,x: must be shares above 0"),
        (["--title", "t0", "--split", "50,-1"], "split=50,-1: must be shares above 0"),
        (["--worth", "0"], "worth=0: must be a share above 0 and below 1"),
        (["--worth", "much"], "worth=much: must be a share"),
        (["--typical", "200%"], "typical=200%: must be a share"),
        (["--metric", "minutes"], "metric=minutes: "),
        (["--since", "2027-01-01"], "no impression was shown in this period"),
        (["--since", "soon"], "since=soon: invalid date"),
        (["--unit", "household"], '"unit": Expected'),
    ],
)
def test_what_is_refused(
    words: list[str], said: str, dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert keyart.main(["test", str(dataset), str(tmp_path / "out"), *words]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "out").exists()


def never_shown(table: pa.Table) -> pa.Table:
    """Artwork a1 as a candidate that was never shown."""
    at = table.schema.get_field_index("artwork_id")
    shown = [artwork.replace("a1", "a0") for artwork in table["artwork_id"].to_pylist()]
    return table.set_column(at, "artwork_id", pa.array(shown))


def certain(table: pa.Table) -> pa.Table:
    """Propensities of 1 for what was shown."""
    lists = [
        [float(artwork == candidate) for candidate in candidates]
        for artwork, candidates in zip(table["artwork_id"].to_pylist(), table["candidates"].to_pylist(), strict=True)
    ]
    return table.set_column(6, "propensities", pa.array(lists, pa.list_(pa.float32())))


def below_zero(table: pa.Table) -> pa.Table:
    return table.append_column("minutes", pa.array([-1.0] + [0.0] * (len(table) - 1)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (never_shown, "arm a1 has no impression of the test"),
        (certain, "no impression was drawn at random among artworks"),
        (below_zero, "1 rows whose minutes are below 0 or no number (first: i0"),
    ],
)
def test_logs_that_hold_no_test(change: Callable, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = write_log(tmp_path / "log", count=500, change=change)
    words = [] if change is certain else ["--title", "t0"]
    assert keyart.main(["test", str(log), str(tmp_path / "out"), *words]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize(
    ("columns", "words", "said"),
    [
        ({"arm": ["A", "B"], "impressions": [10, 10]}, [], "column clicks is missing"),
        ({"arm": ["A"], "impressions": [10], "clicks": [1]}, [], "holds one arm, A"),
        ({"arm": ["A", "B"], "impressions": [10, 10], "clicks": [1, 11]}, [], "row 2 has 11 clicked of 10 impressions"),
        ({"arm": ["A", "B"], "impressions": [10, 0], "clicks": [1, 0]}, [], "arm B has no impressions"),
        ({"arm": ["A", "B"], "impressions": [10, -1], "clicks": [1, 0]}, [], "1 rows whose impressions is no count"),
        ({"arm": ["A", "B"], "impressions": ["x", "y"], "clicks": [1, 0]}, [], "must be whole numbers"),
        (TABLE, ["--arms", "A,D"], "arm D: is none of"),
        (TABLE, ["--unit", "member"], "unit=member: "),
        (TABLE, ["--by", "policy"], "by=policy: needs a log"),
        (TABLE, ["--since", "2026-01-01"], "since: needs a log"),
        (TABLE, ["--title", "x"], "title=x: is no test of"),
        (TABLE, ["--metric", "engaged"], "metric=engaged: "),
    ],
)
def test_tables_that_are_refused(
    columns: dict[str, list], words: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pyarrow.csv.write_csv(pa.table(columns), tmp_path / "counts.csv")
    assert keyart.main(["test", str(tmp_path / "counts.csv"), str(tmp_path / "out"), *words]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line


def test_a_table_that_is_no_table(tmp_path: Path) -> None:
    from evaluation.experiments.aggregated import read_counted_tests

    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"x\.parquet: cannot be read"):
        read_counted_tests(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"y\.csv: does not exist"):
        read_counted_tests(tmp_path / "y.csv")


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


def shown_alone(table: pa.Table) -> pa.Table:
    """Only the shown artwork's propensity."""
    pairs = zip(*(table[name].to_pylist() for name in ("propensities", "candidates", "artwork_id")), strict=True)
    own = [float(lists[candidates.index(artwork)]) for lists, candidates, artwork in pairs]
    return table.drop_columns(["propensities"]).append_column("propensity", pa.array(own))


def test_a_log_of_shown_propensities_alone(tmp_path: Path) -> None:
    """One in three of a0: the shares follow from what each arm's impressions logged."""
    third = np.array([1 / 3, 2 / 3])
    log = write_log(tmp_path / "log", propensities=lambda m: np.tile(third, (len(m), 1)), change=shown_alone)
    (test,) = read(log, tmp_path / "out", "--title", "t0")["tests"]
    assert test["mismatch"]["source"] == "logged propensities"
    assert [row["expected_share"] for row in test["arms"]] == pytest.approx([1 / 3, 2 / 3])
    assert test["arms"][1]["answer"] == "winner"
    assert not test["notes"], "propensities are the same within each arm"


def test_the_commands_of_the_document(
    service: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As they are written in docs/evaluation.md, on a simulated service."""
    document = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    commands = [line.split()[3:] for line in document.splitlines() if line.startswith("uv run keyart test")]
    assert len(commands) == 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DATASET").symlink_to(service)
    for words in commands:
        assert keyart.main(words) == 0, words
    assert "tests: " in capfd.readouterr().out
    assert read_test(tmp_path / "POLICIES")["tests"][0]["mismatch"]["mismatched"] is False
    assert len(read_test(tmp_path / "TESTS")["tests"]) > 10
