"""Atomic output: written to a `.partial` sibling of its path, renamed to the path when complete.

A reader never sees half a folder, and a killed call leaves only the `.partial` sibling, which the next call of the same
command removes.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foundation.errors import UserError


def restore_replaced(path: Path) -> None:
    """Move the old output back where a call was killed between its two renames."""
    replaced = path.with_name(f".{path.name}.replaced")
    if replaced.exists() and not path.exists():
        os.rename(replaced, path)


def require_replaceable(path: Path, marker: str) -> None:
    """Raise a UserError where `atomic_folder` would refuse to write; restores output that a killed call left half-replaced."""
    restore_replaced(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file, and the output is a folder. Name another path.")
    if path.is_dir() and any(path.iterdir()) and not (path / marker).exists():
        raise UserError(
            f"{path}: holds files, but no {marker}, so keyart did not write it. Name a new or empty folder."
        )


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold a lock on `path`; UserError where another process holds it. The lock ends with the process."""
    lock = path.with_name(f"{path.name}.lock")
    with lock.open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{path.parent}: another keyart process writes to it. Wait for it to end.") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, marker: str) -> Iterator[Path]:
    """Yield an empty folder beside `path` to write into; on success it becomes `path`, replacing an older output.

    `marker`: name of a file that every such output contains. A folder that is not empty and lacks it was not written by this
    command: that is a UserError, and the folder is never replaced. On any exception, Ctrl-C included, the partial folder is
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
    """Give files the permissions of the umask where a library made them private: the server may run as another user."""
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
