"""`keyart test` on logs and tables made by hand: what it writes, what it says, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import keyart
from evaluation.experiments.sequences import radius
from evaluation.record.experiments import TEST_VERSION, read_test
from foundation.errors import UserError
from tests.experiment_logs import answers, read, write_log


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artwork a1 is clicked half as much again. Read it, never write into it."""
    return write_log(tmp_path_factory.mktemp("made") / "log")


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
        (below_zero, "1 rows whose minutes are below 0, infinite or without a click (first: i0"),
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
