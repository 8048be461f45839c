"""AdamW by rows is AdamW: whatever rows a batch holds, the weights and their average end where dense steps bring them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import Parameter

from datamodules.contract import UserError
from models.two_tower import TABLES
from train.average import Average
from train.config import FitConfig
from train.fit import fit
from train.optimiser import OptimiserConfig
from train.prior import PriorConfig
from train.rows import RowsAdamW
from train.run import METRICS, WEIGHTS

ROWS, WIDTH, STEPS, AVERAGE = 40, 3, 120, 0.97


def trained(by_rows: bool, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A table after steps on random rows, each seldom, and its running average."""
    chance = torch.Generator().manual_seed(0)
    model = torch.nn.Embedding(ROWS, WIDTH, sparse=by_rows)
    table = model.get_parameter("weight")
    with torch.no_grad():
        table.copy_(torch.randn(ROWS, WIDTH, generator=chance))
    average = Average(model, AVERAGE)
    mean = average.module.get_parameter("weight")
    group = {"params": [table], "weight_decay": 0.3, "rows": by_rows}
    optimiser = RowsAdamW([group], rate, (0.9, 0.99), fused=True)
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
        optimiser = RowsAdamW([group], 1e-2, (0.9, 0.99), fused=True)
        for _ in range(20):
            gradient = torch.randn(5, 2)
            if by_rows:
                optimiser.catch_up(table, None, mean, 0.0, before_step=True)
            table.grad = gradient.to_sparse(1) if by_rows else gradient
            optimiser.step()
        found.append(table.detach())
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-5)


NO_PRIOR = PriorConfig(artwork=0, affinity=0)


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rows")
    # with weight decay for all, which is what tables updated by rows have in the place of a prior
    config = FitConfig(passes=2, slices=2, batch=512, patience=9, prior=NO_PRIOR)
    for name, least in (("dense", 1_000_000), ("rows", 1)):
        fit(shards, folder / name, replace(config, optimiser=OptimiserConfig(rows=least)))
    return {name: folder / name for name in ("dense", "rows")}


def test_a_training_by_rows_is_as_good(runs: dict[str, Path]) -> None:
    dense, rows = (load_file(runs[name] / WEIGHTS) for name in ("dense", "rows"))
    for name in TABLES:
        torch.testing.assert_close(rows[name], dense[name], atol=5e-3, rtol=0.05)
    losses = [
        float((runs[name] / METRICS).read_text().split('"validation_log_loss": ')[1].split(",")[0]) for name in runs
    ]
    assert abs(losses[0] - losses[1]) < 2e-4


def test_by_rows_goes_on_by_rows_alone(shards: Path, tmp_path: Path) -> None:
    """Several devices update whole tables, and the optimiser of the one kind is none of the other."""
    config = FitConfig(passes=2, slices=1, batch=500, optimiser=OptimiserConfig(rows=1))
    fit(shards, tmp_path / "run", config, stop_after=1)
    with pytest.raises(UserError, match=r"by rows, as by one device\. Go on with devices=1"):
        fit(shards, tmp_path / "run", replace(config, devices=2))


def test_by_rows_resumes_bit_for_bit(shards: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    config = FitConfig(passes=2, slices=2, batch=512, patience=9, optimiser=OptimiserConfig(rows=1), prior=NO_PRIOR)
    for stop in (1, 3, None):
        fit(shards, tmp_path / "run", config, stop_after=stop)
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == (runs["rows"] / WEIGHTS).read_bytes()
