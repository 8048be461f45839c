"""The simulated service keeps the contract, follows the law it states, and shows in pixels what the law reads."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datamodules.contract.tables import TABLES
from datamodules.simulator.click_law import EffectSizes
from datamodules.simulator.draw_artworks import MAX_LOOKS, MOODS, Picture, draw_artwork, look_of
from datamodules.simulator.opposite_histories import HISTORY_LENGTHS, draw_opposite_histories
from datamodules.simulator.simulate import SimulateConfig, simulate
from foundation.errors import UserError
from tests.conftest import TINY
from tests.restated_law import assert_truth_follows_the_law, rows_of

KINDS = {
    "string": pa.types.is_string,
    "strings": lambda t: pa.types.is_list(t) and pa.types.is_string(t.value_type),
    "float": pa.types.is_floating,
    "floats": lambda t: pa.types.is_list(t) and pa.types.is_float32(t.value_type),
    "integer": pa.types.is_integer,
    "timestamp": lambda t: pa.types.is_timestamp(t) and t.unit == "us" and t.tz == "UTC",
    "boolean": pa.types.is_boolean,
}


@pytest.fixture(scope="module")
def tables(service: Path) -> dict[str, pd.DataFrame]:
    """Every table of the service, truth included."""
    names = [table.name for table in TABLES] + ["truth"]
    paths = {name: service / name if (service / name).is_dir() else service / f"{name}.parquet" for name in names}
    return {name: pq.read_table(path).to_pandas() for name, path in paths.items()}


def test_columns_are_those_of_the_contract(service: Path) -> None:
    for table in TABLES:
        files = table.files(service)
        assert len(files) == (4 if table.folder else 1)
        for file in files:
            schema = pq.read_schema(file)
            for column in table.columns:
                # all candidates have propensities and images; ratings are written where there are some
                if column.name not in ("propensity", "embedding", "rating"):
                    assert KINDS[column.kind](schema.field(column.name).type), (file.name, column.name)
            rows = pq.read_table(file)
            assert rows.num_rows
            for column in table.columns:
                if not column.nullable:
                    assert rows[column.name].null_count == 0


def test_ids_refer_and_time_runs(tables: dict[str, pd.DataFrame]) -> None:
    titles, artworks, impressions, plays = (tables[n] for n in ("titles", "artworks", "impressions", "plays"))
    assert impressions.impression_id.is_unique
    assert artworks.artwork_id.is_unique
    assert titles.title_id.is_unique
    assert set(artworks.title_id) == set(titles.title_id)
    assert set(impressions.title_id) | set(plays.title_id) <= set(titles.title_id)
    title_of = artworks.set_index("artwork_id").title_id
    assert (title_of.loc[impressions.artwork_id].to_numpy() == impressions.title_id).all()
    clicked_through = plays.dropna(subset="artwork_id")
    assert 0.02 < len(clicked_through) / len(plays) < 0.5
    assert (title_of.loc[clicked_through.artwork_id].to_numpy() == clicked_through.title_id).all()
    assert impressions.shown_at.is_monotonic_increasing
    length = impressions.shown_at.max() - impressions.shown_at.min()
    assert pd.Timedelta(days=350) < length <= pd.Timedelta(days=360)
    assert ((plays.watched > 0) & (plays.watched <= 1)).all()
    counts = artworks.groupby("title_id").size()
    assert counts.between(3, 6).all()
    genres = {genre for row in titles.genres for genre in row}
    people = {person for row in titles.cast for person in row}
    assert genres == set(MOODS)
    assert all(row[-1] in MOODS and 1 <= len(set(row[:-1]) & people) <= 2 for row in artworks.depicts)


def test_propensities_are_probabilities_and_explore_is_uniform(tables: dict[str, pd.DataFrame]) -> None:
    impressions = tables["impressions"]
    chosen, mean = [], []
    for row in rows_of(impressions):
        propensities = np.asarray(row.propensities)
        assert len(propensities) == len(row.candidates) >= 2
        assert abs(propensities.astype(np.float64).sum() - 1) < 1e-6
        assert (propensities > 0).all()
        index = list(row.candidates).index(row.artwork_id)
        chosen.append(index)
        mean.append((np.arange(len(propensities)) * propensities).sum())
        if row.policy == "explore":
            assert np.ptp(propensities) == 0
    assert abs((impressions.policy == "explore").mean() - 0.3) < 0.03
    # indices are drawn by the propensities: their mean may differ by sampling error
    assert abs(np.mean(chosen) - np.mean(mean)) < 4 * np.std(np.subtract(chosen, mean)) / math.sqrt(len(chosen))


def test_truth_is_aligned_and_clicks_follow_it(tables: dict[str, pd.DataFrame]) -> None:
    impressions, truth = tables["impressions"], tables["truth"]
    assert (truth.impression_id == impressions.impression_id).all()
    probabilities = []
    for true, row in zip(rows_of(truth), rows_of(impressions), strict=True):
        assert list(true.candidates) == list(row.candidates)
        index = list(row.candidates).index(row.artwork_id)
        assert (true.p_engaged > 0).all()
        assert (true.p_engaged < true.p_click).all()
        probabilities.append((true.p_click[index], true.p_engaged[index]))
    p_click, p_engaged = np.array(probabilities, np.float64).T
    for happened, p in ((impressions.clicked, p_click), (impressions.engaged, p_engaged)):
        assert abs(happened.mean() - p.mean()) < 4 * math.sqrt((p * (1 - p)).sum()) / len(p)
        upper = p > np.median(p)  # and not only on average
        assert abs(happened[upper].mean() - p[upper].mean()) < 4 * math.sqrt((p * (1 - p))[upper].sum()) / upper.sum()
    assert (impressions.clicked | ~impressions.engaged).all()
    assert 0.06 < p_click.mean() < 0.12


def test_the_law_restated(service: Path) -> None:
    assert_truth_follows_the_law(service, impressions=60)


def test_values_are_those_of_the_truth(service: Path, tables: dict[str, pd.DataFrame]) -> None:
    values = json.loads((service / "simulation.json").read_text(encoding="utf-8"))["values"]
    p_click = tables["truth"].p_click
    logged = [(p * q).sum() for p, q in zip(p_click, tables["impressions"].propensities, strict=True)]
    assert values["uniform"] == pytest.approx(p_click.map(np.mean).mean(), rel=1e-5)
    assert values["best"] == pytest.approx(p_click.map(np.max).mean(), rel=1e-5)
    assert values["logged"] == pytest.approx(np.mean(logged), rel=1e-5)
    assert values["uniform"] == pytest.approx(TINY.click_rate, rel=0.02)
    assert values["uniform"] < values["logged"] < values["best_per_title"] < values["best"]


def test_misrepresenting_artworks_lose_engagement(service: Path, tables: dict[str, pd.DataFrame]) -> None:
    misleads = np.load(service / "hidden" / "artworks.npz")["misleads_A"]
    assert 0.05 < misleads.mean() < 0.35
    truth = tables["truth"]
    artwork = np.concatenate(truth.candidates.to_list())
    rate = np.concatenate(truth.p_engaged.to_list()) / np.concatenate(truth.p_click.to_list())
    index = pd.Series(range(len(misleads)), tables["artworks"].artwork_id).loc[artwork].to_numpy()
    assert rate[misleads[index] == 1].mean() < rate[misleads[index] == 0].mean() - 0.2


def test_some_members_start_cold(tables: dict[str, pd.DataFrame]) -> None:
    first_play = tables["plays"].groupby("member_id").played_at.min()
    first_shown = tables["impressions"].groupby("member_id").shown_at.min()
    never = ~first_shown.index.isin(first_play.index)
    later = (first_play.reindex(first_shown.index) > first_shown).to_numpy()
    assert 0.1 < (never | later).mean() < 0.9


def test_same_seed_same_service_another_seed_another(tmp_path: Path) -> None:
    small = SimulateConfig(members=40, titles=12, people=8, mean_plays=8, mean_impressions=10)
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        simulate(tmp_path / name, replace(small, seed=seed))
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*") if p.suffix != ".npz")
    assert len(files) > 40
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
    for name in ("titles.parquet", "impressions/part-0.parquet", "plays/part-0.parquet", "images/a00000.jpg"):
        assert (tmp_path / "one" / name).read_bytes() != (tmp_path / "other" / name).read_bytes(), name


def test_images_are_readable_and_all_different(service: Path, tables: dict[str, pd.DataFrame]) -> None:
    seen = set()
    for path in tables["artworks"].image:
        with Image.open(service / path) as image:
            assert image.mode == "RGB"
            assert image.size == (96, 144)
            seen.add(np.asarray(image).tobytes())
    assert len(seen) == len(tables["artworks"])


def test_people_and_moods_are_visible() -> None:
    """The nearest other picture in colours shows the same person, and the same mood, far more often than at random."""
    people, moods = range(24), list(MOODS)
    assert len({look_of(person) for person in range(MAX_LOOKS)}) == MAX_LOOKS
    pictures = [(person, mood) for person in people for mood in (person % 8, (person + 3) % 8)]
    faces, borders = [], []
    for n, (person, mood) in enumerate(pictures):
        picture = Picture(people=(person,), mood=moods[mood], close=True, quality=0.0, seed=(7, n))
        pixels = np.asarray(draw_artwork(picture), np.float32)
        faces.append(pixels[16:128, 28:68].reshape(14, 8, 5, 8, 3).mean((1, 3)).ravel())
        borders.append(np.concatenate([pixels[:40, :14].mean((0, 1)), pixels[:40, 82:].mean((0, 1))]))
    same_person = [pictures[other][0] == pictures[n][0] for n, other in enumerate(_nearest(faces))]
    same_mood = [pictures[other][1] == pictures[n][1] for n, other in enumerate(_nearest(borders))]
    assert np.mean(same_person) > 0.5  # at random: 1 of 47
    assert np.mean(same_mood) > 0.6  # at random: 5 of 47


def _nearest(features: list[np.ndarray]) -> np.ndarray:
    table = np.stack(features)
    distance = ((table[:, None] - table[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    return distance.argmin(1)


def test_quality_is_contrast() -> None:
    def contrast(quality: float) -> float:
        picture = Picture(people=(3,), mood="Western", close=False, quality=quality, seed=(1,))
        return float(np.asarray(draw_artwork(picture), np.float32).std())

    assert contrast(-1.0) < contrast(0.0) < contrast(1.0)


def test_the_two_oldest_examples(tables: dict[str, pd.DataFrame]) -> None:
    titles, artworks = tables["titles"], tables["artworks"]
    depicts = artworks[artworks.title_id == "t0000"].depicts.map(list).to_list()
    lovers_and_comedian = list(titles.cast[0])
    assert {*lovers_and_comedian[:2], "Romance"} in map(set, depicts)
    assert {lovers_and_comedian[2], "Comedy"} in map(set, depicts)
    comedies = titles[titles.cast.map(lambda cast: lovers_and_comedian[2] in cast)].genres
    usual = titles.genres.map(lambda genres: "Comedy" in genres).mean()
    assert comedies.map(lambda genres: "Comedy" in genres).mean() > 1.3 * usual
    depicts = artworks[artworks.title_id == "t0001"].depicts.map(list).to_list()
    for star in titles.cast[1]:
        assert [star] in [row[:-1] for row in depicts]


def test_opposite_pairs_differ_in_one_taste(service: Path, tables: dict[str, pd.DataFrame]) -> None:
    titles = tables["titles"].set_index("title_id")
    depicts = tables["artworks"].set_index("artwork_id").depicts.map(set)
    pairs = draw_opposite_histories(service, 40, seed=5)
    assert [pair.kind for pair in pairs] == ["mood", "star"] * 20
    assert pairs == draw_opposite_histories(service, 40, seed=5)
    assert pairs != draw_opposite_histories(service, 40, seed=6)
    for pair in pairs:
        assert HISTORY_LENGTHS[0] <= len(pair.history_a) == len(pair.history_b) <= HISTORY_LENGTHS[1]
        assert pair.artwork_a
        assert pair.artwork_b
        assert set(pair.candidates) == {*pair.artwork_a, *pair.artwork_b}
        words = titles.genres if pair.kind == "mood" else titles.cast
        sides = ((pair.taste_a, pair.taste_b, pair.artwork_a), (pair.taste_b, pair.taste_a, pair.artwork_b))
        for (taste, other, shown), history in zip(sides, (pair.history_a, pair.history_b), strict=True):
            assert pair.title_id not in history
            assert all(taste in depicts[a] and other not in depicts[a] for a in shown)
            assert sum(taste in words[t] for t in history) >= 3
            assert not any(other in words[t] for t in history)


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="members=3"):
        SimulateConfig(members=3)
    with pytest.raises(ValueError, match="mood=-1"):
        EffectSizes(mood=-1)
    (tmp_path / "mine.txt").write_text("not yours", encoding="utf-8")
    with pytest.raises(UserError, match=r"simulation\.json"):
        simulate(tmp_path, TINY)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
