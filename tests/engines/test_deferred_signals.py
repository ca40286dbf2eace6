from __future__ import annotations

import signal
import threading

import pytest

from bitswitch_deploy.engines.deferred_signals import deferred_signals, exit_when_terminated


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_termination_is_an_exit_where_nobody_else_handles_it(number: signal.Signals) -> None:
    calls: list[int] = []
    with pytest.raises(SystemExit) as exit_info, exit_when_terminated():
        signal.raise_signal(number)
    assert exit_info.value.code == 128 + number
    assert signal.getsignal(number) is signal.SIG_DFL
    signal.signal(number, lambda received, _: calls.append(received))
    try:
        with exit_when_terminated():
            signal.raise_signal(number)
    finally:
        signal.signal(number, signal.SIG_DFL)
    assert calls == [number]
