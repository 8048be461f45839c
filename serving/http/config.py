"""The service's address and limits."""

from dataclasses import dataclass
from pathlib import Path

from foundation.errors import UserError
from serving.scoring.policies import MAX_DRAWS

"""Seconds by the letter of a unit."""
MAX_WORKERS = 256
RELOAD_SECONDS = 1.0
"""Seconds between two looks at whether the bundle was replaced, under --reload."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Address and limits of the service."""

    host: str = "127.0.0.1"
    """Address to listen at."""
    port: int = 8000
    """0 .. 65535; 0: any free port."""
    workers: int = 1
    """Processes that share the port."""
    draws: int = 1024
    """Draws of Thompson sampling that a request may ask for, at most."""
    deadline: float = 0.8
    """Seconds within which a body is answered, or refused with 503."""
    batch: int = 64
    """Requests ranked together, at most."""
    gather_seconds: float = 0.002
    """Seconds that the first of them waits for others, at most."""
    waiting: int = 4096
    """Requests in a queue, at most; further ones are refused with 503."""
    connections: int = 1024
    """Open connections, at most: beyond them those that have waited longest for a request are closed, and where none waits, new
    ones get 503, except for /health, /ready and /metrics."""
    body_bytes: int = 2**20
    """Bytes of a body, at most."""
    bodies_bytes: int = 2**22
    """Bytes of all bodies that are being received or answered, beyond which large ones are refused with 503."""
    body_seconds: float = 10.0
    """Seconds for a body to arrive, at most."""
    head_seconds: float = 10.0
    """Seconds for the head of a request to arrive, at most."""
    idle_seconds: float = 75.0
    """Seconds that an idle connection is kept: longer than the 60 of proxies, which would otherwise use a closed one."""
    write_seconds: float = 20.0
    """Seconds for an answer to be read by its client, at most."""
    unsent_bytes: int = 2**22
    """Bytes of answers that clients have not read yet, all together, at most: beyond them the slowest client's connection ends."""
    token: str = ""
    """What requests other than /health and /ready must bring as `Authorization: Bearer TOKEN`; empty: nothing."""
    cors: tuple[str, ...] = ()
    """Origins of web pages that may ask the service; *: all."""
    sticky_seconds: float = 0.0
    """Seconds for which a member keeps the draw of a title, where the policy is random and the request names the member; 0: a new
    draw each time."""
    log: Path | None = None
    """File to which a line of JSON is appended for every answered request."""
    reload_seconds: float = 0.0
    """Seconds between two looks at whether the bundle was replaced; 0: none, SIGHUP alone."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.port <= 65_535:
            raise UserError(f"port={self.port}: give 0 .. 65535.")
        for name, least, most in (("workers", 1, MAX_WORKERS), ("draws", 1, MAX_DRAWS), ("connections", 1, 2**20)):
            if not least <= getattr(self, name) <= most:
                raise UserError(f"{name}={getattr(self, name)}: give {least} .. {most:,}.")
        for name in ("deadline", "head_seconds", "body_seconds", "idle_seconds", "write_seconds"):
            if not 0 < getattr(self, name) < 1e6:
                raise UserError(f"{name}={getattr(self, name)}: give seconds above 0.")
        if self.body_bytes < 1:
            raise UserError(f"body_bytes={self.body_bytes}: give 1 or more.")

    @property
    def url(self) -> str:
        """The service's URL without a path."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def read_token(path: Path) -> str:
    """The token in a file, without white space around it; UserError where the file cannot be read or holds none."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"token={path}: cannot be read ({error}). Give a text file that holds the token.") from None
    if not token or any(not "!" <= letter <= "~" for letter in token):
        raise UserError(f"token={path}: must hold one token of printable ASCII, without spaces. Write one into it.")
    return token
