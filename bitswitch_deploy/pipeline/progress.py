"""How a long step tells its caller how far it is; across a connection as lines, which become a bar at its other end."""

from __future__ import annotations

import re
from collections.abc import Callable
from time import monotonic
from typing import Protocol

# In the environment of a command whose progress somebody reads line by line.
LINES_WANTED = "BITSWITCH_DEPLOY_PROGRESS_LINES"
_LINE = re.compile(r"progress (\d+)/(\d+) (.+)")
_INTERVAL_S = 1.0

Say = Callable[[str], None]


class Progress(Protocol):
    """Told about steps as they start and advance; the command line draws a bar from it."""

    def start(self, description: str, total: int) -> None:
        """A step of `total` units begins; the one before it has ended."""

    def advance(self, n: int = 1) -> None:
        """`n` more units of the current step are done."""


class Silent:
    """Progress that nobody watches."""

    def start(self, description: str, total: int) -> None:
        """Ignore it."""

    def advance(self, n: int = 1) -> None:
        """Ignore it."""


class ProgressLines:
    """Progress as lines for `followed`, at most one in a second but for the beginning and the end of a step."""

    def __init__(self, say: Say, *, clock: Callable[[], float] = monotonic) -> None:
        self._say, self._clock = say, clock
        self._description, self._done, self._total = "", 0, 0
        self._next_s = 0.0

    def start(self, description: str, total: int) -> None:
        """Say it."""
        self._description, self._done, self._total = description, 0, total
        self._tell()

    def advance(self, n: int = 1) -> None:
        """Say how far it is."""
        self._done += n
        if self._clock() >= self._next_s or self._done >= self._total:
            self._tell()

    def _tell(self) -> None:
        self._next_s = self._clock() + _INTERVAL_S
        self._say(f"progress {self._done}/{self._total} {self._description}")


def followed(progress: Progress, say: Say, *, where: str) -> Say:
    """What takes the lines of a command elsewhere: those of `ProgressLines` go to `progress`, all others to `say`.

    where: stands in front of the description of each step.
    """
    step, done = ("", 0), 0

    def hear(line: str) -> None:
        nonlocal step, done
        match = _LINE.fullmatch(line)
        if match is None:
            say(line)
            return
        now, total, description = int(match[1]), int(match[2]), match[3]
        if step != (description, total) or now < done:
            step, done = (description, total), 0
            progress.start(f"{where}: {description}", total)
        progress.advance(now - done)
        done = now

    return hear


def without_progress(text: str) -> str:
    """The lines of `text` that are not progress."""
    return "\n".join(line for line in text.splitlines() if not _LINE.fullmatch(line))
