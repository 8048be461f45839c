"""Dates and times as users write them."""

from datetime import UTC, datetime

from foundation.errors import UserError

SECONDS_OF = {"s": 1, "m": 60, "h": 3600, "d": 86400}
"""Units of a duration."""


def parse_time(name: str, text: str) -> datetime:
    """A date or time in ISO 8601 as a datetime with a zone, UTC by default; UserError with the option's name if it is invalid."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"{name}={text}: invalid date. Give one like 2026-03-31 or 2026-03-31T12:00:00+00:00."
        ) from None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time


def duration(name: str, text: str) -> float:
    """Seconds from a text like `90s`, `30m`, `12h` or `7d`; UserError with the option's name otherwise."""
    number, unit = text[:-1], text[-1:]
    try:
        seconds = float(number) * SECONDS_OF[unit]
    except (ValueError, KeyError):
        seconds = float("nan")
    if not 0 < seconds < 1e9:
        raise UserError(f"{name}={text}: give a duration above 0 like 90s, 30m, 12h or 7d.")
    return seconds
