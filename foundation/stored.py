"""Files that keyart wrote and reads again: one that is missing, cut short, edited or exchanged is a UserError that names it.

In: a path, and the remedy that makes the file anew. Out: its content. A record may hold digests of the files beside it, by which
files of another output, and a single changed byte, are recognised.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from foundation.errors import UserError
from foundation.fingerprint import DIGEST, file_digest, file_fingerprint

FILES = "files"
"""The field of a record that holds `files_beside`; records of older versions lack it."""


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Whatever a reader raises inside, each has exceptions of its own, becomes a UserError that names the file and the remedy."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: is missing. {remedy}") from None
    except KeyError as error:
        raise UserError(f"{path}: lacks {error}. {remedy}") from None
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")[:160]
        raise UserError(f"{path}: cannot be read ({reason}). {remedy}") from None


def read_json(path: Path, remedy: str, fields: Iterable[str] = ()) -> dict[str, Any]:
    """Read a JSON object that has the fields; else a UserError as `reading`."""
    with reading(path, remedy):
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise TypeError("is not an object with fields")
        for name in fields:
            record[name]
    return record


def files_beside(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Digests of those of the files that exist, by name, for a record of the folder."""
    return {name: file_digest(folder / name) for name in names if (folder / name).is_file()}


def changed_file(folder: Path, fingerprints: dict[str, str]) -> str | None:
    """The first file of `files_beside` that is missing or another one than was recorded; None where all are as they were.

    Reads every byte, on one core; records of older versions hold fingerprints of sizes and tails, and are judged by these.
    """
    for name, expected in fingerprints.items():
        judge = file_digest if expected.startswith(DIGEST) else file_fingerprint
        if not (folder / name).is_file() or judge(folder / name) != expected:
            return name
    return None


def warn_unverified(path: Path, record: dict[str, Any], remedy: str, console: Console | None = None) -> None:
    """Print one line where the record at `path` has no fingerprints, so that nothing tells whether the files beside it are its own.

    `console`: by default standard error.
    """
    if FILES not in record:
        console = console or Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
        console.print(
            f"warning: {path}: an older keyart wrote it, without fingerprints of the files beside it: whether they are whole and "
            f"its own cannot be verified. {remedy}",
            markup=False,
            soft_wrap=True,
        )
