"""A policy that keeps the latency of requests within a budget at the highest width that does."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque

from bitswitch_deploy.errors import UsageError

_log = logging.getLogger(__name__)
_QUANTILE = 0.95
# Of requests between two tries of a width that was too slow: at most so many windows.
_LONGEST_WAIT = 1024


class LatencyBudget:
    """One width lower when the 95th percentile of latency leaves the budget, one higher when there is room again.

    Only sensible where lower widths are faster on the device: measure before. Counted in requests, not in seconds, so
    that it behaves the same at every rate. What keeps it from flapping: a step up needs a full window of requests
    whose 95th percentile is below `relax` times the budget, and each step down from a width doubles the number of
    windows until that width is tried again; as many windows within the budget there, or a step up from there, set it
    back to one.

    Where even the lowest width misses the budget it stays there, `is_met` is False, and one warning is logged.

    Args:
        budget_ms: for the time that a session takes for a request.
        window: requests that the percentile is taken over, all at one width.
        relax: share of the budget that the percentile must be below before a higher width is tried.
        widths: labels to choose from, highest first; None takes all uniform widths of the package.

    Raises:
        UsageError: a number is out of range.
    """

    def __init__(
        self, budget_ms: float, *, window: int = 100, relax: float = 0.8, widths: tuple[str, ...] | None = None
    ) -> None:
        if not (math.isfinite(budget_ms) and budget_ms > 0 and window >= 20 and 0 < relax < 1):
            raise UsageError(
                where="LatencyBudget",
                got=f"budget_ms {budget_ms}, window {window}, relax {relax}",
                allowed="a positive budget, a window of 20 or more, relax between 0 and 1",
                do="correct the number",
            )
        self._budget_ms, self._window, self._relax, self._widths = budget_ms, window, relax, widths
        self._lock = threading.Lock()
        self._order: tuple[str, ...] = ()
        self._width: str | None = None
        self._latencies: deque[float] = deque(maxlen=window)
        self._served = 0
        self._waits: dict[str, int] = {}
        self._is_met = True

    @property
    def is_met(self) -> bool:
        """False while even the lowest width misses the budget."""
        return self._is_met

    def choose(self, widths: tuple[str, ...], active: str) -> str:
        """The width that the policy stands at."""
        with self._lock:
            wanted = self._widths or tuple(width for width in widths if width.startswith("w"))
            self._order = tuple(width for width in wanted if width in widths) or (active,)
            if self._width not in self._order:
                self._move(active if active in self._order else self._order[0])
            return self._width or active

    def observe(self, width: str, latency_ms: float) -> None:
        """Take a latency into account; those of requests that began at another width are left out."""
        with self._lock:
            if width != self._width:
                return
            self._latencies.append(latency_ms)
            self._served += 1
            place = self._order.index(width)
            if self._is_too_slow():
                self._step_down(place)
            elif len(self._latencies) == self._window:
                self._is_met = True
                self._step_up(place)

    def _is_too_slow(self) -> bool:
        """Whether the percentile leaves the budget, however fast the rest of the window will be."""
        over = sum(latency > self._budget_ms for latency in self._latencies)
        return over > (1 - _QUANTILE) * self._window

    def _step_down(self, place: int) -> None:
        width = self._order[place]
        if place + 1 < len(self._order):
            self._waits[width] = min(2 * self._waits.get(width, 1), _LONGEST_WAIT)
            self._move(self._order[place + 1])
        elif self._is_met:
            self._is_met = False
            _log.warning(
                "latency budget of %g ms: %s, the lowest width, misses it at the 95th percentile of %d requests; "
                "staying there. Raise the budget, or export a width that is faster on this device",
                self._budget_ms, width, self._window,
            )  # fmt: skip

    def _step_up(self, place: int) -> None:
        width = self._order[place]
        if self._served >= self._waits.get(width, 1) * self._window:
            self._waits.pop(width, None)
        if place == 0:
            return
        higher = self._order[place - 1]
        percentile = sorted(self._latencies)[math.ceil(_QUANTILE * self._window) - 1]
        if percentile < self._relax * self._budget_ms and self._served >= self._waits.get(higher, 1) * self._window:
            self._waits.pop(width, None)
            self._move(higher)

    def _move(self, width: str) -> None:
        self._width, self._served = width, 0
        self._latencies.clear()
