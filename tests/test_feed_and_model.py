"""Batches and the model: every impression once, and no prediction depends on how a batch was made."""

from collections import Counter
from typing import Literal

import numpy as np
import pytest
import torch
from random_logs import RandomLog

from datamodules.feed.impression_feed import Batch, Feed
from datamodules.prepare.prepare import PrepareConfig, prepare
from datamodules.shards.shard import TRAIN, Shards
from models.dropout import Dropout
from models.history import BandedAttention, HistoryConfig, HistoryEncoder
from models.two_tower import TwoTower, TwoTowerConfig
from train.run import content_of, sizes_of
from train.task import rank_batch

REACH = 4


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Two shards of members with no play, few plays, and far more plays than one window."""
    folder = tmp_path_factory.mktemp("feed")
    rng = np.random.default_rng(0)
    plays = [(f"m{rng.integers(9) ** 2 // 8}", int(rng.integers(3)), int(rng.integers(900))) for _ in range(300)]
    shown = [
        (
            f"m{rng.integers(10)}",
            int(rng.integers(3)),
            int(rng.integers(9)),
            int(rng.integers(900)),
            bool(n % 3),
        )
        for n in range(400)
    ]
    RandomLog(plays, shown).write(folder / "log")
    prepare(folder / "log", folder / "shards", PrepareConfig(shards=2))
    return Shards.open(folder / "shards")


HISTORIES = {
    "attention": HistoryConfig(encoder="attention", span=REACH),
    "two layers": HistoryConfig(encoder="attention", span=REACH // 2, layers=2),
    "mean": HistoryConfig(encoder="mean", span=REACH),
}


@pytest.fixture(scope="module", params=list(HISTORIES))
def model(shards: Shards, request: pytest.FixtureRequest) -> TwoTower:
    """A model whose every weight matters: random, attention included."""
    torch.manual_seed(0)
    embedding = torch.randn(len(shards.vocabularies["artworks"]), 5)
    config = TwoTowerConfig(width=8, history=HISTORIES[request.param])
    model = TwoTower(config, sizes_of(shards.vocabularies, shards.context), content_of(shards, embedding))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model.eval()


def feed(shards: Shards, **changes: int) -> Feed:
    settings: dict[str, int] = {
        "reach": REACH,
        "impressions": 50,
        "window": 8,
        "shuffle": True,
        "candidates": True,
        "seed": 1,
    }
    return Feed(shards.shards, TRAIN, **(settings | changes))  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def clicks(model: TwoTower, batches: list[Batch]) -> dict[tuple[int, int], np.ndarray]:
    """(shard, row) -> click logits of the candidates that are there."""
    found = {}
    for batch in batches:
        for row, artworks, logit in zip(batch.index, batch.artworks, rank_batch(model, batch).click_NK(), strict=True):
            found[batch.shard, int(row)] = logit[artworks > 0].numpy()
    return found


def test_every_impression_once_and_in_another_order(shards: Shards) -> None:
    one = feed(shards)
    passes = []
    for epoch in (0, 1, 0):
        one.epoch = epoch
        passes.append([(batch.shard, int(row)) for batch in one for row in batch.index])
    wanted = Counter(
        (s, int(row)) for s, shard in enumerate(shards.shards) for row in np.flatnonzero(shard.split == TRAIN)
    )
    assert Counter(passes[0]) == Counter(passes[1]) == wanted
    assert passes[0] != passes[1]
    assert passes[0] == passes[2]


def test_a_member_is_stored_once_for_a_window(shards: Shards) -> None:
    for batch in feed(shards, window=1000):
        assert batch.play_title.shape[1] <= 2 * REACH
        assert (batch.position <= batch.play_title.shape[1]).all()
        assert len(batch.play_title) == len(torch.unique(batch.member))


def test_predictions_do_not_depend_on_batches_windows_or_padding(shards: Shards, model: TwoTower) -> None:
    together = clicks(model, list(feed(shards, impressions=1000, window=1000, shuffle=False)))
    one_by_one = clicks(model, list(feed(shards, impressions=1, window=1)))
    assert together.keys() == one_by_one.keys()
    for key, logit in together.items():
        # logits of random weights reach 43, where neighbouring float32 numbers lie 4e-6 apart; processors sum in other orders
        np.testing.assert_allclose(logit, one_by_one[key], rtol=2e-6, atol=2e-5)


def test_states_are_those_of_a_straight_line_reading(shards: Shards, model: TwoTower) -> None:
    """Encode each impression's last plays by themselves, as serving does."""
    found = clicks(model, list(feed(shards)))
    for (s, row), logit in list(found.items())[:60]:
        shard = shards.shards[s]
        start, end = max(shard.history_start[row], shard.history_end[row] - REACH), shard.history_end[row]
        titles = torch.from_numpy(shard.play_title[start:end].astype(np.int64))[None]
        none = torch.zeros_like(titles)
        states = model.states(titles, none, torch.full(titles.shape, torch.nan))
        batch = next(b for b in feed(shards) if b.shard == s and row in b.index)
        at = int((batch.index == row).nonzero()[0])
        alone = {f: getattr(batch, f)[at : at + 1] for f in ("title", "artworks")}
        from models.two_tower import States

        context = {name: values[at : at + 1] for name, values in batch.context.items()}
        again = torch.tensor(
            [bool(shard.title[row]) and int(shard.title[row]) in titles[0].tolist()[-model.config.history.span :]]
        )
        state = States(*(part[:, -1] for part in states))
        terms = model.rank(state, context, alone["title"], alone["artworks"], again)
        np.testing.assert_allclose(terms.click_NK()[0][alone["artworks"][0] > 0].detach().numpy(), logit, atol=2e-5)


