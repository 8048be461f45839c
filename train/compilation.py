"""torch.compile for a training, where it is asked for: on a GPU many small kernels of a batch become a few.

What is compiled are the parts between the look-ups: which titles and artworks a batch holds is found by torch.unique,
whose size no compiler knows, and at which a graph would break.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from foundation.errors import UserError
from models.two_tower import TwoTower

PARTS = ("read", "rank_vectors")
"""Of the model: reading histories, and the terms from the towers' outputs."""


def require_compiler() -> None:
    """Raise a UserError where there is none."""
    compilers = (os.environ.get("CXX", "g++"), "c++", "clang++")
    if not any(shutil.which(name) for name in compilers):
        raise UserError("compile=true: there is no C++ compiler (g++). Install one, or leave the option out.")


@contextmanager
def compiled(model: TwoTower, enabled: bool) -> Iterator[None]:
    """The model's parts compiled meanwhile, for any batch size; as they were afterwards."""
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
