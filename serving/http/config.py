"""The service's address and limits."""

from dataclasses import dataclass

from foundation.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Address and limits of the service."""

    host: str = "127.0.0.1"
    """Address to listen at."""
    port: int = 8000
    """0 .. 65535; 0: any free port."""
    batch: int = 64
    """Requests ranked together, at most."""
    gather_seconds: float = 0.002
    """Seconds that the first of them waits for others, at most."""
    waiting: int = 4096
    """Requests in the queue, at most; further ones are refused with 503."""
    connections: int = 1024
    """Open connections, at most; further ones are refused with 503."""
    body_bytes: int = 2**20
    """Bytes of a body, at most."""
    body_seconds: float = 10.0
    """Seconds for a body to arrive, at most."""
    head_seconds: float = 10.0
    """Seconds for the head of a request to arrive, at most."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise UserError(f"port={self.port}: give 0 .. 65535.")

    @property
    def url(self) -> str:
        """The service's URL without a path."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"
