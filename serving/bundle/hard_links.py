"""Files that have several names, as those of a bundle have while its record alone is replaced: read and counted once."""

import hashlib
import os
import shutil
from pathlib import Path

Inode = tuple[int, int]
"""Device and number: the same for every name of a file."""


def link(source: Path, target: Path) -> int:
    """Give a file a second name; returns the bytes that cost: 0, or its size where the file system makes no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # each file system refuses in its own way; what is wrong besides, copying meets again
        shutil.copy2(source, target)
        return target.stat().st_size
    return 0


def sha256(path: Path, digest_by_inode: dict[Inode, str] | None = None) -> str:
    """Of a file's bytes. `known`: of linked files that were read already, to which this one is added."""
    inode, digest_by_inode = _inode(path), {} if digest_by_inode is None else digest_by_inode
    if inode is None:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    if inode not in digest_by_inode:
        digest_by_inode[inode] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digest_by_inode[inode]


def file_checksums(folder: Path) -> dict[str, str]:
    """Each file's SHA-256 by its path from the folder, sorted."""
    digest_by_inode: dict[Inode, str] = {}
    return {path.relative_to(folder).as_posix(): sha256(path, digest_by_inode) for path in files_of(folder)}


def disk_size(folder: Path) -> int:
    """Bytes on disk: a file with several names counts once."""
    return sum({_inode(path) or path: path.stat().st_size for path in files_of(folder)}.values())


def files_of(folder: Path) -> list[Path]:
    """Every file, those in subfolders included, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _inode(path: Path) -> Inode | None:
    """Of a file that has several names; None for one that has not."""
    status = path.stat()
    return (status.st_dev, status.st_ino) if status.st_nlink > 1 else None
