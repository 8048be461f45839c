"""Columns of Parquet files as plain arrays, whatever width, dictionary or time unit the exporting engine chose.

In: files and the columns a contract wants of them. Out: an Arrow table of a few plain types, and NumPy arrays made from
its columns without a loop over rows.

Legend: N rows.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datamodules.contract.column_types import holds
from datamodules.contract.stored_types import folded_name, int96_columns, with_text_ids
from datamodules.contract.tables import Column, Kind
from foundation.errors import UserError
from foundation.lists import Lists

ARROW_TYPES: dict[Kind, pa.DataType] = {
    "string": pa.string(),
    "strings": pa.list_(pa.string()),
    "float": pa.float64(),
    "floats": pa.list_(pa.float64()),
    "boolean": pa.bool_(),
}
"""The Arrow type that each kind is read as. Categories, numbers and timestamps, which come in many types, keep their own.

A cast of nanoseconds on reading would fail for values that are not whole microseconds.
"""
KIND_NAMES: dict[Kind, str] = {
    "string": "text",
    "strings": "a list of texts",
    "float": "a number",
    "floats": "a list of numbers",
    "boolean": "true or false",
    "category": "text, whole numbers or true and false",
    "number": "a number",
    "timestamp": "a timestamp with a time zone",
}


def read_columns(
    source: Path,
    files: Sequence[Path],
    columns: Sequence[Column],
    *,
    remedy: str,
    since: datetime | None = None,
    before: datetime | None = None,
) -> pa.Table:
    """Columns of `files` as one table of plain types; optional columns that the first file lacks are absent, unless they are
    marked as in some files only.

    `source`: the path that errors name; `remedy`: their last sentence. `since` and `before`, with a time zone, filter rows by
    `shown_at`. UserError: no file, an unreadable one, a column that is missing, of another kind, or null where it must
    not be. ValueError: `since` or `before` without a time zone.
    """
    if any(moment is not None and moment.tzinfo is None for moment in (since, before)):
        raise ValueError(f"since={since}, before={before}: must have a time zone.")
    if not files or not all(path.is_file() for path in files):
        raise UserError(f"{source}: no Parquet file. {remedy}")
    try:
        schema = _with_columns_of_some_files(pads.dataset(list(files)).schema, files, columns)
        instants = int96_columns(pq.read_metadata(files[0]))
        if since is not None or before is not None:
            _holds(schema, Column(name="shown_at", kind="timestamp"), source, remedy, instants)
        keep = _period(since, before)
        present = [c for c in columns if _holds(schema, c, source, remedy, instants)]
        read = pa.schema([(c.name, ARROW_TYPES.get(c.kind) or schema.field(c.name).type) for c in present])
        times = [schema.field("shown_at")] if keep is not None and "shown_at" not in read.names else []
        table = pads.dataset(list(files), schema=pa.schema([*read, *times])).to_table(columns=read.names, filter=keep)
    except pa.ArrowException as error:
        raise UserError(f"{source}: cannot be read: {' '.join(str(error).split())[:200]}. {remedy}") from None
    table = with_text_ids(table)
    for column in columns:
        if column.name in table.column_names and not column.nullable and table[column.name].null_count:
            null = np.asarray(table[column.name].is_null())
            key = table.column_names[0]
            raise UserError(
                f"{source}: {null.sum()} rows whose {column.name} is null (first: {first_id(table[key], null)}). {remedy}"
            )
    return table


def _with_columns_of_some_files(schema: pa.Schema, files: Sequence[Path], columns: Sequence[Column]) -> pa.Schema:
    """The first file's schema; columns that some files may lack have the type of the first file with values in them."""
    for column in columns:
        if column.in_some_files:
            schemas = (pq.read_schema(path) for path in files)
            types = (s.field(column.name).type for s in schemas if column.name in s.names)
            type_ = next((t for t in types if not pa.types.is_null(t)), None)
            index = schema.get_field_index(column.name)
            if type_ is not None and index < 0:
                schema = schema.append(pa.field(column.name, type_))
            elif index >= 0:  # all null: any type of the column's kind will do
                of_nulls = pa.string() if column.kind == "category" else pa.float64()
                schema = schema.set(index, pa.field(column.name, type_ or of_nulls))
    return schema


