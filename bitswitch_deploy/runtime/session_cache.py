"""The sessions that are kept open, the least recently used one closed first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from bitswitch_deploy.errors import UsageError

S = TypeVar("S")


class SessionCache(Generic[S]):
    """Opens sessions by label and keeps them within a budget. Safe to call from any thread.

    Sessions are dropped before the next one is opened, so that the budget holds meanwhile, all but the one that was
    asked for last: it is in use, and goes on answering if the next one cannot be opened. Where there is no room for
    both, it is dropped as soon as the next one is open. A session that is dropped lives on until the last request that
    holds it is answered.

    Args:
        open_session: opens one; called by one thread at a time.
        costs: of each label, in the unit of `budget`.
        budget: what the sessions kept may cost together.
        unit: of both, for messages.
    """

    def __init__(
        self, open_session: Callable[[str], S], costs: Mapping[str, int], budget: int, *, unit: str = "sessions"
    ) -> None:
        self._open, self._costs, self._budget, self._unit = open_session, costs, budget, unit
        self._kept: OrderedDict[str, S] = OrderedDict()
        self._is_closed = False
        # a signal handler runs in a thread that may hold them
        self._state_lock, self._open_lock = threading.RLock(), threading.RLock()

    @property
    def labels(self) -> tuple[str, ...]:
        """What is open, the least recently used first."""
        with self._state_lock:
            return tuple(self._kept)

    def get(self, label: str) -> S:
        """The session of `label`, opened where it is not; a thread waits while another one opens a session.

        Raises:
            UsageError: it costs more than the whole budget.
            BitswitchError: it cannot be opened; the one that was asked for last stays open.
        """
        session = self._find(label)
        if session is None:
            with self._open_lock:
                session = self._find_or_open(label)
        return session

    def get_unless_busy(self, label: str) -> S | None:
        """As `get`, but None instead of waiting while another thread opens a session.

        Raises:
            UsageError, BitswitchError: as `get`.
        """
        session = self._find(label)
        if session is None and self._open_lock.acquire(blocking=False):
            try:
                session = self._find_or_open(label)
            finally:
                self._open_lock.release()
        return session

    def keep(self, label: str, session: S) -> None:
        """A session that `get` gave before is in use again, or still: others make room for it."""
        with self._state_lock:
            self._kept.pop(label, None)
            self._keep(label, session)

    def get_all(self, labels: tuple[str, ...]) -> None:
        """Open several that are to stay open together.

        Raises:
            UsageError: they cost more than the whole budget, one of them or all together.
            BitswitchError: one cannot be opened.
        """
        self._check_budget(labels[0])
        cost = sum(self._costs[label] for label in labels)
        if cost > self._budget:
            raise UsageError(
                where=f"widths {', '.join(labels)}",
                got=f"{cost:,} {self._unit} in a budget of {self._budget:,}",
                allowed="room for the first width and every warm one",
                do="warm fewer widths, or raise max_sessions (cpu) or memory_budget_mb (tensorrt)",
            )
        for label in labels:
            self.get(label)

    def close(self) -> None:
        """Drop all, and keep nothing from now on: a session that is being opened is for who asked for it alone."""
        with self._state_lock:
            self._is_closed = True
            # not cleared: a signal handler may call this in the middle of a loop over it
            self._kept = OrderedDict()

    def _find_or_open(self, label: str) -> S:
        """For the thread that holds the lock of openings: another one may have opened it before."""
        session = self._find(label)
        if session is None:
            self._check_budget(label)
            self._drop_for(label, spared=1)
            session = self._open(label)
            self._keep(label, session)
        return session

    def _find(self, label: str) -> S | None:
        with self._state_lock:
            session = self._kept.get(label)
            if session is not None:
                self._kept.move_to_end(label)
            return session

    def _keep(self, label: str, session: S) -> None:
        self._drop_for(label, spared=0)
        with self._state_lock:
            if not self._is_closed:
                self._kept[label] = session

    def _drop_for(self, label: str, *, spared: int) -> None:
        """Make room for one more, but let go of no more than all except the `spared` ones that were used last."""
        with self._state_lock:
            kept, room = self._kept, self._budget - self._costs[label]
            while len(kept) > spared and sum(self._costs[each] for each in kept) > room:
                kept.popitem(last=False)

    def _check_budget(self, label: str) -> None:
        if self._costs[label] <= self._budget:
            return
        fitting = ", ".join(each for each, cost in self._costs.items() if cost <= self._budget)
        raise UsageError(
            where=f"width {label}",
            got=f"{self._costs[label]:,} {self._unit} in a budget of {self._budget:,}",
            allowed=fitting or "no width fits: even the smallest takes more",
            do="raise the budget or take a width that fits",
        )
