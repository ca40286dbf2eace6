"""Threads that compute, and leaving while they do: on an interrupt, or when one of them has failed.

A thread that comes back from onnxruntime after Python has ended aborts the process, and with it the exit code and the
message. So whoever leaves stops the others first, and waits for them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StoppedError(Exception):
    """Nobody waits for what this thread computes."""


class Busy:
    """Knows how many threads are at work: n."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.n = 0
        self._is_stopping = False

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count this thread while it works."""
        with self._changed:
            self.n += 1
        try:
            yield
        finally:
            with self._changed:
                self.n -= 1
                self._changed.notify_all()

    def check(self) -> None:
        """Between two steps of the work.

        Raises:
            StoppedError: the work is not wanted any more.
        """
        if self._is_stopping:
            raise StoppedError

    def stop(self) -> None:
        """Stop all threads at their next step, and wait for them."""
        with self._changed:
            self._is_stopping = True
            try:
                self._changed.wait_for(lambda: self.n == 0)
            finally:
                self._is_stopping = False
