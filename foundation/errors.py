"""Errors as users see them: one line that names file, value and remedy; faults of the machine, and defects of keyart."""

import os
import sys

UTF8_REMEDY = "Put PYTHONUTF8=1 before the command, or set LC_ALL=C.UTF-8."
DISK_FULL_PHRASES = ("No space left", "File too large", "Disk quota", "not enough space", "requested and")
"""Phrases by which the system and libraries report a full disk; numpy says `N requested and M written`."""


def describe_fault(error: BaseException) -> str:
    """One line with the error and its remedy; the error is re-raised where KEYART_TRACEBACK is set."""
    if os.environ.get("KEYART_TRACEBACK"):
        raise error
    message = " ".join(str(error).split())[:300]
    if any(words in message for words in DISK_FULL_PHRASES):
        remedy = "The disk is full: free some space. No partial output; re-run the same command to resume."
    elif isinstance(error, UnicodeError) and sys.getfilesystemencoding().lower() != "utf-8":
        remedy = f"The locale ({sys.getfilesystemencoding()}) is not UTF-8. {UTF8_REMEDY}"
    elif isinstance(error, OSError):
        remedy = "Finished work is kept; re-run the same command to resume."
    else:
        remedy = "This is a defect of keyart; KEYART_TRACEBACK=1 before the command shows where."
    return f"{type(error).__name__}: {message}. {remedy}"


class UserError(Exception):
    """Raised where a user's input cannot be used. The message is one line that names file, value and remedy."""
