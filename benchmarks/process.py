"""A command as a process of its own: how long it took and the most memory it held."""

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

from datamodules.contract import UserError


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One process, from its start to its end."""

    seconds: float
    """Wall clock."""
    cpu_seconds: float
    """Of all its threads and of the processes it waited for."""
    peak_bytes: int
    """Largest resident set of the process, or of one it waited for."""


def measure(words: Sequence[str], *, threads: int | None = None) -> Measured:
    """Run a command to its end. UserError, with the last line it wrote, where it fails.

    `threads`: what libraries that ask OMP_NUM_THREADS may use; None leaves the environment alone.
    """
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    # the compiled modules of a first run serve the next: without them each run compiles every library again
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
        try:
            _, status, usage = os.wait4(process.pid, 0)  # the usage of this process alone, not of all before it
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines() or ["it wrote nothing"]
            how = f"exit {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
            raise UserError(f"{' '.join(words[:6])} ...: failed ({how}): {lines[-1][:300]}")
    return Measured(seconds=seconds, cpu_seconds=usage.ru_utime + usage.ru_stime, peak_bytes=usage.ru_maxrss * 1024)
