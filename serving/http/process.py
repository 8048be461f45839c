"""What every process that serves sets, and prints."""

import asyncio
import ctypes
import sys
from pathlib import Path

from serving.http.config import ServeConfig

M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES = -3, 2**20
"""mallopt's parameter for the size from which freed memory is returned to the system, and that size."""
TRIM_SECONDS = 0.5
SWITCH_SECONDS = 0.001
"""Seconds after which a thread that computes in Python lets the event loop go on."""


def banner(folder: Path, config: ServeConfig, curl: str) -> str:
    """What is printed when the service answers."""
    return f"{folder} at {config.url}, to read at {config.url}/docs; Ctrl-C stops it. Try:\n{curl}"


def prepare_process() -> None:
    """Settings of a process that serves."""
    sys.setswitchinterval(SWITCH_SECONDS)
    _return_large_arrays()


def _return_large_arrays() -> None:
    """Have the memory of large arrays returned to the system when they are freed. glibc by default learns to keep those of up to
    32 MB, so that memory of the largest requests stays, and grows over 80,000 different requests (docs/experiments.md)."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl lacks it, and keeps nothing
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


async def return_free_memory() -> None:
    """Return to the system what large requests took and glibc keeps, every half second (.15 ms), until cancelled."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    while trim is not None:
        await asyncio.sleep(TRIM_SECONDS)
        trim(0)
