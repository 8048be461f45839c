"""Dates and times as users write them."""

from datetime import UTC, datetime

from foundation.errors import UserError


def parse_time(name: str, text: str) -> datetime:
    """A date or time in ISO 8601 as a datetime with a zone, UTC by default; UserError with the option's name if it is invalid."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"{name}={text}: invalid date. Give one like 2026-03-31 or 2026-03-31T12:00:00+00:00."
        ) from None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time
