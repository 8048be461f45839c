"""Calibration of both heads, fitted on the validation split, so that probabilities agree with frequencies.

By default scale and shift of the logit (Platt, 1999). A piecewise linear calibration, which also corrects a curve that is too
low in the middle and too high at the ends, is taken only where it improves each half of the split when fitted on the other.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.feed.impression_feed import Feed
from datamodules.shards.shard import VALIDATION, Shards
from models.two_tower import TwoTower
from models.types import KNOTS, piecewise_linear_calibration
from train.task import rank_batch

RIDGE_LINE, RIDGE_BENDS = 1e-3, 10.0
"""Ridges added to the curvature: a negligible one for scale and shift, one that keeps bends small where rows are few."""
STEPS = 50


@torch.no_grad()
def validation_losses(model: TwoTower, shards: Shards, reach: int, batch: int, device: torch.device) -> Tensor:
    """Log loss of the click on the shown artwork, before calibration, of every validation impression, float64 (N,)."""
    parts = []
    for item in Feed(shards.shards, VALIDATION, reach=reach, impressions=2 * batch, shuffle=False):
        moved = item.to(device)
        click_NK = rank_batch(model, moved, everything=False).click_NK()
        click_N = click_NK.gather(1, moved.shown[:, None])[:, 0]
        parts.append(_losses(click_N.cpu().double(), moved.clicked.cpu().double()))
    return torch.cat(parts)


@torch.no_grad()
def calibrate(model: TwoTower, shards: Shards, reach: int, batch: int, device: torch.device) -> dict[str, float | str]:
    """Fit both heads' calibrations on the validation split and set them in the model; returns, by head, which kind was taken and
    the log losses before and after."""
    collected: list[tuple[Tensor, ...]] = []
    for index, item in enumerate(Feed(shards.shards, VALIDATION, reach=reach, impressions=2 * batch, shuffle=False)):
        moved = item.to(device)
        terms = rank_batch(model, moved)
        click = terms.click_NK().gather(1, moved.shown[:, None])[:, 0]
        engaged = terms.engaged_NK.gather(1, moved.shown[:, None])[:, 0]
        # a window's impressions are in one batch, so that a member is seldom in both halves
        half = torch.full_like(click, index % 2)
        collected.append(tuple(t.cpu().double() for t in (click, moved.clicked, engaged, moved.engaged, half)))
    click, clicked, engaged, was_engaged, half = (torch.cat(parts) for parts in zip(*collected, strict=True))
    known = (clicked > 0) & ~torch.isnan(was_engaged)
    report: dict[str, float | str] = {}
    for row, (name, logit, label, at) in enumerate(
        (("click", click, clicked, torch.ones_like(known)), ("engaged", engaged, was_engaged, known))
    ):
        # labels that are all equal determine no slope: the head is then left as it is
        if at.any() and 0 < label[at].mean() < 1:
            line, metrics = fit_line(logit[at], label[at], half[at] > 0)
            model.calibration[row] = line.to(model.calibration)
            report |= {f"{name}_{what}": value for what, value in metrics.items()}
    return report


def fit_line(logit_N: Tensor, label_N: Tensor, half_N: Tensor) -> tuple[Tensor, dict[str, float | str]]:
    """Parameters of `piecewise_linear_calibration`, (2 + 2 KNOTS,), float64, and its metrics: kind, log losses before and after.

    It has bends where they lower the log loss, each half scored by a fit on the other, by more than a standard error, and
    where it is still increasing everywhere.
    """
    platt, piecewise = _newton(logit_N, label_N, bends=False), _newton(logit_N, label_N, bends=True)
    better = torch.zeros_like(logit_N)
    for fold_N in (half_N, ~half_N):
        if not fold_N.any() or fold_N.all():
            break
        lines = [_newton(logit_N[~fold_N], label_N[~fold_N], bends=bends) for bends in (False, True)]
        plain_n, other_n = (
            _losses(piecewise_linear_calibration(logit_N[fold_N], line), label_N[fold_N]) for line in lines
        )
        better[fold_N] = plain_n - other_n
    error = float(better.std()) / len(better) ** 0.5
    is_monotone = bool(
        (piecewise[0] + torch.cumsum(torch.cat([torch.zeros(1).double(), piecewise[2 + KNOTS :]]), 0) > 0).all()
    )
    take = is_monotone and float(better.mean()) > error
    line = piecewise if take else platt
    return line, {
        "calibration": "piecewise" if take else "platt",
        "log_loss_before": float(_losses(logit_N, label_N).mean()),
        "log_loss_after": float(_losses(piecewise_linear_calibration(logit_N, line), label_N).mean()),
    }


def _losses(logit_N: Tensor, label_N: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logit_N, label_N, reduction="none")


def _newton(logit_N: Tensor, label_N: Tensor, *, bends: bool) -> Tensor:
    """The calibration of least log loss by Newton's method, (2 + 2 KNOTS,); knots at equal shares of the rows."""
    shares = torch.arange(1, KNOTS + 1, dtype=torch.float64) / (KNOTS + 1)
    knots = logit_N.sort().values[(shares * (len(logit_N) - 1)).long()]
    columns = [logit_N, torch.ones_like(logit_N)]
    if bends:
        columns += [(logit_N - knot).clamp(min=0) for knot in knots]
    design = torch.stack(columns, 1)
    start = torch.zeros(len(columns), dtype=torch.float64)
    start[0] = 1.0
    ridge = torch.full_like(start, RIDGE_BENDS)
    ridge[:2] = RIDGE_LINE
    weights = start.clone()
    for _ in range(STEPS):
        p = torch.sigmoid(design @ weights)
        slope = design.T @ (p - label_N) + ridge * (weights - start)
        curve = (design * (p * (1 - p))[:, None]).T @ design + torch.diag(ridge)
        step = torch.linalg.solve(curve, slope)
        weights = weights - step
        if step.abs().max() < 1e-9:
            break
    piecewise = weights[2:] if bends else torch.zeros(KNOTS, dtype=torch.float64)
    return torch.cat([weights[:2], knots, piecewise])
