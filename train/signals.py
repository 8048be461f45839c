"""SIGTERM, SIGHUP and Ctrl-C, deferred while work is in progress that must be finished first."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from foundation.machine import silence_lost_terminal

HANDLED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(Exception):
    """Raised after a signal, once the progress is saved."""


class Signals:
    """Handlers that act at once, except while `deferred`: then the first signal is recorded in `received`, and the second
    acts."""

    def __init__(self, on_deferred: Callable[[int], None] | None = None) -> None:
        """`on_deferred` is called with the number of a signal that is deferred."""
        self.received: int | None = None
        self.deferred = False
        self._on_deferred = on_deferred
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        """Install the handlers."""
        self._previous_handlers = {number: signal.getsignal(number) for number in HANDLED_SIGNALS}
        if threading.current_thread() is threading.main_thread():  # other threads cannot install handlers
            for number, handler in self._previous_handlers.items():
                if handler not in (None, signal.SIG_IGN):
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        """Restore the former handlers."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._previous_handlers.items():
                if handler is not None:
                    signal.signal(number, handler)

    def raise_deferred(self) -> None:
        """Act on the deferred signal, if any: Ctrl-C raises a KeyboardInterrupt, SIGTERM ends the process with status 0, SIGHUP
        with 129."""
        if self.received is not None:
            status = 0 if self.received == signal.SIGTERM else 128 + self.received
            raise KeyboardInterrupt if self.received == signal.SIGINT else SystemExit(status)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            silence_lost_terminal()
        repeated, self.received = self.received is not None, number
        if repeated or not self.deferred:
            self.raise_deferred()
        elif self._on_deferred is not None:
            self._on_deferred(number)
