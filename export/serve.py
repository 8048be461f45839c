"""`keyart serve`: a bundle behind HTTP, small and complete enough to measure a real service against.

One process: an event loop reads and writes, one thread runs the graph over what came meanwhile. Needs the extra `serve`, and
no torch. `export.application` answers, `export.requests` says what may be asked.
"""

import ctypes
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from datamodules.contract import UserError
from export.bundle import Bundle

M_MMAP_THRESHOLD, GIVEN_BACK = -3, 2**20
"""mallopt's name of the size from which memory is the system's again once it is free, and that size."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Where to listen, and the limits."""

    host: str = "127.0.0.1"
    """Address to listen at."""
    port: int = 8000
    """0 .. 65535; 0: any that is free."""
    batch: int = 64
    """Requests ranked together, at most."""
    gather_seconds: float = 0.002
    """What the first of them waits for others."""
    waiting: int = 4096
    """Requests in the queue, at most; further ones are refused with 503."""
    connections: int = 1024
    """Open at a time; further ones are refused with 503."""
    body_bytes: int = 2**20
    """Of a body, at most."""
    body_seconds: float = 10.0
    """For a body to arrive."""
    head_seconds: float = 10.0
    """For the head of a request to arrive."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise UserError(f"port={self.port}: give 0 .. 65535.")

    @property
    def url(self) -> str:
        """Of the service, without a path."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def serve(folder: Path, config: ServeConfig, console: Console) -> None:
    """Answer until SIGTERM or Ctrl-C. UserError where the extra is missing, the bundle is none or the port is taken."""
    try:
        from export.application import Service, curl
        from export.connections import listen, run
    except ImportError as error:
        raise UserError(
            f"keyart serve: {error.name} is not installed. Install the extra: uv sync --extra serve."
        ) from None

    _give_back()
    # one thread: the event loop has the other core, and threads that wait for work by spinning take it away
    bundle = Bundle.open(folder, threads=1)
    with listen(config) as listening:
        config = replace(config, port=listening.getsockname()[1])
        app = Service(bundle, config).application()
        said = (
            f"{folder} at {config.url}, to read at {config.url}/docs; Ctrl-C stops it. Try:\n{curl(bundle, config.url)}"
        )
        console.print(said, soft_wrap=True, markup=False)
        run(app, listening, config)
    console.print("Stopped.")


def _give_back() -> None:
    """Have large arrays given back when they are free. glibc, left alone, learns to keep those of up to 32 MB: what the largest
    requests took in between then stays, and grows for 80,000 requests that no two are alike (docs/experiments.md)."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none, and keeps nothing
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, GIVEN_BACK)
