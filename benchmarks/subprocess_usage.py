"""A command as a process of its own: how long it took and the most memory it held."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foundation.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ProcessUsage:
    """One process, from its start to its end."""

    seconds: float
    """Wall clock."""
    cpu_seconds: float
    """Of all its threads and of the processes it waited for."""
    peak_bytes: int
    """Largest resident set of the process, or of one it waited for."""


LAUNCHER = """
import json, os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - began
told = [seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, os.waitstatus_to_exitcode(status)]
open(sys.argv[1], "w", encoding="utf-8").write(json.dumps(told))
"""
"""A small process between: what a process held before it called another program counts as the other's too."""


def measure(arguments: Sequence[str], *, threads: int | None = None) -> ProcessUsage:
    """Run a command to its end. UserError, with the last line it wrote, where it fails.

    `threads`: what libraries that ask OMP_NUM_THREADS may use; None leaves the environment alone.
    """
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    # the compiled modules of a first run serve the next: without them each run compiles every library again
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "usage.json"
        launch = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(report), *arguments]
        completed = subprocess.run(launch, stderr=subprocess.PIPE, env=environment, check=False)
        lines = completed.stderr.decode(errors="replace").strip().splitlines() or ["it wrote nothing"]
        if completed.returncode:
            raise UserError(f"{' '.join(arguments[:6])} ...: cannot be run: {lines[-1][:300]}")
        seconds, cpu_seconds, peak_bytes, code = json.loads(report.read_text(encoding="utf-8"))
    if code:
        how = f"exit {code}" if code > 0 else f"signal {-code}"
        raise UserError(f"{' '.join(arguments[:6])} ...: failed ({how}): {lines[-1][:300]}")
    return ProcessUsage(seconds=seconds, cpu_seconds=cpu_seconds, peak_bytes=peak_bytes)


def python(module: str, *arguments: object) -> list[str]:
    """A module of ours as a command."""
    # from keyart's own folder (`-P`: and not from the one the user is in, whose files may be called alike)
    return [sys.executable, "-P", "-m", module, *map(str, arguments)]
