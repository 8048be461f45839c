"""Records in JSON that carry the version of their schema."""

import json
from pathlib import Path
from typing import Any

from foundation.errors import UserError


def read_versioned(path: Path, version: int, remedy: str, missing: str = "") -> dict[str, Any]:
    """Read a record, a JSON object whose `schema_version` is `version`.

    Raises UserError, which ends with `remedy`, where the file is missing (said by `missing`, or by its path), is not JSON, or
    has another version.
    """
    if not path.is_file():
        raise UserError(missing or f"{path}: does not exist. {remedy}")
    try:
        record = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: cannot be read ({error}). {remedy}") from None
    written = record.get("schema_version") if isinstance(record, dict) else None
    if written != version:
        raise UserError(f"{path}: schema version {written}, and this keyart reads version {version}. {remedy}")
    return record
