"""One folder takes the place of another: on disk before it has its name, and in one step where the system can do that.

In: two folders side by side. A reader of the name meets the old folder or the new one, whole; a machine that loses its power keeps
one of them.
"""

import ctypes
import os
import sys
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE, RENAME_SWAP = -100, 2, 2
"""Constants of Linux's renameat2, and of macOS's renamex_np."""


def exchanged(one: Path, other: Path) -> bool:
    """Exchange what two paths name, in one step; False, with nothing done, where the system or the file system cannot."""
    libc, first, second = ctypes.CDLL(None), os.fsencode(one), os.fsencode(other)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):  # glibc from 2.28 on
        return libc.renameat2(AT_FDCWD, first, AT_FDCWD, second, RENAME_EXCHANGE) == 0
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        return libc.renamex_np(first, second, RENAME_SWAP) == 0
    return False


def flush_folder(folder: Path) -> None:
    """Have the system write every file of a folder, and the names in it and its subfolders, to the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            if path.is_file() and not path.is_symlink():
                flush(path)
        flush(Path(root))


def flush(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk, where its file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # of a folder, on some file systems: they keep names by themselves
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)
