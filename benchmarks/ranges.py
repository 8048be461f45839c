"""Ranges of a benchmark's options."""

from typing import Any

from foundation.errors import UserError


def require_at_least(config: Any, **least: float) -> None:
    """UserError where a field of a benchmark's config is below its least value, or NaN."""
    for name, value in least.items():
        if not getattr(config, name) >= value:
            raise UserError(f"{name}={getattr(config, name)}: must be at least {value:g}.")
