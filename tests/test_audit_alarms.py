"""False and missed alarms of the audits, on small simulated logs whose truth is known; in full: `benchmarks.value_audits`."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.audit_worlds import HARMED, PLANTED, Simulated, World, simulate_world
from benchmarks.value_audits import CALIBRATED, EVEN_SLICES, NO_EFFECT, band_misses, exposure_flags, false_lifts, worlds
from evaluation.audits.clickbait import clickbait
from evaluation.audits.depicted import ABSENT, ABSENT_OR_LOW, LOW, read_depicted
from evaluation.audits.exposure import exposure
from evaluation.audits.simultaneous import Spread, widen
from evaluation.audits.stratified_gap import drift_by_time, stratified_gap, tail, time_strata
from evaluation.off_policy.intervals import Z
from evaluation.off_policy.student import largest_quantile
from evaluation.off_policy.verdict import GrossDoubt
from evaluation.record.rows import ExposureRow, LiftColumns


@pytest.mark.parametrize("name", ["titles at 12 levels of engagement", "segment of 12 countries"])
def test_exposure_raises_no_alarm_without_an_effect(name: str) -> None:
    """Five worlds each: the former test flagged something in every one of them."""
    assert exposure_flags(replace(NO_EFFECT[name], impressions=10_000), 5)[0] <= 1 / 5


def test_exposure_raises_no_alarm_where_engagement_drifts() -> None:
    assert exposure_flags(World(impressions=10_000, drift=4.0, arrivals=True), 5)[0] <= 1 / 5


@pytest.mark.parametrize(("faces", "artworks"), [(1, 20), (12, 4), (20, 2)])
def test_faces_that_a_segment_watches_less_are_flagged(faces: int, artworks: int) -> None:
    world = World(impressions=30_000, click_rate=0.2, faces=faces, artworks_a_face=artworks)
    assert exposure_flags(world, 3)[1] >= 2 / 3


def test_the_worst_tag_is_listed_however_rarely_it_is_shown(tmp_path: Path) -> None:
    """A face on two artworks is not among the thirty tags shown most, and its row has the figures of a straight-line loop."""
    world = World(impressions=20_000, click_rate=0.2, titles=24, faces=1, artworks_a_face=2, harm=5.0)
    simulated = simulate_world(world, 1, tmp_path)
    rows, notes = exposure(tmp_path, simulated.log, simulated.member, simulated.weight_N)
    row = next(r for r in rows if r["depicts"].startswith(PLANTED) and r["level"] == HARMED)
    levels = Counter(r["depicts"] for r in rows)
    assert sum(count == 4 for count in levels.values()) >= 30, "the tags shown most are listed in every level"
    assert levels[row["depicts"]] < 4
    assert row["flag"]
    assert row["artworks"] == 2
    assert row["engaged_gap"] is not None
    assert row["engaged_gap"] < -0.2
    expected = straight_line(simulated, tmp_path, row)
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-6), name
    assert any("pairs of segment and tag were tested" in note for note in notes)


def test_a_defect_of_the_log_moves_the_verdict_of_every_flag(tmp_path: Path) -> None:
    """With a gross one nothing is flagged: weights that are not what was done cannot accuse an artwork."""
    simulated = simulate_world(World(impressions=20_000, click_rate=0.2, faces=20, artworks_a_face=2), 1, tmp_path)
    arguments = (tmp_path, simulated.log, simulated.member, simulated.weight_N)
    doubt = ("the propensities are not what was done",)
    verdicts, flags, tested = {}, {}, {}
    for name, doubts in {"sound": (), "doubted": doubt, "gross": (GrossDoubt(doubt[0]),)}.items():
        rows, _ = exposure(*arguments, doubts)
        verdicts[name] = {row["engaged_verdict"] for row in rows}
        flags[name] = sum(bool(row["flag"]) for row in rows)
        assert {row["verdict"] for row in rows} == {"reliable"}, (
            "what is shown is a property of the policy, not of weights"
        )
        assert all((row["engaged_gap"] is None) == (row["engaged_verdict"] == "unanswerable") for row in rows)
        summary = clickbait(simulated.outcomes, str, doubts)
        assert summary is not None
        tested[name] = summary["verdict"], summary["tested"] > 0, {row["verdict"] for row in summary["artworks"]}
    assert "reliable" in verdicts["sound"]
    assert "weak" in verdicts["doubted"]
    assert "reliable" not in verdicts["doubted"]
    assert verdicts["gross"] == {"unanswerable"}
    assert flags["sound"] == flags["doubted"] > 0
    assert flags["gross"] == 0
    assert tested["sound"][:2] == ("reliable", True)
    assert tested["doubted"] == ("weak", True, {"weak"})
    assert tested["gross"] == ("unanswerable", False, set())


def straight_line(simulated: Simulated, dataset: Path, row: ExposureRow) -> dict[str, float]:
    """Exposure and engagement of one row, impression by impression."""
    log = simulated.log
    depicts = {r["artwork_id"]: r["depicts"] for r in pq.read_table(dataset / "artworks.parquet").to_pylist()}
    level = {r["member_id"]: r["group"] for r in pq.read_table(dataset / "members.parquet").to_pylist()}
    carries = [row["depicts"] in depicts[a] for a in log.artworks.to_pylist()]
    count = clicks = engaged = clicked = own = every = 0.0
    shown = dict.fromkeys(("scored", "uniform", "logged"), 0.0)
    for n, member in enumerate(simulated.member.to_pylist()):
        if level[member] != row["level"]:
            continue
        count += 1
        has = np.array([carries[a] for a in log.artwork_NK.row(n)])
        shown["scored"] += float((log.policy_NK.row(n) * has).sum())
        shown["uniform"] += float(has.mean())
        shown["logged"] += float(has[log.shown[n]])
        every += simulated.weight_N[n] * log.clicked[n]
        if has[log.shown[n]] and log.clicked[n]:
            weight = 1 / (len(has) * log.propensity[n])
            clicks, clicked, engaged = clicks + 1, clicked + weight, engaged + weight * log.engaged[n]  # type: ignore[index]
            own += simulated.weight_N[n]
    shares = {name: total / count for name, total in shown.items()}
    return {**shares, "clicks": clicks, "engaged_after_click": engaged / clicked, "share_of_clicks": own / every}


def test_people_are_grouped_by_their_position_in_the_cast(tmp_path: Path) -> None:
    names = pa.list_(pa.string())
    titles = {"title_id": ["t", "u", "v"], "genres": pa.array([["Drama"], None, ["Noir"]], names)}
    titles["cast"] = pa.array([["A", "B", "C", "D", "E"], ["F"], None], names)
    pq.write_table(pa.table(titles), tmp_path / "titles.parquet")
    depicts = {
        "lead": ("t", ["A", "Drama"]),
        "low": ("t", ["D", "A"]),
        "elsewhere": ("t", ["F"]),
        "nobody knows": ("t", ["X"]),
        "both": ("t", ["E", "F", "F"]),
        "mood": ("u", ["Noir", "Drama"]),
        "no cast": ("v", ["X", "A"]),
        "nothing": ("u", None),
    }
    common = {f"night {n}": ("t", ["night"]) for n in range(11)}
    catalogue = depicts | common
    table = {"artwork_id": list(catalogue), "title_id": [t for t, _ in catalogue.values()]}
    table["depicts"] = pa.array([words for _, words in catalogue.values()], names)
    pq.write_table(pa.table(table), tmp_path / "artworks.parquet")
    depicted, notes = read_depicted(tmp_path, pa.array([*catalogue, "in no table"]))
    assert depicted is not None
    assert not notes
    groups = {ABSENT, LOW, ABSENT_OR_LOW}
    groups_of = {
        artwork: groups & {depicted.names[tag] for tag in depicted.tags_AG.row(index)}
        for index, artwork in enumerate([*catalogue, "in no table"])
    }
    assert groups_of["low"] == {LOW, ABSENT_OR_LOW}
    assert groups_of["elsewhere"] == groups_of["nobody knows"] == {ABSENT, ABSENT_OR_LOW}
    assert groups_of["both"] == groups
    for artwork in ("lead", "mood", "no cast", "nothing", "night 3", "in no table"):
        assert groups_of[artwork] == set(), artwork
    assert depicted.names[-depicted.groups :] == [ABSENT, LOW, ABSENT_OR_LOW]
    assert depicted.artworks_G[depicted.names.index("F")] == 2, "named twice by one artwork, it counts once"


def test_clickbait_raises_no_alarm_where_engagement_drifts() -> None:
    """Artworks that arrive late meet members who watch less: the former comparison took that for their fault."""
    flagged = []
    for simulated, _ in worlds(World(impressions=30_000, click_rate=0.2, drift=5.0, arrivals=True, titles=20), 4):
        summary = clickbait(simulated.outcomes, str)
        assert summary is not None
        assert summary["tested"] > 40
        flagged.append(summary["clickbait"] + summary["misleading"])
    assert np.mean(flagged) < 1


def test_artworks_are_compared_within_titles_and_times() -> None:
    """Two titles of different rates, one artwork twice as often in the good title: against the title's others it is as good."""
    outcome = np.array([1.0, 1, 1, 0, 0, 0, 1, 0])
    stratum = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    own = np.array([0, 1, 4])
    gap = stratified_gap(outcome, np.ones(8), np.arange(8), stratum, stratum, own, np.zeros(3, int), 1)
    # in the first title 2 of 2 against 1 of 2, in the second 0 of 1 against 1 of 3; weights 2 x .5 and 1 x .75
    assert gap.gap_A[0] == pytest.approx((1 * 0.5 - 0.75 / 3) / 1.75)
    assert gap.rate_A[0] == pytest.approx(2 / 3)
    title, time = np.array([0, 0, 1, 0, 0, 0, 1]), np.array([5, 1, 0, 2, 9, 7, 3])
    assert time_strata(title, time, 2).tolist() == [0, 0, 2, 0, 1, 1, 2]


