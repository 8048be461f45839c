"""Where the service listens, and its limits."""

from dataclasses import dataclass

from foundation.errors import UserError


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
