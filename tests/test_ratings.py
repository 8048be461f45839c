"""Ratings of plays: one scale found from the data, centred by member without a look ahead, the same in shards as by hand."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keyart
from benchmarks import pandas_prepare
from datamodules.contract.check import check
from datamodules.prepare.prepare import PrepareConfig, prepare
from datamodules.shards.ratings import RatingScale, centred_ratings
from datamodules.shards.shard import Shards
from foundation.errors import UserError
from tests import small_dataset
from tests.dataset_edits import add
from tests.exported_files import run

THUMBS, STARS = RatingScale(low=-1, high=1, mean=0.4), RatingScale(low=0.5, high=5, mean=3.5)
PLAYS = "plays/part-0.parquet"
GIVEN = st.one_of(st.none(), st.integers(1, 10).map(lambda half: half / 2))
MEMBERS = st.lists(st.lists(GIVEN, max_size=12), min_size=1, max_size=5)


def flat(members: list[list[float | None]]) -> tuple[np.ndarray, np.ndarray]:
    """Ratings of all members one after the other, NaN where not rated, and where each member's begin."""
    rating = np.array([np.nan if r is None else r for member in members for r in member], np.float64)
    return rating, np.cumsum([0, *map(len, members)])


def one_by_one(member: list[float | None], scale: RatingScale) -> list[float]:
    """The formula, a play at a time."""
    values, total, count = [], 0.0, 0
    for rating in member:
        if rating is None:
            values.append(np.nan)
            continue
        z = (rating - scale.mean) / ((scale.high - scale.low) / 2)
        total, count = total + z, count + 1
        values.append(z - total / (count + 5))
    return values


@settings(deadline=None)
@given(MEMBERS)
def test_the_formula(members: list[list[float | None]]) -> None:
    values = centred_ratings(*flat(members), STARS)
    assert values.dtype == np.float32
    expected = [value for member in members for value in one_by_one(member, STARS)]
    np.testing.assert_allclose(values, expected, atol=1e-6)


@settings(deadline=None)
@given(MEMBERS, st.data())
def test_no_later_rating_and_no_other_member_changes_a_bit(
    members: list[list[float | None]], data: st.DataObject
) -> None:
    rating, start = flat(members)
    values = centred_ratings(rating, start, STARS)
    m = data.draw(st.integers(0, len(members) - 1))
    own = slice(start[m], start[m + 1])
    np.testing.assert_array_equal(centred_ratings(rating[own], np.array([0, len(rating[own])]), STARS), values[own])
    kept = data.draw(st.integers(0, len(members[m])))
    later = [*members[m][:kept], *data.draw(st.lists(GIVEN, max_size=6))]
    others = [later if n == m else data.draw(st.lists(GIVEN, max_size=6)) for n in range(len(members))]
    rating, start = flat(others)
    changed = centred_ratings(rating, start, STARS)[start[m] :][:kept]
    np.testing.assert_array_equal(changed, values[own][:kept])


def test_a_habit_is_taken_out_and_what_lies_outside_the_scale_counts_as_its_end() -> None:
    rating, start = flat([[1.0] * 200, [1.0], [-1.0] * 3, [None], []])
    values = centred_ratings(rating, start, THUMBS)
    assert values[0] == values[200] == np.float32(0.6 * 5 / 6)
    assert 0 < values[199] < 0.02, "who likes everything says nothing by one more thumb up"
    assert (np.diff(values[:200]) < 0).all()
    assert values[201] == pytest.approx(-1.4 * 5 / 6)
    assert np.isnan(values[204])
    one = np.array([0, 1])
    assert centred_ratings(np.array([9.0]), one, STARS) == centred_ratings(np.array([5.0]), one, STARS)
    constant = RatingScale(low=4, high=4, mean=4)
    np.testing.assert_array_equal(
        centred_ratings(np.array([4.0, np.nan, 2.0]), np.array([0, 3]), constant), [0, np.nan, 0]
    )
    assert len(centred_ratings(np.zeros(0), np.array([0]), STARS)) == 0


def with_ratings(dataset: Path, low: float = 0.5, step: float = 0.5, values: int = 10) -> None:
    """Give two of three plays one of some ratings."""
    rng = np.random.default_rng(0)
    for path in sorted((dataset / "plays").glob("*.parquet")):
        rows = pq.read_metadata(path).num_rows
        rating = low + step * rng.integers(0, values, rows)
        add(path, "rating", pa.array(rating, pa.float64(), mask=rng.random(rows) < 1 / 3))


@pytest.fixture
def rated(simulated: Path, tmp_path: Path) -> Path:
    """A service whose plays have stars."""
    dataset = shutil.copytree(simulated, tmp_path / "rated")
    with_ratings(dataset)
    return dataset


