"""Fields inside columns: `context.device` of an object, `slate.id` of every object of a list.

In: a source whose columns are JSON, text that holds JSON, or structs of Parquet, and the dotted paths that the user named. Out:
the same source with a column by path, read as any other.
"""

from dataclasses import replace

import duckdb

from datamodules.importing.sources import Source, literal, quoted, reading


def with_fields(source: Source, paths: list[str], connection: duckdb.DuckDBPyConnection) -> Source:
    """The source with a column for each path that it has; a path that is a column's own name is left as it is.

    A field of the objects in a list becomes a list as long, null where an object lacks it.
    """
    for path in dict.fromkeys(paths):
        column = path.partition(".")[0]
        if path in source.columns or "." not in path or column not in source.columns:
            continue
        with reading((source.path, source.staged)):
            source = _with_field(source, path, connection)
    return source


def _field_names(source: Source, column: str, parents: list[str], connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Paths of the fields of the objects, or of the lists' first objects, that a column holds below some parents."""
    value, inside = _json(source, column), literal(_json_path(parents))
    first = literal(_json_path(parents) + "[0]")
    keys = f"coalesce(nullif(json_keys({value}, {inside}), []), json_keys({value}, {first}))"
    sql = f"SELECT DISTINCT unnest({keys}) AS name FROM {source.relation} ORDER BY name"
    return [".".join([column, *parents, name]) for (name,) in connection.execute(sql).fetchall()]


def _with_field(source: Source, path: str, connection: duckdb.DuckDBPyConnection) -> Source:
    column, *parents, leaf = path.split(".")
    if source.columns[column].startswith("STRUCT(") and not source.columns[column].endswith("]"):
        field = ".".join(quoted(part) for part in (column, *parents, leaf))
        try:
            ((_, type_, *_),) = connection.execute(f"DESCRIBE SELECT {field} FROM {source.relation}").fetchall()
        except duckdb.BinderException:  # no such field, or one of a list's objects
            pass
        else:
            return _and_column(source, path, field, type_)
    names = _field_names(source, column, parents, connection)
    if path not in names:
        return replace(source, fields=(*source.fields, *names))
    value, inside = _json(source, column), literal(_json_path(parents))
    items = f"CAST(json_extract({value}, {inside}) AS JSON[])"
    each = f"list_transform({items}, lambda item: json_extract(item, {literal(_json_path([leaf]))}))"
    sql = (
        f"CASE WHEN json_type({value}, {inside}) = 'ARRAY' THEN CAST(to_json({each}) AS VARCHAR) "
        f"ELSE json_extract_string({value}, {literal(_json_path([*parents, leaf]))}) END"
    )
    return _and_column(source, path, sql, "JSON")


def _and_column(source: Source, name: str, sql: str, type_: str) -> Source:
    relation = f"(SELECT *, {sql} AS {quoted(name)} FROM {source.relation})"
    return replace(source, columns={**source.columns, name: type_}, relation=relation)


def _json(source: Source, column: str) -> str:
    """SQL of a column as JSON, null where it is none."""
    if source.kind == "parquet" and source.columns[column] != "VARCHAR":
        return f"to_json({quoted(column)})"
    return f"CASE WHEN json_valid({quoted(column)}) THEN CAST({quoted(column)} AS JSON) END"


def _json_path(parts: list[str]) -> str:
    return "$" + "".join('."' + part.replace('"', '\\"') + '"' for part in parts)