def test_few_outcomes_that_are_all_alike_prove_little() -> None:
    """Four clicks, none engaged, where one of two is: the chance is 1 in 16, and was said to be 1e-120."""
    outcome = np.array([0.0] * 4 + [1.0, 0.0] * 40)
    gap = stratified_gap(
        outcome, np.ones(84), np.arange(84), np.zeros(84, int), np.zeros(84, int), np.arange(4), np.zeros(4, int), 1
    )
    assert 0.02 < gap.p_value_A(above=False)[0] < 0.15
    assert gap.p_value_A(above=True)[0] > 0.9


def test_p_values_of_rare_outcomes_are_those_of_the_binomial_distribution() -> None:
    """P(X >= k) of 200 draws at 1 %, beside the sum of its terms: the normal curve alone is too small by a factor of up to 100."""
    n, p = 200, 0.01
    error, skew = (n * p * (1 - p)) ** 0.5, (1 - 2 * p) / (n * p * (1 - p)) ** 0.5
    terms = [p**0 * (1 - p) ** n]
    for k in range(n):
        terms.append(terms[-1] * (n - k) / (k + 1) * p / (1 - p))
    for k in (3, 5, 7, 9):
        by_curve = tail(np.array([(k - 0.5 - n * p) / error]), np.array([skew]))[0]
        assert 0.99 <= by_curve / sum(terms[k:]) <= 2, k


