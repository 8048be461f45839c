"""`bundle.json` on disk: written sealed, and read only as it was sealed.

The seal is the record's field `digest`, SHA-256 over the record's text without that field. A record has one text (`text_of`) and
the file holds exactly it, so that any changed byte is noticed, a blank included. The record holds the SHA-256 of every other file:
its digest identifies the whole bundle.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any, cast

from datamodules.contract.tables import CONTRACT_VERSION
from foundation.errors import UserError
from foundation.shell import shell_word
from foundation.typed_records import type_fault
from serving.bundle.metadata import (
    BUNDLE_FILE,
    BUNDLE_VERSION,
    GOLDEN_BOUND,
    GRAPHS_BOUND,
    REQUIRED_FILES,
    BundleRecord,
)
from serving.bundle.precision_bounds import BOUNDS, FULL_PRECISION
from serving.bundle.reference import faults_of_reference

DIGEST = "digest"
REMEDY = "Export the run again."
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
"""A file's path from the bundle's folder: no part begins with a dot, and so none leads out of it."""
SHA256 = re.compile("[0-9a-f]{64}")


def text_of(record: Any) -> str:
    """The one text of a record, in ASCII; ValueError where it holds a number that JSON does not have."""
    return json.dumps(record, indent=1, allow_nan=False)


def digest_of(record: Any) -> str:
    """SHA-256, 64 hexadecimal digits, over the text of a record without its digest."""
    return hashlib.sha256(text_of({name: part for name, part in record.items() if name != DIGEST}).encode()).hexdigest()


def write_record(folder: Path, record: BundleRecord) -> str:
    """Seal a record and write `bundle.json`; returns the digest. Numbers that are not finite, as a metric may be, become null."""
    sealed = _finite(record)
    sealed[DIGEST] = digest_of(sealed)
    fault = type_fault(sealed, BundleRecord)
    assert fault is None, fault
    (folder / BUNDLE_FILE).write_bytes(text_of(sealed).encode())
    return sealed[DIGEST]


def write_draft(folder: Path, record: BundleRecord) -> None:
    """Write `bundle.json` unsealed into a folder that is being made, for example.py, which reads a few fields of it."""
    (folder / BUNDLE_FILE).write_text(json.dumps(record), encoding="utf-8")


def _finite(value: Any) -> Any:
    """A copy of a JSON value with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def read_record(folder: Path) -> BundleRecord:
    """Read and check the record of a bundle, and that the folder has exactly the files that it names; their content is not read.

    UserError where the record is missing, has another version, is not sealed, was changed since, or does not describe a bundle.
    """
    path = folder / BUNDLE_FILE
    record, text = _parsed(path)
    _require_version(path, record)
    if not isinstance(record.get(DIGEST), str):
        raise UserError(f"{path}: is not sealed: it has no {DIGEST}. {REMEDY}")
    if _text_of_parsed(record) != text or digest_of(record) != record[DIGEST]:
        raise UserError(f"{path}: was changed since it was sealed with the {DIGEST} {record[DIGEST]:.64}. {REMEDY}")
    fault = type_fault(record, BundleRecord) or next(_faults(cast("BundleRecord", record)), None)
    if fault:
        raise UserError(f"{path}: {fault}. {REMEDY}")
    if record["contract_version"] != CONTRACT_VERSION:
        raise UserError(
            f"{path}: contract version {record['contract_version']}, and this keyart reads version {CONTRACT_VERSION}. {REMEDY}"
        )
    _require_files(folder, record["sha256"].keys() | {BUNDLE_FILE})
    return cast("BundleRecord", record)


def _text_of_parsed(record: Any) -> bytes | None:
    """A parsed record's text; None where it has none, such as one with a NaN."""
    try:
        return text_of(record).encode()
    except (ValueError, RecursionError):
        return None


