"""What happens while a width is being opened, by an opener that waits until the test lets it go on."""

from __future__ import annotations

import gc
import itertools
import logging
import threading
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.engines.input_signature import InputSignature
from bitswitch_deploy.errors import DataError, GraphError, UsageError
from bitswitch_deploy.runtime import Switcher
from bitswitch_deploy.runtime.session_cache import SessionCache
from bitswitch_deploy.runtime.switcher import Session

WIDTHS = ("w8", "w6", "w4", "w2")
# of what never comes where the code is wrong; nothing is measured by it
PATIENCE_S = 60


class Labelled:
    """A session that answers with its label."""

    inputs: tuple[InputSignature, ...] = ()
    output_names = ("label",)

    def __init__(self, label: str) -> None:
        self.label = label

    def run_all(self, feeds: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        return {"label": self.label}


class Opener:
    """Opens at once, but for w4, which waits."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.opened: list[str] = []
        self.is_failing = False
        self.sessions: list[weakref.ref[Labelled]] = []

    def __call__(self, label: str) -> Session:
        self.opened.append(label)
        if label == "w4":
            self.begun.set()
            assert self.go_on.wait(PATIENCE_S)
            if self.is_failing:
                raise GraphError(where=label, got="damaged", allowed="a graph", do="mend it")
        session = Labelled(label)
        self.sessions.append(weakref.ref(session))
        return session

    @property
    def live(self) -> int:
        gc.collect()
        return sum(session() is not None for session in self.sessions)


class Wanted:
    """A policy that chooses what it is told."""

    def __init__(self) -> None:
        self.width = "w8"
        self.offered: tuple[str, ...] = ()
        self.observed: list[str] = []

    def choose(self, widths: tuple[str, ...], active: str) -> str:
        self.offered = widths
        return self.width

    def observe(self, width: str, latency_ms: float) -> None:
        self.observed.append(width)


@pytest.fixture
def opener() -> Iterator[Opener]:
    opener = Opener()
    yield opener
    opener.go_on.set()


@pytest.fixture
def pool(opener: Opener) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool
        opener.go_on.set()


def switcher_of(opener: Opener, policy: Wanted | None, *, max_sessions: int = 3) -> Switcher:
    cache = SessionCache(opener, dict.fromkeys(WIDTHS, 1), max_sessions)
    return Switcher(WIDTHS, cache, width="w8", policy=policy)


def answer(switcher: Switcher) -> str:
    return str(switcher.run_all({})["label"])


def test_one_request_opens_a_width_and_the_others_go_on(opener: Opener, pool: ThreadPoolExecutor) -> None:
    policy = Wanted()
    switcher = switcher_of(opener, policy)
    policy.width = "w4"
    first = pool.submit(answer, switcher)
    assert opener.begun.wait(PATIENCE_S)
    others = [pool.submit(answer, switcher) for _ in range(9)]
    assert [each.result(PATIENCE_S) for each in others] == ["w8"] * 9
    assert policy.observed == ["w8"] * 9
    assert switcher.width == "w8"
    opener.go_on.set()
    assert first.result(PATIENCE_S) == "w4"
    assert answer(switcher) == "w4"
    assert policy.observed[9:] == ["w4", "w4"]
    assert opener.opened == ["w8", "w4"]


def test_while_a_width_is_opened_those_that_are_open_can_be_chosen_and_no_other(
    opener: Opener, pool: ThreadPoolExecutor
) -> None:
    policy = Wanted()
    switcher = switcher_of(opener, policy)
    for policy.width in ("w6", "w8"):
        assert answer(switcher) == policy.width
    policy.width = "w4"
    first = pool.submit(answer, switcher)
    assert opener.begun.wait(PATIENCE_S)
    for policy.width, expected in (("w6", "w6"), ("w2", "w6"), ("w8", "w8"), ("w4", "w8")):
        assert pool.submit(answer, switcher).result(PATIENCE_S) == expected
        assert switcher.width == expected
    opener.go_on.set()
    assert first.result(PATIENCE_S) == "w4"
    assert opener.opened == ["w8", "w6", "w4"]


def test_a_width_that_cannot_be_opened_is_left_out_while_others_go_on(
    opener: Opener, pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """Also by a policy that insists on it."""
    policy = Wanted()
    switcher = switcher_of(opener, policy)
    policy.width, opener.is_failing = "w4", True
    with caplog.at_level(logging.WARNING):
        first = pool.submit(answer, switcher)
        assert opener.begun.wait(PATIENCE_S)
        assert pool.submit(answer, switcher).result(PATIENCE_S) == "w8"
        opener.go_on.set()
        assert first.result(PATIENCE_S) == "w8"
        assert [answer(switcher) for _ in range(3)] == ["w8"] * 3
    assert policy.offered == ("w8", "w6", "w2")
    assert opener.opened == ["w8", "w4"]
    (record,) = caplog.records
    assert "w4 cannot be used, going on at w8: w4: damaged" in record.getMessage()
    policy.width = "w6"
    assert answer(switcher) == "w6"


def test_a_width_that_could_not_be_opened_is_tried_again_ever_more_seldom(opener: Opener) -> None:
    """After 100 requests, then 200; once it opens it serves, and what fails later waits for 100 again."""
    policy = Wanted()
    switcher = switcher_of(opener, policy)
    policy.width, opener.is_failing = "w4", True
    opener.go_on.set()
    tries: list[int] = []
    for request in range(700):
        assert answer(switcher) == "w8"
        if opener.opened.count("w4") > len(tries):
            tries.append(request)
            assert switcher.usable_widths == ("w8", "w6", "w2")
    assert [later - sooner for sooner, later in itertools.pairwise(tries)] == [100, 200]
    opener.is_failing = False
    answers = [answer(switcher) for _ in range(400)]
    assert answers.count("w4") > 0
    assert answers == sorted(answers, reverse=True)
    assert switcher.usable_widths == WIDTHS
    for policy.width in ("w8", "w6", "w2"):  # for which w4 has to go
        answer(switcher)
    policy.width, opener.is_failing, opened = "w4", True, opener.opened.count("w4")
    for _ in range(105):
        assert answer(switcher) == "w2"
    assert opener.opened.count("w4") == opened + 2


def test_a_wrong_input_moves_no_width(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by the active session's signature, before the policy is asked."""
    monkeypatch.setattr(Labelled, "inputs", (InputSignature(name="x", dtype="float32", shape=("n", 3)),))
    policy = Wanted()
    switcher = switcher_of(opener, policy)
    policy.width = "w6"
    with pytest.raises(DataError, match=r"\[2, 4\]"):
        switcher.run_all({"x": np.zeros((2, 4), np.float32)})
    with pytest.raises(DataError, match="run_all: ndarray"):
        switcher.run_all(np.zeros((2, 3), np.float32))  # type: ignore[arg-type]
    assert (switcher.width, opener.opened) == ("w8", ["w8"])


def test_after_close_no_session_is_left(opener: Opener) -> None:
    switcher = switcher_of(opener, None)
    switcher.switch("w6")
    assert opener.live == 2
    switcher.close()
    assert switcher.open_widths == ()
    assert opener.live == 0


def test_a_request_that_opens_a_width_during_close_is_answered_and_leaves_nothing_open(
    opener: Opener, pool: ThreadPoolExecutor
) -> None:
    policy = Wanted()
    switcher = switcher_of(opener, policy)
    policy.width = "w4"
    request = pool.submit(answer, switcher)
    assert opener.begun.wait(PATIENCE_S)
    switcher.close()
    opener.go_on.set()
    assert request.result(PATIENCE_S) == "w4"
    del request
    with pytest.raises(UsageError, match="a call after close"):
        answer(switcher)
    assert switcher.open_widths == ()
    assert opener.live == 0


def test_a_switch_whose_width_is_ready_after_close_is_refused_and_leaves_nothing_open(
    opener: Opener, pool: ThreadPoolExecutor
) -> None:
    switcher = switcher_of(opener, None)
    switched = pool.submit(switcher.switch, "w4")
    assert opener.begun.wait(PATIENCE_S)
    switcher.close()
    opener.go_on.set()
    error = switched.exception(PATIENCE_S)
    assert isinstance(error, UsageError)
    assert "a call after close" in str(error)
    del switched, error
    assert switcher.open_widths == ()
    assert opener.live == 0


def test_a_switch_to_an_open_width_does_not_wait_for_one_that_is_being_opened(
    opener: Opener, pool: ThreadPoolExecutor
) -> None:
    """And of both the one that was called last counts, whichever is ready first."""
    switcher = switcher_of(opener, None)
    for width in ("w6", "w8"):
        switcher.switch(width)
    cold = pool.submit(switcher.switch, "w4")
    assert opener.begun.wait(PATIENCE_S)
    pool.submit(switcher.switch, "w6").result(PATIENCE_S)
    assert answer(switcher) == "w6"
    opener.go_on.set()
    cold.result(PATIENCE_S)
    assert answer(switcher) == "w6"
    assert switcher.open_widths == ("w8", "w4", "w6")
    switcher.switch("w4")
    assert answer(switcher) == "w4"


def test_no_more_sessions_are_held_where_a_switch_was_overtaken(opener: Opener, pool: ThreadPoolExecutor) -> None:
    switcher = switcher_of(opener, None, max_sessions=1)
    cold = pool.submit(switcher.switch, "w4")
    assert opener.begun.wait(PATIENCE_S)
    pool.submit(switcher.switch, "w8").result(PATIENCE_S)
    opener.go_on.set()
    cold.result(PATIENCE_S)
    del cold
    assert (switcher.width, switcher.open_widths, opener.live) == ("w8", ("w8",), 1)
    switcher.switch("w8")
    assert opener.opened == ["w8", "w4"]
