"""Atomic output: written to a `.partial` sibling of its path, which takes the path when it is complete and on the disk.

A reader never sees half a folder, and a killed call leaves only the `.partial` sibling, which the next call of the same
command removes. A command claims its output at the start: where a second one writes to the same folder, or it cannot be written,
that is a UserError before any work.
"""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import local
from typing import TextIO

from foundation.errors import UserError
from foundation.output_path import LOCK_SUFFIX, real_path, require_folder, require_output, require_own_folder
from foundation.replacement import exchanged, flush, flush_folder

RENAME_SECONDS = 10.0
"""Longest wait for a process that is between its two renames."""


class ClaimedError(UserError):
    """Raised where another process writes to the same output."""


class _Claims(local):
    """Folders that this thread has claimed, so that a command and the functions it calls may each claim the same one."""

    def __init__(self) -> None:
        self.folders: set[Path] = set()


_CLAIMS = _Claims()


def is_half_replaced(path: Path) -> bool:
    """Whether a process is, or was killed, between the two renames that replace a folder where it cannot be exchanged."""
    real = real_path(path)
    return _replaced(real).exists() and not real.exists()


def restore_replaced(path: Path) -> None:
    """Move the old output back where a call was killed between its two renames; where a process is between them, wait for it.

    UserError where it stays there for `RENAME_SECONDS`.
    """
    deadline = time.monotonic() + RENAME_SECONDS
    while is_half_replaced(path):
        real = real_path(path)
        try:
            with _claimed(path, real.parent / f".{real.name}{LOCK_SUFFIX}"):
                if is_half_replaced(path):
                    os.rename(_replaced(real), real)
        except ClaimedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _replaced(real: Path) -> Path:
    """Where an old output is between two renames."""
    return real.parent / f".{real.name}.replaced"


@contextmanager
def claimed_output(
    path: Path, marker: str, *, dataset: Path | None = None, sources: Iterable[Path] = ()
) -> Iterator[Path]:
    """Claim a folder that `atomic_folder` will write, and yield its real path.

    Raises a UserError as `require_output`, and where another process has claimed it. Output that a killed call left
    half-replaced is restored.
    """
    real = real_path(path)
    if real not in _CLAIMS.folders:
        require_output(path, marker, dataset=dataset, sources=sources)
    with _claimed(path, real.parent / f".{real.name}{LOCK_SUFFIX}"):
        restore_replaced(path)
        require_own_folder(path, marker)
        yield real


@contextmanager
def claimed_folder(path: Path, *, dataset: Path | None = None) -> Iterator[None]:
    """Claim a folder to write files into, which is made where it is missing.

    Raises a UserError as `require_folder`, and where another process has claimed it. The folder is removed where it ends empty.
    """
    real = real_path(path)
    if real not in _CLAIMS.folders:
        require_folder(path, dataset=dataset)
    with _claimed(path, real / f".keyart{LOCK_SUFFIX}"):
        yield


@contextmanager
def _claimed(path: Path, lock: Path) -> Iterator[None]:
    """Hold the lock of the output at `path`, unless this thread holds it already."""
    real = real_path(path)
    if real in _CLAIMS.folders:
        yield
        return
    with _made(path, lock.parent), exclusive_lock(lock, path):
        _CLAIMS.folders.add(real)
        try:
            yield
        finally:
            _CLAIMS.folders.discard(real)


@contextmanager
def _made(path: Path, folder: Path) -> Iterator[None]:
    """Make a folder with its parents; those that were made and end empty are removed."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: {folder} cannot be made ({error.strerror}). Name another folder.") from None
    try:
        yield
    finally:
        for each in made:
            with suppress(OSError):  # it is not empty
                each.rmdir()


@contextmanager
def exclusive_lock(lock: Path, path: Path) -> Iterator[None]:
    """Hold a lock, by a file of that name, on the output at `path`; UserError where another process holds it.

    The lock ends with the process. Where the file system has no locks that is a UserError too, unless the environment has
    KEYART_LOCKS=off.
    """
    file = _locked(lock, path)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        file.close()


def _locked(lock: Path, path: Path) -> TextIO:
    """The lock's file, open and locked."""
    while True:
        try:
            file = lock.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: {lock} cannot be written ({error.strerror}). Name another folder.") from None
        try:
            if os.environ.get("KEYART_LOCKS") != "off":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                raise ClaimedError(f"{path}: another keyart process writes to it. Wait for it to end.") from None
            lock.unlink(missing_ok=True)
            raise UserError(
                f"{path}: its file system has no file locks ({error.strerror}), by which a second command is refused. Name a "
                "folder on another disk, or put KEYART_LOCKS=off before the command where only one writes to it."
            ) from None
        with suppress(FileNotFoundError):  # a process that ends removes the file, and the next one makes another
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                return file
        file.close()


@contextmanager
def atomic_folder(path: Path, marker: str) -> Iterator[Path]:
    """Yield an empty folder beside `path` to write into; on success it becomes `path`, replacing an older output.

    `marker`: name of a file that every such output contains. UserError as `claimed_output`. Where `path` is a link, its target
    is replaced. On any exception, Ctrl-C included, the partial folder is removed and `path` stays as it was.
    """
    with claimed_output(path, marker) as real:
        partial, replaced = real.with_name(f".{real.name}.partial"), _replaced(real)
        for leftover in (partial, replaced):
            if leftover.is_symlink():
                leftover.unlink()
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            _apply_umask(partial)
            flush_folder(partial)
            # an empty folder is replaced by the rename itself; one of an image's layer cannot be renamed in a container
            if real.exists() and any(real.iterdir()):
                if not exchanged(partial, real):
                    os.rename(real, replaced)
                    os.rename(partial, real)
            else:
                os.rename(partial, real)
            flush(real.parent)
        except BaseException:
            if replaced.exists() and not real.exists():  # interrupted between the two renames
                os.rename(replaced, real)
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for old in (partial, replaced):
            shutil.rmtree(old, ignore_errors=True)


def _apply_umask(folder: Path) -> None:
    """Give files the permissions of the umask where a library made them private: the server may run as another user."""
    mask = os.umask(0o077)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o777 == 0o600:
            path.chmod(0o666 & ~mask)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it becomes `path`; on any exception it is removed.

    Where `path` is a link, its target is replaced.
    """
    real = real_path(path)
    real.parent.mkdir(parents=True, exist_ok=True)
    partial = real.with_name(f".{real.name}.partial")
    try:
        yield partial
        flush(partial)
        os.replace(partial, real)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
