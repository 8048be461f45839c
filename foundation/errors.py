"""Errors as users see them: one line that names file, value and remedy; faults of the machine, and defects of keyart."""

import os
import sys

UTF8_REMEDY = "Put PYTHONUTF8=1 before the command, or set LC_ALL=C.UTF-8."
KEPT = "Finished work is kept; once the cause is gone, the same command resumes."
NOTHING_KEPT = "No partial output; once the cause is gone, run the command again."
DISK_FULL_PHRASES = (
    *("No space left", "File too large", "Disk quota", "not enough space", "requested and"),
    *("unexpected pos ", "PytorchStreamWriter failed writing"),
)
"""Phrases by which the system and libraries report a full disk; numpy says `N requested and M written`, torch names the position
in its archive."""


def require_seed(seed: int) -> None:
    """Raise a UserError for a seed that some generator of random numbers would not take."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: must lie in 0 .. {2**32 - 1}.")


def describe_fault(error: BaseException, *, resumes: bool) -> str:
    """One line with the error and its remedy; the error is re-raised where KEYART_TRACEBACK is set.

    `resumes`: whether the command continues what it finished before, when it is called again.
    """
    if os.environ.get("KEYART_TRACEBACK"):
        raise error
    message = " ".join(str(error).split())[:300]
    if any(words in message for words in DISK_FULL_PHRASES):
        remedy = f"The disk is full: free some space. {KEPT if resumes else NOTHING_KEPT}"
    elif isinstance(error, UnicodeError) and sys.getfilesystemencoding().lower() != "utf-8":
        remedy = f"The locale ({sys.getfilesystemencoding()}) is not UTF-8. {UTF8_REMEDY}"
    elif isinstance(error, OSError):
        remedy = KEPT if resumes else NOTHING_KEPT
    else:
        remedy = "This is a defect of keyart; KEYART_TRACEBACK=1 before the command shows where."
    return f"{type(error).__name__}: {message}. {remedy}"


class UserError(Exception):
    """Raised where a user's input cannot be used. The message is one line that names file, value and remedy."""
