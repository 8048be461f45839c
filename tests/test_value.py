"""`keyart value` on a service made by hand and on logs of known truth: what it writes, what it refuses, what it will not say."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import keyart
from benchmarks.ope_coverage import SETTINGS, Setting, draw, replicate, truth_of
from evaluation.logs.log_review import BALANCED_WEIGHTS, PER_POLICY_WEIGHTS
from evaluation.off_policy.valuation import LOGGED, BanditLog, PolicyProbabilities, value_policies
from evaluation.period import newest_shares
from evaluation.record.records import VALUE_VERSION
from tests import obd_men
from tests.made_service import ALL, LATE, ROWS, START, Change, best, changed, even, last, scores, service

ROW_KEYS = {
    "policy", "reward", "estimator", "value", "low", "high", "effective_sample_size", "mean_weight", "largest_weight",
    "impressions", "members", "verdict",
}  # fmt: skip
ESTIMATORS = {
    "replay", "ips", "clipped_ips", "snips", "dm", "dr", "sndr", "switch_dr", "dr_os", "title_snips",
}  # fmt: skip
TEST = slice(5100, ROWS)
"""The newest 15 %."""


def code_and_error(capfd: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    code = keyart.main(["value", *map(str, words)])
    return code, capfd.readouterr().err


def record_of(dataset: Path, table: Path, out: Path, *words: str) -> dict[str, Any]:
    assert keyart.main(["value", str(dataset), str(table), str(out), *words]) == 0

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads((out / "value.json").read_text(encoding="utf-8"), parse_constant=refuse)


def row_of(
    record: dict[str, Any], policy: str, estimator: str, reward: str = "clicked", base: str = ""
) -> dict[str, Any]:
    rows = record["differences" if base else "estimates"]
    return next(
        row
        for row in rows
        if (row["policy"], row["estimator"], row["reward"], row.get("base", "")) == (policy, estimator, reward, base)
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without its truth. Read it, never write into it."""
    return service(tmp_path_factory.mktemp("made") / "service", truth=False)