def test_shards_hold_what_pandas_computes(rated: Path, tmp_path: Path) -> None:
    manifest = prepare(rated, tmp_path / "shards", PrepareConfig(shards=3))
    pandas_prepare.main(rated, tmp_path / "pandas")
    plays = pq.read_table(rated / "plays").to_pandas()
    training = plays[plays.played_at < pd.Timestamp(manifest["validation_from"])]
    assert manifest["rating_scale"] == {"low": 0.5, "high": 5, "mean": training.rating.mean()}
    assert manifest["rated"] == plays.rating.notna().sum()
    theirs = pd.read_parquet(tmp_path / "pandas" / "plays.parquet")
    theirs["time"] = theirs.played_at.astype("datetime64[us, UTC]").astype("int64")
    opened = Shards.open(tmp_path / "shards")
    assert opened.rating_scale == RatingScale(**manifest["rating_scale"])
    ours = pd.concat([pd.DataFrame({"time": s.play_time, "rating": s.play_rating}) for s in opened.shards])
    assert ours.time.is_unique
    both = ours.merge(theirs, on="time", validate="1:1")
    assert len(both) == len(plays)
    np.testing.assert_allclose(both.rating_x, both.rating_y, atol=1e-6)


def test_the_scale_is_that_of_the_training_period(rated: Path, tmp_path: Path) -> None:
    manifest = prepare(rated, tmp_path / "a")
    begin = pd.Timestamp(manifest["validation_from"])
    for path in (rated / "plays").glob("*.parquet"):
        table = pq.read_table(path)
        rating = np.where(table["played_at"].to_pandas() >= begin, 40.0, table["rating"].to_numpy())
        late = table.set_column(table.column_names.index("rating"), "rating", pa.array(rating, from_pandas=True))
        pq.write_table(late, path)
    again = prepare(rated, tmp_path / "b")
    assert again["rating_scale"] == manifest["rating_scale"]
    assert again["rated"] > manifest["rated"]
    before = begin.value // 1000
    for one, other in zip(Shards.open(tmp_path / "a").shards, Shards.open(tmp_path / "b").shards, strict=True):
        early = one.play_time < before
        np.testing.assert_array_equal(one.play_rating[early], other.play_rating[early])
        assert not (~early).any() or not np.array_equal(one.play_rating, other.play_rating, equal_nan=True)
    like = prepare(rated, tmp_path / "like", like=tmp_path / "a")
    assert like["rating_scale"] == manifest["rating_scale"]


def test_rows_in_another_order_give_the_same_shards(tmp_path: Path) -> None:
    """Plays alike in all but the rating, at one instant."""
    dataset = small_dataset.write(tmp_path)
    plays = pq.read_table(dataset / PLAYS)
    four = pa.concat_tables([plays.slice(0, 1)] * 4 + [plays]).append_column(
        "rating", pa.array([4.0, None, 2.0, 5.0, 1.0, 3.0, None])
    )
    prepared = []
    for name, rows in (("a", range(7)), ("b", reversed(range(7)))):
        pq.write_table(four.take(pa.array(list(rows))), dataset / PLAYS)
        prepare(dataset, tmp_path / name, PrepareConfig(validation=0.25, test=0.25))
        prepared.append(Shards.open(tmp_path / name).shards[0].play_rating)
    np.testing.assert_array_equal(*prepared)
    assert np.isfinite(prepared[0]).sum() == 5


