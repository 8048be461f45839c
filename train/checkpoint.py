"""Checkpoints of a run: the last one and the one before it, each complete or absent, each with a digest.

In: a dictionary of tensors and numbers. A checkpoint is written aside and renamed; a file that is cut short or changed
is detected by the SHA-256 at its end, and the one before it is taken instead.
"""

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from foundation.atomic import atomic_file
from foundation.errors import UserError
from foundation.shell import shell_word
from foundation.stored import reading

LAST, PREVIOUS = Path("checkpoints") / "last.ckpt", Path("checkpoints") / "previous.ckpt"
BEST_WEIGHTS = "best.safetensors"
CHECKPOINT_VERSION = 2
"""Raised when the state changes its meaning: checkpoints of other versions are then not read."""
DIGEST_BYTES = hashlib.sha256().digest_size


def save_checkpoint(run: Path, state: dict[str, Any]) -> None:
    """Write `RUN/checkpoints/last.ckpt`; the former one becomes `previous.ckpt`."""
    with atomic_file(run / LAST) as partial:
        torch.save(state | {"layout": CHECKPOINT_VERSION}, partial)
        with partial.open("r+b") as file:
            digest = _digest(file, partial.stat().st_size)
            file.write(digest)
        if (run / LAST).is_file():
            os.replace(run / LAST, run / PREVIOUS)


def load_checkpoint(run: Path, console: Console) -> dict[str, Any] | None:
    """The newest state that can be read, on the CPU; None if there is none. Files that cannot be read are reported and
    removed."""
    paths = [path for path in (run / LAST, run / PREVIOUS) if path.is_file()]
    for path in paths:
        state = _read(path)
        if state is not None:
            return state
        path.unlink()
        older = path.name == LAST.name and (run / PREVIOUS).is_file()
        console.print(
            f"fit: {path} is damaged or of another version of keyart: "
            + ("the one before it is taken" if older else "the training starts over")
        )
    return None


def save_best(run: Path, weights: dict[str, Tensor]) -> None:
    """Write the best weights so far, on the CPU and contiguous, to `RUN/best.safetensors` with a digest of them."""
    with atomic_file(run / BEST_WEIGHTS) as partial:
        save_file(weights, partial, {"sha256": _weights_digest(weights)})


def load_best(run: Path) -> dict[str, Tensor]:
    """The best weights of an unfinished run; a UserError where they are missing or a bit of them changed."""
    path, remedy = run / BEST_WEIGHTS, f"Remove {shell_word(run)} and train again."
    with reading(path, remedy), safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        written = (file.metadata() or {}).get("sha256")  # those of older versions have none
    if written is not None and written != _weights_digest(weights):
        raise UserError(f"{path}: is damaged. {remedy}")
    return weights


def _weights_digest(weights: dict[str, Tensor]) -> str:
    sha256 = hashlib.sha256()
    for name, values in sorted(weights.items()):
        sha256.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        sha256.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    """The state of a complete checkpoint of this version; None for any other file."""
    size = path.stat().st_size - DIGEST_BYTES
    if size <= 0:
        return None
    with path.open("rb") as file:
        if _digest(file, size) != file.read():
            return None
        file.seek(0)
        state = torch.load(file, map_location="cpu", weights_only=True)
    return state if state.get("layout") == CHECKPOINT_VERSION else None


def _digest(file: BinaryIO, size: int) -> bytes:
    """SHA-256 of the next `size` bytes of the file, which are read."""
    sha256 = hashlib.sha256()
    while size:
        chunk = file.read(min(size, 1 << 20))
        sha256.update(chunk)
        size -= len(chunk)
    return sha256.digest()