def _period(since: datetime | None, before: datetime | None) -> pc.Expression | None:
    """The filter by `shown_at`, compared in microseconds whatever unit and zone it was written in."""
    if since is None and before is None:
        return None
    unit = pa.timestamp("us", "UTC")
    shown_at = pads.field("shown_at").cast(unit, safe=False)
    keep = pads.scalar(True)
    if since is not None:
        keep = keep & (shown_at >= pa.scalar(since, unit))
    if before is not None:
        keep = keep & (shown_at < pa.scalar(before, unit))
    return keep


def _holds(schema: pa.Schema, column: Column, source: Path, remedy: str, instants: Collection[str]) -> bool:
    """Whether the schema has the column; UserError where a required one is missing, or one is of another kind.

    `instants`: columns whose timestamps need no zone.
    """
    if column.name not in schema.names:
        if like := [name for name in schema.names if folded_name(name) == folded_name(column.name)]:
            raise UserError(f"{source}: has no column {column.name}, but {like[0]}. Rename it to {column.name}.")
        if column.required:
            raise UserError(f"{source}: column {column.name} is missing. {remedy}")
        return False
    type_ = schema.field(column.name).type
    if column.name in instants and pa.types.is_timestamp(type_):
        return True
    if not (_is(type_, column.kind) or holds(type_, column)):
        raise UserError(f"{source}: column {column.name} is {type_}, must be {KIND_NAMES[column.kind]}. {remedy}")
    return True


def _is(type_: pa.DataType, kind: Kind) -> bool:
    """Whether a type is of a kind; floats may be stored as integers, as in a policy of ones and zeros."""
    types = pa.types
    if kind in ("strings", "floats"):
        lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view)
        inside = any(is_list(type_) for is_list in (*lists, types.is_large_list_view))
        return inside and _is(type_.value_type, "string" if kind == "strings" else "float")
    if types.is_dictionary(type_):
        return _is(type_.value_type, kind)
    if kind == "string":
        return types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_)
    if kind == "category":
        return _is(type_, "string") or types.is_integer(type_) or types.is_boolean(type_)
    if kind == "number":
        return _is(type_, "float") or types.is_decimal(type_) or types.is_boolean(type_)
    if kind == "float":
        return types.is_floating(type_) or types.is_integer(type_)
    return types.is_boolean(type_) if kind == "boolean" else types.is_timestamp(type_) and type_.tz is not None


def first_id(ids: pa.ChunkedArray | pa.Array, where_N: NDArray) -> str:
    """The id of the first row that `where_N` selects, for a message."""
    return ids[int(np.flatnonzero(where_N)[0])].as_py()


def to_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as one array."""
    if isinstance(column, pa.ChunkedArray):
        return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return column


def flatten_lists(lists: pa.ChunkedArray) -> pa.Array:
    """The items of all lists, one after the other."""
    return to_array(pc.list_flatten(lists))


def list_lengths(lists: pa.ChunkedArray) -> NDArray[np.int64]:
    """How many items each list has, (N,); 0 for null."""
    return np.asarray(to_array(pc.fill_null(pc.list_value_length(lists), 0)), np.int64)


def integer_codes(values: pa.ChunkedArray | pa.Array, names: pa.Array | None) -> NDArray[np.int64]:
    """Strings as integers, (N,): their index in `names`, -2 for others; or, without names, numbered in order of appearance."""
    array = to_array(values)
    names = pc.unique(array) if names is None else names
    return np.asarray(pc.fill_null(pc.index_in(array, value_set=names), -2), np.int64)


def integer_code_lists(lists: pa.ChunkedArray, names: pa.Array) -> Lists:
    """Lists of strings as integers by `integer_codes`, padded with -1."""
    return Lists.of(integer_codes(flatten_lists(lists), names), list_lengths(lists), padding=-1)
