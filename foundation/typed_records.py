"""Checks that a value read from JSON is what a TypedDict declares: every field, its type at any depth, and no other field."""

from collections.abc import Mapping
from math import isfinite
from types import UnionType
from typing import Any, NotRequired, Required, Union, get_args, get_origin, get_type_hints, is_typeddict

PLAIN = {
    str: "text",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    int: "a whole number",
    float: "a number",
}
MAX_SHOWN = 60


def type_fault(value: object, declared: Any, name: str = "") -> str | None:
    """What is wrong with a value, in words that begin with the field's path from `name`; None where it is as declared.

    `declared`: a TypedDict, `dict` or `Mapping` from text, a list, a union, a plain type, or `object` and `Any`, which take any
    value. A number has to be finite; a bool is no number.
    """
    if declared is Any or declared is object:
        return None
    if is_typeddict(declared):
        return _fault_of_fields(value, declared, name)
    origin, arguments = get_origin(declared) or declared, get_args(declared)
    if origin in (NotRequired, Required):
        return type_fault(value, arguments[0], name)
    if origin in (Union, UnionType):
        faults = [type_fault(value, part, name) for part in arguments if part is not type(None)]
        return None if (value is None and type(None) in arguments) or None in faults else faults[0]
    if origin is dict or origin is Mapping:
        if not isinstance(value, dict):
            return _wrong(value, dict, name)
        faults = (type_fault(part, arguments[1], f"{name}.{key}") for key, part in value.items())
        return next((fault for fault in faults if fault), None)
    if origin is list:
        if not isinstance(value, list):
            return _wrong(value, list, name)
        faults = (type_fault(part, arguments[0], f"{name}[{index}]") for index, part in enumerate(value))
        return next((fault for fault in faults if fault), None)
    accepted = (int, float) if origin is float else (origin,)
    fits = isinstance(value, accepted) and isinstance(value, bool) == (origin is bool)
    return None if fits and not (isinstance(value, float) and not isfinite(value)) else _wrong(value, origin, name)


def _fault_of_fields(value: object, declared: Any, name: str) -> str | None:
    if not isinstance(value, dict):
        return _wrong(value, dict, name)
    hints, prefix = get_type_hints(declared, include_extras=True), f"{name}." if name else ""
    missing = sorted(declared.__required_keys__ - value.keys())
    if missing:
        return f"{prefix}{missing[0]} is missing"
    unknown = sorted(value.keys() - hints.keys())
    if unknown:
        return f"{prefix}{unknown[0]} is not a field that this keyart knows"
    faults = (type_fault(part, hints[key], f"{prefix}{key}") for key, part in value.items())
    return next((fault for fault in faults if fault), None)


def _wrong(value: object, wanted: type, name: str) -> str:
    shown = repr(value)
    shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}..."
    return f"{name or 'the record'} is {shown}, not {PLAIN[wanted]}"
