"""The evaluation on a service made by hand, its truth written beside it: values, what is left out, what is refused."""

import json
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from evaluation.evaluate import evaluate as evaluate_scores
from evaluation.evaluate import policy_table
from evaluation.logs.scored_log import read_scored_log
from evaluation.record.records import Report, read_report
from foundation.errors import UserError
from tests.made_service import ALL, LATE, ROWS, SINCE, Change, best, changed, even, last, scores, service


def evaluate(dataset: Path, table: Path, out: Path, **words: Any) -> dict[str, Any]:
    """The report as it is returned, which is what is written: `test_what_is_written`."""
    return dict(evaluate_scores(dataset, table, out, **words))


def row_of(report: dict[str, Any], policy: str, reward: str = "clicked") -> dict[str, Any]:
    return next(row for row in report["policies"] if (row["policy"], row["reward"]) == (policy, reward))


def estimate_of(report: dict[str, Any], policy: str, name: str, reward: str = "clicked") -> dict[str, Any]:
    rows = report["value"]["estimates"]
    return next(e for e in rows if (e["policy"], e["estimator"], e["reward"]) == (policy, name, reward))


def lift_of(report: dict[str, Any], policy: str, name: str) -> dict[str, Any]:
    """Clicks of a policy against uniform's."""
    rows = report["value"]["differences"]
    key = (policy, "uniform", "clicked", name)
    return next(d for d in rows if (d["policy"], d["base"], d["reward"], d["estimator"]) == key)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it, never write into it."""
    return service(tmp_path_factory.mktemp("made") / "service")


@pytest.fixture(scope="module")
def report(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is said of the policy that knows the truth."""
    folder = tmp_path_factory.mktemp("report")
    return evaluate(dataset, scores(folder / "scores.parquet", best), folder / "out", since=SINCE)


def test_true_values_by_hand(report: dict[str, Any]) -> None:
    chosen = [n for n in range(LATE.start, ROWS) if len(ALL["candidates"][n]) > 1]
    assert (report["impressions"], report["without_choice"]) == (len(chosen), 2000 - len(chosen))
    p = [ALL["p_click"][n] for n in chosen]
    logged = [np.dot(ALL["p_click"][n], ALL["propensities"][n]) for n in chosen]
    assert row_of(report, "uniform")["true_value"] == pytest.approx(np.mean([np.mean(v) for v in p]))
    assert row_of(report, "logged")["true_value"] == pytest.approx(np.mean(logged))
    assert row_of(report, "best_possible")["true_value"] == pytest.approx(np.mean([max(v) for v in p]))
    assert row_of(report, "best_fixed")["true_value"] == pytest.approx(np.mean([v[-1] for v in p])), (
        "the last artwork is the best for all, though the log was aimed at the first"
    )
    assert row_of(report, "scored", "engaged")["true_value"] == pytest.approx(np.mean([max(v) for v in p]) / 2)


def test_captured_lift_of_the_oracle_the_uniform_and_the_worst_policy(
    dataset: Path, report: dict[str, Any], tmp_path: Path
) -> None:
    assert report["captured_lift"] == pytest.approx(1)
    flat = evaluate(dataset, scores(tmp_path / "even.parquet", even), tmp_path / "even", since=SINCE)
    assert flat["captured_lift"] == pytest.approx(0, abs=1e-6)
    lift = lift_of(flat, "scored", "dr")
    for names in (("value", "low", "high"), ("relative", "relative_low", "relative_high")):
        assert [lift[name] for name in names] == pytest.approx((0, 0, 0), abs=1e-6)
    worst = evaluate(
        dataset, scores(tmp_path / "worst.parquet", lambda p: best([-x for x in p])), tmp_path / "worst", since=SINCE
    )
    assert worst["captured_lift"] < -0.3
    page = (tmp_path / "worst" / "report.html").read_text(encoding="utf-8")
    assert "fewer clicks than showing artworks at random" in page


def test_estimates_hold_the_truth(report: dict[str, Any]) -> None:
    for policy in ("uniform", "best_fixed", "scored"):
        for reward in ("clicked", "engaged"):
            true_value = row_of(report, policy, reward)["true_value"]
            for name in ("ips", "snips", "dr"):
                estimate = estimate_of(report, policy, name, reward)
                half = (estimate["high"] - estimate["low"]) / 2
                assert abs(estimate["value"] - true_value) < 1.7 * half, (policy, reward, estimate)
                assert estimate["mean_weight"] == pytest.approx(1, abs=0.15)
    lift = row_of(report, "scored")["true_value"] / row_of(report, "uniform")["true_value"] - 1
    estimate = lift_of(report, "scored", "dr")
    half = (estimate["relative_high"] - estimate["relative_low"]) / 2
    assert abs(estimate["relative"] - lift) < 1.7 * half


