"""Which sessions stay open, and that each is opened once."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from bitswitch_deploy.errors import GraphError, UsageError
from bitswitch_deploy.runtime.session_cache import SessionCache

COSTS = {"a": 1, "b": 2, "c": 3, "d": 9}


class Opener:
    def __init__(self) -> None:
        self.opened: list[str] = []
        self.fails: set[str] = set()

    def __call__(self, label: str) -> str:
        if label in self.fails:
            raise GraphError(where=label, got="damaged", allowed="a graph", do="mend it")
        self.opened.append(label)
        return f"session {label}"


def test_the_least_recently_used_goes_first() -> None:
    opener = Opener()
    cache: SessionCache[str] = SessionCache(opener, dict.fromkeys("abc", 1), 2)
    for label in "abac":
        assert cache.get(label) == f"session {label}"
    assert cache.labels == ("a", "c")
    assert opener.opened == ["a", "b", "c"]


def test_costs_are_kept_within_the_budget() -> None:
    cache: SessionCache[str] = SessionCache(Opener(), COSTS, 5)
    for label in "abc":
        cache.get(label)
    assert cache.labels == ("b", "c")
    cache.get("a")
    assert cache.labels == ("c", "a")


class Live:
    """A session as long as somebody holds it."""


def costs_while_opening(costs: Mapping[str, int], budget: int, order: str) -> list[int]:
    """What is in memory whenever a session was opened, the new one included; the last one is held, as requests do."""
    live: dict[str, weakref.ref[Live]] = {}
    found = []

    def open_session(label: str) -> Live:
        session = Live()
        live[label] = weakref.ref(session)
        found.append(sum(costs[each] for each, held in live.items() if held() is not None))
        return session

    cache = SessionCache(open_session, costs, budget)
    for label in order:
        active = cache.get(label)
        assert cache.labels[-1] == label
    del active
    return found


def test_what_is_idle_is_dropped_before_the_next_is_opened() -> None:
    assert costs_while_opening(dict.fromkeys("abcd", 40), 80, "abcda") == [40, 80, 80, 80, 80]
    assert costs_while_opening({"a": 40, "b": 10, "c": 20, "d": 60}, 80, "abcd") == [40, 50, 70, 80]


def test_the_one_in_use_is_beyond_the_budget_only_while_the_next_is_opened() -> None:
    assert costs_while_opening(dict.fromkeys("abc", 40), 40, "abc") == [40, 80, 80]
    # what is idle goes, though that is not enough
    assert costs_while_opening({"a": 10, "b": 40, "c": 60}, 80, "abc") == [10, 50, 100]


def test_a_session_beyond_the_whole_budget_is_refused_and_nothing_is_dropped() -> None:
    opener = Opener()
    cache: SessionCache[str] = SessionCache(opener, COSTS, 5)
    cache.get("a")
    with pytest.raises(UsageError, match="width d: 9 sessions in a budget of 5\n  allowed: a, b, c"):
        cache.get("d")
    assert cache.labels == ("a",)
    assert opener.opened == ["a"]


def test_a_session_that_cannot_be_opened_leaves_the_others() -> None:
    opener = Opener()
    cache: SessionCache[str] = SessionCache(opener, dict.fromkeys("ab", 1), 1)
    cache.get("a")
    opener.fails.add("b")
    with pytest.raises(GraphError, match="damaged"):
        cache.get("b")
    assert cache.labels == ("a",)
    assert cache.get("a") == "session a"
    assert opener.opened == ["a"]
    opener.fails.clear()
    assert cache.get("b") == "session b"


def test_threads_that_ask_at_once_share_one_opening() -> None:
    count = 8
    barrier = threading.Barrier(count)
    opened = []

    def open_slowly(label: str) -> object:
        time.sleep(0.01)
        opened.append(label)
        return object()

    cache: SessionCache[object] = SessionCache(open_slowly, {"a": 1}, 1)

    def ask() -> object:
        barrier.wait()
        return cache.get("a")

    with ThreadPoolExecutor(count) as pool:
        sessions = [future.result() for future in [pool.submit(ask) for _ in range(count)]]
    assert opened == ["a"]
    assert len(set(map(id, sessions))) == 1
