"""bench feed and bench train: subjects read the same impressions, and what is called per-impression is the same model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmarks import feed as bench_feed
from benchmarks import train as bench_train
from benchmarks.impression_rows import ImpressionRows, write_for_torch_rechub
from benchmarks.subject import Training, feed_subject, floor, keyart_feed, train_subject
from datamodules.shards.shard import Shards
from foundation.errors import UserError
from models.history import HistoryConfig
from models.two_tower import TwoTower, TwoTowerConfig
from train.embed import load_embedding
from train.run import content_of, sizes_of
from train.task import losses, rank_batch

PLAYS = 12
SHAPE = TwoTowerConfig(width=16, history=HistoryConfig(span=PLAYS))


@pytest.fixture(scope="module")
def opened(shards: Path) -> Shards:
    return Shards.open(shards)


def test_a_row_for_each_impression_says_the_same(shards: Path, opened: Shards) -> None:
    """Members read once, and a padded history for each impression: one by one the same logits."""
    torch.manual_seed(0)
    model = TwoTower(
        SHAPE, sizes_of(opened.vocabularies, opened.context), content_of(opened, load_embedding(shards)[0])
    ).eval()
    feed = keyart_feed(opened, 256, PLAYS)
    rows = ImpressionRows.of(opened, PLAYS, feed.size)
    assert len(rows) == feed.size
    results = []
    for batches in (feed, rows.batches(200)):
        logit, clicked, loss = [], 0.0, 0.0
        for batch in batches:
            with torch.no_grad():
                logit.append(rank_batch(model, batch).click_NK()[:, 0].numpy())
                loss += float(losses(model, batch)[0]) * len(batch.clicked)
            clicked += float(batch.clicked.sum())
        results.append((np.sort(np.concatenate(logit)), clicked, loss))
    some = len(results[1][0])  # the last, short batch of the rows is left out
    assert feed.size - 200 < some <= feed.size
    everything, _, _ = results[0]
    near = everything[np.searchsorted(everything, results[1][0]).clip(1, len(everything) - 1)]
    below = everything[np.searchsorted(everything, results[1][0]).clip(1, len(everything) - 1) - 1]
    apart = np.minimum(np.abs(near - results[1][0]), np.abs(below - results[1][0]))
    assert apart.max() < 1e-4


def test_every_subject_reads_what_it_says(shards: Path, opened: Shards) -> None:
    feed = keyart_feed(opened, 256, PLAYS)
    assert feed_subject(opened, "keyart", 256, PLAYS, 1000)["impressions"] == feed.size
    assert floor(opened, feed)[0] == feed.size
    assert 700 < feed_subject(opened, "per-impression", 100, PLAYS, 1000)["impressions"] <= 1000
    embedding = load_embedding(shards)[0]
    for subject in ("keyart", "per-impression"):
        figures = train_subject(opened, subject, 128, 512, SHAPE, embedding)
        assert figures["impressions"] > 512
        assert figures["seconds"] > 0


def test_a_step_is_that_of_the_training(shards: Path, opened: Shards) -> None:
    """It learns: the loss of a batch falls."""
    training = Training(opened, load_embedding(shards)[0], SHAPE)
    batch = next(iter(keyart_feed(opened, 512, PLAYS)))
    before = losses(training.model.eval(), batch)[0].item()
    training.model.train()
    for _ in range(30):
        training.step(batch)
    assert losses(training.model.eval(), batch)[0].item() < before - 0.01


def test_what_torch_rechub_is_given(opened: Shards, shards: Path, tmp_path: Path) -> None:
    rows = ImpressionRows.of(opened, PLAYS, 500)
    embedding = load_embedding(shards)[0].numpy()
    write_for_torch_rechub(rows, opened, embedding, tmp_path / "rows.npz")
    given = dict(np.load(tmp_path / "rows.npz"))
    assert {len(values) for values in given.values()} == {len(rows)}
    assert given["user_history"].shape[1] == PLAYS
    np.testing.assert_array_equal((given["user_history"] > 0).sum(1), rows.columns["length"])
    np.testing.assert_array_equal(given["item_image"], embedding[rows.columns["artwork"]])
    assert given["clicked"].sum() == rows.columns["clicked"].sum()


@pytest.mark.parametrize("bench", [bench_feed, bench_train])
def test_bad_sizes_are_named(bench) -> None:
    with pytest.raises(UserError, match="repeats=0"):
        bench.Config(repeats=0)
    with pytest.raises(UserError, match="nowhere: has no manifest"):
        bench.bench(bench.Config(shards="nowhere"), Console(quiet=True))


@pytest.mark.benchmark
@pytest.mark.parametrize("bench", [bench_feed, bench_train])
def test_one_table(bench, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All subjects in their processes, torch-rechub among them, or the reason why not."""
    sizes = {"shards": str(shards), "batch": 128, "plays": PLAYS, "width": 16, "repeats": 1, "impressions": 2000}
    rows = bench.bench(bench.Config(**sizes), Console(stderr=True, width=300))
    expected = {"keyart", "per-impression"} | ({"floor"} if bench is bench_feed else set())
    left_out = "torch-rechub left out" in capsys.readouterr().err
    assert {row.subject for row in rows} == expected | (set() if left_out else {"torch-rechub"})
    rates = [row for row in rows if row.unit == "impressions/s"]
    assert min(row.value for row in rates) > 0
    assert json.dumps([row.value for row in rows])
