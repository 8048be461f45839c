"""Reading a bundle that another process may replace meanwhile: what is read comes from one bundle, or it is read again.

A bundle is replaced as a whole (`foundation.atomic`), so that its record, a new file each time, tells whether it was.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from foundation.atomic import is_half_replaced, restore_replaced
from foundation.errors import UserError
from serving.bundle.metadata import BUNDLE_FILE

T = TypeVar("T")
Identity = tuple[int, int, int]
"""Device, inode and time of writing of a bundle's record."""
TRIES = 100


def identity(folder: Path) -> Identity | None:
    """What changes whenever a bundle is replaced; None where there is none."""
    try:
        status = (folder / BUNDLE_FILE).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def read_steadily(folder: Path, read: Callable[[], T]) -> T:
    """What `read` returns or raises where the bundle in a folder stays the same from its begin to its end, else what it does
    when called again. A bundle whose replacement was interrupted is restored first."""
    for _ in range(TRIES):
        restore_replaced(folder)
        before = identity(folder)
        try:
            result = read()
        except Exception:
            if identity(folder) == before and not is_half_replaced(folder):
                raise
        else:
            if identity(folder) == before:
                return result
    raise UserError(f"{folder}: was replaced {TRIES} times while it was read. Wait for the command that writes it.")