def test_drift_is_measured_within_titles() -> None:
    """A title of low engagement that arrives late is no drift; a change that all titles share is."""
    rng = np.random.default_rng(0)
    time = np.sort(rng.integers(0, 1000, 6000))
    late = (time > 500) & (rng.random(6000) < 0.7)
    steady = drift_by_time(np.where(late, 0.2, 0.6), np.ones(6000), late.astype(int), time)
    assert np.abs(steady).max() < 1e-9
    falling = drift_by_time(np.where(late, 0.2, 0.6) - time / 5000, np.ones(6000), late.astype(int), time)
    assert falling[:500].mean() - falling[-500:].mean() == pytest.approx(0.92 / 5, abs=0.02)


def test_slices_without_a_lift_claim_none() -> None:
    """Two reports of 56 slices each, for a policy as good as uniform: the former intervals claimed lifts in each."""
    assert false_lifts(replace(EVEN_SLICES["uniform log"], impressions=6000, titles=30), 2) == 0


def lift(value: float, half: float | None) -> LiftColumns:
    low, high = (None, None) if half is None else (value - half, value + half)
    return LiftColumns(
        value=1.0, base_value=1.0, lift=value, low=low, high=high, relative=value, relative_low=low, relative_high=high
    )


def test_simultaneous_intervals_are_as_wide_as_their_correlation_asks() -> None:
    rng = np.random.default_rng(1)
    member = np.arange(3000)
    apart = [Spread.of(member, rng.normal(size=3000)) for _ in range(20)]
    # of 20 independent normal variables the largest is below z with (1 - 2 (1 - Phi(z)))^20 = .95: z = 3.016
    assert largest_quantile(np.stack([spread.sum_B for spread in apart])) == pytest.approx(3.02, abs=0.06)
    assert largest_quantile(np.stack([apart[0].sum_B] * 20)) == pytest.approx(Z, abs=0.04)
    rows = [lift(0.1, 0.02), lift(0.2, None), lift(0.3, 0.01)]
    widen(rows, [apart[0], apart[1], apart[2]])
    for row, half in ((rows[0], 0.02), (rows[2], 0.01)):
        assert row["low"] is not None
        assert row["lift"] is not None
        assert (row["lift"] - row["low"]) / half == pytest.approx(2.24 / Z, abs=0.03)
        assert row["low"] == row["relative_low"]
    assert rows[1]["low"] is None


@pytest.mark.parametrize("name", list(CALIBRATED))
def test_calibration_bands_hold_for_rare_clicks_and_heavy_members(name: str) -> None:
    """The former bands missed .78, .02, .27, .15 and .05 of them."""
    assert band_misses(CALIBRATED[name], 40) <= 0.125
