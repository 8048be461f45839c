"""The log of choices: a line of JSON for every request that was answered, from which impressions can be made.

A line has what the answer cannot repeat later: when, by which bundle, what was chosen with which propensity under which policy and
seed. Whether it was clicked is known elsewhere; the two are joined by member, title and time.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from foundation.errors import UserError
from serving.http.answers import Answer
from serving.http.requests import Request


class ChoiceLog:
    """A file that lines are appended to; several processes may have the same."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        """`say`: prints one line, when the file cannot be written any longer and when it can again. UserError where it cannot be
        opened."""
        self.path, self.say = path, say
        self.lost = 0
        """Lines that could not be written."""
        self.is_failing = False
        try:
            if path.is_fifo():
                raise UserError(
                    f"log={path}: is a pipe, which would stop the service where nobody reads it. Name a file."
                )
            self.file: BinaryIO = self._opened()
        except OSError as error:
            raise UserError(
                f"log={path}: cannot be opened ({error.strerror}). Name a file in a folder that exists."
            ) from None

    def reopen(self) -> None:
        """Go on in the file that has the name now: the one before may have been moved away."""
        try:
            file = self._opened()
        except OSError as error:
            self.say(f"serve: log={self.path}: cannot be opened again ({error.strerror}). The file before is written.")
            return
        with suppress(OSError):  # what a full disk did not take was said and counted
            self.file.close()
        self.file = file

    def add(self, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        """Append the choices of some answered requests. Where that fails, the answers are given all the same, and it is said."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        text = "".join(
            json.dumps(
                {
                    "at": at,
                    "bundle": answer["bundle"],
                    "member": request.member,
                    "title": request.title_name,
                    "candidates": request.names,
                    "chosen": answer["chosen"]["artwork"],
                    "propensity": answer["chosen"]["propensity"],
                    "policy": request.policy_text,
                    "seed": request.seed,
                }
            )
            + "\n"
            for request, answer in zip(requests, answers, strict=True)
        )
        lines = text.encode("ascii")
        try:
            written = self.file.write(lines)  # at once, so that those of several processes do not mix
            if written < len(lines):
                raise OSError("the disk is full")
        except (OSError, ValueError) as error:
            if not self.is_failing:
                self.say(f"serve: log={self.path}: cannot be written ({error}). Choices go on without it.")
            self.lost += len(requests)
            self.is_failing = True
        else:
            if self.is_failing:
                self.say(f"serve: log={self.path}: is written again; {self.lost:,} choices are not in it")
            self.is_failing = False

    def _opened(self) -> BinaryIO:
        return self.path.open("ab", buffering=0)
