"""What is held out is held out: before the test period no trace of it, after it all as it was."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from rich.console import Console

from benchmarks.cold_start import BEST_PER_TITLE, REFRESHED, SEEN, Config, bench, hold_out, sample_held_out
from benchmarks.table import OURS
from datamodules.contract.check import check
from evaluation.period import newest_shares
from tests.small_recipe import small_recipe


def read(dataset: Path, name: str) -> pa.Table:
    return pads.dataset(sorted((dataset / name).glob("*.parquet"))).to_table()


def test_nothing_of_it_is_left_before_the_test_period(service: Path, tmp_path: Path) -> None:
    since = newest_shares(service).test_from
    titles, artworks = sample_held_out(service, 0.2, 0)
    assert len(titles) == 6
    hold_out(service, tmp_path / "without", since, titles, artworks)
    assert check(tmp_path / "without").ok, "by the contract still"
    before, after = read(service, "impressions"), read(tmp_path / "without", "impressions")
    held_titles, held_artworks = set(titles.to_pylist()), set(artworks.to_pylist())
    late = 0
    original = {row["impression_id"]: row for row in before.to_pylist()}
    for row in after.to_pylist():
        was = original[row["impression_id"]]
        if row["shown_at"] >= since:
            late += 1
            assert row == was
            continue
        assert row["title_id"] not in held_titles
        assert not held_artworks & set(row["candidates"])
        assert row["artwork_id"] in row["candidates"]
        assert sum(row["propensities"]) == pytest.approx(1, abs=1e-5)
        given = dict(zip(was["candidates"], was["propensities"], strict=True))
        ratio = [p / given[a] for a, p in zip(row["candidates"], row["propensities"], strict=True)]
        assert np.allclose(ratio, ratio[0], rtol=1e-4), "each as likely as before, given that none of them was shown"
    assert late == sum(at >= since for at in before["shown_at"].to_pylist())
    assert 0 < len(after) < len(before)
    for row in read(tmp_path / "without", "plays").to_pylist():
        assert row["played_at"] >= since or row["title_id"] not in held_titles
        assert row["artwork_id"] not in held_artworks


def test_a_title_keeps_an_artwork(service: Path) -> None:
    titles, artworks = sample_held_out(service, 0.5, 1)
    rows = pads.dataset(service / "artworks.parquet").to_table().to_pylist()
    left = {row["title_id"] for row in rows if row["artwork_id"] not in set(artworks.to_pylist())}
    assert {row["title_id"] for row in rows} - set(titles.to_pylist()) <= left
    assert not {row["title_id"] for row in rows if row["artwork_id"] in set(artworks.to_pylist())} & set(
        titles.to_pylist()
    )


@pytest.mark.benchmark
def test_what_was_never_seen_is_ranked_by_its_content(tmp_path: Path) -> None:
    rows = bench(Config(members=700, recipe=small_recipe(tmp_path)), Console(quiet=True))
    value_of = {(row.figure, row.subject): row.value for row in rows}
    assert value_of["known", OURS] > 0.5
    assert value_of["new artwork", OURS] > 0.4
    assert value_of["new title", OURS] > 0.2
    for group in ("new artwork", "new title"):  # means over titles differ, and single pixels
        assert abs(value_of[group, REFRESHED] - value_of[group, OURS]) < 0.05
    assert value_of["new member", OURS] > value_of["new member", BEST_PER_TITLE] - 0.1
    assert abs(value_of["known", OURS] - value_of["known", SEEN]) < 0.15