@pytest.mark.parametrize(
    ("type_", "values", "scale"),
    [
        (pa.int8(), [1, -1, 1], {"low": -1, "high": 1, "mean": 1 / 3}),
        (pa.float32(), [None, None, -1.0], {"low": -1, "high": 1, "mean": -1}),
        (pa.decimal128(3, 1), ["4.5", None, "1.0"], {"low": 1, "high": 4.5, "mean": 2.75}),
        (pa.bool_(), [True, None, False], {"low": 0, "high": 1, "mean": 0.5}),
        (pa.float64(), [None, None, None], None),
        (pa.uint8(), [5, 5, None], {"low": 5, "high": 5, "mean": 5}),
    ],
)
def test_types_and_scales(
    tmp_path: Path, type_: pa.DataType, values: list, scale: dict | None, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = small_dataset.write(tmp_path)
    plain = pa.array(values, pa.string()) if pa.types.is_decimal(type_) else pa.array(values, type_)
    add(dataset / PLAYS, "rating", plain.cast(type_))
    report = check(dataset, images=False)
    assert [violation.line() for violation in report.violations] == []
    # the second play is of the day after: all impressions are shown before it
    words = ["--validation", "0.25", "--test", "0.25"]
    assert keyart.main(["prepare", str(dataset), str(tmp_path / "shards"), *words]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text(encoding="utf-8"))
    training = [value for n, value in enumerate(values) if n != 1 and value is not None]
    if scale is None:
        assert manifest["rating_scale"] is None
        assert manifest["rated"] == 0
        assert report.ratings is None
        assert "rated" not in printed
        return
    assert report.ratings is not None
    warnings = [warning.rule for warning in report.warnings]
    assert ("constant-rating" in warnings) == (len({v for v in values if v is not None}) == 1)
    assert manifest["rated"] == len([v for v in values if v is not None])
    assert f"rated plays: {manifest['rated']}, on a scale from" in printed
    if values[1] is None:
        assert manifest["rating_scale"] == pytest.approx(scale)
    else:
        assert manifest["rating_scale"]["mean"] == np.mean(training)
    rating = np.concatenate([shard.play_rating for shard in Shards.open(tmp_path / "shards").shards])
    assert (np.abs(rating[np.isfinite(rating)]) <= 2).all()


def test_check_prints_the_scale(rated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keyart.main(["check", str(rated)]) == 0
    plays = pq.read_table(rated / "plays").to_pandas().rating
    line = (
        f"{plays.count():,} of {len(plays):,} plays are rated, by stars from 0.5 to 5, {plays.mean():.3g} on average."
    )
    assert line in " ".join(capsys.readouterr().out.split())


def test_no_ratings_that_are_no_numbers_are_dropped_with_their_plays(tmp_path: Path) -> None:
    dataset = small_dataset.write(tmp_path)
    add(dataset / PLAYS, "rating", pa.array([float("inf"), float("nan"), 1.0]))
    manifest = prepare(dataset, tmp_path / "a", PrepareConfig(validation=0.25, test=0.25, drop_invalid=True))
    assert manifest["rows"]["plays"] | {"in": 3} == {
        "in": 3,
        "dropped": {},
        "made_null": {"rating-finite": 2},
        "left_out": 0,
        "out": 3,
    }
    assert (manifest["rated"], manifest["rating_scale"]) == (1, {"low": 1, "high": 1, "mean": 1})


@pytest.mark.parametrize(
    ("values", "first", "says"),
    [
        (
            [4, -1, 5],
            ("m0, t1, rating -1", "m0, t0, rating 4"),
            "plays/: rating mixes two scales: 1 of 3 are below 0, as thumbs down are, and 2 lie outside -1 to 1, as no thumb does "
            "(first: m0, t1, rating -1; m0, t0, rating 4). Write all in one scale: thumbs as -1 and 1, stars from 0 up; null "
            "where a play is not rated.",
        ),
        ([-1.5, None, 1.0], ("m0, t0, rating -1.5",), "1 of 2 are below 0"),
    ],
)
def test_two_scales_are_named_and_counted(tmp_path: Path, values: list, first: tuple[str, ...], says: str) -> None:
    dataset = small_dataset.write(tmp_path)
    add(dataset / PLAYS, "rating", pa.array(values))
    (violation,) = check(dataset, images=False).violations
    assert (violation.rule, violation.count, violation.first) == ("mixed-ratings", 1, first)
    assert says in violation.line()


def test_two_scales_are_refused_by_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Dropping rows is no remedy: nobody knows which scale is meant."""
    dataset = small_dataset.write(tmp_path)
    add(dataset / PLAYS, "rating", pa.array([4.0, None, -1.0]))
    assert keyart.main(["prepare", str(dataset), str(tmp_path / "a"), "--drop-invalid", "true"]) == 1
    assert "rating mixes two scales: 1 of 2" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UserError, match=r"ratings from -1 to 4 are of two scales\. Write all in one scale"):
        prepare(dataset, tmp_path / "a", PrepareConfig(validation=0.25, test=0.25))
    assert not (tmp_path / "a").exists()


def test_a_scale_that_is_given_is_used_and_none_leaves_ratings_out(rated: Path, tmp_path: Path) -> None:
    prepare(rated, tmp_path / "own")
    own = Shards.open(tmp_path / "own")
    for name, scale in (("none", None), ("given", replace(STARS, low=0.0))):
        words = {"vocabularies": own.vocabularies, "features": own.context, "rating_scale": scale}
        manifest = prepare(rated, tmp_path / name, **words)
        assert manifest["rating_scale"] == (scale and asdict(scale))
        assert (manifest["rated"] > 0) == (scale is not None)


def test_shards_of_an_older_version_are_named_in_one_line(few_shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(few_shards, tmp_path / "shards")
    (folder / "shard-00000" / "play_rating.npy").unlink()
    with pytest.raises(UserError, match=r"play_rating\.npy: cannot be mapped .*Run keyart prepare again\.$"):
        _ = Shards.open(folder).shards
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["rating_scale"]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match=r"manifest\.json: lacks 'rating_scale'\. Run keyart prepare again\.$"):
        Shards.open(folder)


def test_stars_are_imported_and_words_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plays.csv"
    path.write_text(
        "member_id,title_id,played_at,Rating\nm,t,2026-01-02T03:04:05Z,4.5\nn,t,2026-01-02T03:04:05Z,\n",
        encoding="utf-8",
    )
    assert run(path, tmp_path / "a") == 0
    assert pq.read_table(tmp_path / "a" / "plays")["rating"].to_pylist() == [4.5, None]
    path.write_text("member_id,title_id,played_at,rating\nm,t,2026-01-02T03:04:05Z,PG-13\n", encoding="utf-8")
    capsys.readouterr()
    assert run(path, tmp_path / "b") == 1
    assert "column rating: 1 value that is no double (first: 'PG-13', row 1)" in capsys.readouterr().err