def test_the_logging_policy_earned_what_it_earned(report: dict[str, Any]) -> None:
    wide = [n for n in range(LATE.start, ROWS) if len(ALL["candidates"][n]) > 1]
    aimed = [n for n in wide if max(ALL["propensities"][n]) > 0.8]
    assert report["randomised"] == len(wide) - len(aimed)
    for name in ("ips", "snips"):
        assert estimate_of(report, "logged", name)["value"] == pytest.approx(np.mean([ALL["clicked"][n] for n in wide]))
    rest = report["not_randomised"][0]
    assert rest["value"] == pytest.approx(np.mean([ALL["clicked"][n] for n in aimed]))
    assert rest["low"] < rest["value"] < rest["high"]
    assert (rest["reward"], rest["impressions"]) == ("clicked", len(aimed))


def test_only_the_shown_propensity_was_logged(report: dict[str, Any], tmp_path: Path) -> None:
    shown_index = [c.index(a) for c, a in zip(ALL["candidates"], ALL["artwork_id"], strict=True)]
    shown = pa.array([p[i] for p, i in zip(ALL["propensities"], shown_index, strict=True)], pa.float32())
    alone = service(tmp_path / "alone", lambda t: t.drop_columns("propensities").append_column("propensity", shown))
    evaluated = evaluate(alone, scores(tmp_path / "scores.parquet", best), tmp_path / "out", since=SINCE)
    assert evaluated["randomised"] == report["randomised"]
    assert estimate_of(evaluated, "scored", "snips")["value"] == pytest.approx(
        estimate_of(report, "scored", "snips")["value"]
    )
    assert row_of(evaluated, "logged")["true_value"] is None, "its whole propensities are not known"


def test_candidates_in_another_order_are_aligned(dataset: Path, tmp_path: Path) -> None:
    def turned(table: pa.Table) -> pa.Table:
        lists = table.to_pydict()
        for name in ("candidates", "click_probability", "policy"):
            lists[name] = [values[n % 3 :] + values[: n % 3] for n, values in enumerate(lists[name])]
        order = np.random.default_rng(6).permutation(len(table))
        return pa.table(lists, schema=table.schema).take(order)

    one = read_scored_log(dataset, scores(tmp_path / "one.parquet", best), SINCE)
    two = read_scored_log(dataset, scores(tmp_path / "two.parquet", best, turned), SINCE)
    np.testing.assert_array_equal(one.policy_NK.values_C, two.policy_NK.values_C)
    np.testing.assert_array_equal(one.click_probability_NK.values_C, two.click_probability_NK.values_C)
    assert not one.randomised[one.width == 1].any(), "one artwork leaves nothing to choose"
    assert one.true_click_NK is not None
    np.testing.assert_allclose(one.click_probability_NK.values_C, one.true_click_NK.values_C, rtol=1e-6)


TEXT, INDEXED = pa.large_string(), pa.dictionary(pa.int32(), pa.string())