def _parsed(path: Path) -> tuple[dict[str, Any], bytes]:
    """The record as it stands in the file, and the file's bytes."""
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path.parent}: is not a bundle: no {BUNDLE_FILE}. Make one with keyart export RUN {shell_word(path.parent)}."
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). {REMEDY}") from None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: cannot be read ({reason}). {REMEDY}") from None
    if not isinstance(record, dict):
        raise UserError(f"{path}: holds no object with fields. {REMEDY}")
    return record, text


def _require_version(path: Path, record: dict[str, Any]) -> None:
    version = record.get("schema_version")
    if version != BUNDLE_VERSION:
        raise UserError(
            f"{path}: schema version {version!s:.20}, and this keyart reads version {BUNDLE_VERSION}. {REMEDY}"
        )


def _faults(record: BundleRecord) -> Iterator[str]:
    """What a record of the declared types says that no bundle can be."""
    for name, checksum in record["sha256"].items():
        if not NAME.fullmatch(name) or name == BUNDLE_FILE:
            yield f"sha256 names {name[:80]!r}, which is no path of a file in the bundle"
        if not SHA256.fullmatch(checksum):
            yield f"sha256 of {name} is {checksum[:80]!r}, not 64 hexadecimal digits"
    for name in (*record["graphs"], *REQUIRED_FILES):
        if name not in record["sha256"]:
            yield f"has no checksum of {name}"
    for name, least in (("history_length", 1), ("history_span", 1), ("past_length", 0)):
        if record[name] < least:
            yield f"{name} is {record[name]}, below {least}"
    if not record["fatigue_half_life_hours"] > 0:
        yield f"fatigue_half_life_hours is {record['fatigue_half_life_hours']}, not above 0"
    for name, golden, largest in (
        ("golden", record["golden"], GOLDEN_BOUND),
        ("golden_graphs", record["golden_graphs"], GRAPHS_BOUND),
    ):
        if golden["cases"] < 1:
            yield f"{name}.cases is below 1"
        if not 0 < golden["bound"] <= largest:
            yield f"{name}.bound is {golden['bound']:g}, and differences above {largest:g} are refused"
    for row in record["precisions"]:
        yield from _faults_of_precision(record, row["precision"], row["ships"], row.get("bounds", {}))
    if "reference" in record:
        yield from faults_of_reference(record["reference"])


def _faults_of_precision(record: BundleRecord, name: str, ships: bool, bounds: dict[str, float]) -> Iterator[str]:
    if name == FULL_PRECISION:
        return
    known = {str(precision): bound.golden_difference for precision, bound in BOUNDS.items()}
    if name not in known:
        yield f"precisions names {name[:20]!r}, which this keyart does not know"
    elif ships and not 0 < bounds.get("golden_difference", 0) <= known[name]:
        yield f"the bound of the golden cases of {name} is not in 0 .. {known[name]:g}"
    elif ships and f"{name}/rank.onnx" not in record["sha256"]:
        yield f"has no checksum of {name}/rank.onnx"


def _require_files(folder: Path, recorded: set[str]) -> None:
    """Raise a UserError where a folder lacks a recorded file, has another one, or holds a link."""
    present = set()
    try:
        for path in _entries(folder):
            if path.is_symlink() or not stat.S_ISREG(path.lstat().st_mode):
                raise UserError(f"{path}: is a link or no file, and a bundle holds files alone. {REMEDY}")
            present.add(path.relative_to(folder).as_posix())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}). {REMEDY}") from None
    for name in sorted(recorded - present):
        raise UserError(f"{folder / name}: is missing or is not the file that was exported. {REMEDY}")
    others = sorted(present - recorded)
    if others:
        raise UserError(
            f"{folder}: holds {len(others):,} files that its {BUNDLE_FILE} does not name (first: {others[0]}). Remove them."
        )


def _entries(folder: Path) -> Iterator[Path]:
    """Everything in a folder and its subfolders but the subfolders themselves; links are not followed."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path))
        else:
            yield Path(entry.path)
