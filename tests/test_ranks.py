"""Two processes train as one does: the same batches, dealt out; the same loss; and only one of them writes."""

import csv
import json
import os
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from real_process import start, wait_for

from datamodules.feed.impression_feed import Feed
from datamodules.shards.shard import TRAIN, VALIDATION, Shards
from foundation.errors import UserError
from models.history import HistoryConfig
from models.linear_title_models import LowRankEaseConfig, NextItemConfig
from models.two_tower import TwoTower, TwoTowerConfig
from train.checkpoint import LAST
from train.config import FitConfig
from train.embed import load_embedding
from train.fit import fit
from train.next_title import TitlesConfig
from train.run import CONFIG, METRICS, WEIGHTS, content_of, sizes_of
from train.task import losses

STILL = TwoTowerConfig(dropout=0.0, id_dropout=0.0, history=HistoryConfig(dropout=0.0))
"""Without dropout, which each rank draws for itself."""


@pytest.mark.parametrize(("split", "ranks", "impressions"), [(TRAIN, 2, 300), (VALIDATION, 3, 1), (TRAIN, 5, 40)])
def test_ranks_share_every_batch(shards: Path, split: int, ranks: int, impressions: int) -> None:
    """No impression twice, none lost, also where a batch has fewer windows than there are ranks."""
    opened = Shards.open(shards).shards
    settings = {"reach": 8, "impressions": impressions, "shuffle": split == TRAIN}
    global_impressions = list(Feed(opened, split, **settings))
    dealt = [list(Feed(opened, split, rank=rank, ranks=ranks, **settings)) for rank in range(ranks)]
    assert {len(batches) for batches in dealt} == {len(global_impressions)}
    empty = 0
    for batch, *parts in zip(global_impressions, *dealt, strict=True):
        assert Counter(batch.index.tolist()) == Counter(row for part in parts for row in part.index.tolist())
        assert {part.global_impressions for part in parts} == {batch.global_impressions} == {len(batch.index)}
        empty += sum(len(part.index) == 0 for part in parts)
    assert (empty > 0) == (impressions < 300)


def test_a_rank_without_impressions_has_every_gradient(shards: Path) -> None:
    """What ranks that average their gradients wait for."""
    opened = Shards.open(shards)
    model = TwoTower(
        STILL, sizes_of(opened.vocabularies, opened.context), content_of(opened, load_embedding(shards)[0])
    )
    feed = Feed(opened.shards, TRAIN, reach=50, impressions=1, shuffle=True, rank=1, ranks=2)
    batch = next(batch for batch in feed if not len(batch.index))
    model.disable_title_ranking()  # which a loss of their own reaches
    click, engaged, _ = losses(model, batch)
    (click + engaged).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all(value is not None and not value.any() for value in gradients.values()), gradients


def test_a_model_without_coplay_has_no_gain_to_wait_for(shards: Path) -> None:
    opened = Shards.open(shards)
    shape = replace(STILL, coplay=LowRankEaseConfig(rank=0), next_item=NextItemConfig(rank=0))
    model = TwoTower(
        shape, sizes_of(opened.vocabularies, opened.context), content_of(opened, load_embedding(shards)[0])
    )
    model.disable_title_ranking()
    click, engaged, _ = losses(model, next(iter(Feed(opened.shards, TRAIN, reach=50, impressions=200, shuffle=True))))
    (click + engaged).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def logged_rows(run: Path) -> list[list[float]]:
    """Step, training loss and validation loss of every validation."""
    rows = list(csv.reader((run / "log.csv").read_text(encoding="utf-8").splitlines()))
    return [[float(value) for value in row[1:4]] for row in rows[1:]]


def test_two_processes_train_as_one(shards: Path, tmp_path: Path) -> None:
    # without titles, which each rank draws for itself
    config = FitConfig(
        epochs=2, validations_per_epoch=3, batch=500, patience=9, model=STILL, titles=TitlesConfig(weight=0)
    )
    alone, run = tmp_path / "alone", tmp_path / "run"
    one, two = fit(shards, alone, config), fit(shards, run, replace(config, devices=2))
    np.testing.assert_allclose(logged_rows(run), logged_rows(alone), atol=1e-5)
    assert two["validation_log_loss"] == pytest.approx(one["validation_log_loss"], abs=1e-5)
    assert two["best_validation"] == one["best_validation"]
    assert len(list((run / "tensorboard").iterdir())) == 1, "one of them writes"
    assert fit(shards, run, config) == two, "the number of processes is not part of the config"


def test_ctrl_c_saves_and_two_processes_go_on_where_they_stood(shards: Path, tmp_path: Path) -> None:
    """With dropout: each rank's generator is restored."""
    config = FitConfig(
        epochs=1, validations_per_epoch=2, batch=128, devices=2, patience=9, checkpoint_minutes=1e-9, evidence=False
    )
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    fit(shards, undisturbed, config)

    def interrupt() -> None:
        wait_for(run / LAST, 0)
        os.kill(os.getpid(), signal.SIGINT)

    thread = Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        fit(shards, run, config)
    thread.join()
    assert not (run / METRICS).is_file()
    cursor = torch.load(run / LAST, weights_only=True)["cursor"]
    assert cursor[2] > 0
    elsewhere = shutil.copytree(run, tmp_path / "elsewhere")
    fit(shards, run, config)
    assert (run / WEIGHTS).read_bytes() == (undisturbed / WEIGHTS).read_bytes()
    fit(shards, elsewhere, replace(config, devices=1))
    assert len(logged_rows(elsewhere)) == len(logged_rows(run)), "one process ends what two began"


def test_a_signal_while_they_begin_ends_all_of_them(shards: Path, tmp_path: Path) -> None:
    """No process waits for one that left, and the message is one line."""
    output, run = tmp_path / "said", tmp_path / "run"
    words = ["fit", str(shards), str(run), "--devices", "2", "--epochs", "40", "--batch", "256", "--patience", "99"]
    process = start(words, output)
    wait_for(run / CONFIG, 0, process)  # the first of them has begun, and the others wait for what it says
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 0, output.read_text(encoding="utf-8")
    assert "Re-run the same command to resume" in output.read_text(encoding="utf-8")
    assert "Traceback" not in output.read_text(encoding="utf-8")


def test_what_one_of_them_cannot_use_is_said_once(shards: Path, tmp_path: Path) -> None:
    own = shutil.copytree(shards, tmp_path / "shards")
    path = own / "embedding" / "embedding.npy"
    np.save(path, np.load(path) * np.nan)
    record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    path.with_suffix(".json").write_text(json.dumps(record | {"files": {}}), encoding="utf-8")
    with pytest.raises(UserError, match=r"run: the loss is nan before validation 1, batch 0"):
        fit(own, tmp_path / "run", FitConfig(batch=500, devices=2))
    with pytest.raises(UserError, match=r"no manifest\.json"):
        fit(tmp_path / "nowhere", tmp_path / "other", FitConfig(devices=2))
