"""Hold Ctrl-C and termination back while a vendor's C++ code calls into Python."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP in the list that is yielded, and deliver the first one at the end.

    An exception that a handler raises inside a vendor's callback never arrives: it is printed and swallowed there, and
    the run goes on. Signals with the system's own handling are left alone. Does nothing outside of the main thread.
    """
    pending: list[int] = []
    try:
        with _handled_by(lambda received, _: pending.append(received)):
            yield pending
    finally:
        if pending:
            signal.raise_signal(pending[0])


@contextmanager
def system_signals() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP end the process at once while a vendor's C++ code runs that cannot be stopped.

    Ignored signals stay ignored. Does nothing outside of the main thread.
    """
    with _handled_by(signal.SIG_DFL):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> Iterator[None]:
    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.getsignal(number) for number in _SIGNALS}
    changed = {number: old for number, old in previous.items() if callable(old)}
    for number in changed:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in changed.items():
            signal.signal(number, old)
