"""AdamW by rows is AdamW: whatever rows a batch holds, the weights and their average end where dense steps bring them."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import Parameter

from datamodules.feed.datamodule import Cursor
from datamodules.feed.play_feed import PlaysFeed
from datamodules.shards.shard import Shards
from foundation.errors import UserError
from models.two_tower import ROW_TABLES, TwoTower, TwoTowerConfig
from train.config import FitConfig
from train.ema import ExponentialMovingAverage
from train.embed import load_embedding
from train.fit import fit
from train.next_title import NextTitleLoss, TitlesConfig
from train.optimiser import OptimiserConfig
from train.prior import Prior, PriorConfig
from train.run import METRICS, WEIGHTS, content_of, sizes_of
from train.sparse_adamw import SparseRowAdamW
from train.task import RankerTask

ROWS, WIDTH, STEPS, AVERAGE = 40, 3, 120, 0.97


def trained(by_rows: bool, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A table after steps on random rows, each seldom, and its running average."""
    chance = torch.Generator().manual_seed(0)
    model = torch.nn.Embedding(ROWS, WIDTH, sparse=by_rows)
    table = model.get_parameter("weight")
    with torch.no_grad():
        table.copy_(torch.randn(ROWS, WIDTH, generator=chance))
    average = ExponentialMovingAverage(model, AVERAGE)
    mean = average.module.get_parameter("weight")
    group = {"params": [table], "weight_decay": 0.3, "rows": by_rows}
    optimiser = SparseRowAdamW([group], rate, (0.9, 0.99), fused=True)
    for _ in range(STEPS):
        rows = torch.randint(0, ROWS, (3,), generator=chance)
        if by_rows:
            optimiser.catch_up(table, rows.unique(), mean, AVERAGE, before_step=True)
        else:
            average.update(model)
        optimiser.zero_grad()
        (model(rows) * torch.randn(3, WIDTH, generator=chance)).sum().backward()
        optimiser.step()
    if by_rows:
        optimiser.catch_up(table, None, mean, AVERAGE, before_step=False)
    return table.detach(), mean.detach()


def test_rows_end_where_dense_steps_bring_them() -> None:
    start, _ = trained(by_rows=False, rate=0.0)
    (dense, dense_mean), (rows, rows_mean) = trained(by_rows=False, rate=1e-2), trained(by_rows=True, rate=1e-2)
    moved = (dense - start).abs().max()
    assert (rows - dense).abs().max() < 0.04 * moved
    assert (rows_mean - dense_mean).abs().max() < 0.04 * moved


def test_all_rows_in_every_batch_is_adamw_exactly() -> None:
    found = []
    for by_rows in (False, True):
        torch.manual_seed(0)
        table = Parameter(torch.randn(5, 2))
        mean = table.detach().clone()
        group = {"params": [table], "weight_decay": 0.3, "rows": by_rows}
        optimiser = SparseRowAdamW([group], 1e-2, (0.9, 0.99), fused=True)
        for _ in range(20):
            gradient = torch.randn(5, 2)
            if by_rows:
                optimiser.catch_up(table, None, mean, 0.0, before_step=True)
            table.grad = gradient.to_sparse(1) if by_rows else gradient
            optimiser.step()
        found.append(table.detach())
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-5)


NO_PRIOR, NO_TITLES = PriorConfig(artwork=0, affinity=0), TitlesConfig(weight=0)


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rows")
    # without a prior, in whose place tables updated by rows have weight decay, and without titles, whose people are not
    config = FitConfig(epochs=2, validations_per_epoch=2, batch=512, patience=9, prior=NO_PRIOR, titles=NO_TITLES)
    for name, least in (("dense", 1_000_000), ("rows", 1)):
        fit(shards, folder / name, replace(config, optimiser=OptimiserConfig(rows=least)))
    return {name: folder / name for name in ("dense", "rows")}


def test_a_training_by_rows_is_as_good(runs: dict[str, Path]) -> None:
    dense, rows = (load_file(runs[name] / WEIGHTS) for name in ("dense", "rows"))
    for name in ROW_TABLES:
        torch.testing.assert_close(rows[name], dense[name], atol=5e-3, rtol=0.05)
    losses = [
        float((runs[name] / METRICS).read_text().split('"validation_log_loss": ')[1].split(",")[0]) for name in runs
    ]
    assert abs(losses[0] - losses[1]) < 2e-4


def test_by_rows_goes_on_by_rows_alone(shards: Path, tmp_path: Path) -> None:
    """Several devices update whole tables, and the optimiser of the one kind is none of the other."""
    config = FitConfig(epochs=2, validations_per_epoch=1, batch=500, optimiser=OptimiserConfig(rows=1))
    fit(shards, tmp_path / "run", config, stop_after=1)
    with pytest.raises(UserError, match=r"by rows, as by one device\. Go on with devices=1"):
        fit(shards, tmp_path / "run", replace(config, devices=2))


def test_by_rows_resumes_bit_for_bit(shards: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    config = FitConfig(
        epochs=2,
        validations_per_epoch=2,
        batch=512,
        patience=9,
        optimiser=OptimiserConfig(rows=1),
        prior=NO_PRIOR,
        titles=NO_TITLES,
    )
    for stop in (1, 3, None):
        fit(shards, tmp_path / "run", config, stop_after=stop)
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == (runs["rows"] / WEIGHTS).read_bytes()


def test_what_drawn_titles_reach_is_updated_whole(shards: Path) -> None:
    """Titles that stand for all others are in no batch, nor are the people in them: rows of those would be missed."""
    opened = Shards.open(shards)
    for titles, expected in (
        (None, set(ROW_TABLES) - {"sequence_tower.title_id.weight"}),
        (0.05, {"artwork_bias.weight"}),
    ):
        model = TwoTower(
            TwoTowerConfig(),
            sizes_of(opened.vocabularies, opened.context),
            content_of(opened, load_embedding(shards)[0]),
        )
        next_title_loss = None
        if titles is not None:
            next_title_loss = NextTitleLoss.prepare(
                model, PlaysFeed(opened.shards), TitlesConfig(weight=titles, negatives=3), 0
            )
        task = RankerTask(
            *(model, OptimiserConfig(rows=1), PriorConfig()),
            impressions=100,
            total_steps=9,
            seed=0,
            cursor=Cursor(),
            titles=next_title_loss,
        )
        assert set(task.tables) == expected
        averaged = task.ema.module.get_parameter("sequence_tower.member_next.weight")
        assert bool(averaged.any()) == (titles is not None), "forgotten in the average too"


def test_no_prior_at_all_is_none(shards: Path) -> None:
    opened = Shards.open(shards)
    model = TwoTower(
        TwoTowerConfig(), sizes_of(opened.vocabularies, opened.context), content_of(opened, load_embedding(shards)[0])
    )
    none = Prior(model, PriorConfig(**{field.name: 0.0 for field in fields(PriorConfig)}))
    assert float(none.loss().detach()) == 0
    assert not none.parameters()
    some = Prior(
        model, PriorConfig(appeal=2.0, context=0, artwork=0, affinity=0, engaged=0, distance=0, presentation=0)
    )
    expected = sum(
        float(model.get_parameter(name).square().sum())
        for name in ("artwork_query.weight", "artwork_query_context.tables.device_rows.weight")
    )
    expected += float(model.artwork_vector.weight.square().sum())
    assert float(some.loss().detach()) == pytest.approx(expected, rel=1e-5)
