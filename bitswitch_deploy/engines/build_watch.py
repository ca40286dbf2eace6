"""End a build that takes too long, or that the user wants ended, although the vendor's code does not return.

A build asks at each step that it announces whether to stop. One that hangs inside of a step never asks, and Python's
handlers of signals do not run either, because the main thread is not in Python. So a thread watches: the system tells
it of signals through a pipe (signal.set_wakeup_fd), and it ends the process where asking did not help. Nothing is lost
by that: files appear whole or not at all, and finished engines are kept. It needs the vendor's code to release Python's
lock, which `build_serialized_network` does (seen with TensorRT for RTX 1.7.1; documented for none).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
from time import monotonic

from bitswitch_deploy.errors import UnavailableError

# Between two steps of a build are seconds; with a hung one it is never.
GRACE_S = 30.0


class BuildWatch:
    """Watches one build, as a context around it. is_stop_wanted: what the build asks; has_timed_out: why.

    Args:
        limit_s: seconds that the build may take. where: names it in the message.
        grace_s: seconds from when it is to stop until the process is ended.
    """

    def __init__(self, limit_s: float, *, where: str, grace_s: float) -> None:
        self.is_stop_wanted = self.has_timed_out = False
        self._limit_s, self._grace_s, self._where = limit_s, grace_s, where
        self._ended = threading.Event()

    def __enter__(self) -> BuildWatch:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        # a signal that reaches us in another thread is not ours to handle
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._is_main:
            signal.set_wakeup_fd(self._before)
        self._writer.close()  # wakes the thread
        self._thread.join()
        self._reader.close()

    def timeout(self) -> UnavailableError:
        """The error for a build that has timed out."""
        return UnavailableError(
            where=self._where,
            got=f"no engine after {self._limit_s / 60:g} minutes",
            allowed="an engine in that time",
            do="end other programs; if it is not done then, it hangs in TensorRT, or needs a longer --timeout MINUTES",
        )

    def _watch(self) -> None:
        number = self._wait(self._limit_s)
        if self._ended.is_set():
            return
        self.has_timed_out = number is None
        self.is_stop_wanted = True
        again = self._wait(self._grace_s)
        if self._ended.is_set():
            return
        # a second signal, or time is up: there is no way back into Python's main thread
        number = number or again
        print(
            f"error: {self.timeout() if number is None else 'the build did not stop, so it was ended'}", file=sys.stderr
        )
        sys.stderr.flush()
        os._exit(UnavailableError.exit_code if number is None else 128 + number)

    def _wait(self, seconds: float) -> int | None:
        """The number of the next signal; None when there was none in this time, or the build has ended."""
        end = monotonic() + seconds
        while (left := end - monotonic()) > 0 and select.select([self._reader], [], [], left)[0]:
            received = self._reader.recv(1)
            if not received:
                return None
            if received[0] in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                return received[0]
        return None
