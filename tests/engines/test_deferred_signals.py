from __future__ import annotations

import signal
import threading

import pytest

from bitswitch_deploy.engines.deferred_signals import deferred_signals


def test_an_interrupt_waits_for_the_end() -> None:
    reached = []

    def work() -> None:
        with deferred_signals() as pending:
            signal.raise_signal(signal.SIGINT)
            reached.append(list(pending))

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == [[signal.SIGINT]]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_of_the_system_are_left_alone() -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with deferred_signals():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_termination_handler_is_called_at_the_end() -> None:
    calls: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: calls.append(number))
    try:
        with deferred_signals():
            signal.raise_signal(signal.SIGTERM)
            assert calls == []
        assert calls == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_other_threads_change_nothing() -> None:
    seen: list[object] = []

    def work() -> None:
        with deferred_signals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