@pytest.fixture(scope="module")
def record(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is said of the policy that knows the truth, over the test period."""
    folder = tmp_path_factory.mktemp("value")
    return record_of(dataset, scores(folder / "scores.parquet", best), folder / "out")


def test_the_record_is_as_promised(record: dict[str, Any]) -> None:
    assert next(iter(record)) == "verdict", "first in the record"
    assert record["schema_version"] == VALUE_VERSION
    assert all(set(row) == ROW_KEYS for row in record["estimates"])
    assert all(set(row) >= ROW_KEYS | {"base"} for row in record["differences"])
    estimated = {(row["policy"], row["reward"], row["estimator"]) for row in record["estimates"]}
    every = {(p, r, e) for p in ("scored", "uniform", "best_fixed") for r in ("clicked", "engaged") for e in ESTIMATORS}
    every |= {("logged", reward, e) for reward in ("clicked", "engaged") for e in ESTIMATORS - {"replay"}}
    assert estimated == every
    assert {(row["policy"], row["estimator"]) for row in record["left_out"]} == {("logged", "replay")}
    pairs = {(row["policy"], row["base"]) for row in record["differences"]}
    assert len(pairs) == 6
    assert {row["verdict"] for row in record["estimates"]} <= {"reliable", "weak", "unanswerable"}
    assert all(row["reason"] for row in record["verdicts"])
    assert {row["parameter"] for row in record["parameters"]} == {"clip", "tau", "lambda"}
    wide = [n for n in range(TEST.start, ROWS) if len(ALL["candidates"][n]) > 1]
    assert (record["impressions"], record["without_choice"]) == (len(wide), 900 - len(wide))
    assert record["scores_of_other_impressions"] == TEST.start - LATE.start, "counted, not refused"
    assert record["since"] == ALL["shown_at"][TEST.start].isoformat()


def test_values_are_near_the_truth(record: dict[str, Any]) -> None:
    wide = [n for n in range(TEST.start, ROWS) if len(ALL["candidates"][n]) > 1]
    p = [np.array(ALL["p_click"][n]) for n in wide]
    logged = np.mean([np.dot(ALL["p_click"][n], ALL["propensities"][n]) for n in wide])
    truth = {"scored": np.mean([v.max() for v in p]), "uniform": np.mean([v.mean() for v in p]), "logged": logged}
    for policy, true in truth.items():
        for estimator in ("ips", "snips", "dr", "sndr", "title_snips"):
            row = row_of(record, policy, estimator)
            assert abs(row["value"] - true) < 1.7 * (row["high"] - row["low"]) / 2, (policy, estimator)
    lift = row_of(record, "scored", "dr", base="uniform")
    assert lift["low"] < truth["scored"] - truth["uniform"] < lift["high"]
    assert lift["relative_low"] < truth["scored"] / truth["uniform"] - 1 < lift["relative_high"]
    apart = np.hypot(*(row_of(record, p, "dr")["high"] - row_of(record, p, "dr")["low"] for p in ("scored", "uniform")))
    assert lift["high"] - lift["low"] < apart, "of the same members, much of the noise cancels"


def test_periods_are_those_of_prepare(dataset: Path, record: dict[str, Any], tmp_path: Path) -> None:
    times = newest_shares(dataset)
    assert times.bounds("all") == (None, None)
    validation, test = START + timedelta(hours=4200), START + timedelta(hours=5100)
    assert times.bounds("validation") == (validation, test)
    assert times.bounds("test") == (test, None)
    table = scores(tmp_path / "scores.parquet", best)
    validated = record_of(dataset, table, tmp_path / "validation", "--period", "validation")
    assert validated["impressions"] + validated["without_choice"] == 900
    assert validated["before"] == record["since"]


def test_candidates_in_another_order_are_aligned(dataset: Path, record: dict[str, Any], tmp_path: Path) -> None:
    def turned(table: pa.Table) -> pa.Table:
        lists = table.to_pydict()
        for name in ("candidates", "click_probability", "policy"):
            lists[name] = [values[n % 3 :] + values[: n % 3] for n, values in enumerate(lists[name])]
        return pa.table(lists, schema=table.schema).take(np.random.default_rng(6).permutation(len(table)))

    assert record_of(dataset, scores(tmp_path / "s.parquet", best, turned), tmp_path / "out") == record


def test_missing_scores_are_refused_or_left_out_and_counted(
    dataset: Path, record: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = scores(tmp_path / "scores.parquet", best, lambda t: t.slice(0, 1990))
    code, error = code_and_error(capfd, dataset, table, tmp_path / "out")
    assert code == 1
    assert error.startswith(f"keyart value: {table}: 10 impressions of the log are missing (first: i05990)")
    assert "--allow-missing" in error
    assert not (tmp_path / "out").exists()
    code, error = code_and_error(capfd, dataset, table, tmp_path / "out", "--allow-missing")
    assert (code, "10 impressions without scores are left out" in error) == (0, True)
    left = json.loads((tmp_path / "out" / "value.json").read_text(encoding="utf-8"))
    assert left["without_scores"] == 10
    assert left["impressions"] + left["without_choice"] == record["impressions"] + record["without_choice"] - 10


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (changed("policy", lambda v: [[p * 0.93 for p in ps] for ps in v]), "rows whose policy does not sum to 1"),
        (changed("policy", last([float("nan")] * len(ALL["p_click"][-1]))), "1 rows whose policy is not a probability"),
        (
            changed("click_probability", lambda v: [[np.nan] * len(p) for p in v]),
            "click_probability is not a probability",
        ),
        (changed("candidates", last(["x"])), "1 rows whose candidates are not the log's"),
        (lambda t: t.slice(0, 0), "impressions of the log are missing"),
    ],
)
def test_scores_that_do_not_fit_are_refused(
    dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], change: Change, named: str
) -> None:
    table = scores(tmp_path / "scores.parquet", best, change)
    code, error = code_and_error(capfd, dataset, table, tmp_path / "out")
    assert (code, named in error, error.count("\n"), str(table) in error) == (1, True, 1, True), error
    assert not (tmp_path / "out").exists()


def propensities(how: Any) -> Change:
    """The last row's propensities changed."""
    return changed(
        "propensities",
        lambda values: [*values[:-1], how(values[-1], ALL["candidates"][-1].index(ALL["artwork_id"][-1]))],
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            propensities(lambda p, shown: [2 * x for x in p]),
            "1 rows whose propensities are not probabilities that sum to 1",
        ),
        (propensities(lambda p, shown: [float("nan")] * len(p)), "1 rows whose propensities are not probabilities"),
        (
            propensities(lambda p, shown: [float(k == (shown + 1) % len(p)) for k in range(len(p))]),
            "1 rows without a propensity above 0 for the shown artwork (first: i05999)",
        ),
        (lambda t: t.slice(0, 0), "is empty"),
    ],
)
def test_logs_that_cannot_be_valued_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], change: Change, named: str
) -> None:
    assert len(ALL["candidates"][-1]) > 1
    broken = service(tmp_path / "service", change, truth=False)
    code, error = code_and_error(capfd, broken, scores(tmp_path / "scores.parquet", best), tmp_path / "out")
    assert (code, named in error, error.count("\n"), "impressions" in error) == (1, True, 1, True), error