@pytest.mark.parametrize("kind", ["attention", "mean"])
def test_no_history_is_the_learned_state(kind: Literal["attention", "mean"]) -> None:
    encoder = HistoryEncoder(8, HistoryConfig(encoder=kind, span=3)).eval()
    with torch.no_grad():
        encoder.no_history_D.normal_()
    states = encoder(torch.randn(2, 5, 8))
    assert torch.equal(states[:, 0], encoder.no_history_D.expand(2, -1))


def test_attention_sees_the_band_and_nothing_else() -> None:
    """Against a loop over positions, with softmax written out."""
    torch.manual_seed(1)
    layer = BandedAttention(4, span=3).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
    x = torch.randn(1, 7, 4)
    q, k, v = layer.query(x)[0], layer.key(x)[0], layer.value(x)[0]
    rows = []
    for i in range(7):
        seen = range(max(0, i - 2), i + 1)
        logits = torch.stack([q[i] @ k[j] / 2 + layer.band.bias_1S[0, i - j] for j in seen])
        rows.append(torch.stack([w * v[j] for w, j in zip(logits.softmax(0), seen, strict=True)]).sum(0))
    torch.testing.assert_close(layer(x)[0], layer.out(torch.stack(rows)), atol=1e-5, rtol=1e-5)


def test_engagement_of_some_is_that_of_all(shards: Shards, model: TwoTower) -> None:
    batch = next(iter(feed(shards)))
    some, everything = rank_batch(model, batch, everything=False), rank_batch(model, batch)
    torch.testing.assert_close(some.engaged_NK, everything.engaged_NK[batch.engagement_known])
    torch.testing.assert_close(some.click_NK(), everything.click_NK())
    told = (batch.clicked > 0) & ~torch.isnan(batch.engaged)
    assert batch.engagement_known.tolist() == told.nonzero()[:, 0].tolist()


def test_dropout_keeps_its_share_and_the_mean() -> None:
    torch.manual_seed(0)
    for share in (0.1, 0.4, 0.9):
        dropped = Dropout(share).train()(torch.ones(400, 500))
        assert abs(float((dropped == 0).float().mean()) - share) < 0.004
        assert abs(float(dropped.mean()) - 1) < 0.01
        assert len(dropped.unique()) == 2
    assert torch.equal(Dropout(0.4).eval()(torch.ones(3)), torch.ones(3))


def test_terms_add_up(shards: Shards, model: TwoTower) -> None:
    batch = next(iter(feed(shards)))
    terms = rank_batch(model, batch)
    moved = Batch(**{**vars(batch), "context": batch.context | {"row": batch.context["row"] + 3}})
    elsewhere = rank_batch(model, moved)
    torch.testing.assert_close(elsewhere.appeal_NK, terms.appeal_NK)
    torch.testing.assert_close(elsewhere.affinity_N, terms.affinity_N)
    assert not torch.allclose(elsewhere.presentation_N, terms.presentation_N)
    rest_N1 = (terms.affinity_N + terms.presentation_N)[:, None]
    torch.testing.assert_close(terms.click_NK() - terms.appeal_NK, rest_N1.expand_as(terms.appeal_NK))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: HistoryConfig(span=0), "span=0"),
        (lambda: HistoryConfig(dropout=1.0), "dropout=1.0"),
        (lambda: HistoryConfig(encoder="lstm"), "encoder=lstm"),  # pyright: ignore[reportArgumentType]
        (lambda: HistoryConfig(encoder="mean", layers=2), "layers=2"),
        (lambda: TwoTowerConfig(width=1), "width=1"),
    ],
)
def test_a_bad_shape_is_named(make, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()
