"""Hard links: files of a bundle have several names while only its record is replaced; they are read and counted once."""

import hashlib
import os
import shutil
from pathlib import Path

Inode = tuple[int, int]
"""Device and inode number, the same for every name of a file."""


def link(source: Path, target: Path) -> int:
    """Give a file a second name; returns the bytes it takes: 0, or the file's size where the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # file systems refuse links by different errors; any other error occurs again when copying
        shutil.copy2(source, target)
        return target.stat().st_size
    return 0


def sha256(path: Path, digest_by_inode: dict[Inode, str] | None = None) -> str:
    """SHA-256 of a file's bytes. `digest_by_inode`: digests of linked files read before, to which this one's is added."""
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
    """The inode of a file that has several names; None for any other."""
    status = path.stat()
    return (status.st_dev, status.st_ino) if status.st_nlink > 1 else None
