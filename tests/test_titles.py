"""Titles: the regression is EASE's, the loss is the softmax's, the feed loses no play, and lists are what vectors say."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from datamodules.contract import UserError
from datamodules.plays import PlaysFeed
from datamodules.shards import Shards
from export.bundle import Bundle
from export.recommend import recommend
from models.history import HistoryConfig
from models.titles import Coplay, CoplayConfig
from models.two_tower import TwoTower, TwoTowerConfig
from train.config import FitConfig
from train.embed import load_embedding
from train.fit import fit
from train.optimiser import OptimiserConfig
from train.run import Run, content_of, sizes_of
from train.titles import TitlesConfig, chances_of, fit_titles, title_loss, told_in

SMALL = TwoTowerConfig(width=16, dropout=0.0, id_dropout=0.0, coplay=CoplayConfig(rank=400))


def model_of(shards: Path, config: TwoTowerConfig = SMALL) -> TwoTower:
    torch.manual_seed(0)
    opened = Shards.open(shards)
    return TwoTower(config, sizes_of(opened.vocabularies), content_of(opened, load_embedding(shards)[0]))


def test_what_is_played_together_is_ease() -> None:
    """Of full rank; plays counted by how long ago they were."""
    chance = np.random.default_rng(0)
    played = chance.random((60, 12)) < 0.3
    member, title = np.nonzero(played)
    config = CoplayConfig(rank=12, ridge=5.0, recent=3.0, gain=2.0)
    coplay = Coplay(14, config)  # a row nobody plays, and the unknown one
    coplay.fit(torch.from_numpy(member), torch.from_numpy(title) + 1)
    gram = played.astype(float).T @ played
    inverse = np.linalg.inv(gram + 5.0 * np.eye(12))
    weights = -inverse / np.diag(inverse)
    history, length = torch.tensor([[3, 7, 1, 0, 0], [4, 4, 2, 9, 0]]), torch.tensor([3, 4])
    scores = coplay.states(history, length, span=3) @ coplay.targets(torch.arange(14)).T
    for row, rows in enumerate(([3, 7, 1], [4, 2, 9])):  # the last three alone
        expected = sum(2.0 * np.exp(-(2 - i) / 3.0) * weights[title - 1] for i, title in enumerate(rows))
        others = [j for j in range(12) if j + 1 not in rows]
        np.testing.assert_allclose(scores[row, 1:13].numpy()[others], np.asarray(expected)[others], atol=1e-4)
    assert not scores[:, [0, 13]].any(), "nothing is known of titles nobody played"


def test_every_play_once_a_pass_and_none_too_late(shards: Path) -> None:
    opened = Shards.open(shards).shards
    moment = int(np.quantile(opened[0].play_time, 0.6))
    feed = PlaysFeed(opened, before=moment, plays=7, batch=5, seed=1)
    expected = Counter(title for shard in opened for title in shard.play_title[shard.play_time < moment].tolist())
    orders = []
    for epoch in range(2):
        feed.epoch = epoch
        batches = list(feed)
        told = Counter(t for b in batches for t in b.play_title[b.play_title > 0].tolist())
        assert told == +Counter({title: n for title, n in expected.items() if title > 0})
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
        model.next_bias.weight.normal_()
    batch = next(iter(PlaysFeed(Shards.open(shards).shards, plays=9, batch=6)))
    states = model.states(batch.play_title, batch.play_artwork, batch.play_watched, batch.play_time)
    told = told_in(batch)
    chances = chances_of(PlaysFeed(Shards.open(shards).shards).played()[1], model.sizes.titles)
    assert chances[0] == 0
    assert chances.sum() == pytest.approx(1)
    found, count = title_loss(model, states, batch.play_title, told, TitlesConfig(), chances)
    with torch.no_grad():
        vectors, bias = model.next_titles(torch.arange(1, model.sizes.titles))
    loss, plays = 0.0, 0
    for m in range(len(batch.play_title)):
        for t in range(batch.play_title.shape[1]):
            title = int(batch.play_title[m, t])
            if title == 0 or title >= model.sizes.titles or (t == 0 and not batch.first[m]):
                continue
            logits = vectors @ model.member_next(states.learned[m, t]) + bias[:, 0]
            loss -= float(torch.log_softmax(logits.detach(), 0)[title - 1])
            plays += 1
    assert int(count) == plays
    assert float(found.detach()) == pytest.approx(loss, rel=1e-4)
    torch.manual_seed(0)
    many = TitlesConfig(negatives=model.sizes.titles - 2)
    sampled = [float(title_loss(model, states, batch.play_title, told, many, chances)[0].detach()) for _ in range(300)]
    assert np.mean(sampled) == pytest.approx(loss, rel=0.05), "corrected for how often each is drawn"


def test_titles_alone_are_learned(shards: Path) -> None:
    """Better than how often each is played, which is where it begins."""
    feed = PlaysFeed(Shards.open(shards).shards, plays=30, batch=16)
    losses: list[float] = []
    config = TitlesConfig(passes=6, negatives=20)
    optimiser = OptimiserConfig(learning_rate=5e-3, weight_decay=0.01, average=0.9)
    model = fit_titles(model_of(shards), feed, config, optimiser, after_pass=lambda _, loss, __: losses.append(loss))
    assert losses[-1] < losses[0] - 0.05
    assert model.coplay is not None
    assert model.coplay.source_IR[1:].any()
    with pytest.raises(UserError, match="no play to learn from"):
        fit_titles(model_of(shards), PlaysFeed(Shards.open(shards).shards, before=0), config, optimiser)


@pytest.fixture(scope="module")
def both(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of a ranker that learned clicks and titles."""
    from export.export import export

    folder = tmp_path_factory.mktemp("titles")
    model = replace(SMALL, history=HistoryConfig(encoder="attention", gated=True, layers=2, span=6))
    titles = TitlesConfig(weight=0.05, negatives=10)
    fit(shards, folder / "run", FitConfig(passes=1, slices=1, batch=512, model=model, titles=titles))
    run = Run.open(folder / "run")
    assert run.model.next_bias.weight.any()
    return export(run.model, run.vocabularies, folder / "bundle", about={"run": str(folder / "run")})


