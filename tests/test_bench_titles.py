"""The protocol of `keyart bench titles` is the one it states, and the usual ways are what they are called."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from benchmarks.title_baselines import RIDGE, ease, item_knn, play_matrix, popularity, same_genres
from benchmarks.title_log import TitleLog, ndcg_and_hits, read_log, top_titles
from benchmarks.titles import Config, bench
from configs.arguments import RECIPES
from foundation.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three members; the second has a tie, the third too few plays; title 9 was never rated."""
    ratings = [
        *((1, 10, 5.0, 100), (1, 20, 1.0, 50), (1, 30, 3.0, 200), (1, 20, 2.0, 300)),
        *((2, 30, 3.0, 10), (2, 10, 3.0, 10), (2, 40, 3.0, 30), (2, 20, 3.0, 40)),
        *((3, 10, 3.0, 10), (3, 20, 3.0, 20)),
    ]
    pd.DataFrame(ratings, columns=["userId", "movieId", "rating", "timestamp"]).to_csv(
        tmp_path / "ratings.csv", index=False
    )
    movies = {
        "movieId": [9, 10, 20, 30, 40],
        "title": ["A (1990)", "B (2001)", "C", "D (1999) ", "E (Part (2) (2010)"],
        "genres": ["Drama", "Drama|Comedy", "(no genres listed)", "Comedy", "Horror"],
    }
    pd.DataFrame(movies).to_csv(tmp_path / "movies.csv", index=False)
    return tmp_path


def test_a_log_is_read_in_order(folder: Path) -> None:
    log = read_log(folder)
    assert log.titles["title_id"].tolist() == [10, 20, 30, 40], "rated ones"
    assert log.members == 2, "who has two plays is left out"
    ids = log.titles["title_id"].to_numpy()[log.title]
    assert ids[log.member == 0].tolist() == [20, 10, 30], "a title counts where it was first played"
    assert sorted(ids[log.member == 1][:2].tolist()) == [10, 30]
    assert ids[log.member == 1][2:].tolist() == [40, 20]
    assert (np.diff(log.time)[np.diff(log.member) == 0] > 0).all()
    assert log.titles["genres"].tolist() == [["Drama", "Comedy"], [], ["Comedy"], ["Horror"]]
    assert log.titles["release_year"].fillna(0).tolist() == [2001, 0, 1999, 2010]
    kept, target = log.leave_one_out(1)
    assert log.titles["title_id"].to_numpy()[target].tolist() == [10, 40]
    assert len(kept.title) == 1 + 2
    with pytest.raises(UserError, match="holds neither"):
        read_log(folder.parent)


def log_of(seed: int = 0) -> TitleLog:
    rng = np.random.default_rng(seed)
    member, title = np.nonzero(rng.random((40, 15)) < 0.4)
    titles = {"genres": [["a"] if i < 7 else ["b", "c"] for i in range(15)], "title_id": range(15)}
    return TitleLog(member=member, title=title, time=np.arange(len(member)), titles=pd.DataFrame(titles))


def test_the_usual_ways() -> None:
    log = log_of()
    x = play_matrix(log)
    assert (popularity(log)[0] == x.sum(0)).all()
    inverse = np.linalg.inv(x.T @ x + RIDGE * np.eye(15))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    np.testing.assert_allclose(ease(log, log), x @ weights, atol=1e-5)
    recent = play_matrix(log, recent=2.0)
    last = np.array([log.title[log.member == m][-1] for m in range(log.members)])
    np.testing.assert_allclose(recent[np.arange(log.members), last], 1)
    np.testing.assert_allclose(ease(log, log, recent=2.0), recent @ weights, atol=1e-5)
    alike = item_knn(log, log)
    assert alike.shape == x.shape
    norm = np.linalg.norm(x, axis=0)
    cosine = x.T @ x / (np.outer(norm, norm) + 10)
    np.fill_diagonal(cosine, 0)
    np.testing.assert_allclose(alike, x @ cosine, rtol=1e-4)
    taste = same_genres(replace(log, member=np.zeros(1, int), title=np.zeros(1, int), time=np.zeros(1, int)))
    np.testing.assert_allclose(taste, [[1.0] * 7 + [0.0] * 8], atol=1e-6)


def test_lists_and_their_figures() -> None:
    log = log_of()
    scores = np.random.default_rng(1).random((log.members, 15))
    offered = np.arange(15) > 1
    lists = top_titles(scores, log, offered)
    for member, row in enumerate(lists):
        free = [t for t in range(2, 15) if t not in set(log.title[log.member == member])]
        assert row[: len(free)].tolist() == sorted(free, key=lambda t: -np.float32(scores[member, t]))[:10]
    figures = ndcg_and_hits(
        np.pad(np.array([[3, 1, 2], [4, 5, 6], [7, 8, 9]]), [(0, 0), (0, 7)], constant_values=-1), np.array([3, 6, 1])
    )
    assert figures == pytest.approx(((1 + 0.5 + 0) / 3, 2 / 3))


@pytest.mark.benchmark
def test_a_whole_run(service: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "titles.yaml"
    recipe.write_text(
        (RECIPES / "titles.yaml").read_text(encoding="utf-8").replace("epochs: 30", "epochs: 2"), encoding="utf-8"
    )
    rows = bench(Config(log=str(service), recipe=str(recipe), epochs=0), Console(quiet=True))
    value_of = {(row.subject, row.figure): row.value for row in rows}
    assert value_of["keyart", "NDCG@10"] > 0
    assert {"popularity", "item-kNN", "EASE"} <= {row.subject for row in rows}
