"""Hold Ctrl-C and termination back while a vendor's C++ code calls into Python."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP in the list that is yielded, and deliver them at the end.

    An exception that a handler raises inside a vendor's callback never arrives: it is printed and swallowed there, and
    the run goes on. Signals with the system's own handling are left alone. Does nothing outside of the main thread.
    """
    pending: list[int] = []
    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.getsignal(number) for number in _SIGNALS}
    changed = {number: handler for number, handler in previous.items() if callable(handler)}
    for number in changed:
        signal.signal(number, lambda received, _: pending.append(received))
    try:
        yield pending
    finally:
        for number, handler in changed.items():
            signal.signal(number, handler)
        if pending:
            signal.raise_signal(pending[0])
