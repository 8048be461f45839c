"""Cores, memory and terminal of the machine, as this process may use them, on any system that Python runs on.

Linux says which cores a process may use and what its container allows; other systems only say what the machine has.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def available_cores() -> int:
    """Cores this process may use; all cores of the machine where the system keeps no such list, as macOS."""
    # the function itself is missing where the system has no such list
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def machine_memory() -> int | None:
    """Bytes of the machine, or of the container where that has less; None where the system does not say."""
    limits = []
    with suppress(AttributeError, OSError, ValueError):  # no sysconf, or a name that the system does not know
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # absent, or the word "max"
            limits.append(int(Path(path).read_text(encoding="utf-8")))
    return min((limit for limit in limits if limit > 0), default=None)


def silence_lost_terminal() -> None:
    """Have what is printed to a terminal that was closed go nowhere: each write would fail, and end work that is to be finished."""
    for descriptor in (1, 2):
        with suppress(OSError):
            lost = stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor)
            if lost:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
