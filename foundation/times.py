"""Dates and times as users write them."""

from datetime import UTC, datetime

from foundation.errors import UserError


def parse_time(name: str, text: str) -> datetime:
    """A date or time in ISO 8601 as a moment, UTC where it names no zone; UserError, with the option's name, where not."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"{name}={text}: is no date. Give one like 2026-03-31 or 2026-03-31T12:00:00+00:00.") from None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time