@pytest.mark.parametrize(
    ("of_log", "of_scores"),
    [
        ({"artwork_id": INDEXED, "member_id": INDEXED, "impression_id": TEXT}, {}),
        ({"candidates": pa.large_list(TEXT), "propensities": pa.large_list(pa.float64())}, {"impression_id": TEXT}),
        ({"candidates": pa.list_(INDEXED), "title_id": INDEXED}, {"candidates": pa.large_list(TEXT)}),
        ({"shown_at": pa.timestamp("ms", "America/New_York")}, {"policy": pa.list_(pa.int8())}),
        ({"shown_at": pa.timestamp("ns", "UTC")}, {"impression_id": INDEXED}),
    ],
)
def test_what_other_engines_write_is_read_alike(
    report: dict[str, Any], tmp_path: Path, of_log: dict[str, pa.DataType], of_scores: dict[str, pa.DataType]
) -> None:
    def typed(types: dict[str, pa.DataType]) -> Change:
        def change(table: pa.Table) -> pa.Table:
            for name, type_ in types.items():
                table = changed(name, lambda values: values, type_)(table)
            return table

        return change

    evaluated = evaluate(
        service(tmp_path / "service", typed(of_log)),
        scores(tmp_path / "scores.parquet", best, typed(of_scores)),
        tmp_path / "out",
        since=SINCE,
    )
    assert evaluated == report


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.slice(0, 1990), r"10 impressions of the log are missing \(first: i05990\)"),
        (lambda t: pa.concat_tables([t, t.slice(7, 1)]), r"1 duplicate impressions .*\(first: i04007\)"),
        (changed("candidates", last(["x"])), r"1 rows whose candidates are not the log's \(first: i05999\)"),
        (changed("candidates", last(None)), r"1 rows whose candidates is null \(first: i05999\)"),
        (
            changed("policy", lambda v: [[p * 0.93 for p in ps] for ps in v]),
            r"2000 rows whose policy does not sum to 1 \(first: i04000, sum 0.93\)",
        ),
        (
            changed("click_probability", lambda v: [*v[:-1], [float("nan")] * len(v[-1])]),
            r"1 rows whose click_probability is not a probability \(first: i05999, nan\)",
        ),
        (changed("policy", lambda v: [[-2.5] * len(v[0]), *v[1:]]), r"not a probability \(first: i04000, -2.5\)"),
        (changed("policy", last([1.0] * 9)), r"lists are not as long as their candidates \(first: i05999: policy\)"),
        (lambda t: t.drop_columns("policy"), "column policy is missing"),
        (changed("policy", lambda v: [0.5 for _ in v], pa.float32()), "column policy is float, must be a list"),
        (changed("impression_id", lambda v: [0.5] * len(v), pa.float64()), "impression_id is double, must be text"),
    ],
)
def test_scores_that_do_not_fit_are_refused(dataset: Path, tmp_path: Path, change: Change, named: str) -> None:
    """In one line that names the file, and nothing is written."""
    path = scores(tmp_path / "scores.parquet", best, change)
    with pytest.raises(UserError, match=named) as raised:
        evaluate(dataset, path, tmp_path / "out", since=SINCE)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)
    assert [p.name for p in tmp_path.iterdir()] == ["scores.parquet"]


def test_scores_that_are_no_table_are_refused(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("not Parquet", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    for name, named in (("text.parquet", "cannot be read"), ("empty", "no Parquet file"), ("none", "no Parquet file")):
        with pytest.raises(UserError, match=named) as raised:
            read_scored_log(dataset, tmp_path / name, SINCE)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (changed("artwork_id", last("x")), "1 rows whose shown artwork is not among the candidates"),
        (changed("propensities", last(None)), "1 rows without a propensity above 0"),
        (changed("propensities", last([0.5] * 9)), "1 rows with another number of propensities than candidates"),
        (changed("clicked", last(None)), r"1 rows whose clicked is null \(first: i05999\)"),
        (lambda t: pa.concat_tables([t, t.slice(ROWS - 1, 1)]), "1 impression ids are repeated"),
        (changed("shown_at", lambda v: v, pa.timestamp("us")), "must be a timestamp with a time zone"),
        (lambda t: t.slice(0, 3000), "no impression was shown since"),
        (lambda t: t.filter(pa.array([len(c) == 1 for c in ALL["candidates"]])), "nothing to choose"),
    ],
)
def test_logs_that_cannot_be_judged_are_refused(tmp_path: Path, change: Change, named: str) -> None:
    broken = service(tmp_path / "service", change)
    with pytest.raises(UserError, match=named):
        evaluate(broken, scores(tmp_path / "scores.parquet", best), tmp_path / "out", since=SINCE)
    assert not (tmp_path / "out").exists()


def test_a_moment_without_a_zone_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="time zone"):
        read_scored_log(dataset, scores(tmp_path / "scores.parquet", best), SINCE.replace(tzinfo=None))


def test_without_truth_nothing_true_is_claimed(report: dict[str, Any], tmp_path: Path) -> None:
    plain = service(tmp_path / "service", lambda t: t.drop_columns("engaged"), truth=False)
    evaluated = evaluate(plain, scores(tmp_path / "scores.parquet", best), tmp_path / "out", since=SINCE)
    assert evaluated["captured_lift"] is None
    assert [row["policy"] for row in evaluated["policies"]] == ["uniform", "logged", "best_fixed", "scored"]
    assert {row["reward"] for row in evaluated["policies"]} == {"clicked"}
    assert {row["true_value"] for row in evaluated["policies"]} == {None}
    assert estimate_of(evaluated, "scored", "snips") == estimate_of(report, "scored", "snips")


