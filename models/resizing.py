"""Bilinear resizing with antialiasing as matrix products, which torch and ONNX Runtime compute alike."""

from typing import cast

import torch
from torch import Tensor


def resize(images_nCHW: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resizing with antialiasing as torchvision and Pillow have it, as two matrix products."""
    across_VW = _triangle_filter(images_nCHW.shape[3], width, images_nCHW.device)
    return _triangle_filter(images_nCHW.shape[2], height, images_nCHW.device) @ (images_nCHW @ across_VW.T)


def resize_like_pillow(images_nHWC: Tensor, height: int, width: int) -> Tensor:
    """uint8 images of any size, RGB -> float (n, 3, height, width), 0 .. 255 in whole levels: what Pillow's resizing gives,
    which rounds halves up after each direction, but for a level here and there."""
    images_nCHW = images_nHWC.permute(0, 3, 1, 2).to(torch.float32)
    wide = (images_nCHW @ _triangle_filter(images_nCHW.shape[3], width, images_nCHW.device).T + 0.5).floor()
    return (_triangle_filter(images_nCHW.shape[2], height, images_nCHW.device) @ wide + 0.5).floor().clamp(0, 255)


def _triangle_filter(old: int, new: int, device: torch.device) -> Tensor:
    """The weight of every old pixel in every new one along a side, (new, old): triangles as wide as a new pixel, at least as
    wide as an old one."""
    scale = old / new
    # not max, by which a tracer would hold to images that are small
    wide = cast(float, torch.sym_max(scale, 1.0))
    centre_V1 = (torch.arange(new, device=device).unsqueeze(1) + 0.5) * scale
    weight_VW = (1 - (torch.arange(old, device=device) + 0.5 - centre_V1).abs() / wide).clamp(min=0)
    return weight_VW / weight_VW.sum(1, keepdim=True)
