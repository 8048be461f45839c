"""Titles: the regression equals EASE, the loss equals the softmax's, the feed loses no play, and lists follow the vectors."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from datamodules.feed.datamodule import Cursor
from datamodules.feed.play_feed import PlaysFeed
from datamodules.shards.shard import Shards
from foundation.errors import UserError
from models.linear_title_models import LowRankEase, LowRankEaseConfig, NextItemConfig, NextItemRegression
from models.retrieval import member_vectors, title_vectors
from models.two_tower import TwoTower, TwoTowerConfig
from serving.bundle.bundle import Bundle
from serving.scoring.recommend import recommend
from train.embed import load_embedding
from train.next_title import (
    NextTitleLoss,
    TitlesConfig,
    fit_titles,
    proposal_distribution,
    target_mask,
    title_loss,
)
from train.optimiser import OptimiserConfig
from train.prior import PriorConfig
from train.run import Run, content_of, sizes_of
from train.task import RankerTask

SMALL = TwoTowerConfig(width=16, dropout=0.0, id_dropout=0.0, next_item=NextItemConfig(rank=400))


def model_of(shards: Path, config: TwoTowerConfig = SMALL) -> TwoTower:
    torch.manual_seed(0)
    opened = Shards.open(shards)
    return TwoTower(
        config, sizes_of(opened.vocabularies, opened.context), content_of(opened, load_embedding(shards)[0])
    )


def test_what_is_played_together_is_ease() -> None:
    """At full rank, the vectors give the weights of the regression."""
    rng = np.random.default_rng(0)
    played = rng.random((60, 12)) < 0.3
    member, title = np.nonzero(played)
    coplay = LowRankEase(14, LowRankEaseConfig(rank=12, ridge=5.0))  # a row without plays, and the unknown one
    coplay.fit(torch.from_numpy(member), torch.from_numpy(title) + 1)
    gram = played.astype(float).T @ played
    inverse = np.linalg.inv(gram + 5.0 * np.eye(12))
    weights = -inverse / np.diag(inverse)
    scores = (coplay.source_IR @ coplay.target_IR.T).numpy()
    others = ~np.eye(12, dtype=bool)
    np.testing.assert_allclose(scores[1:13, 1:13][others], weights[others], atol=1e-4)
    assert not scores[[0, 13]].any(), "titles without plays have no score"
    assert not scores[:, [0, 13]].any()
    fit, other = coplay.similarity(coplay.source_IR[[3, 7]].sum(0)[None], coplay.target_IR[[5]])[0]
    dot = weights[[2, 6], 4].sum()
    assert float(other) == pytest.approx(np.arcsinh(dot / float(coplay.score_std_2[1])), abs=1e-4)
    assert float(fit) == pytest.approx(np.arcsinh(dot / float(coplay.score_std_2[0])), abs=1e-4), (
        "twelve are fewer than COARSE_RANK"
    )


def order_by_loops(histories: list[list[int]], config: NextItemConfig, titles: int) -> np.ndarray:
    """B = (S'S + ridge)^-1 S'Y, written out play by play: (titles, titles), rows and columns from title 1 on."""
    gram, following = config.ridge * np.eye(titles), np.zeros((titles, titles))
    for history in histories:
        for p, title in enumerate(history):
            if title in history[:p]:
                continue
            weights = np.zeros(titles)
            for back, before in enumerate(reversed(history[:p])):
                if before <= titles:
                    fast, slow = np.exp(-back / config.near), np.exp(-back / config.far)
                    weights[before - 1] += (1 - config.rest) * fast + config.rest * slow
            gram += np.outer(weights, weights)
            if title <= titles:
                following[:, title - 1] += weights
    return np.linalg.solve(gram, following)


def test_what_is_played_next_is_the_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    """At full rank, in blocks as in one; titles beyond the most played are left out, but count as plays in between; at low
    rank, the best approximation."""
    rng = np.random.default_rng(0)
    histories = [[int(title) for title in rng.zipf(1.3, n).clip(max=11)] for n in (1, 2, 9, 30, 40, 5)]
    member = torch.from_numpy(np.repeat(np.arange(6), [len(history) for history in histories]))
    title = torch.tensor([title for history in histories for title in history])
    config = NextItemConfig(rank=12, ridge=2.0, near=3.0, far=20.0, rest=0.2, gain=7.0)
    expected = order_by_loops(histories, config, 11)
    order = NextItemRegression(13, config)
    order.fit(member, title)
    np.testing.assert_allclose((order.source_IR @ order.target_IR.T)[1:12, 1:12], expected, atol=1e-4)
    assert not (order.source_IR @ order.target_IR.T)[:, [0, 12]].any(), "titles without plays have no score"

    length, played = torch.tensor([4, 2]), torch.tensor([[3, 7, 1, 2, 9], [4, 2, 0, 0, 0]])
    scores = order.states(played, length, span=3) @ order.targets(torch.arange(13)).T
    for row, rows in enumerate(([2, 1, 7], [2, 4])):  # the last three alone, newest first
        weight = [0.8 * np.exp(-back / 3.0) + 0.2 * np.exp(-back / 20.0) for back in range(3)]
        score = sum(7.0 * w * expected[title - 1] for w, title in zip(weight, rows, strict=False))
        np.testing.assert_allclose(scores[row, 1:12], score, atol=1e-3)

    with monkeypatch.context() as patched:
        patched.setattr("models.linear_title_models.BLOCK", 45)
        blocks = NextItemRegression(13, config)
        blocks.fit(member, title)
        np.testing.assert_allclose(
            blocks.source_IR @ blocks.target_IR.T, order.source_IR @ order.target_IR.T, atol=1e-4
        )

    few = NextItemRegression(13, replace(config, titles=2))
    few.fit(member, title)
    most_played = np.argsort(-np.bincount(title.numpy(), minlength=12), kind="stable")[:2]
    assert set(few.source_IR.any(1).nonzero().flatten().tolist()) == set(most_played.tolist())
    renamed = {int(row): index + 1 for index, row in enumerate(sorted(most_played))}
    # others get an index of their own, so that a first play stays one and plays in between count
    as_few = [[renamed.get(t, 2 + t) for t in history] for history in histories]
    small = order_by_loops(as_few, config, 2)
    np.testing.assert_allclose(
        (few.source_IR @ few.target_IR.T)[np.ix_(sorted(most_played), sorted(most_played))], small, atol=1e-4
    )

    low = NextItemRegression(13, replace(config, rank=3))
    low.fit(member, title)
    gram = np.zeros((11, 11))
    for history in histories:
        for p, each in enumerate(history):
            if each not in history[:p]:
                w = np.zeros(11)
                for back, before in enumerate(reversed(history[:p])):
                    w[before - 1] += 0.8 * np.exp(-back / 3.0) + 0.2 * np.exp(-back / 20.0)
                gram += np.outer(w, w)
    root = np.linalg.cholesky(gram + 2.0 * np.eye(11)).T
    lost = np.linalg.norm(root @ ((low.source_IR @ low.target_IR.T).numpy()[1:12, 1:12] - expected)) ** 2
    least = (np.linalg.svd(root @ expected, compute_uv=False)[3:] ** 2).sum()
    assert lost == pytest.approx(least, rel=1e-2), "the least that rank 3 can lose"


def test_every_play_once_a_pass_and_none_too_late(shards: Path) -> None:
    opened = Shards.open(shards).shards
    moment = int(np.quantile(opened[0].play_time, 0.6))
    feed = PlaysFeed(opened, before=moment, plays=7, batch=5, seed=1)
    expected = Counter(title for shard in opened for title in shard.play_title[shard.play_time < moment].tolist())
    orders = []
    for epoch in range(2):
        feed.epoch = epoch
        batches = list(feed)
        played = Counter(t for b in batches for t in b.play_title[b.play_title > 0].tolist())
        assert played == +Counter({title: n for title, n in expected.items() if title > 0})
        assert all(b.play_title.shape[1] <= 7 and len(b.play_title) <= 5 for b in batches)
        firsts = sum(int(b.first.sum()) for b in batches)
        members = sum(int((np.diff(s.member_plays) > 0).sum()) for s in opened)
        assert firsts <= members, "a member has one first play"
        orders.append([b.play_title.tolist() for b in batches])
    assert orders[0] != orders[1], "cut elsewhere, in another order"
    assert len(feed.played()[1]) == sum(expected.values())


def test_the_loss_is_that_of_the_softmax_over_all_titles(shards: Path) -> None:
    model = model_of(shards).eval()
    with torch.no_grad():
        model.sequence_tower.next_bias.weight.normal_()
    batch = next(iter(PlaysFeed(Shards.open(shards).shards, plays=9, batch=6)))
    states = model.states(batch.play_title, batch.play_artwork, batch.play_watched)
    target = target_mask(batch)
    proposal = proposal_distribution(PlaysFeed(Shards.open(shards).shards).played()[1], model.sizes.titles)
    assert proposal[0] == 0
    assert proposal.sum() == pytest.approx(1)
    summed, count = title_loss(model, states, batch.play_title, target, TitlesConfig(), proposal)
    with torch.no_grad():
        vectors, bias = model.next_titles(torch.arange(1, model.sizes.titles))
    loss, plays = 0.0, 0
    for m in range(len(batch.play_title)):
        for t in range(batch.play_title.shape[1]):
            title = int(batch.play_title[m, t])
            if title == 0 or title >= model.sizes.titles or (t == 0 and not batch.first[m]):
                continue
            logits = vectors @ model.sequence_tower.member_next(states.learned[m, t]) + bias[:, 0]
            loss -= float(torch.log_softmax(logits.detach(), 0)[title - 1])
            plays += 1
    assert int(count) == plays
    assert float(summed.detach()) == pytest.approx(loss, rel=1e-4)
    torch.manual_seed(0)
    many = TitlesConfig(negatives=model.sizes.titles - 2)
    sampled = [
        float(title_loss(model, states, batch.play_title, target, many, proposal)[0].detach()) for _ in range(300)
    ]
    assert np.mean(sampled) == pytest.approx(loss, rel=0.05), "corrected for how often each is drawn"


def test_titles_alone_are_learned(shards: Path) -> None:
    """Better than how often each is played, which is where it begins."""
    feed = PlaysFeed(Shards.open(shards).shards, plays=30, batch=16)
    losses: list[float] = []
    config = TitlesConfig(epochs=6, negatives=20)
    optimiser = OptimiserConfig(learning_rate=5e-3, weight_decay=0.01, average=0.9)
    model = fit_titles(model_of(shards), feed, config, optimiser, on_epoch_end=lambda _, loss, __: losses.append(loss))
    assert losses[-1] < losses[0] - 0.05
    assert model.next_item is not None
    assert model.next_item.source_IR[1:].any()
    with pytest.raises(UserError, match="no play to learn from"):
        fit_titles(model_of(shards), PlaysFeed(Shards.open(shards).shards, before=0), config, optimiser)


@pytest.mark.parametrize("weight", [None, 0.05])
def test_without_title_ranking_its_weights_are_zero_in_the_average_too(shards: Path, weight: float | None) -> None:
    model, titles = model_of(shards), None
    if weight is not None:
        feed = PlaysFeed(Shards.open(shards).shards)
        titles = NextTitleLoss.prepare(model, feed, TitlesConfig(weight=weight, negatives=3), 0)
    progress = {"impressions": 100, "total_steps": 9, "seed": 0, "cursor": Cursor()}
    task = RankerTask(model, OptimiserConfig(), PriorConfig(), titles=titles, **progress)
    averaged = task.ema.module.get_parameter("sequence_tower.member_next.weight")
    assert bool(averaged.any()) == (weight is not None)


@pytest.fixture(scope="module")
def both(attending: Path) -> Bundle:
    """The bundle of a ranker that learned clicks and titles."""
    return Bundle.open(attending)


def lists_of(folder: Path) -> dict[str, tuple[list[str], list[float]]]:
    tables = [pq.read_table(path).to_pylist() for path in sorted(folder.glob("*.parquet"))]
    return {row["member_id"]: (row["titles"], row["scores"]) for table in tables for row in table}


def test_lists_are_the_best_titles_not_played(both: Bundle, attending_run: Path, service: Path, tmp_path: Path) -> None:
    """By torch, member by member."""
    moment = datetime(2024, 8, 1, tzinfo=UTC)
    count = recommend(both, service, tmp_path / "lists", top=5, before=moment)
    lists = lists_of(tmp_path / "lists")
    assert (
        count == len(lists) == json.loads((tmp_path / "lists" / "_titles.json").read_text(encoding="utf-8"))["members"]
    )
    model, vocabulary = Run.open(attending_run).model, both.vocabularies["titles"]
    plays = pq.read_table(service / "plays").to_pandas().sort_values(["member_id", "played_at"])
    plays = plays[plays["played_at"] < moment]
    rows, reach = torch.arange(len(vocabulary)), both.history_length
    artworks = {value: row for row, value in enumerate(both.vocabularies["artworks"].values, 1)}
    checked = 0
    with torch.no_grad():
        vectors = title_vectors(model, rows)
        for member, own in list(plays.groupby("member_id"))[:40]:
            if own["played_at"].duplicated().any():
                continue
            history = torch.tensor([vocabulary.row(title) for title in own["title_id"]])
            last = own.iloc[-reach:]
            clicked = (
                [artworks.get(a, 0) if a else 0 for a in last["artwork_id"]]
                if "artwork_id" in last
                else [0] * len(last)
            )
            watched = (
                last["watched"].to_numpy(np.float32) if "watched" in last else np.full(len(last), np.nan, np.float32)
            )
            request = (history[-reach:], torch.tensor(clicked), torch.tensor(watched))
            request = tuple(part[None] for part in request)
            state = model.states(*request).learned[:, -1]
            score = (member_vectors(model, state, request[0], torch.tensor([len(last)])) @ vectors.T)[0]
            score[0] = score[history] = -torch.inf
            best = score.topk(5)
            assert lists[member][0] == [vocabulary.values[row - 1] for row in best.indices.tolist()]
            np.testing.assert_allclose(lists[member][1], best.values, atol=1e-3)
            assert not set(lists[member][0]) & set(own["title_id"])
            checked += 1
    assert checked > 10


def test_members_without_plays_and_lists_that_end(both: Bundle, service: Path, tmp_path: Path) -> None:
    """An unknown member gets a list too; a member who has played nearly all titles gets a short one."""
    own = tmp_path / "service"
    own.mkdir()
    for path in service.iterdir():
        (own / path.name).symlink_to(path)
    members = pq.read_table(service / "members.parquet") if (service / "members.parquet").is_file() else None
    import pyarrow as pa

    table = pa.table({"member_id": ["nobody knows me"]})
    (own / "members.parquet").unlink(missing_ok=True)
    pq.write_table(
        table if members is None else pa.concat_tables([members.select(["member_id"]), table]), own / "members.parquet"
    )
    titles = len(both.vocabularies["titles"].values)
    recommend(both, own, tmp_path / "lists", top=titles)
    lists = lists_of(tmp_path / "lists")
    assert len(lists["nobody knows me"][0]) == titles
    played = (
        pq.read_table(service / "plays", columns=["member_id", "title_id"]).to_pandas().groupby("member_id")["title_id"]
    )
    for member, count in played.nunique().items():
        assert len(lists[member][0]) == titles - count
        assert np.isfinite(lists[member][1]).all()
        assert (np.diff(lists[member][1]) <= 0).all()
    with pytest.raises(UserError, match="top=0"):
        recommend(both, own, tmp_path / "none", top=0)


def test_titles_that_left_the_catalogue_are_not_listed(both: Bundle, service: Path, tmp_path: Path) -> None:
    """They are counted and named, as are titles without artworks and those that the bundle does not know; plays still count."""
    own = tmp_path / "service"
    own.mkdir()
    for path in service.iterdir():
        (own / path.name).symlink_to(path)
    titles, artworks = (pq.read_table(service / f"{name}.parquet") for name in ("titles", "artworks"))
    ids = titles["title_id"].to_pylist()
    left, bare = ids[: len(ids) * 3 // 4], ids[-1]
    kept = titles.filter(~np.isin(ids, left))
    named = kept.set_column(0, "title_id", [["new one", *kept["title_id"].to_pylist()[1:]]])
    left.append(kept["title_id"][0].as_py())
    for name, table in (
        ("titles", named),
        ("artworks", artworks.filter(~np.isin(artworks["title_id"].to_pylist(), [*left, bare]))),
    ):
        (own / f"{name}.parquet").unlink()
        pq.write_table(table, own / f"{name}.parquet")
    console = Console(record=True, width=500, file=StringIO())
    recommend(both, own, tmp_path / "lists", top=len(ids), console=console)
    said = console.export_text()
    assert f"{len(left):,} titles of {both.folder} are not in {own}/titles.parquet (first: " in said
    assert f"1 titles have no artwork in {own}/artworks.parquet (first: {bare})" in said
    assert f"1 titles of {own} are not known to {both.folder}" in said
    listed = {title for titles, _ in lists_of(tmp_path / "lists").values() for title in titles}
    assert listed == set(ids) - {*left, bare}
    whole = tmp_path / "whole"
    recommend(both, service, whole, top=len(ids), console=Console(quiet=True))
    for member, (titles_of, scores_of) in lists_of(whole).items():
        score_of = dict(zip(titles_of, scores_of, strict=True))
        for title, score in zip(*lists_of(tmp_path / "lists")[member], strict=True):
            assert score_of[title] == score
    (own / "titles.parquet").unlink()
    pq.write_table(named.slice(0, 1), own / "titles.parquet")
    with pytest.raises(UserError, match="none of its titles with artworks is known"):
        recommend(both, own, tmp_path / "none", console=Console(quiet=True))


def test_lists_need_no_torch(both: Bundle, service: Path, tmp_path: Path) -> None:
    program = f"""
import sys
for name in ("torch", "torchvision", "pytorch_lightning", "lightning"):
    sys.modules[name] = None
from pathlib import Path
from serving.bundle.bundle import Bundle
from serving.scoring.recommend import recommend
print(recommend(Bundle.open(Path({str(both.folder)!r})), Path({str(service)!r}), Path({str(tmp_path / "lists")!r})))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[1], encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 0
