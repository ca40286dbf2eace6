"""Eight threads run requests while the width changes thousands of times: none is dropped, mixed up or late."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.runtime import RuntimeOptions, Switcher, load
from tests.runtime.conftest import LABELS, Packages

THREADS = 8


@pytest.fixture(autouse=True)
def frequent_turns() -> Iterator[None]:
    """Let threads take turns every 0.1 ms instead of every 5 ms: more interleavings in less time."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(usual)


class History:
    """Which widths may answer a request: those from the last switch that was done before it began to the last begun."""

    def __init__(self, first: str) -> None:
        self.begun = [first]
        self.done = 0
        self.answers = 0
        self.stopped = threading.Event()

    def switch(self, switcher: Switcher, label: str) -> None:
        self.begun.append(label)
        switcher.switch(label)
        self.done = len(self.begun) - 1

    def wait_for_an_answer(self) -> None:
        """Let others run, else thousands of switches fit between two requests."""
        before = self.answers
        while self.answers == before and not self.stopped.is_set():
            time.sleep(0)


def serve(switcher: Switcher, history: History, packages: Packages, seed: int) -> set[str]:
    """Run requests until the switching has ended; give the widths that answered."""
    rng = np.random.default_rng(seed)
    seen = set()
    while not history.stopped.is_set():
        place = int(rng.integers(len(packages.inputs)))
        earliest = history.done
        answer = switcher.run(packages.inputs[place : place + 1])[0]
        allowed = set(history.begun[earliest:])
        (label,) = (each for each in LABELS if np.array_equal(answer, packages.outputs[each][place]))
        assert label in allowed
        history.answers += 1
        seen.add(label)
    return seen


@pytest.mark.parametrize(
    ("kind", "max_sessions", "switches"), [("shared", 5, 2000), ("own", 5, 2000), ("shared", 2, 40), ("own", 1, 40)]
)
def test_each_answer_is_that_of_a_width_that_was_active(
    packages: Packages, kind: str, max_sessions: int, switches: int
) -> None:
    options = RuntimeOptions(threads=1, max_sessions=max_sessions)
    rng = np.random.default_rng(11)
    with load(getattr(packages, kind), options=options) as switcher, ThreadPoolExecutor(THREADS) as pool:
        history = History("w8")
        served = [pool.submit(serve, switcher, history, packages, seed) for seed in range(THREADS)]
        try:
            for index in range(switches):
                history.switch(switcher, str(rng.choice(LABELS)))
                if index % 10 == 0:
                    history.wait_for_an_answer()
                    # a request of this thread, between two of its own switches
                    answer = switcher.run(packages.inputs[:1])[0]
                    assert np.array_equal(answer, packages.outputs[history.begun[-1]][0])
        finally:
            history.stopped.set()
        seen = [future.result() for future in served]
    assert set.union(*seen) == set(LABELS)


def test_threads_that_switch_against_each_other_leave_one_of_their_widths(packages: Packages) -> None:
    options = RuntimeOptions(threads=1, max_sessions=3)
    with load(packages.shared, options=options) as switcher, ThreadPoolExecutor(THREADS) as pool:

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(40):
                switcher.switch(str(rng.choice(LABELS[:3])))
                place = int(rng.integers(len(packages.inputs)))
                answer = switcher.run(packages.inputs[place : place + 1])[0]
                assert any(np.array_equal(answer, packages.outputs[label][place]) for label in LABELS[:3])

        for future in [pool.submit(work, seed) for seed in range(THREADS)]:
            future.result()
        answer = switcher.run(packages.inputs[:1])[0]
        assert np.array_equal(answer, packages.outputs[switcher.width][0])


def test_closing_answers_what_is_in_flight(packages: Packages) -> None:
    switcher = load(packages.shared, options=RuntimeOptions(threads=1))

    answered = []

    def work() -> None:
        while True:
            answer = switcher.run(packages.inputs[:1])[0]
            assert any(np.array_equal(answer, packages.outputs[label][0]) for label in LABELS)
            answered.append(1)

    with ThreadPoolExecutor(THREADS) as pool:
        served = [pool.submit(work) for _ in range(THREADS)]
        for label in LABELS[:2] * 3:
            switcher.switch(label)
        switcher.close()
        for future in served:
            with pytest.raises(UsageError, match="a call after close"):
                future.result()
    assert answered
