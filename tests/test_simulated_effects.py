"""Own tastes, fatigue, ratings and plays left early: off they change nothing, on they change what the law says and nothing else."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import keyart
from datamodules.contract.check import check
from datamodules.simulator.click_law import OFF_BY_DEFAULT, EffectSizes
from datamodules.simulator.simulate import SimulateConfig, simulate, simulate_once
from tests.restated_law import assert_truth_follows_the_law, fit, ignored, rows_of

SMALL = SimulateConfig(seed=5, members=200, titles=12, people=8, days=120, mean_plays=20, mean_impressions=60)
ON = {"own": 1.0, "fatigue": 0.8, "rated": 0.4, "abandoned": 0.7}
UNTOUCHED = ("titles.parquet", "artworks.parquet", "members.parquet", "images/a00000.jpg", "hidden/people.txt")
OUTCOMES = ["clicked", "engaged", "minutes"]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Effects by name -> the service that has them, each made once."""
    folder, made = tmp_path_factory.mktemp("services"), set()

    def service(**effects: float) -> Path:
        out = folder / ("-".join(effects) or "none")
        if out not in made:
            simulate(out, replace(SMALL, strengths=EffectSizes(**effects)))
            made.add(out)
        return out

    return service


def table(dataset: Path, name: str) -> Any:
    """A table as a data frame, of whose columns pandas' annotations say too little."""
    return pq.read_table(dataset / name).to_pandas()


def unprompted(plays: pa.Table) -> pa.Table:
    """Plays that follow no click."""
    return plays.filter(pc.field("artwork_id").is_null())


def logits(dataset: Path) -> tuple[np.ndarray, np.ndarray]:
    """The logits of a click on every candidate of every impression, without the base, and the impression of each."""
    p_click = table(dataset, "truth").p_click
    p = np.concatenate(p_click.to_list()).astype(np.float64)
    base = json.loads((dataset / "simulation.json").read_text(encoding="utf-8"))["law"]["base"]
    return np.log(p / (1 - p)) - base, np.repeat(np.arange(len(p_click)), p_click.map(len))


def same_but(one: Path, other: Path, name: str, columns: list[str]) -> None:
    """Two services have the same table, but for some columns."""
    left, right = (pq.read_table(d / name) for d in (one, other))
    kept = [column for column in left.column_names if column not in columns]
    assert left.select(kept).equals(right.select(kept)), name


@pytest.mark.parametrize("name", OFF_BY_DEFAULT)
def test_an_effect_changes_what_it_is_about_and_nothing_else(make: Callable[..., Path], name: str) -> None:
    """What one effect draws is drawn by a generator of its own, so that nothing else shifts."""
    plain, on = make(), make(**{name: ON[name]})
    for file in UNTOUCHED:
        assert (plain / file).read_bytes() == (on / file).read_bytes()
    of_clicks = name in ("own", "fatigue")
    same_but(plain, on, "impressions", OUTCOMES if of_clicks else [])
    same_but(plain, on, "truth", ["p_click", "p_engaged"] if of_clicks else [])
    if of_clicks:
        assert table(plain, "truth").p_click.map(list).tolist() != table(on, "truth").p_click.map(list).tolist()
        before, after = (unprompted(pq.read_table(service / "plays")) for service in (plain, on))
        assert before.equals(after)
    else:
        same_but(plain, on, "plays", [{"rated": "rating", "abandoned": "watched"}[name]])
    assert ("rating" in table(on, "plays")) == (name == "rated")


def test_effects_that_are_off_leave_no_trace(make: Callable[..., Path], tmp_path: Path) -> None:
    """The record of a service is that of the time before they were there, which is still up to date."""
    record = json.loads((make() / "simulation.json").read_text(encoding="utf-8"))
    assert list(record["config"]["strengths"]) == [name for name in vars(EffectSizes()) if name not in OFF_BY_DEFAULT]
    assert list(record["law"]) == ["base", "side", "place", "row", "column", "evening", "evening_hour"]
    assert sorted(np.load(make() / "hidden" / "members.npz")) == ["fandom_MP", "taste_MG"]
    assert "rating" not in table(make(), "plays")
    console = Console(record=True, quiet=False, file=(tmp_path / "out").open("w", encoding="utf-8"))
    simulate_once(make(), SMALL, console)
    assert "is up to date" in console.export_text()


def test_the_law_restated_with_every_effect(make: Callable[..., Path]) -> None:
    everything = make(**ON)
    assert_truth_follows_the_law(everything, impressions=150)
    assert [violation.line() for violation in check(everything).violations] == []


def test_own_tastes_spread_the_candidates_by_one_logit_and_are_in_no_history(make: Callable[..., Path]) -> None:
    plain, own = make(), make(own=1.0)
    (before, impression), (after, _) = logits(plain), logits(own)
    difference = after - before
    apart = difference - (np.bincount(impression, difference) / np.bincount(impression))[impression]
    assert np.sqrt((apart**2).mean()) == pytest.approx(1, abs=0.15)
    hidden = np.load(own / "hidden" / "members.npz")
    moods = hidden["taste_MG"].shape[1]
    correlation = np.corrcoef(hidden["own_MV"][:, :moods].ravel(), hidden["taste_MG"].ravel())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(hidden["taste_MG"].size)


