"""Where output may be written, decided before any work: a folder that a rename can replace, or one to write into.

In: a path as a user wrote it. Out: nothing, or a UserError of one line that names the path, the reason and the remedy.
"""

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from foundation.errors import UserError

MOUNTS = Path("/proc/self/mountinfo")
"""Linux's list of mount points, those of the same file system included, which `os.path.ismount` does not see."""
LOCK_SUFFIX = ".lock"
NAMES = {"manifest.json": "shards"}
"""What to call a folder, by its marker, where that is not the marker's own name."""


def real_path(path: Path) -> Path:
    """The path with every link followed, that of a missing target included: a link stays one, and its target is written."""
    return Path(os.path.realpath(path))


def require_output(path: Path, marker: str, *, dataset: Path | None = None, sources: Iterable[Path] = ()) -> None:
    """Raise a UserError where a folder that appears by a rename cannot be written at `path`.

    `marker`: name of a file that every such folder contains; a folder that is not empty and lacks it is left alone.
    `dataset`: is only read, so that the output may lie neither in it nor around it. `sources`: other folders or files that the
    command reads, around which the output may not lie, because it would replace them.
    """
    real = real_path(path)
    require_own_folder(path, marker)
    _require_apart(path, real, dataset, sources)
    name = NAMES.get(marker, Path(marker).stem.removeprefix("_"))
    inside = f"Name a folder inside it: {path / name}."
    mounts = _mounts_within(real)
    if real in mounts:
        raise UserError(f"{path}: is a mount point, and output appears by a rename. {inside}")
    if mounts:
        raise UserError(f"{path}: holds the mount point {mounts[0]}, and would be replaced. Name another folder.")
    reason = _why_unwritable(real.parent, real.name)
    if reason:
        remedy = inside if real.is_dir() and not _why_unwritable(real, real.name) else "Name another folder."
        raise UserError(f"{path}: {reason}, and output appears by a rename in it. {remedy}")


def require_folder(path: Path, *, dataset: Path | None = None) -> None:
    """Raise a UserError where files cannot be written into the folder `path`, which may be a mount point or not yet exist.

    `dataset`: is only read, so that the folder may not lie in it; it may lie around it.
    """
    real = real_path(path)
    _require_no_file(path, real)
    if dataset is not None and real_path(dataset) in (real, *real.parents):
        raise UserError(f"{path}: lies in {dataset}; the source is only read. Name a folder beside it.")
    if reason := _why_unwritable(real, "output"):
        raise UserError(f"{path}: {reason}. Name another folder.")


def require_file(path: Path) -> None:
    """Raise a UserError where a file that appears by a rename cannot be written at `path`."""
    real = real_path(path)
    if real.is_dir():
        raise UserError(f"{path}: is a folder, and the output is a file. Name a file.")
    if real.exists() and not real.is_file():  # a rename would put a file in the place of /dev/null
        raise UserError(f"{path}: is a device or a pipe, which a file would replace. Name a file.")
    if real.is_symlink():
        raise UserError(f"{path}: is a link that leads to itself. Remove it, or name another path.")
    if reason := _why_unwritable(real.parent, real.name):
        raise UserError(f"{path}: {reason}. Name another file.")


def require_own_folder(path: Path, marker: str) -> None:
    """Raise a UserError where `path` is a file, or a folder that keyart did not write: not empty, and without its marker."""
    real = real_path(path)
    _require_no_file(path, real)
    if real.is_dir() and real not in _mounts_within(real):
        try:
            # markers beside Parquet files had no _ before their names
            named = (real / marker).exists() or (real / marker.removeprefix("_")).exists()
            others = any(real.iterdir()) and not named
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}). Name another folder.") from None
        if others:
            raise UserError(
                f"{path}: holds files, but no {marker}, so keyart did not write it. Name a new or empty folder."
            )


def _require_no_file(path: Path, real: Path) -> None:
    if real.is_symlink():
        raise UserError(f"{path}: is a link that leads to itself. Remove it, or name another path.")
    if real.exists() and not real.is_dir():
        raise UserError(f"{path}: is a file, and the output is a folder. Name another path.")


def _require_apart(path: Path, real: Path, dataset: Path | None, sources: Iterable[Path]) -> None:
    if dataset is not None:
        source = real_path(dataset)
        if source == real or source in real.parents or real in source.parents:
            raise UserError(
                f"{path}: lies in {dataset}, or around it; the source is only read. Name a folder beside it."
            )
    for source in sources:
        if real in (real_path(source), *real_path(source).parents):
            raise UserError(f"{path}: holds {source}, which is read, and would be replaced. Name a folder beside it.")


def _mounts_within(folder: Path) -> list[Path]:
    """Mount points at or below a folder, in order."""
    mounts = {folder} if os.path.ismount(folder) else set()
    if MOUNTS.is_file():
        for line in MOUNTS.read_bytes().splitlines():
            # blanks and backslashes in a name are written as three octal digits
            name = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), line.split()[4])
            mount = Path(os.fsdecode(name))
            if folder in (mount, *mount.parents):
                mounts.add(mount)
    return sorted(mounts)


def _why_unwritable(folder: Path, name: str) -> str:
    """Why no folder can be made and renamed in `folder`, or in the nearest one above it that exists; empty where it can.

    It is tried, because permissions say nothing of file systems that are read-only or cannot rename.
    """
    existing = folder
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        return f"{existing} is a file"
    try:
        made = tempfile.mkdtemp(prefix=f".{name}.", dir=existing)
        moved = f"{made}.moved"
        try:
            os.rename(made, moved)
        except OSError:
            os.rmdir(made)
            raise
        os.rmdir(moved)
    except OSError as error:
        return f"{existing} cannot be written ({error.strerror})"
    return ""