def lists_of(folder: Path) -> dict[str, tuple[list[str], list[float]]]:
    tables = [pq.read_table(path).to_pylist() for path in sorted(folder.glob("*.parquet"))]
    return {row["member_id"]: (row["titles"], row["scores"]) for table in tables for row in table}


def test_lists_are_the_best_titles_not_played(both: Bundle, service: Path, tmp_path: Path) -> None:
    """By torch, member by member."""
    moment = datetime(2024, 8, 1, tzinfo=UTC)
    count = recommend(both, service, tmp_path / "lists", top=5, before=moment)
    lists = lists_of(tmp_path / "lists")
    assert count == len(lists) == json.loads((tmp_path / "lists" / "titles.json").read_text())["members"]
    model, vocabulary = Run.open(Path(both.about["run"])).model, both.vocabularies["titles"]
    plays = pq.read_table(service / "plays").to_pandas().sort_values(["member_id", "played_at"])
    plays = plays[plays["played_at"] < moment]
    rows, reach = torch.arange(len(vocabulary)), both.history_length
    artworks = {value: row for row, value in enumerate(both.vocabularies["artworks"].values, 1)}
    checked = 0
    with torch.no_grad():
        vectors = model.title_vectors(rows)
        for member, own in list(plays.groupby("member_id"))[:40]:
            if own["played_at"].duplicated().any():
                continue
            told = torch.tensor([vocabulary.row(title) for title in own["title_id"]])
            last = own.iloc[-reach:]
            clicked = (
                [artworks.get(a, 0) if a else 0 for a in last["artwork_id"]]
                if "artwork_id" in last
                else [0] * len(last)
            )
            watched = (
                last["watched"].to_numpy(np.float32) if "watched" in last else np.full(len(last), np.nan, np.float32)
            )
            seconds = last["played_at"].astype("datetime64[us, UTC]").astype(np.int64).to_numpy() // 1_000_000
            request = (told[-reach:], torch.tensor(clicked), torch.tensor(watched), torch.tensor(seconds))
            request = tuple(part[None] for part in request)
            state = model.states(*request).learned[:, -1]
            score = (model.member_vectors(state, request[0], torch.tensor([len(last)])) @ vectors.T)[0]
            score[0] = score[told] = -torch.inf
            best = score.topk(5)
            assert lists[member][0] == [vocabulary.values[row - 1] for row in best.indices.tolist()]
            np.testing.assert_allclose(lists[member][1], best.values, atol=1e-3)
            assert not set(lists[member][0]) & set(own["title_id"])
            checked += 1
    assert checked > 10


def test_members_without_plays_and_lists_that_end(both: Bundle, service: Path, tmp_path: Path) -> None:
    """Somebody of whom nothing is known gets a list too; who has played nearly all gets a short one."""
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


def test_lists_need_no_torch(both: Bundle, service: Path, tmp_path: Path) -> None:
    program = f"""
import sys
for name in ("torch", "torchvision", "pytorch_lightning", "lightning"):
    sys.modules[name] = None
from pathlib import Path
from export.bundle import Bundle
from export.recommend import recommend
print(recommend(Bundle.open(Path({str(both.folder)!r})), Path({str(service)!r}), Path({str(tmp_path / "lists")!r})))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 0
