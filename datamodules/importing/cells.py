"""Cells of text -> values of the contract's kinds, as SQL of DuckDB.

In: a column's kind and what a first pass over it found: units of times, separators of lists. Out: for each column the SQL of its
value, that of whether the text cannot be read as one, and the words for both. `keyart import` writes the first and counts the
second; no value is guessed row by row.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from datamodules.contract.tables import Kind
from datamodules.importing.config import ImportConfig
from datamodules.importing.sources import literal

NULL_WORDS = ("na", "n/a", "#n/a", "nan", "null", "none", "(null)", "<na>", "nat", "\\n", "-", "unknown", "undefined")
"""Texts that stand for a value that is not known, in lower case: null in every column but texts, where NA is Namibia too."""
NO_GENRES = "(no genres listed)"
TRUE, FALSE = ("true", "t", "1", "1.0", "yes", "y"), ("false", "f", "0", "0.0", "no", "n")
WRITTEN: dict[Kind, str] = {
    "string": "VARCHAR",
    "strings": "VARCHAR[]",
    "float": "FLOAT",
    "floats": "FLOAT[]",
    "vector": "FLOAT[]",
    "integer": "BIGINT",
    "timestamp": "TIMESTAMPTZ",
    "boolean": "BOOLEAN",
    "category": "VARCHAR",
    "number": "DOUBLE",
}
"""DuckDB's type of each kind, as it is written."""
SHOWN: dict[Kind, str] = {
    "string": "string",
    "strings": "list of string",
    "float": "float",
    "floats": "list of float",
    "vector": "list of float",
    "integer": "integer",
    "timestamp": "timestamp, UTC",
    "boolean": "boolean",
    "category": "string",
    "number": "double",
}
FIELD_REMEDY = "Of objects, name a field: --map TARGET=COLUMN.FIELD"
UNITS = {"s": 10**0, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Units of times since 1970, by how many make a second."""
UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
EARLIEST_SECOND, LATEST_SECOND = 31_536_000, 4_102_444_800
"""1971 and 2100: between them no time in one unit is one in another too."""
ZONED = r"'(?i)\d(\s*(z|utc|gmt)|\s*[+-]\d\d(:?\d\d)?)$'"
COMPACT_DATE = r"'^(19|20)\d\d(0[1-9]|1[0-2])([0-2]\d|3[01])([01]\d|2[0-3])[0-5]\d([0-5]\d)?$'"
"""A date and time without marks, such as 202403022015, which is a number of milliseconds too."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """How the cells of one column become values."""

    value: str
    """SQL of the value; null where it is not known, or cannot be read."""
    bad: str
    """SQL of whether there is a text that cannot be read."""
    read_as: str
    """How it is read, where that is not plain from the kind."""
    remedy: str
    """What to do about texts that cannot be read."""


def among(text: str, words: Iterable[str]) -> str:
    """SQL of whether a text is one of some words; not by `IN`, of which DuckDB makes a join, which loses the rows' order."""
    return f"list_contains([{', '.join(literal(word) for word in words)}], {text})"


def known(text: str, kind: Kind, config: ImportConfig) -> str:
    """SQL of a cell's text without blanks around it, null where it means that the value is not known."""
    trimmed = f"trim({text}, ' ' || chr(9) || chr(10) || chr(13))"
    spelled = [word.strip() for word in config.null] + [NO_GENRES, "\\N"]
    same = among(trimmed, ["", *spelled])
    if kind not in ("string", "category"):
        same += f" OR {among(f'lower({trimmed})', NULL_WORDS)}"
    return f"CASE WHEN {same} THEN NULL ELSE {trimmed} END"


def cell(text: str, kind: Kind, config: ImportConfig, profile: dict[str, object]) -> Cell:
    """How a column of a kind is read: `text` is SQL of its known text, `profile` what `profile_of` found."""
    if kind in ("string", "category"):
        bad = _is_object(text)
        return Cell(value=_null_where(bad, text), bad=bad, read_as="", remedy=FIELD_REMEDY)
    if kind == "timestamp":
        return _time(text, config, profile)
    if kind == "strings":
        return _texts(text, config, profile)
    if kind in ("floats", "vector"):
        items = _numbers(text, config)
        numbers = f"list_transform({items}, lambda x: TRY_CAST({_with_point('trim(x)', config)} AS DOUBLE))"
        value = f"CAST({numbers} AS FLOAT[])"
        bad = f"len(list_filter({numbers}, lambda x: x IS NULL)) > 0"
        return Cell(value=_null_where(bad, value), bad=bad, read_as="", remedy=_number_remedy(config))
    if kind == "boolean":
        yes, no = (among(f"lower({text})", words) for words in (TRUE, FALSE))
        value = f"CASE WHEN {yes} THEN true WHEN {no} THEN false END"
        return Cell(value=value, bad=_unread(text, value), read_as="", remedy="Write true and false, or 1 and 0")
    number = _with_point(text, config)
    if kind == "integer":
        whole = f"regexp_full_match({number}, '[+-]?\\d+(\\.0*)?')"
        value = f"CASE WHEN {whole} THEN TRY_CAST(regexp_extract({number}, '^[+-]?\\d+') AS BIGINT) END"
        return Cell(value=value, bad=_unread(text, value), read_as="", remedy="Write whole numbers")
    value = f"TRY_CAST({number} AS {WRITTEN[kind]})"
    return Cell(value=value, bad=_unread(text, value), read_as="", remedy=_number_remedy(config))


def profile_of(text: str, kind: Kind) -> dict[str, str]:
    """SQL of aggregates over a column that `cell` needs to know, by name."""
    if kind == "timestamp":
        seconds = f"TRY_CAST({text} AS DOUBLE)"
        digits = f"CASE WHEN regexp_matches({text}, {COMPACT_DATE}) THEN 1 ELSE 0 END"
        return {
            "numbers": f"count({seconds})",
            "least": f"min(abs({seconds}))",
            "most": f"max(abs({seconds}))",
            "dates": f"sum({digits})",
            "rows": f"count({text})",
            "naive": f"count(*) FILTER (WHERE {_naive(text)})",
            "first_naive": f"min({text}) FILTER (WHERE {_naive(text)})",
            "first_number": f"min({text}) FILTER (WHERE {seconds} IS NOT NULL)",
        }
    if kind == "strings":
        return {f"has_{name}": f"bool_or(contains({text}, {literal(mark)}))" for name, mark in _MARKS.items()} | {
            "bracketed": f"bool_or({text} LIKE '[%' OR {text} LIKE '{{%')",
            "plain": f"bool_or(NOT ({text} LIKE '[%' OR {text} LIKE '{{%'))",
        }
    return {}


_MARKS = {"bar": "|", "semicolon": ";", "comma": ","}


def _unread(text: str, value: str) -> str:
    return f"({text} IS NOT NULL AND ({value}) IS NULL)"


def _is_object(text: str) -> str:
    """SQL of whether a text is a JSON object, which no column of the contract is; a UUID in braces, {} and {a,b} are none."""
    return f"({text} LIKE '{{%:%}}' AND json_valid({text}))"


def _null_where(bad: str, value: str) -> str:
    return f"CASE WHEN {bad} THEN NULL ELSE {value} END"


def _with_point(text: str, config: ImportConfig) -> str:
    return f"replace({text}, ',', '.')" if config.decimal == "," else text


def _number_remedy(config: ImportConfig) -> str:
    return "Write numbers as 0,5" if config.decimal == "," else "Write numbers as 0.5, or give --decimal , for commas"


def _numbers(text: str, config: ImportConfig) -> str:
    """SQL of the texts of the numbers in a cell, in brackets or not, split at bars or semicolons, else at commas or blanks.

    So 0,2;0,8 is never four numbers. numpy prints blanks.
    """
    inner = f"trim({text}, '[](){{}} ' || chr(9) || chr(10) || chr(13))"
    marked, marks = r"[;|]", r"\s+" if config.decimal == "," else r"\s*,\s*|\s+"
    parts = (
        f"CASE WHEN regexp_matches({inner}, {literal(marked)}) THEN string_split_regex({inner}, {literal(marked)}) "
        f"ELSE string_split_regex({inner}, {literal(marks)}) END"
    )
    if config.separator:
        bracketed = f"regexp_matches({text}, '^[\\[({{]')"
        parts = f"CASE WHEN {bracketed} THEN {parts} ELSE string_split({inner}, {literal(config.separator)}) END"
    return f"CASE WHEN {text} IS NULL THEN NULL WHEN {inner} = '' THEN [] ELSE {parts} END"


def _texts(text: str, config: ImportConfig, profile: dict[str, object]) -> Cell:
    """Lists as JSON, as Python or numpy prints them, as Postgres does, or split at one separator of the whole column."""
    separator = config.separator or next((mark for name, mark in _MARKS.items() if profile[f"has_{name}"]), "|")
    if profile["bracketed"] and not config.separator and not profile["plain"]:
        separator = ","
    as_json = f"TRY_CAST(TRY_CAST({text} AS JSON) AS VARCHAR[])"
    # ['a' 'b'] as numpy prints it
    printed = f"""regexp_replace({text}, '([''"])\\s+([''"])', '\\1, \\2', 'g')"""
    as_printed = f"TRY_CAST({printed} AS VARCHAR[])"
    split = f"list_transform(string_split({text}, {literal(separator)}), lambda x: trim(x))"
    braces = f"list_transform(string_split(trim({text}, '{{}}'), ','), lambda x: trim(trim(x), '\"'))"
    value = (
        f"CASE WHEN {text} LIKE '[%' THEN coalesce({as_json}, {as_printed}) "
        f"WHEN {text} = '{{}}' THEN [] WHEN {text} LIKE '{{%}}' THEN {braces} "
        f"ELSE list_filter({split}, lambda x: x <> '') END"
    )
    of_objects = f"{_is_object(text)} OR (regexp_matches({text}, '^\\[\\s*\\{{') AND json_valid({text}))"
    cut_short = f"({text} LIKE '[%...%' AND {as_json} IS NULL)"
    bad = f"({text} IS NOT NULL AND (({value}) IS NULL OR {cut_short} OR {of_objects}))"
    read_as = f"split at {separator}" if profile["plain"] else "in brackets"
    remedy = f'Write lists as JSON, ["a", "b"], or with one separator. {FIELD_REMEDY}'
    return Cell(value=_null_where(bad, value), bad=bad, read_as=read_as, remedy=remedy)


def _zoned(text: str) -> str:
    """SQL of whether a text ends with a zone; a date's own dashes are no offset."""
    return f"(regexp_matches({text}, {ZONED}) AND ({text} LIKE '%:%' OR regexp_matches({text}, '(?i)(z|utc|gmt)$')))"


def _naive(text: str) -> str:
    return f"(TRY_CAST({text} AS DOUBLE) IS NULL AND NOT {_zoned(text)} AND TRY_CAST({text} AS TIMESTAMP) IS NOT NULL)"


def _time(text: str, config: ImportConfig, profile: dict[str, object]) -> Cell:
    zone = literal(config.zone or "UTC")
    if config.time_format:
        parsed = f"try_strptime({text}, {literal(config.time_format)})"
        value = f"timezone({zone}, CAST({parsed} AS TIMESTAMP))"
        if "%z" in config.time_format or "%Z" in config.time_format:
            value = f"CAST({parsed} AS TIMESTAMPTZ)"
        return Cell(
            value=value,
            bad=_unread(text, value),
            read_as=config.time_format,
            remedy=f"Give the --time-format of every time; {config.time_format!r} does not fit",
        )
    unit = config.epoch or unit_of(profile)
    # +0100 as +01:00, which is all that the engine reads
    colon = f"regexp_replace({text}, '([+-]\\d\\d)(\\d\\d)$', '\\1:\\2')"
    value = (
        f"CASE WHEN TRY_CAST({text} AS DOUBLE) IS NOT NULL THEN {_since_1970(text, unit)} "
        f"WHEN {_zoned(text)} THEN TRY_CAST({colon} AS TIMESTAMPTZ) "
        f"ELSE timezone({zone}, TRY_CAST({text} AS TIMESTAMP)) END"
    )
    kinds = [f"{UNIT_NAMES[unit]} since 1970"] if unit else []
    kinds += [f"times in {config.zone}"] if profile["naive"] and config.zone else []
    return Cell(
        value=value,
        bad=_unread(text, value),
        read_as=", ".join(kinds),
        remedy="Write 2024-03-02T20:15:00Z, or give --time-format, such as %d/%m/%Y %H:%M",
    )


def _since_1970(text: str, unit: str) -> str:
    if not unit:
        return "NULL"
    whole, number = f"TRY_CAST({text} AS BIGINT)", f"TRY_CAST({text} AS DOUBLE)"
    factor = 10**6 // UNITS[unit] if unit != "ns" else 1
    micros = f"{whole} // 1000" if unit == "ns" else f"{whole} * {factor}"
    fraction = f"CAST(round({number} * {factor / (1000 if unit == 'ns' else 1)}) AS BIGINT)"
    return (
        f"CASE WHEN abs({number}) > {LATEST_SECOND * UNITS[unit]} THEN NULL "
        f"WHEN regexp_full_match({text}, '[+-]?\\d+') THEN make_timestamptz({micros}) ELSE make_timestamptz({fraction}) END"
    )


def unit_of(profile: dict[str, object]) -> str:
    """The unit in which every number of a column lies between 1971 and 2100; empty where there is none."""
    least, most = profile["least"], profile["most"]
    if not isinstance(least, int | float) or not isinstance(most, int | float):
        return ""
    for unit, per_second in UNITS.items():
        if EARLIEST_SECOND * per_second <= least and most <= LATEST_SECOND * per_second:
            return unit
    return ""
