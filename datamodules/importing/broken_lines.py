"""Which line of JSON lines is broken: DuckDB counts the lines of a file otherwise, and some of its errors name none."""

import json
from collections.abc import Iterable


def broken_json_line(lines: Iterable[bytes]) -> tuple[int, str, str] | None:
    """The number from 1 of the first line that is no JSON, the reason, and the line; None where there is none, or where the file is
    not one of lines: an object or a list over several."""
    whole = 0
    for number, line in enumerate(lines, start=1):
        text = line.decode("utf-8-sig", "replace").strip()
        if not text:
            continue
        try:
            json.loads(text)
        except ValueError as error:
            of_lines = whole or (text.startswith("{") and text.endswith("}"))
            return (number, str(error), text) if of_lines else None
        whole += 1
    return None