def test_only_the_shown_propensity_was_logged(record: dict[str, Any], tmp_path: Path) -> None:
    """What needs the whole vector says so and is left out; the rest is the same."""
    shown_index = [c.index(a) for c, a in zip(ALL["candidates"], ALL["artwork_id"], strict=True)]
    shown = pa.array([p[i] for p, i in zip(ALL["propensities"], shown_index, strict=True)], pa.float32())
    drop: Change = lambda t: t.drop_columns("propensities").append_column("propensity", shown)  # noqa: E731
    alone = record_of(service(tmp_path / "alone", drop), scores(tmp_path / "s.parquet", best), tmp_path / "out")
    missing = {(row["policy"], row["estimator"]) for row in alone["left_out"] if "all candidates" in row["reason"]}
    assert {e for p, e in missing if p == "scored"} == set()
    assert {e for p, e in missing if p == "logged"} == {"dm", "dr", "sndr", "switch_dr", "dr_os"}
    assert alone["calibration"] is None
    assert any("only in the mean weight" in note for note in alone["notes"])
    assert {row["unsupported"] for row in alone["overlap"] if row["policy"] == "scored"} == {None}
    assert row_of(alone, "scored", "dr")["value"] == pytest.approx(row_of(record, "scored", "dr")["value"], rel=1e-6)


