"""Output that appears whole or not at all: written beside its place, moved there by rename when complete.

A reader never sees half a folder, and a call that was killed leaves only a `.partial` sibling, which the next call of
the same command clears away.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foundation.errors import UserError


def restore_replaced(path: Path) -> None:
    """Where a call was killed between its two renames, the old output is whole beside its place: move it back."""
    replaced = path.with_name(f".{path.name}.replaced")
    if replaced.exists() and not path.exists():
        os.rename(replaced, path)


def require_replaceable(path: Path, marker: str) -> None:
    """Raise a UserError where `atomic_folder` would refuse to write; put back what a killed call left half-replaced."""
    restore_replaced(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file, and a folder is to be written there. Name another place.")
    if path.is_dir() and any(path.iterdir()) and not (path / marker).exists():
        raise UserError(
            f"{path}: holds files, but no {marker}, so keyart did not write it. Name a new or empty folder."
        )


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Nobody else claims `path` meanwhile: a second call is a UserError. The claim ends with the process that has it."""
    lock = path.with_name(f"{path.name}.lock")
    with lock.open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{path.parent}: another keyart writes the same output. Wait for it to end.") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, marker: str) -> Iterator[Path]:
    """Yield an empty folder beside `path` to write into; on success it becomes `path`, replacing what was there.

    `marker` names a file that every such output holds. A folder that is not empty and lacks it was not written by this
    command: it is refused with a UserError, never replaced. On any exception, Ctrl-C included, the partial folder is
    removed and `path` stays as it was.
    """
    require_replaceable(path, marker)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    replaced = path.with_name(f".{path.name}.replaced")
    for leftover in (partial, replaced):
        if leftover.is_symlink():
            leftover.unlink()
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        _apply_umask(partial)
        if path.exists():
            os.rename(path, replaced)
        os.rename(partial, path)
    except BaseException:
        if replaced.exists() and not path.exists():  # interrupted between the two renames
            os.rename(replaced, path)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _apply_umask(folder: Path) -> None:
    """Files that a library wrote for its own user alone can be read by whom others can: who serves is another user."""
    mask = os.umask(0o077)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o777 == 0o600:
            path.chmod(0o666 & ~mask)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it becomes `path`; on any exception it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
