"""Consoles, usage text and exit codes of the commands; whatever a user can cause is reported in one line.

Only the standard library is loaded, so that `keyart --help` answers at once.
"""

from __future__ import annotations

import codecs
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from io import TextIOWrapper
from pathlib import Path
from types import FrameType

from foundation.errors import UTF8_REMEDY, UserError, describe_fault
from foundation.machine import silence_lost_terminal
from foundation.shell import one_line, shell_command

TYPE_CHECKING = False  # not typing's: see keyart.py
if TYPE_CHECKING:
    from rich.console import Console

RESUMING = ("fit", "pipeline", "demo")
"""Commands that continue what they finished before, when they are called again; all others begin anew."""


def print_outputs(out: Path, to: Console, *command: str | Path) -> None:
    """Print what the pipeline wrote, and the next command, as `print_next_command`."""
    outputs = [out / name for name in ("shards", "run", "bundle", "scores", "report/report.html")]
    to.print("Written: " + ", ".join(str(path) for path in outputs if path.exists()))
    to.print(f"Next: {shell_command(*command)}", soft_wrap=True)


def print_next_command(message: str, *command: str | Path) -> None:
    """Print a message, if it is not empty, and the next command: texts as they are, paths as words of a shell."""
    lines = [one_line(message)] if message else []
    stdout_console().print("\n".join([*lines, f"Next: {shell_command(*command)}"]), soft_wrap=True)


def stderr_console() -> Console:
    """The console for progress and warnings: standard error."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def stdout_console() -> Console:
    """The console for results: standard output."""
    from rich.console import Console

    return Console(highlight=False, markup=False)


def usage(summaries: Mapping[str, str]) -> str:
    """The text of `keyart --help`, from every command's summary."""
    lines = ["usage: keyart COMMAND ...", "", "Learn which artwork makes a member want to watch a title.", ""]
    lines += [f"  {name:<10} {summary}" for name, summary in summaries.items()]
    return "\n".join([*lines, "", "keyart COMMAND --help explains a command; start with: keyart demo"])


def answer_without_command(words: list[str], summaries: Mapping[str, str]) -> int | None:
    """Answer words that need no command: help, the version, an unknown command; returns the exit code, None for a known command."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(summaries))
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"keyart {version('keyart')}")
        return 0
    if words[0] not in summaries:
        print(f"keyart: {words[0]}: unknown command. {suggest_command(words[0], summaries)}", file=sys.stderr)
        return 2
    return None


def suggest_command(word: str, commands: Iterable[str]) -> str:
    """A hint for an unknown command: the most similar one, or where to find the list."""
    from difflib import get_close_matches

    near = get_close_matches(word, list(commands), 1)
    return f"Did you mean {near[0]}?" if near else "keyart --help lists them."


def prepare_streams() -> None:
    """Characters that standard output cannot encode are written as plain ones or as escapes: a name in an ASCII terminal ends no
    command."""
    codecs.register_error("plain", plain_characters)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="plain")


PLAIN = str.maketrans({"\u2014": "-", "\u2013": "-", "\u2026": "...", "\u00d7": "x", "\u00b1": "+-", "\u2019": "'"})
"""What keyart's own tables and sentences hold beyond ASCII."""


def plain_characters(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: typographic characters become plain ones, all others escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    plain = error.object[error.start : error.end].translate(PLAIN)
    return plain.encode("ascii", "backslashreplace").decode("ascii"), error.end


def undecodable_word(words: Iterable[str]) -> str | None:
    """What to say where file names of the command line cannot reach libraries, which take them as UTF-8; None where they can."""
    encoding = sys.getfilesystemencoding()
    if encoding.lower().replace("-", "") == "utf8":
        return None
    for word in (*words, os.getcwd()):
        if not word.isascii():
            shown = os.fsencode(word).decode("utf-8", "backslashreplace")
            return f"{shown}: the locale ({encoding}) is not UTF-8, and this name needs it. {UTF8_REMEDY}"
    return None


SIGPIPE = 13
"""POSIX's number of the signal that ends a program whose output nobody reads."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: work ends as on Ctrl-C, without partial output."""


ENDINGS = {signal.SIGTERM: "terminated", signal.SIGHUP: "hung up: the terminal or connection closed"}
"""Signals that end a command, and what is said of each."""


class Termination:
    """Signals that end the process of a command, which raise `Terminated` there; a process forked from it ends at once.

    SIGHUP comes where a terminal is closed or a connection lost; under nohup it is ignored, and stays so.
    """

    def __init__(self) -> None:
        """Install nothing yet."""
        self.received: int | None = None
        """The signal that came, if any: a library may have turned the exception into one of its own."""
        self._process = 0

    def install(self) -> None:
        """Install the handlers, each unless its signal is ignored."""
        self._process = os.getpid()
        for number in ENDINGS:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, self._act)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt as Python does, and remember it: modules that are being loaded make an ImportError of it."""
        self.received = number
        raise KeyboardInterrupt

    def _act(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = number
        if number == signal.SIGHUP:
            silence_lost_terminal()
        raise Terminated


termination = Termination()


def run_process(main: Callable[[], int]) -> int:
    """Run the command line in a process of its own, which does not collect garbage while libraries load, nor at exit."""
    gc.set_threshold(100_000, 50, 50)
    termination.install()
    prepare_streams()
    if problem := undecodable_word(sys.argv[1:]):
        print(f"keyart: {problem}", file=sys.stderr)
        return 1
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read what is printed, `head` say, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + SIGPIPE
    if "torch" not in sys.modules:  # torch's compiler counts remaining objects at exit, and complains
        gc.freeze()
    return code


SplitWords = Callable[[list[str]], tuple[str, type | None, list[str]]]
"""Words of a command that has commands of its own -> the full name of the one, its section of a recipe, and its words."""


def call_command(
    name: str,
    function: Callable[..., int | None],
    section: str | type | None,
    words: list[str],
    split: SplitWords | None = None,
) -> int:
    """Parse a command's words by its parameters and the section of a recipe that it has, call it, and return its exit code."""
    from configs.arguments import RECIPES, parse

    called, section, words = (name, section, words) if split is None else split(words)
    parsed = parse(called, function, section, words, RECIPES / "demo.yaml" if name == "demo" else None)
    return function(**({} if split is None else {"settings": None}) | parsed) or 0


def run_command(name: str, command: Callable[[], int]) -> int:
    """Run a command and return its exit code.

    1 where an input cannot be used or the command failed; 130 where it was interrupted by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.
    """
    try:
        return command()
    except BrokenPipeError:
        raise
    except UserError as error:
        print(f"keyart {name}: {one_line(str(error))}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Exception) as error:
        # a query of DuckDB ends on Ctrl-C with an error of its own, and so does a module that is being loaded
        ended = isinstance(error, KeyboardInterrupt) or termination.received or "Query interrupted" in str(error)
        if not ended:
            print(f"keyart {name}: {one_line(describe_fault(error, resumes=name in RESUMING))}", file=sys.stderr)
            return 1
        again = "Re-run the same command to resume." if name in RESUMING else "Run the command again."
        number = termination.received or signal.SIGINT
        what = ENDINGS.get(signal.Signals(number), "interrupted")
        print(f"keyart {name}: {what}; no partial output. {again}", file=sys.stderr)
        return 128 + number