def test_ignored_artworks_are_clicked_less(make: Callable[..., Path]) -> None:
    """In truth by what the law says, to the last bits; in the log as often as truth says."""
    plain, tired = make(), make(fatigue=0.8)
    law = json.loads((tired / "simulation.json").read_text(encoding="utf-8"))["law"]
    (before, impression), (after, _) = logits(plain), logits(tired)
    log, rng = table(tired, "impressions"), np.random.default_rng(0)
    some = set(rng.choice(len(log), 300, replace=False))
    of_artwork, of_title = [], []
    for n, row in enumerate(rows_of(log)):
        if n in some:
            seen = ignored(log, row, law)
            of_artwork += [seen[artwork] for artwork in row.candidates]
            of_title += [seen.total()] * len(row.candidates)
    kept = np.isin(impression, list(some))
    expected = 0.8 * np.log1p(of_artwork) + 0.4 * np.log1p(of_title)
    np.testing.assert_allclose((before - after)[kept], expected, atol=1e-3)
    assert max(of_artwork) >= 3
    p = np.array(
        [
            row.p_click[list(row.candidates).index(shown)]
            for row, shown in zip(rows_of(table(tired, "truth")), log.artwork_id, strict=True)
        ],
        np.float64,
    )
    fatigue = np.zeros(len(log))
    np.maximum.at(fatigue, impression, before - after)
    for rows in (fatigue < 0.1, fatigue > 1):
        assert abs(log.clicked[rows].mean() - p[rows].mean()) < 4 * np.sqrt((p * (1 - p))[rows].sum()) / rows.sum()
    plain_clicks = table(plain, "impressions").clicked
    assert log.clicked[fatigue > 1].mean() < 0.7 * plain_clicks[fatigue > 1].mean()
    assert not log.clicked[fatigue == 0].empty


def test_an_outcome_counts_from_an_hour_to_thirty_days(make: Callable[..., Path]) -> None:
    """Impressions that follow within the hour, and after a month of nothing, are as though nothing had been shown."""
    plain, tired = make(), make(fatigue=0.8)
    log = table(tired, "impressions")
    since = log.groupby(["member_id", "title_id"]).shown_at.diff()
    first = log.groupby(["member_id", "title_id"]).cumcount() <= 1
    (before, impression), (after, _) = logits(plain), logits(tired)
    lost = np.zeros(len(log))
    np.maximum.at(lost, impression, before - after)
    ignored_before = ~log.groupby(["member_id", "title_id"]).clicked.shift(fill_value=True).astype(bool)
    second = first & ignored_before
    for rows in (second & (since < pd.Timedelta(hours=1)), second & (since > pd.Timedelta(days=30)), since.isna()):
        assert rows.any()
        assert (lost[rows] < 1e-3).all()
    counted = second & since.between(pd.Timedelta(hours=1), pd.Timedelta(days=30))
    assert (lost[counted] > 0.2).all()


def fits(dataset: Path, plays: Any) -> np.ndarray:
    """How well the title of each play fits its member."""
    titles = table(dataset, "titles.parquet").set_index("title_id")
    known: dict[tuple[str, str], float] = {}
    for pair in zip(plays.member_id, plays.title_id, strict=True):
        if pair not in known:
            known[pair] = fit(dataset, int(pair[0][1:]), titles.loc[pair[1]])
    return np.array([known[pair] for pair in zip(plays.member_id, plays.title_id, strict=True)])


def assert_share(happened: np.ndarray, p: np.ndarray) -> None:
    """What happened is as often as its probability, below and above its median."""
    for rows in (p <= np.median(p), p > np.median(p)):
        assert abs(happened[rows].mean() - p[rows].mean()) < 4 * np.sqrt((p * (1 - p))[rows].sum()) / rows.sum()


def test_thumbs_follow_the_match(make: Callable[..., Path]) -> None:
    rated = make(rated=0.4)
    plays = table(rated, "plays")
    assert_share(plays.rating.notna().to_numpy(), np.full(len(plays), 0.4) + 1e-9 * np.arange(len(plays)))
    plays = plays.dropna(subset="rating")
    assert set(plays.rating) == {-1, 1}
    match = fits(rated, plays)
    assert_share((plays.rating == 1).to_numpy(), 1 / (1 + np.exp(-2 * (match - 1))))
    assert np.corrcoef(match, plays.rating)[0, 1] > 0.4
    report = check(rated, images=False)
    assert report.ratings is not None
    assert "are rated, by thumbs from -1 to 1" in report.ratings.line()


def test_what_does_not_fit_is_left_early(make: Callable[..., Path]) -> None:
    plain, left = make(), make(abandoned=0.7)
    plays = table(left, "plays")
    alone = plays.artwork_id.isna().to_numpy()
    changed = (plays.watched != table(plain, "plays").watched).to_numpy()
    assert not changed[~alone].any()
    assert (plays.watched[changed] < 0.1).all()
    match = fits(left, plays[alone])
    assert_share(changed[alone], 0.7 / (1 + np.exp(2 * (match - 1))))


def test_options_and_ranges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in OFF_BY_DEFAULT:
        with pytest.raises(ValueError, match=rf"{name}=-1: must lie in 0 \.\. [15]\."):
            EffectSizes(**{name: -1})
    for name in ("rated", "abandoned"):
        with pytest.raises(ValueError, match=rf"{name}=1\.5: must lie in 0 \.\. 1\."):
            EffectSizes(**{name: 1.5})
    words = [
        "--members",
        "20",
        "--titles",
        "10",
        "--people",
        "8",
        "--mean_impressions",
        "8",
        "--strengths.rated",
        "1",
        "--strengths.fatigue",
        "2",
    ]
    assert keyart.main(["simulate", str(tmp_path / "out"), *words]) == 0
    assert table(tmp_path / "out", "plays").rating.notna().all()
    record = json.loads((tmp_path / "out" / "simulation.json").read_text(encoding="utf-8"))
    assert record["law"]["tired_days"] == 30
    assert keyart.main(["simulate", str(tmp_path / "no"), "--strengths.rated", "2"]) != 0
    assert "rated=2" in capsys.readouterr().err
