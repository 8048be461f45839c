"""One line for what no user meant: the machine's faults by name, ours as ours, with how to see where."""

import os

FULL = ("No space left", "File too large", "Disk quota", "not enough space", "requested and")
"""How a full disk is told by the system and by the libraries that write; numpy says `N requested and M written`."""


def fault(error: BaseException) -> str:
    """What happened and what to do about it; raised again where KEYART_TRACEBACK is set."""
    if os.environ.get("KEYART_TRACEBACK"):
        raise error
    said = " ".join(str(error).split())[:300]
    if any(words in said for words in FULL):
        remedy = "The disk is full: free some room. Nothing half-written; the same command again goes on."
    elif isinstance(error, OSError):
        remedy = "What was finished before is kept; the same command again goes on."
    else:
        remedy = "This is a defect of keyart; KEYART_TRACEBACK=1 before the command shows where."
    return f"{type(error).__name__}: {said}. {remedy}"
