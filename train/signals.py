"""SIGTERM and Ctrl-C: held back while something is at work that must be finished first."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

LISTENED = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A signal came, and what was done until then is saved."""


class Signals:
    """They act at once, but while `held`: then the first of them is noted in `came`, and the second acts."""

    def __init__(self, noted: Callable[[int], None] | None = None) -> None:
        """`noted` is called with the number of a signal that is held back."""
        self.came: int | None = None
        self.held = False
        self._noted = noted
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        """Listen."""
        self._before = {number: signal.getsignal(number) for number in LISTENED}
        if threading.current_thread() is threading.main_thread():  # beside it nobody can listen
            for number, handler in self._before.items():
                if handler not in (None, signal.SIG_IGN):
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        """Hand back to whom listened before."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                if handler is not None:
                    signal.signal(number, handler)

    def act(self) -> None:
        """Do what was held back: Ctrl-C is a KeyboardInterrupt, SIGTERM ends the process with 0."""
        if self.came is not None:
            raise KeyboardInterrupt if self.came == signal.SIGINT else SystemExit(0)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.came = self.came is not None, number
        if again or not self.held:
            self.act()
        elif self._noted is not None:
            self._noted(number)
