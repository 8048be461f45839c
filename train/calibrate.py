"""Calibration: scale and shift of both logits, fitted on validation, so that probabilities mean what they say."""

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.feed import Feed
from datamodules.shards import VALIDATION, Shards
from models.two_tower import TwoTower
from train.task import rank_batch


@torch.no_grad()
def calibrate(model: TwoTower, shards: Shards, reach: int, batch: int, device: torch.device) -> dict[str, float]:
    """Fit scale and shift of both logits on validation (Platt, 1999), into the model; log losses before and after."""
    logits: list[tuple[Tensor, ...]] = []
    for item in Feed(shards.shards, VALIDATION, reach=reach, impressions=2 * batch, shuffle=False):
        moved = item.to(device)
        terms = rank_batch(model, moved)
        click = terms.click_NK().gather(1, moved.shown[:, None])[:, 0]
        engaged = terms.engaged_NK.gather(1, moved.shown[:, None])[:, 0]
        logits.append(tuple(t.cpu().double() for t in (click, moved.clicked, engaged, moved.engaged)))
    click, clicked, engaged, was_engaged = (torch.cat(parts) for parts in zip(*logits, strict=True))
    known = (clicked > 0) & ~torch.isnan(was_engaged)
    click_scale, click_shift, before, after = platt(click, clicked)
    said = {"click_log_loss_before": before, "click_log_loss_after": after}
    engaged_scale, engaged_shift = 1.0, 0.0
    # one kind of answer alone has no slope: the head is then left as it is
    if known.any() and 0 < was_engaged[known].mean() < 1:
        engaged_scale, engaged_shift, before, after = platt(engaged[known], was_engaged[known])
        said |= {"engaged_log_loss_before": before, "engaged_log_loss_after": after}
    model.calibration.copy_(torch.tensor([click_scale, click_shift, engaged_scale, engaged_shift]))
    return said


def platt(logit_N: Tensor, label_N: Tensor) -> tuple[float, float, float, float]:
    """Scale and shift of least log loss by Newton's method, and the log loss before and after."""
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64)
    design = torch.stack([logit_N, torch.ones_like(logit_N)], dim=1)

    def loss() -> float:
        return F.binary_cross_entropy_with_logits(design @ weights, label_N).item()

    before = loss()
    for _ in range(25):
        p = torch.sigmoid(design @ weights)
        slope = design.T @ (p - label_N) + 1e-3 * (weights - torch.tensor([1.0, 0.0], dtype=torch.float64))
        curve = (design * (p * (1 - p))[:, None]).T @ design + 1e-3 * torch.eye(2, dtype=torch.float64)
        step = torch.linalg.solve(curve, slope)
        weights = weights - step
        if step.abs().max() < 1e-9:
            break
    return float(weights[0]), float(weights[1]), before, loss()
