"""The audits beside a value, on a simulated service whose law is known: slices, exploring, clickbait, exposure, the page."""

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

import keyart
from datamodules.simulator.simulate import SimulateConfig, simulate
from evaluation.audits.clickbait import benjamini_hochberg, clickbait, gap
from evaluation.audits.stability import DAY, changes
from evaluation.logs.log_slices import ImpressionAttributes, build_slices, plays_before, read_impression_attributes
from evaluation.logs.logged_impressions import read_outcomes
from evaluation.logs.policies import uniform
from evaluation.logs.scored_log import ScoredLog, read_scored_log
from evaluation.period import newest_shares
from evaluation.report.markup import thumbnail
from tests.made_service import best, scores, service

EVERY = slice(None)

SIZES = SimulateConfig(seed=11, members=900, titles=24, people=12, mean_plays=15, mean_impressions=70)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 60,000 impressions with plays, images, segments and truth. Read it, never write into it."""
    out = tmp_path_factory.mktemp("known") / "service"
    simulate(out, SIZES)
    return out


@pytest.fixture(scope="module")
def oracle(known: Path) -> Path:
    """Scores that know the click probabilities, and show the most clicked."""
    return scores_of(known, known.parent / "oracle.parquet", "p_click")


def scores_of(dataset: Path, out: Path, column: str) -> Path:
    table = pads.dataset(sorted((dataset / "truth").glob("*.parquet"))).to_table()
    policy = [[float(k == int(np.argmax(p))) for k in range(len(p))] for p in table[column].to_pylist()]
    columns = {"impression_id": table["impression_id"], "candidates": table["candidates"]}
    columns |= {"click_probability": table["p_click"], "policy": pa.array(policy, pa.list_(pa.float32()))}
    pq.write_table(pa.table(columns), out)
    return out


@pytest.fixture(scope="module")
def record(known: Path, oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("audit") / "out"
    assert keyart.main(["value", str(known), str(oracle), str(out), "--period", "all"]) == 0
    return json.loads((out / "value.json").read_text(encoding="utf-8")) | {
        "page": (out / "value.html").read_text("utf-8")
    }


@pytest.fixture(scope="module")
def log(known: Path, oracle: Path) -> ScoredLog:
    """The impressions with at least two candidates, ordered by member."""
    log = read_scored_log(known, oracle, None)
    log = log.where(log.width > 1)
    return log.take(np.argsort(log.member, kind="stable"))


@pytest.fixture(scope="module")
def attributes(known: Path, log: ScoredLog) -> ImpressionAttributes:
    return read_impression_attributes(known, log)


def test_slices_part_the_log_and_their_lifts_hold_the_truth(
    known: Path, log: ScoredLog, attributes: ImpressionAttributes, record: dict[str, Any]
) -> None:
    slices, notes = build_slices(known, log, attributes, None)
    assert not notes
    names = dict.fromkeys(one.name for one in slices)
    expected_names = [
        "history",
        "title popularity",
        "genre",
        "country",
        "device",
        "row",
        "candidates",
        "age_band",
        "tenure",
    ]
    assert list(names) == expected_names
    for name in names:
        rows = np.concatenate([one.rows for one in slices if one.name == name])
        if name != "genre":  # a title has several
            assert np.array_equal(np.sort(rows), np.arange(len(log))), name
    assert log.true_click_NK is not None
    true_lift_N = (log.policy_NK[EVERY] * log.true_click_NK[EVERY]).sum(1) - log.true_click_NK.sums() / log.width
    row_of_slice = {
        (r["slice"], r["level"]): r
        for r in record["attribution"]
        if (r["base"], r["reward"]) == ("uniform", "clicked") and r["verdict"] != "unanswerable"
    }
    hits = [
        row_of_slice[one.name, one.level]["low"]
        <= true_lift_N[one.rows].mean()
        <= row_of_slice[one.name, one.level]["high"]
        for one in slices
        if (one.name, one.level) in row_of_slice
    ]
    assert len(hits) > 30
    assert np.mean(hits) > 0.85


def test_histories_are_counted_strictly_before(known: Path, log: ScoredLog, attributes: ImpressionAttributes) -> None:
    plays_N = plays_before(known, log.shown_at, attributes.member)
    plays = pads.dataset(sorted((known / "plays").glob("*.parquet"))).to_table(["member_id", "played_at"])
    moments: dict[str, list[int]] = {}
    for member, at in zip(plays["member_id"].to_pylist(), plays["played_at"].cast(pa.int64()).to_pylist(), strict=True):
        moments.setdefault(member, []).append(at)
    for n in range(0, len(log), 997):
        at = int(log.shown_at[n])
        assert plays_N[n] == sum(moment < at for moment in moments.get(attributes.member[n].as_py(), []))


def test_a_play_of_the_same_moment_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "plays").mkdir()
    times = pa.array([10, 20, 20, 30], pa.timestamp("us", "UTC"))
    table = pa.table({"member_id": ["a", "a", "b", "a"], "title_id": ["t"] * 4, "played_at": times})
    pq.write_table(table, tmp_path / "plays" / "part-0.parquet")
    assert plays_before(tmp_path, np.array([20, 21, 31, 5]), pa.array(["a", "a", "a", "c"])).tolist() == [1, 2, 3, 0]


def test_the_artworks_share_adds_up(record: dict[str, Any]) -> None:
    for estimator in ("title_snips", "dr"):
        row_of_pair = {
            (r["policy"], r["base"]): r
            for r in record["artwork_alone"]
            if (r["reward"], r["estimator"]) == ("clicked", estimator)
        }
        assert set(row_of_pair) == {("uniform", None), ("scored", "uniform")}, (
            "of the whole log there is nothing before"
        )
        assert row_of_pair["scored", "uniform"]["low"] > 0


def test_steps_add_up(known: Path, oracle: Path, tmp_path: Path) -> None:
    assert keyart.main(["value", str(known), str(oracle), str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "value.json").read_text(encoding="utf-8"))
    for estimator in ("title_snips", "dr"):
        row_of_pair = {
            (r["policy"], r["base"]): r
            for r in record["artwork_alone"]
            if (r["reward"], r["estimator"]) == ("clicked", estimator)
        }
        pairs = (("best_fixed", "uniform"), ("scored", "best_fixed"), ("scored", "uniform"))
        for_all, for_each, total = (row_of_pair[pair] for pair in pairs)
        assert for_all["value"] + for_each["value"] == pytest.approx(total["value"])
        assert for_all["low"] < for_all["value"] < for_all["high"], "the inverse swaps the interval's ends"
    before = next(row for row in record["drift"] if (row["part"], row["reward"]) == ("before", "clicked"))
    outcomes = read_outcomes(known)
    assert outcomes is not None
    since = newest_shares(known).test_from
    assert since is not None
    past = (outcomes.shown_at < int(since.timestamp() * 1e6)) & (outcomes.width > 1)
    weight = 1 / (outcomes.width * outcomes.propensity)[past]
    assert before["value"] == pytest.approx((weight * outcomes.clicked[past]).sum() / weight.sum())
    levels = {row["level"] for row in record["attribution"] if row["slice"] == "new artworks"}
    assert levels == {"all shown before", "some never shown before this period"} or levels == {"all shown before"}


def test_exploring_goes_from_greedy_to_uniform(record: dict[str, Any]) -> None:
    by = {(row["family"], row["strength"]): row for row in record["exploration"]}
    above = next(
        d for d in record["differences"]
        if (d["policy"], d["base"], d["reward"], d["estimator"]) == ("scored", "uniform", "clicked", "dr")
    )  # fmt: skip
    assert by["epsilon", 0.0]["lift"] == pytest.approx(above["value"], rel=1e-6)
    assert (by["epsilon", 0.0]["low"], by["epsilon", 0.0]["high"]) == pytest.approx((above["low"], above["high"]))
    assert by["epsilon", 1.0]["lift"] == pytest.approx(0)
    assert by["epsilon", 0.4]["lift"] == pytest.approx(0.6 * above["value"])
    softmax = [row for (family, _), row in by.items() if family == "softmax"]
    assert all(a["explored"] < b["explored"] and a["lift"] > b["lift"] for a, b in pairwise(softmax))


def test_discoveries_by_hand() -> None:
    p_value = np.array([0.001, 0.5, 0.04, np.nan, 0.09, 0.9])
    # at 20 %: 0.001 <= 1/5, 0.04 <= 2/5, 0.09 <= 3/5 of it, 0.5 > 4/5
    assert benjamini_hochberg(p_value, 0.2).tolist() == [True, False, True, False, True, False]
    assert not benjamini_hochberg(np.full(3, np.nan)).any()


def test_gaps_by_hand() -> None:
    artwork = np.array([0, 0, 0, 1, 1, 2])
    outcome = np.array([1.0, 0, 1, 0, 1, 1])
    weight = np.array([1.0, 2, 1, 1, 1, 4])
    gaps = gap(outcome, weight, artwork, np.arange(6), np.array([0, 0, 0]))
    assert gaps.rate_A.tolist() == [0.5, 0.5, 1]
    assert gaps.expected_A.tolist() == pytest.approx([5 / 6, 6 / 8, 0.5])
    alone = gap(outcome, weight, artwork, np.arange(6), np.array([0, 0, 1]))
    assert np.isnan(alone.gap_A[2]), "a title's only artwork has nothing to be compared with"
    together = gap(outcome, weight, artwork, np.zeros(6, int), np.array([0, 0, 0]))
    assert together.error_A[0] != gaps.error_A[0], "a member's impressions are not independent"


def test_clickbait_is_flagged_and_little_else(known: Path) -> None:
    """Artworks that misrepresent their title, by the law, and no others."""
    outcomes = read_outcomes(known)
    assert outcomes is not None
    summary = clickbait(outcomes, str.upper)
    assert summary is not None
    assert all(row["name"] == row["artwork"].upper() for row in summary["artworks"])
    misleads = np.load(known / "hidden" / "artworks.npz")["misleads_A"] > 0
    flagged = [row for row in summary["artworks"] if row["flag"]]
    assert len(flagged) == summary["clickbait"] + summary["misleading"]
    assert len(flagged) >= 0.25 * misleads.sum()
    assert np.mean([misleads[int(row["artwork"][1:])] for row in flagged]) >= 0.85
    assert all(row["engaged_gap"] < 0 and abs(row["engaged_gap"]) < 1 for row in summary["artworks"])
    assert all(row["click_gap"] > 0 for row in summary["artworks"] if row["flag"] == "clickbait")


def test_noise_alone_is_almost_never_flagged(known: Path) -> None:
    outcomes = read_outcomes(known)
    assert outcomes is not None
    flagged = []
    for seed in range(5):
        engaged = np.where(outcomes.clicked > 0, np.random.default_rng(seed).random(len(outcomes.clicked)) < 0.7, 0.0)
        summary = clickbait(type(outcomes)(**{**vars(outcomes), "engaged": engaged}), str)
        assert summary is not None
        flagged.append(summary["clickbait"] + summary["misleading"])
    assert np.mean(flagged) <= 1.0
    assert clickbait(type(outcomes)(**{**vars(outcomes), "engaged": None}), str) is None


def test_exposure_by_hand(
    known: Path, log: ScoredLog, attributes: ImpressionAttributes, record: dict[str, Any]
) -> None:
    depicts = {r["artwork_id"]: r["depicts"] for r in pq.read_table(known / "artworks.parquet").to_pylist()}
    band = {r["member_id"]: r["age_band"] for r in pq.read_table(known / "members.parquet").to_pylist()}
    row = next(
        r for r in record["exposure"] if (r["segment"], r["level"], r["depicts"]) == ("age_band", "30-44", "Comedy")
    )
    shown_A = np.array([float("Comedy" in depicts[a]) for a in log.artworks.to_pylist()] + [0.0])
    at = np.array([band[member] == "30-44" for member in attributes.member.to_pylist()])
    of_NK = shown_A[log.artwork_NK[at]]
    assert row["scored"] == pytest.approx((log.policy_NK[at] * of_NK).sum(1).mean())
    assert row["uniform"] == pytest.approx((of_NK.sum(1) / log.width[at]).mean())
    assert row["logged"] == pytest.approx(of_NK[np.arange(at.sum()), log.shown[at]].mean())
    assert row["catalogue"] == pytest.approx(np.mean(["Comedy" in words for words in depicts.values()]))
    assert row["low"] < row["scored"] < row["high"]
    assert row["members"] == len(set(np.array(attributes.member.to_pylist())[at]))
    assert {r["segment"] for r in record["exposure"]} == {"all members", "age_band", "tenure"}


def test_how_clicks_hold_by_hand(log: ScoredLog, record: dict[str, Any]) -> None:
    row = next(r for r in record["holds"] if (r["segment"], r["policy"]) == ("all members", "scored"))
    assert log.engaged is not None
    for name, policy_NK in (("value", log.policy_NK), ("uniform", uniform(log))):
        weight_N = policy_NK[np.arange(len(log)), log.shown] / log.propensity
        assert row[name] == pytest.approx((weight_N * log.engaged).sum() / (weight_N * log.clicked).sum(), rel=1e-4)
    assert row["low"] < row["gap"] < row["high"]
    assert {(r["segment"], r["policy"]) for r in record["holds"]} == {
        (segment, policy) for segment in ("all members", "age_band", "tenure") for policy in ("scored", "logged")
    }


def test_changes_by_hand(log: ScoredLog) -> None:
    small = log.where(log.member < 40)
    row_of = {(row["policy"], row["days"]): row for row in changes(small)}
    seen: dict[tuple[int, int], tuple[int, int]] = {}
    expected: dict[str, list[tuple[float, float]]] = {}
    for n in np.lexsort((small.shown_at, small.title, small.member)):
        key, day = (int(small.member[n]), int(small.title[n])), int(small.shown_at[n] // DAY)
        if key in seen and seen[key][1] < day:
            before, gone = seen[key][0], day - seen[key][1]
            now, then = (dict(zip(small.artwork_NK.row(i), small.policy_NK.row(i), strict=True)) for i in (n, before))
            kept = sum(p * then.get(a, 0) for a, p in now.items() if a >= 0)
            words = "the next day" if gone == 1 else "2 to 7 days later" if gone <= 7 else "more than 7 days later"
            other = small.artwork_NK.row(n)[small.shown[n]] != small.artwork_NK.row(before)[small.shown[before]]
            expected.setdefault(words, []).append((1 - kept, float(other)))
        seen[key] = (int(n), day)
    assert expected
    for words, values in expected.items():
        scored, logged = np.mean(values, axis=0)
        assert row_of["scored", words]["value"] == pytest.approx(scored)
        assert row_of["logged", words]["value"] == pytest.approx(logged)
        assert row_of["scored", words]["pairs"] == len(values)
        uniform = row_of["uniform", words]["value"]
        assert uniform is not None
        assert uniform > 0.5


def test_the_page_is_one_small_file_with_pictures(record: dict[str, Any]) -> None:
    page = record["page"]
    assert len(page) < 5_000_000
    assert not re.search(r'<script|https?:|@import|(src|href)="(?!#|data:)|url\((?!#)', page)
    assert page.index('class="verdict') < page.index("<h1>") < page.index("<svg"), "the verdict comes first"
    assert page.count("<svg") == 8
    assert page.count("data:image/jpeg") > 80
    for words in (
        "10 members, drawn at random",
        "Clicked, and not watched",
        "Who is shown whom",
        "What exploring costs",
    ):
        assert words in page
    assert "prefers-color-scheme: dark" in page
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert set(re.findall(r"#[0-9a-fA-F]{6}\b", drawn)) == set(), "colours are the page's, light or dark"
    assert len(record["examples"]) == 10
    assert all(row["plays_before"] >= len(row["plays"]) for row in record["examples"])


def test_impressions_alone_are_enough(known: Path, oracle: Path, tmp_path: Path) -> None:
    shutil.copytree(known / "impressions", tmp_path / "bare" / "impressions")
    assert keyart.main(["value", str(tmp_path / "bare"), str(oracle), str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "value.json").read_text(encoding="utf-8"))
    assert record["verdict"]["verdict"] == "reliable"
    assert record["exposure"] == []
    for words in ("no plays", "no titles.parquet", "no members.parquet", "what artworks depict"):
        assert any(words in note for note in record["notes"]), words
    page = (tmp_path / "out" / "value.html").read_text("utf-8")
    assert "data:image" not in page
    assert "no members.parquet" in page


def test_a_policy_for_engaged_against_one_for_clicked(known: Path, oracle: Path, tmp_path: Path) -> None:
    """By the law the one that chooses by engagement loses clicks and wins viewings; the log shows it, on the same members."""
    engaged = scores_of(known, tmp_path / "engaged.parquet", "p_engaged")
    words = ["value", str(known), str(engaged), str(tmp_path / "out"), "--base", str(oracle), "--period", "all"]
    assert keyart.main(words) == 0
    record = json.loads((tmp_path / "out" / "value.json").read_text(encoding="utf-8"))
    log = read_scored_log(known, engaged, None)
    other = read_scored_log(known, oracle, None)
    kept = log.width > 1
    for reward, truth_NK in (("clicked", log.true_click_NK), ("engaged", log.true_engaged_NK)):
        assert truth_NK is not None
        row = next(
            d for d in record["differences"]
            if (d["policy"], d["base"], d["reward"], d["estimator"]) == ("scored", "base", reward, "dr")
        )  # fmt: skip
        true = ((log.policy_NK[EVERY] - other.policy_NK[EVERY]) * truth_NK[EVERY]).sum(1)[kept].mean()
        assert row["low"] < true < row["high"], reward
    assert "than the other scores" in (tmp_path / "out" / "value.html").read_text(
        "utf-8"
    ) or "apart from the other" in (tmp_path / "out" / "value.html").read_text("utf-8")


def test_a_policy_against_itself_differs_by_nothing(known: Path, oracle: Path, tmp_path: Path) -> None:
    assert keyart.main(["value", str(known), str(oracle), str(tmp_path / "out"), "--base", str(oracle)]) == 0
    rows = json.loads((tmp_path / "out" / "value.json").read_text(encoding="utf-8"))["differences"]
    same = [r for r in rows if {r["policy"], r["base"]} == {"scored", "base"} and r["value"] is not None]
    assert same
    assert all(abs(row["value"]) < 1e-12 for row in same)


def test_a_base_that_lacks_impressions(
    known: Path, oracle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(oracle)
    since = newest_shares(known).test_from
    assert since is not None
    pq.write_table(table.slice(0, len(table) - 500), tmp_path / "less.parquet")
    words = ["value", str(known), str(oracle), str(tmp_path / "out"), "--base", str(tmp_path / "less.parquet")]
    assert keyart.main(words) == 1
    assert "less.parquet: 500 impressions of the log are missing" in capfd.readouterr().err
    assert keyart.main([*words, "--allow-missing"]) == 0
    assert "lacks 500 impressions, which are left out on both sides" in capfd.readouterr().err
    record = json.loads((tmp_path / "out" / "value.json").read_text(encoding="utf-8"))
    assert record["without_base"] == 500


def test_words_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    made = service(tmp_path / "service", truth=False)
    names = [f"<script>t{n}</script>" for n in range(6)]
    genres = [["<b>Comedy</b>"]] * 6
    titles = {"title_id": [f"t{n}" for n in range(6)], "name": names, "genres": pa.array(genres)}
    pq.write_table(pa.table(titles), made / "titles.parquet")
    assert keyart.main(["value", str(made), str(scores(tmp_path / "s.parquet", best)), str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "value.html").read_text("utf-8")
    assert "<script" not in page
    assert "<b>Comedy" not in page
    assert "&lt;script&gt;t" in page
    assert "&lt;b&gt;Comedy" in page


def test_a_broken_picture_leaves_its_words(known: Path, tmp_path: Path) -> None:
    image = next((known / "images").glob("*.jpg"))
    assert (thumbnail(image) or "").startswith("data:image/jpeg;base64,")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(image.read_bytes()[:300])
    assert thumbnail(cut) is None
    assert thumbnail(tmp_path / "absent.jpg") is None
