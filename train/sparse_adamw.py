"""AdamW that visits only the rows of large tables that a batch holds.

A table of a million titles costs a dense AdamW, its clipping and the running average a pass over all of it in every
step, for the thousand rows that have a gradient. Here such a table's gradient is sparse, and a row is brought up to date
when it is next looked up: the weight decay of the steps between in closed form, and the rest of its momentum as the
geometric series it is. Lazy optimisers such as torch's SparseAdam leave both out, which makes them another optimiser:
a row seen once moves a tenth as far as under AdamW with a first decay of .9.

So is the running average. What is approximate: meanwhile the learning rate is the present one, and decay does not act on
the momentum's moves.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from models.two_tower import ROW_TABLES, TwoTower


def rows_in_batch(model: TwoTower, play_title_MT: Tensor, title_N: Tensor, artworks_NK: Tensor) -> dict[str, Tensor]:
    """The distinct rows of each of `models.two_tower.ROW_TABLES` that a batch may look up, the unknown row included."""

    def distinct(*parts: Tensor) -> Tensor:
        return torch.unique(torch.cat([*(part.flatten() for part in parts), title_N.new_zeros(1)]))

    titles, artworks, sizes = distinct(play_title_MT, title_N), distinct(artworks_NK), model.sizes
    people = distinct(model.title_people_IL[titles], model.artwork_people_AL[artworks])
    titles, artworks = titles[titles < sizes.titles], artworks[artworks < sizes.artworks]
    return dict(zip(ROW_TABLES, (titles, titles, artworks, people), strict=True))


class SparseRowAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter, 2019); parameters of groups with `rows: True` are tables of shape (R, D).

    Call `catch_up` with the rows of a batch before its forward pass, and with all rows before the tables are read whole.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], *, fused: bool) -> None:
        super().__init__(groups, lr, betas, fused=fused)
        for group in self.param_groups:
            group.setdefault("rows", False)
            group.setdefault("steps", 0)
            group.setdefault("decayed", 0.0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step: dense for the rest, by rows for tables, whose gradients are sparse and coalesced."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        tables = [(group, table) for group in self.param_groups if group["rows"] for table in group["params"]]
        gradients = [table.grad for _, table in tables]
        for _, table in tables:
            table.grad = None
        super().step()
        for (_, table), gradient in zip(tables, gradients, strict=True):
            table.grad = gradient
        for group in self.param_groups:
            if group["rows"]:
                group["steps"] += 1
                group["decayed"] += math.log1p(-float(group["lr"]) * group["weight_decay"])
        for group, table in tables:
            if table.grad is not None:
                self._step_rows(group, table)
        return loss

    def _step_rows(self, group: dict[str, Any], table: Parameter) -> None:
        assert table.grad is not None
        gradient = table.grad.coalesce()
        rows, row_gradients = gradient.indices()[0], gradient.values()
        state, (beta1, beta2), lr = self._state(table), group["betas"], float(group["lr"])
        m = state["exp_avg"][rows].lerp_(row_gradients, 1 - beta1)
        v = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(row_gradients, row_gradients, value=1 - beta2)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = m, v
        state["stepped"][rows], state["decayed"][rows] = group["steps"], group["decayed"]
        table[rows] = table[rows] * (1 - lr * group["weight_decay"]) - self._adam_update(group, m, v)

    @torch.no_grad()
    def catch_up(
        self, table: Parameter, rows: Tensor | None, average: Tensor, ema_decay: float, *, before_step: bool
    ) -> None:
        """Bring rows (distinct; None: all) to where AdamW would have them, and their running average with them.

        `average` of the table's shape has decay `ema_decay` a step and takes in the weights before each step; `before_step`
        says whether it is about to.
        """
        group = next(group for group in self.param_groups if group["rows"] and any(p is table for p in group["params"]))
        state = self._state(table)
        rows = torch.arange(len(table), device=table.device) if rows is None else rows
        (beta1, beta2), steps = group["betas"], group["steps"]
        ratio = beta1 / beta2**0.5  # what a missed step moves is so much of what the one before it did
        ema_steps = steps + before_step
        missed, since = steps - state["stepped"][rows, None], ema_steps - state["averaged"][rows, None]
        first = missed - since + int(before_step)  # 0 where the average has yet to take in what the last step left
        m, v, old = state["exp_avg"][rows], state["exp_avg_sq"][rows], table[rows]
        momentum_update = self._adam_update(group, m, v) * (ratio / (1 - ratio))
        decayed = group["decayed"] - state["decayed"][rows, None]
        table[rows] = old * decayed.exp() - momentum_update * (1 - ratio**missed)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = m * beta1**missed, v * beta2**missed
        state["stepped"][rows], state["averaged"][rows], state["decayed"][rows] = steps, ema_steps, group["decayed"]

        def ema_weight(factor: Tensor) -> Tensor:
            """What the average takes in of something that is 1 after the last step and falls by a factor a step."""
            factor = torch.where((factor - ema_decay).abs() < 1e-6, ema_decay + 1e-6, factor)
            return (1 - ema_decay) * factor**first * (ema_decay**since - factor**since) / (ema_decay - factor)

        still = torch.ones_like(missed)
        ema_increment = old * ema_weight((decayed / missed.clamp(min=1)).exp()) - momentum_update * (
            ema_weight(still) - ema_weight(ratio * still)
        )
        average[rows] = average[rows] * ema_decay**since + ema_increment

    def _adam_update(self, group: dict[str, Any], m: Tensor, v: Tensor) -> Tensor:
        """What a step subtracts for moments."""
        (beta1, beta2), steps = group["betas"], max(1, group["steps"])
        first, second = 1 - beta1**steps, 1 - beta2**steps
        return m / ((v / second).sqrt_() + group["eps"]) * (float(group["lr"]) / first)

    def _state(self, table: Parameter) -> dict[str, Tensor]:
        state = self.state[table]
        if not state:
            rows = len(table)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
            state["step"] = torch.zeros(())  # the dense optimiser asks for it when a state is loaded
            # as floats, for a loaded state takes the table's type: exact up to 16 million steps
            for name in ("stepped", "averaged", "decayed"):
                state[name] = torch.zeros(rows, device=table.device)
        return state
