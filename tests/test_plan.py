"""`keyart plan`: traffic, noise, days and cost against counting and simulation; what it writes and what it refuses."""

from collections.abc import Callable
from datetime import timedelta
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

import keyart
from benchmarks.value_plan import Service, draw, replicate
from evaluation.off_policy.intervals import standard_error
from evaluation.off_policy.selection import policy_sums
from evaluation.plan import PlanConfig, noise, parse_lift, plan_of
from evaluation.planning.first_log import BASE, POLICY
from evaluation.planning.power import Design, Question
from evaluation.planning.traffic import DAY, Traffic
from evaluation.record.plan_record import read_plan
from foundation.errors import UserError
from tests.made_service import ALL, ROWS, START, best, changed, even, scores, service

QUICK = Service(click_rate=0.1, lift=0.3, members=500, spread=1.0, first_days=5, first_share=0.3, share=0.5)


def test_traffic_of_the_log_itself_is_what_counting_says() -> None:
    rng = np.random.default_rng(0)
    member_N, day_N = rng.integers(0, 9, 120), rng.integers(0, 6, 120)
    at_N = day_N * DAY + rng.integers(0, DAY, 120)
    at_N[:2] = 0, 6 * DAY - 1
    day_N[:2] = 0, 5
    traffic = Traffic.of(member_N, at_N)
    pairs = sum(member_N[a] == member_N[b] for a, b in permutations(range(120), 2))
    assert traffic.pairs(6) == pytest.approx(pairs)
    assert traffic.members(6) == len(np.unique(member_N))
    assert traffic.impressions(6) == pytest.approx(120, rel=0.01)
    assert traffic.pairs(12) > 2 * pairs, "the same members come back"
    assert traffic.members(12) >= traffic.members(6)


def test_members_who_never_come_back_make_pairs_in_proportion_to_days() -> None:
    member_N = np.repeat(np.arange(300), 2)
    at_N = (member_N % 10) * DAY + np.tile([100, 200], 300)
    at_N[-1] += DAY - 1000
    traffic = Traffic.of(member_N, at_N)
    assert traffic.pairs(40) == pytest.approx(4 * traffic.pairs(10))
    assert traffic.pairs(10) == pytest.approx(600)


def test_the_standard_error_is_that_of_the_members() -> None:
    """The same log, its own share and days: variance and covariance give the cluster-robust error of the estimate."""
    first = draw(QUICK, 8, 0.5, 3)
    measured = noise(first, "dr", QUICK.lift)
    sides = [policy_sums(first.weighted_log, name, "clicked", "dr") for name in (POLICY, BASE)]
    by_member = standard_error(sides[0].influence_M - sides[1].influence_M)
    design = Design(0.5, measured, Traffic.of(first.member_N, first.shown_at_N))
    assert design.standard_error(8) == pytest.approx(by_member, rel=0.06)


def test_the_days_are_the_fewest_and_more_is_needed_for_less() -> None:
    first = draw(QUICK, 5, 0.3, 1)
    traffic, measured = Traffic.of(first.member_N, first.shown_at_N), noise(first, "dr", 0.2)
    question = Question(lift=0.2, power=0.8)
    design = Design(0.2, measured, traffic)
    days = design.days(question)
    assert days is not None
    assert design.power(days, question) >= 0.8 > design.power(days - 1, question)
    assert design.detectable(days, question) <= 0.2 < design.detectable(days - 1, question)
    fewer, more = Design(0.1, measured, traffic).days(question), Design(0.4, measured, traffic).days(question)
    assert fewer is not None
    assert more is not None
    assert more < days < fewer
    assert design.days(Question(lift=0.0005, power=0.8)) is None


def test_planned_days_reach_the_asked_power() -> None:
    """A fast version of `python -m benchmarks.value_plan`."""
    tally = replicate(QUICK, 40)
    assert 0.65 <= np.mean(tally.detected) <= 0.93
    assert np.mean(tally.cost) == pytest.approx(1.0, abs=0.4)
    assert np.mean(tally.cost_held) >= 0.85


def test_the_recommended_share_is_the_smallest_within_the_days() -> None:
    record = plan_of(draw(QUICK, 5, 0.3, 2), PlanConfig(lift="20 %", within=20), "a policy", "uniform")
    by_share = {row["share"]: row for row in record["plans"]}
    assert list(by_share) == sorted(by_share)
    assert record["recommended"] is not None
    chosen = by_share[record["recommended"]]["days"]
    assert chosen is not None
    assert chosen <= 20
    for share, row in by_share.items():
        if share < record["recommended"]:
            assert row["days"] is None or row["days"] > 20
        if row["days"] is not None and row["days_low"] is not None and row["days_high"] is not None:
            assert row["days_low"] <= row["days"] <= row["days_high"]
    assert {row["estimator"] for row in record["estimators"]} == {"dr", "snips", "ips"}


