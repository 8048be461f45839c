"""`keyart serve`: a bundle behind HTTP, small and complete enough to measure a real service against.

One process: an event loop reads and writes, one thread runs the graph over the requests that arrived meanwhile. Needs the extra
`serve`, and no torch. `serving.http.application` answers, `serving.http.requests` reads requests.
"""

import ctypes
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from foundation.errors import UserError
from serving.bundle.bundle import Bundle
from serving.http.config import ServeConfig

M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES = -3, 2**20
"""mallopt's parameter for the size from which freed memory is returned to the system, and that size."""


def serve(folder: Path, config: ServeConfig, console: Console) -> None:
    """Answer until SIGTERM or Ctrl-C. UserError where the extra is missing, the folder is not a bundle or the port is taken."""
    try:
        from serving.http.application import Service, curl
        from serving.http.connections import listen, run
    except ImportError as error:
        raise UserError(
            f"keyart serve: {error.name} is not installed. Install the extra: uv sync --extra serve."
        ) from None

    _return_large_arrays()
    # one thread: the event loop has the other core, and threads that wait for work by spinning take it away
    bundle = Bundle.open(folder, threads=1)
    with listen(config) as listening:
        config = replace(config, port=listening.getsockname()[1])
        app = Service(bundle, config).application()
        banner = (
            f"{folder} at {config.url}, to read at {config.url}/docs; Ctrl-C stops it. Try:\n{curl(bundle, config.url)}"
        )
        console.print(banner, soft_wrap=True, markup=False)
        run(app, listening, config)
    console.print("Stopped.")


def _return_large_arrays() -> None:
    """Have the memory of large arrays returned to the system when they are freed. glibc by default learns to keep those of up to
    32 MB, so that memory of the largest requests stays, and grows over 80,000 different requests (docs/experiments.md)."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl lacks it, and keeps nothing
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
