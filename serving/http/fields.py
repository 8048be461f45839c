"""Fields of a JSON object: each read as what it must be, or refused in one line that names field, value and remedy."""

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

from datamodules.contract.stored_types import is_blank
from serving.http.schema import EARLIEST, LATEST, Schema


class RequestError(Exception):
    """A request that is refused: an HTTP status and one line that names field, value and remedy."""

    def __init__(self, status: int, message: str, *, is_unread: bool = False) -> None:
        """`is_unread`: whether the rest of the body was not read, so that the connection must end."""
        super().__init__(message)
        self.status, self.is_unread = status, is_unread


def require_known_fields(fields_given: dict[str, Any], fields: dict[str, Schema], prefix: str) -> None:
    """RequestError where an object has a field that is not declared."""
    if fields_given.keys() <= fields.keys():
        return
    name = next(name for name in fields_given if name not in fields)
    close_matches = get_close_matches(name[:40], fields, 1)
    hint = f"Did you mean {close_matches[0]}?" if close_matches else f"Fields: {', '.join(fields)}."
    raise RequestError(422, f"{prefix}{quoted(name)}: unknown field. {hint}")


def string_of(
    fields_given: dict[str, Any], name: str, prefix: str, *, required: bool = False, default: str = ""
) -> str:
    """A string, `default` where it is null or missing and not required."""
    value = fields_given.get(name)
    if type(value) is str:
        return value
    if value is None and not required:
        return default
    if name not in fields_given:
        raise RequestError(422, f"{prefix}{name}: is missing. GET /docs shows a request.")
    raise RequestError(422, f"{prefix}{name}={quoted(value)}: must be a string. Put it in quotes.")


def id_of(fields_given: dict[str, Any], name: str, prefix: str) -> str:
    """An id that must be there: a blank one is as good as null."""
    value = string_of(fields_given, name, prefix, required=True)
    if is_blank(value):
        raise RequestError(422, f"{prefix}{name}={quoted(value)}: is blank. Give the id.")
    return value


def integer_of(fields_given: dict[str, Any], name: str, prefix: str, minimum: int, maximum: int, default: int) -> int:
    """A whole number, `default` where it is null or missing."""
    value = fields_given.get(name)
    if value is None:
        return default
    if type(value) is float and value.is_integer():  # 1.0 is an integer of JSON Schema
        value = int(value)
    if type(value) is not int or not minimum <= value <= maximum:
        raise RequestError(422, f"{prefix}{name}={quoted(value)}: give a whole number, {minimum} .. {maximum:,}.")
    return value


def fraction_of(value: Any, where: str) -> float:
    """A fraction, 0 .. 1; NaN for null."""
    if value is None:
        return math.nan
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise RequestError(422, f"{where}={quoted(value)}: give a fraction, 0 .. 1, or null where it is not known.")
    return float(value)


def timestamp_of(value: Any, where: str) -> float:
    """Seconds since 1970."""
    seconds = math.nan
    if type(value) in (int, float):
        seconds = value
    elif type(value) is str:
        try:
            parsed = datetime.fromisoformat(value)
            seconds = (parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed).timestamp()
        except ValueError:
            pass
    if not EARLIEST <= seconds <= LATEST:
        raise RequestError(
            422,
            f"{where}={quoted(value)}: invalid time, must lie in 1900 to 2100. Give ISO 8601, or seconds (not ms) since 1970.",
        )
    return seconds


def refuse_constant(name: str) -> None:
    """ValueError for NaN and Infinity, which are not JSON."""
    raise ValueError(f"{name} is not JSON; write null where a value is not known")


_KINDS: dict[type, Callable[[Any], str]] = {
    dict: lambda _: "an object",
    list: lambda value: "[]" if not value else "a list",
}


def quoted(value: Any) -> str:
    """A value on one line, cut where it is long."""
    if type(value) in _KINDS:
        return _KINDS[type(value)](value)
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
