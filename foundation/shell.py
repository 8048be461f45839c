"""Paths and values inside a command that is printed for a user to copy: one word of a POSIX shell, on one line.

Every placeholder of such a command is written by `shell_word`; `tests/test_printed_commands.py` goes over all of them.
"""

import os
import shlex


def shell_word(value: object) -> str:
    """A value as one word of bash and zsh: as it is where nothing is special, in quotes where a character is.

    Control characters and bytes that are no UTF-8 are escaped, so that the command stays on one line; a path that begins with
    a dash is written as ./-name, because it would be read as an option.
    """
    text = str(value)
    if text.startswith("-") and isinstance(value, os.PathLike):
        text = f"./{text}"
    if text.isprintable():
        return shlex.quote(text)
    escaped = (
        f"\\{character}"
        if character in "\\'"
        else character
        if character.isprintable()
        else "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
        for character in text
    )
    return f"$'{''.join(escaped)}'"


def shell_command(*words: str | os.PathLike[str]) -> str:
    """A command to print: texts as they are, paths as words of a shell."""
    return " ".join(word if isinstance(word, str) else shell_word(word) for word in words)


def one_line(text: str) -> str:
    """A message on one line, whatever names of files it holds: control characters and bytes that are no UTF-8 as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
