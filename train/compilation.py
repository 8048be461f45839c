"""torch.compile for a training that requests it: on a GPU many small kernels of a batch become a few.

Only the parts between the look-ups are compiled: the distinct titles and artworks of a batch come from torch.unique, whose
result has a size that no compiler knows, so that a graph would break at it.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from foundation.errors import UserError
from models.two_tower import TwoTower

PARTS = ("read", "rank_vectors")
"""Methods of the model that are compiled: reading histories, and the terms from the towers' outputs."""


def require_compiler() -> None:
    """Raise a UserError where no C++ compiler is installed."""
    compilers = (os.environ.get("CXX", "g++"), "c++", "clang++")
    if not any(shutil.which(name) for name in compilers):
        raise UserError("compile=true: there is no C++ compiler (g++). Install one, or leave the option out.")


@contextmanager
def compiled(model: TwoTower, enabled: bool) -> Iterator[None]:
    """Within the context the model's parts are compiled, for any batch size; afterwards they are as before."""
    if not enabled:
        yield
        return
    for name in PARTS:
        setattr(model, name, torch.compile(getattr(model, name), dynamic=True))
    try:
        yield
    finally:
        for name in PARTS:
            delattr(model, name)
