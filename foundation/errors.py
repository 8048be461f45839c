"""Errors as users see them: one line that names file, value and remedy; faults of the machine, and defects of keyart."""

import os
import sys

UTF8_REMEDY = "Put PYTHONUTF8=1 before the command, or set LC_ALL=C.UTF-8."
DISK_FULL_PHRASES = ("No space left", "File too large", "Disk quota", "not enough space", "requested and")
"""How a full disk is told by the system and by the libraries that write; numpy says `N requested and M written`."""


def describe_fault(error: BaseException) -> str:
    """What happened and what to do about it; raised again where KEYART_TRACEBACK is set."""
    if os.environ.get("KEYART_TRACEBACK"):
        raise error
    message = " ".join(str(error).split())[:300]
    if any(words in message for words in DISK_FULL_PHRASES):
        remedy = "The disk is full: free some room. Nothing half-written; the same command again goes on."
    elif isinstance(error, UnicodeError) and sys.getfilesystemencoding().lower() != "utf-8":
        remedy = f"The locale ({sys.getfilesystemencoding()}) is not UTF-8. {UTF8_REMEDY}"
    elif isinstance(error, OSError):
        remedy = "What was finished before is kept; the same command again goes on."
    else:
        remedy = "This is a defect of keyart; KEYART_TRACEBACK=1 before the command shows where."
    return f"{type(error).__name__}: {message}. {remedy}"


class UserError(Exception):
    """Something a user gave cannot be used. The message is one line that names file, value and remedy."""