def test_engaged_is_valued_only_where_every_click_says_so(tmp_path: Path) -> None:
    """Null without a click means no; null after a click is not known, and no value is made from the rest."""
    clicked = max(n for n in range(ROWS) if ALL["clicked"][n])
    unknown = service(
        tmp_path / "service", changed("engaged", lambda v: [None if n == clicked else e for n, e in enumerate(v)])
    )
    log = read_scored_log(unknown, scores(tmp_path / "scores.parquet", best), SINCE)
    assert log.engaged is None


def test_a_log_without_randomised_part_is_valued_by_its_propensities(tmp_path: Path) -> None:
    def aimed(values: list[list[float]]) -> list[list[float]]:
        return [
            [p * (1.01 if i == 0 else (1 - 1.01 * v[0]) / (1 - v[0])) for i, p in enumerate(v)] if len(v) > 1 else v
            for v in values
        ]

    log = service(tmp_path / "service", changed("propensities", aimed))
    evaluated = evaluate(log, scores(tmp_path / "scores.parquet", best), tmp_path / "out", since=SINCE)
    assert evaluated["randomised"] == 0
    left_out = {row["policy"]: row["reason"] for row in evaluated["value"]["left_out"] if row["estimator"] == "replay"}
    assert "equally likely" in left_out["scored"]
    assert estimate_of(evaluated, "scored", "dr")["value"] is not None, (
        "what weighs by propensity needs no randomised part"
    )


def test_a_log_that_never_shows_what_the_policy_would_gives_no_number(tmp_path: Path) -> None:
    def certain(table: pa.Table) -> pa.Table:
        first = changed("artwork_id", lambda v: [c[0] for c in ALL["candidates"]])(table)
        return changed("propensities", lambda v: [[float(k == 0) for k in range(len(p))] for p in v])(first)

    log = service(tmp_path / "service", certain)
    of_last = scores(tmp_path / "scores.parquet", lambda p: [float(k == len(p) - 1) for k in range(len(p))])
    evaluated = evaluate(log, of_last, tmp_path / "out", since=SINCE)
    assert {e["value"] for e in evaluated["value"]["estimates"] if e["policy"] == "scored"} == {None}
    assert evaluated["value"]["verdict"]["verdict"] == "unanswerable"
    assert "does not support an estimate" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "unanswerable" in shown_as_text(evaluated)


def test_nothing_before_the_period_to_learn_from(dataset: Path, tmp_path: Path) -> None:
    early = service(tmp_path / "service", lambda t: t.slice(LATE.start))
    evaluated = evaluate(early, scores(tmp_path / "scores.parquet", best), tmp_path / "out", since=SINCE)
    assert "best_fixed" not in [row["policy"] for row in evaluated["policies"]]
    assert "left out" in evaluated["notes"]["Best artwork per title"]


def shown_as_text(report: dict[str, Any]) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(policy_table(cast("Report", report)))
    return captured.get()


def test_the_table_names_every_policy(report: dict[str, Any]) -> None:
    lines = shown_as_text(report | {"scored": "x"}).splitlines()
    for row in report["policies"]:
        if row["reward"] == "clicked":
            line = next(line for line in lines if row["label"] in line)
            assert f"{1000 * row['true_value']:.1f}" in line
            # what is best by the true law needs no estimate
            assert (row["policy"] == "best_possible") != bool(re.search(r"\d\.\d \[\d+\.\d, \d+\.\d\]", line))


def test_what_is_written(dataset: Path, tmp_path: Path) -> None:
    """One page without network or scripts, whose words cannot break out of it; and a record of standard JSON."""
    evaluated = evaluate(
        dataset,
        scores(tmp_path / "scores.parquet", best),
        tmp_path / "out",
        since=SINCE,
        scored_name="<ours & [theirs]>",
        notes={"Why": "because 1 < 2"},
        extra={"made_from": "abc"},
    )
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "&lt;ours &amp; [theirs]&gt;" in page
    assert "<ours" not in page
    assert "because 1 &lt; 2" in page
    assert not re.search(r'<script|https?:|(src|href)="(?!#|data:)|url\((?!#)', page)
    assert page.count("<svg") == 6, "forests of both rewards, weights, propensities, exploring, reliability"
    assert "<ours & [theirs]>" in shown_as_text(evaluated)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    record = (tmp_path / "out" / "report.json").read_text(encoding="utf-8")
    assert json.loads(record, parse_constant=refuse) == evaluated == read_report(tmp_path / "out")
    assert evaluated["made_from"] == "abc"
    assert sum(evaluated["reliability"]["count"]) == ROWS - LATE.start
    assert evaluated["metrics"]["log_loss"] < evaluated["metrics"]["log_loss_of_a_constant"]