@pytest.mark.parametrize(
    ("text", "lift"), [("2 %", 0.02), ("2%", 0.02), ("0.02", 0.02), ("2,5 %", 0.025), ("150 %", 1.5), (".5%", 0.005)]
)
def test_lifts_as_people_write_them(text: str, lift: float) -> None:
    assert parse_lift(text) == pytest.approx(lift)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it, never write into it."""
    return service(tmp_path_factory.mktemp("plan") / "service", truth=False)


def test_the_command_writes_a_page_and_a_record(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert keyart.main(["plan", str(dataset), "--lift", "20", "%", "--power", ".8", "--within=365"]) == 0
    printed = capsys.readouterr().out
    assert "keyart score BUNDLE" in printed
    record = read_plan(tmp_path / "keyart-plan")
    log = record["first_log"]
    assert record["lift"] == 0.2
    wide = [n for n in range(ROWS) if len(ALL["candidates"][n]) > 1]
    explored = [n for n in wide if np.ptp(ALL["propensities"][n]) < 1e-6]
    assert (log["impressions"], log["explored"]) == (len(wide), len(explored))
    clicked = np.array(ALL["clicked"], float)
    assert log["base_value"] == pytest.approx(clicked[explored].mean())
    served = clicked[sorted(set(wide) - set(explored))].mean()
    assert log["cost_of_one"] == pytest.approx(served - clicked[explored].mean())
    page = (tmp_path / "keyart-plan" / "plan.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1
    assert "http" not in page


def test_a_scores_table_is_planned_for(dataset: Path, tmp_path: Path) -> None:
    table, base = scores(tmp_path / "best.parquet", best), scores(tmp_path / "even.parquet", even)
    words = [
        "plan",
        str(dataset),
        "--lift=10%",
        "--reward",
        "engaged",
        "--scores",
        str(table),
        "--out",
        str(tmp_path / "out"),
    ]
    assert keyart.main(words) == 0
    against_uniform = read_plan(tmp_path / "out")
    assert against_uniform["policy"] == str(table)
    assert against_uniform["first_log"]["without_scores"] == 4000
    assert keyart.main([*words, "--base", str(base)]) == 0
    against_base = read_plan(tmp_path / "out")
    days = [[row["days"] for row in record["plans"]] for record in (against_uniform, against_base)]
    assert days[0] == days[1], "the base is uniform, too"


def one_member(values: list[str]) -> list[str]:
    return ["m0"] * len(values)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--lift", "0"], "lift=0: must be above 0"),
        (["--lift", "-2 %"], "lift=-2 %: must be above 0"),
        (["--lift", "much"], "lift=much: is not a number"),
        (["--lift", "nan"], "lift=nan: must be above 0"),
        (["--lift", "2"], "lift=2: say '2 %' for per cent"),
        ([], "lift"),
        (["--lift", "2%", "--power", "1"], "power=1.0: must lie between alpha"),
        (["--lift", "2%", "--power", "80"], "power=80.0: must lie"),
        (["--lift", "2%", "--alpha", "0"], "alpha=0.0: must lie"),
        (["--lift", "2%", "--shares", "0,1"], "shares=[0.0, 1.0]: give shares"),
        (["--lift", "2%", "--shares", "[]"], "shares=[]: give shares"),
        (["--lift", "2%", "--within", "0"], "within=0: must lie in 1 .. 730"),
        (["--lift", "2%", "--reward", "minutes"], "reward"),
        (["--lift", "2%", "--base", "other"], "base=other: is compared with the policy of --scores"),
    ],
)
def test_questions_that_cannot_be_answered(
    words: list[str], named: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keyart.main(["plan", str(dataset), "--out", str(tmp_path / "out"), *words]) == 1
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def aimed(values: list[list[float]]) -> list[list[float]]:
    """Propensities of a log that never explores."""
    return [[0.7] + [0.3 / (len(p) - 1)] * (len(p) - 1) if len(p) > 1 else p for p in values]


@pytest.mark.parametrize(
    ("column", "how", "named"),
    [
        ("propensities", aimed, "no impression was randomised"),
        ("member_id", one_member, "a single member saw all explored impressions"),
        ("clicked", lambda values: [False] * len(values), "explored impressions was clicked"),
        (
            "shown_at",
            lambda values: [START + timedelta(seconds=n) for n in range(len(values))],
            "spans 0.1 days",
        ),
    ],
)
def test_logs_from_which_nothing_can_be_planned(
    column: str, how: Callable, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = service(tmp_path / "service", changed(column, how), truth=False)
    assert keyart.main(["plan", str(folder), "--lift", "2 %", "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


def test_a_policy_that_is_the_base_has_no_lift(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = scores(tmp_path / "even.parquet", even)
    assert (
        keyart.main(["plan", str(dataset), "--lift", "2 %", "--scores", str(table), "--out", str(tmp_path / "out")])
        == 1
    )
    assert "is the base, and has no lift over it" in capsys.readouterr().err


def test_a_plan_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"schema_version": 0}', encoding="utf-8")
    with pytest.raises(UserError, match="schema version 0"):
        read_plan(tmp_path)
