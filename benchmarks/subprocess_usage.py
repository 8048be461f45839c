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
    """CPU seconds of all its threads and of the processes it waited for."""
    peak_bytes: int
    """Largest resident set of the process, or of one it waited for."""


LAUNCHER = """
import json, os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - began
unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
usage = [seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit, os.waitstatus_to_exitcode(status)]
open(sys.argv[1], "w").write(json.dumps(usage))
"""
"""A small process in between: memory that a process held before it started another program counts as the other's too."""


def measure(arguments: Sequence[str], *, threads: int | None = None) -> ProcessUsage:
    """Run a command to its end. UserError, with the last line it wrote, where it fails.

    `threads`: the value of OMP_NUM_THREADS, which libraries read; None leaves the environment as it is.
    """
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    # keep compiled modules for the next run: without them each run compiles every library again
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
    # from keyart's own folder (`-P`: not from the current one, whose files may have the same names)
    return [sys.executable, "-P", "-m", module, *map(str, arguments)]