def test_one_logging_policy_of_two(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = ["explore" if len(set(p)) == 1 else "aimed" for p in ALL["propensities"]]
    named = service(tmp_path / "service", lambda t: t.append_column("policy", pa.array(names)), truth=False)
    table = scores(tmp_path / "scores.parquet", best)
    both = record_of(named, table, tmp_path / "both")
    assert {row["policy"] for row in both["logging_policies"]} == {"explore", "aimed"}
    assert both["weights"] == PER_POLICY_WEIGHTS, "too small a log to show that who logs is random"
    balanced = record_of(named, table, tmp_path / "balanced", "--weights", "balanced")
    assert balanced["weights"] == BALANCED_WEIGHTS
    assert row_of(balanced, "scored", "ips")["largest_weight"] < row_of(both, "scored", "ips")["largest_weight"]
    explored = record_of(named, table, tmp_path / "explored", "--log-policy", "explore")
    assert explored["impressions"] == explored["randomised"] == both["randomised"]
    assert explored["weights"] == PER_POLICY_WEIGHTS
    assert row_of(explored, "uniform", "ips")["largest_weight"] == pytest.approx(1)
    capfd.readouterr()
    code, error = code_and_error(capfd, named, table, tmp_path / "none", "--log-policy", "exploit")
    assert (code, "log-policy=exploit" in error, "Policies: aimed, explore." in error) == (1, True, True)


def test_defects_of_a_log_are_named_in_the_record_on_the_page_and_in_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One member has a fifth of the impressions, and propensities were logged as 1 / K."""
    everybody = changed("member_id", lambda v: ["m0" if n % 5 == 0 else m for n, m in enumerate(v)])
    even_propensities = changed("propensities", lambda v: [even(p) for p in v])
    lying = service(tmp_path / "service", lambda table: even_propensities(everybody(table)), truth=False)
    record = record_of(lying, scores(tmp_path / "scores.parquet", best), tmp_path / "out")
    output = capfd.readouterr()
    page = (tmp_path / "out" / "value.html").read_text(encoding="utf-8")
    assert record["verdict"]["verdict"] == "unanswerable"
    assert [fault["kind"] for fault in record["faults"]] == ["one member"]
    assert record["propensities"]["rejected"] > 0
    assert record["propensities"]["worst"][0]["chance"] < 0.01
    for words in ("propensities are not what was done", "one member has 2"):
        assert any(words in doubt for doubt in record["doubts"])
        assert words in page
        assert words in " ".join(output.err.split())


def test_one_member_only(tmp_path: Path) -> None:
    alone = service(tmp_path / "service", changed("member_id", lambda v: ["m"] * len(v)), truth=False)
    record = record_of(alone, scores(tmp_path / "scores.parquet", best), tmp_path / "out")
    assert {row["verdict"] for row in record["estimates"]} == {"unanswerable"}
    assert {row["value"] for row in record["estimates"]} == {None}
    assert "a single member" in record["verdict"]["reason"]


def test_no_clicks_at_all(tmp_path: Path) -> None:
    def none(table: pa.Table) -> pa.Table:
        return changed("engaged", lambda v: [None] * len(v))(changed("clicked", lambda v: [False] * len(v))(table))

    record = record_of(
        service(tmp_path / "s", none, truth=False), scores(tmp_path / "t.parquet", best), tmp_path / "out"
    )
    assert {row["verdict"] for row in record["estimates"]} == {"unanswerable"}
    assert "none was clicked" in record["verdict"]["reason"]


def test_a_log_that_never_shows_what_the_policy_would(tmp_path: Path) -> None:
    """Every impression showed the first artwork for certain; the policy takes the last: no number, whatever its interval."""

    def certain(table: pa.Table) -> pa.Table:
        first = changed("artwork_id", lambda v: [c[0] for c in ALL["candidates"]])(table)
        return changed("propensities", lambda v: [[float(k == 0) for k in range(len(p))] for p in v])(first)

    table = scores(tmp_path / "s.parquet", lambda p: [float(k == len(p) - 1) for k in range(len(p))])
    record = record_of(service(tmp_path / "service", certain, truth=False), table, tmp_path / "out")
    rows = [row for row in record["estimates"] if row["policy"] == "scored"]
    assert {row["verdict"] for row in rows} == {"unanswerable"}
    assert {(row["value"], row["low"], row["high"]) for row in rows} == {(None, None, None)}
    assert record["verdict"]["verdict"] == "unanswerable"
    assert "100% of the policy's probability is on artworks the log never shows" in record["verdict"]["reason"]
    lifts = [row for row in record["differences"] if "scored" in (row["policy"], row["base"])]
    assert {(row["value"], row["relative"], row["verdict"]) for row in lifts} == {(None, None, "unanswerable")}
    assert row_of(record, "logged", "ips")["value"] is not None


def test_a_lone_propensity_that_lies_about_overlap_shows_in_the_mean_weight() -> None:
    """The policy's artwork has a propensity that was not logged and is never shown: its weights are 0 and should be 1."""
    log, _, _ = draw(SETTINGS["ordinary"], 0)
    rows = np.arange(len(log))
    never: PolicyProbabilities = lambda s: (np.arange(4) == (log.shown_N[s, None] + 1) % 4).astype(float)  # noqa: E731
    alone = BanditLog(**{**vars(log), "propensity_NK": None})
    estimates = value_policies(alone, {"never": never}, draws=20)
    assert {row["verdict"] for row in estimates["estimates"]} == {"unanswerable"}
    assert "should be 1" in estimates["verdicts"][1]["reason"]
    assert len(rows) > 1000


def test_what_is_wrong_with_a_log_keeps_a_verdict_from_reliable() -> None:
    log, policies, _ = draw(SETTINGS["ordinary"], 0)
    sound, doubted = (value_policies(log, policies, doubts=doubts, draws=20) for doubts in ((), ("clocks are wrong",)))
    assert "reliable" in {row["verdict"] for row in sound["estimates"]}
    assert "reliable" not in {row["verdict"] for row in doubted["estimates"]}
    assert "clocks are wrong" in doubted["verdicts"][0]["reason"]


def test_the_evaluation_says_the_same(dataset: Path, tmp_path: Path) -> None:
    from evaluation.evaluate import evaluate

    table = scores(tmp_path / "scores.parquet", even)
    report = evaluate(dataset, table, tmp_path / "report", since=ALL["shown_at"][TEST.start])
    record = record_of(dataset, table, tmp_path / "value")
    assert report["value"]["estimates"] == record["estimates"]
    assert row_of(record, "scored", "dr")["value"] == pytest.approx(row_of(record, "uniform", "dr")["value"], abs=1e-7)


def test_intervals_hold_the_truth_where_they_are_called_reliable() -> None:
    """A small run of `benchmarks.ope_coverage`; intervals that count impressions as independent fail on the same logs."""
    setting = Setting(members=120, mean_impressions=20.0, spread=0.7, taste=1.2)
    tallies = replicate(setting, 120, truth_of(setting, draws=4), draws=200)
    for policy in ("scored", "uniform", "logged", "scored - uniform"):
        for estimator in ("ips", "snips", "dr", "sndr", "title_snips"):
            tally = tallies[policy, estimator]
            assert len(tally.covered["reliable"]) > 100, (policy, estimator)
            # of 120 intervals that hold in 92 %, more than 103 hold but for one run in a hundred
            assert tally.share("reliable") > 103 / 120, (policy, estimator)
    assert all(tallies[policy, "snips"].share("naive") < 0.8 for policy in ("uniform", LOGGED))
    assert not tallies["scored", "dm"].covered["reliable"], "its error is the model's, which no interval shows"


@pytest.fixture(scope="module")
def thompson() -> np.ndarray:
    return obd_men.thompson()


needs_obd = pytest.mark.skipif(not obd_men.FOLDER.is_dir(), reason="shared/data/obd-men is not beside the checkout")


@pytest.mark.shared_data
@needs_obd
def test_thompson_on_the_uniform_log(thompson: np.ndarray) -> None:
    log = obd_men.log_of(obd_men.read("random"), all_propensities=True)
    estimates = dict(value_policies(log, {"bts": lambda rows: thompson[log.title_N[rows]]}))
    ips, snips = (row_of(estimates, "bts", name) for name in ("ips", "snips"))
    assert ips["value"] == pytest.approx(0.00453, abs=1e-4)
    assert snips["value"] == pytest.approx(0.00460, abs=1e-4)
    assert ips["effective_sample_size"] == pytest.approx(2465, rel=0.01)
    assert ips["largest_weight"] == pytest.approx(10.7, rel=0.01)
    assert ips["verdict"] == "weak", "some dozens of clicks"
    bts = obd_men.read("bts")["click"]
    error = np.hypot((ips["high"] - ips["low"]) / 2, 1.96 * bts.std() / 100)
    assert abs(ips["value"] - bts.mean()) < error, "what it earned itself"


@pytest.mark.shared_data
@needs_obd
def test_uniform_on_the_thompson_log() -> None:
    """This log has only the shown item's propensity."""
    log = obd_men.log_of(obd_men.read("bts"), all_propensities=False)
    even = np.full((1, obd_men.ITEMS), 1 / obd_men.ITEMS)
    estimates: dict[str, Any] = dict(
        value_policies(log, {"uniform": lambda rows: even.repeat(rows.stop - rows.start, axis=0)})
    )
    snips = row_of(estimates, "uniform", "snips")
    (overlap,) = estimates["overlap"]
    assert overlap["mean_weight_low"] < 1 < overlap["mean_weight_high"]
    assert snips["low"] < obd_men.read("random")["click"].mean() < snips["high"]
    assert estimates["left_out"] == []


@pytest.mark.shared_data
@needs_obd
def test_averaged_propensities_of_shown_items_are_a_trap_that_is_seen() -> None:
    """They are size-biased: an item's propensity is seen where it was high. Weights are nearly 2 on average, which is
    reported."""
    bts = obd_men.read("bts")
    index = (bts["position"] - 1) * obd_men.ITEMS + bts["item_id"]
    count, total = (np.bincount(index, v, obd_men.POSITIONS * obd_men.ITEMS) for v in (None, bts["propensity_score"]))
    mean = (total / np.maximum(count, 1)).reshape(obd_men.POSITIONS, obd_men.ITEMS)
    log = obd_men.log_of(obd_men.read("random"), all_propensities=True)
    estimates = dict(value_policies(log, {"bts": lambda rows: mean[log.title_N[rows]]}, draws=20))
    row = row_of(estimates, "bts", "ips")
    assert row["mean_weight"] == pytest.approx(1.95, abs=0.01)
    assert (row["verdict"], row["value"]) == ("unanswerable", None)
