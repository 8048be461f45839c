"""The Arrow types in which a column of the contract may be stored.

In: types from the footers of Parquet files. Out: whether a kind of column holds them, and their names, in which widths of
offsets and dictionaries make no difference.
"""

import pyarrow as pa

from datamodules.contract.tables import Column, Kind

ACCEPTED_TYPES: dict[Kind, str] = {
    "string": "string",
    "strings": "list of string",
    "float": "float or double",
    "floats": "list of float or double",
    "vector": "list of float or double",
    "integer": "an integer of any width",
    "timestamp": "timestamp with a time zone",
    "boolean": "bool",
    "category": "string, an integer or bool",
    "number": "a float, an integer, a decimal of at most 38 digits or bool",
}
DECIMAL_DIGITS = 38
"""The digits of a decimal of 128 bits: engines read wider ones as other numbers, or not at all."""


def holds(type_: pa.DataType, column: Column) -> bool:
    """Whether a column may be stored in a type."""
    return _holds(type_, column.kind) or (column.of_ids and _holds_integers(type_, column.kind))


def _holds_integers(type_: pa.DataType, kind: Kind) -> bool:
    item = item_type(type_) if kind == "strings" else type_
    return item is not None and pa.types.is_integer(item)


def _holds(type_: pa.DataType, kind: Kind) -> bool:
    types = pa.types
    if kind in ("strings", "floats", "vector"):
        item = item_type(type_)
        return item is not None and _holds(item, "string" if kind == "strings" else "float")
    if kind == "category":
        return type_name(type_) == "string" or types.is_integer(type_) or types.is_boolean(type_)
    if kind == "number":
        if types.is_decimal(type_):
            return type_.precision <= DECIMAL_DIGITS
        return types.is_floating(type_) or types.is_integer(type_) or types.is_boolean(type_)
    if kind == "string":
        return type_name(type_) == "string"
    if kind == "float":
        return types.is_float32(type_) or types.is_float64(type_)
    if kind == "integer":
        return types.is_integer(type_)
    if kind == "boolean":
        return types.is_boolean(type_)
    return types.is_timestamp(type_) and type_.tz is not None


def item_type(type_: pa.DataType) -> pa.DataType | None:
    """The item type of a list; None for other types."""
    types = pa.types
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return type_.value_type if any(is_kind(type_) for is_kind in lists) else None


def type_name(type_: pa.DataType) -> str:
    """A type's name without details of Arrow that make no difference in Parquet: width of offsets, dictionaries."""
    types = pa.types
    if types.is_dictionary(type_):
        return type_name(type_.value_type)
    if types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_):
        return "string"
    item = item_type(type_)
    return f"list of {type_name(item)}" if item is not None else str(type_)
