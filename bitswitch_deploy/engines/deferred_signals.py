"""Ctrl-C and termination: held back while a vendor's C++ code calls into Python, or an exit that cleans up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_TERMINATE = (signal.SIGTERM, signal.SIGHUP)
_SIGNALS = (signal.SIGINT, *_TERMINATE)


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
def exit_when_terminated() -> Iterator[None]:
    """Turn SIGTERM and a lost terminal into SystemExit: Python would die at once and leave behind what it has made.

    Only where nobody has handled them yet. Does nothing outside of the main thread.
    """
    changed = {}
    if threading.current_thread() is threading.main_thread():
        unhandled = [number for number in _TERMINATE if signal.getsignal(number) is signal.SIG_DFL]
        changed = {number: signal.signal(number, _exit) for number in unhandled}
    try:
        yield
    finally:
        for number, old in changed.items():
            signal.signal(number, old)


def _exit(number: int, _: FrameType | None) -> None:
    # 128 + number is what a shell reports for a process that died of it
    raise SystemExit(128 + number)


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
