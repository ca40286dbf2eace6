"""A policy that keeps the latency of requests within a budget at the highest width that does."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from numbers import Integral, Real

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.runtime.switcher import width_label

_log = logging.getLogger(__name__)
_QUANTILE = 0.95
# Of windows between two tries of what was in vain: at most so many.
_LONGEST_WAIT = 1024
# Of windows before a try that promises little, such as a higher width without room for it.
_PATIENCE = 8
# Of windows in a row in which even the lowest width must miss the budget after a first one: by chance one often does.
_PROOF = 2
# A percentile up to so many times another one counts as the same.
_ALIKE = 1.1


class LatencyBudget:
    """One width lower when the 95th percentile of latency leaves the budget, one higher when there is room again.

    A policy belongs to one switcher. It counts requests, not seconds, so that it behaves the same at every rate. What
    keeps it from flapping: a step up needs a full window of requests whose 95th percentile is below `relax` times the
    budget, and each step down from a width doubles the number of windows until that width is tried again; as many
    windows within the budget there, or a step up from there, set it back to one. Without such room a step up needs
    eight times as many windows within the budget, for the load may have gone; and just as many where the lower width
    turns out to be no faster.

    Where even the lowest width misses the budget, for three windows in a row, the highest of those serves that are
    about as fast as the fastest: on many devices all take the same time, and a lower one would lose accuracy for
    nothing. Lower ones are tried again after 8 windows, then after twice as many each time that it was in vain.
    `is_met` is False whenever the budget is missed there, and one warning is logged until there is room again.

    Args:
        budget_ms: for the time that a session takes for a request.
        window: requests that the percentile is taken over, all at one width.
        relax: share of the budget that the percentile must be below before a higher width is tried.
        widths: those to choose from, highest first, each as for `Switcher.switch`; None takes all uniform ones of the
            package. One that the package lacks is refused when the first request comes.

    Raises:
        UsageError: a number is out of range, or something else than a number.
    """

    def __init__(
        self, budget_ms: float, *, window: int = 100, relax: float = 0.8, widths: tuple[int | str, ...] | None = None
    ) -> None:
        if isinstance(widths, (int, str)):
            allowed, do = "several widths, such as (8, 4)", "write one width as (4,)"
            raise UsageError(where="LatencyBudget: widths", got=repr(widths), allowed=allowed, do=do)
        are_numbers = not isinstance(budget_ms, bool) and isinstance(budget_ms, Real)
        are_numbers = are_numbers and isinstance(window, Integral) and isinstance(relax, Real)
        if not (are_numbers and math.isfinite(budget_ms) and budget_ms > 0 and window >= 20 and 0 < relax < 1):
            raise UsageError(
                where="LatencyBudget",
                got=f"budget_ms {budget_ms!r}, window {window!r}, relax {relax!r}",
                allowed="a positive budget, a whole window of 20 or more, relax between 0 and 1",
                do="correct the number",
            )
        self._budget_ms, self._window, self._relax, self._widths = budget_ms, window, relax, widths
        self._lock = threading.RLock()
        self._known: frozenset[str] = frozenset()
        self._wanted: tuple[str, ...] = ()
        self._order: tuple[str, ...] = ()
        self._width: str | None = None
        self._latencies: deque[float] = deque(maxlen=window)
        self._served = 0
        # requests in a row whose window missed the limit at the lowest width
        self._missed = 0
        self._waits: dict[str, int] = {}
        # what a width must keep to: the budget, or what is possible where that is not
        self._limit_ms = budget_ms
        # of windows that such a limit lasts; 0: there was room since the last one
        self._hold = 0
        # the percentile that each width was left with for a lower one
        self._left_at_ms: dict[str, float] = {}
        self._is_met = True

    @property
    def is_met(self) -> bool:
        """False while the budget is missed and no lower width is known to meet it."""
        return self._is_met

    def choose(self, widths: tuple[str, ...], active: str) -> str:
        """The width that the policy stands at.

        Raises:
            UsageError: the package lacks a width that the policy was told to choose from.
        """
        with self._lock:
            # the first request sees every width of the package, later ones those that can be opened
            if not set(widths) <= self._known:
                self._known, self._wanted = frozenset(widths), self._labels(widths)
            self._order = tuple(width for width in self._wanted if width in widths) or (active,)
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
            percentile = self._percentile()
            is_full = len(self._latencies) == self._window
            if percentile > self._limit_ms and width != self._order[-1]:
                self._step_down(width, percentile)
            elif is_full and percentile > self._limit_ms:
                self._missed += 1
                if self._missed >= _PROOF * self._window:
                    self._settle(percentile)
            elif is_full:
                self._missed = 0
                self._stay(width, percentile)
                if width != self._order[0]:
                    self._step_up(width, percentile)

    def _labels(self, widths: tuple[str, ...]) -> tuple[str, ...]:
        if not self._widths:
            return tuple(width for width in widths if width.startswith("w"))
        return tuple(dict.fromkeys(width_label(width, widths) for width in self._widths))

    def _percentile(self) -> float:
        """That of the window, or, until it is full, the least that it will be however fast the rest is."""
        rank = self._window - math.ceil(_QUANTILE * self._window) + 1
        return sorted(self._latencies)[-rank] if len(self._latencies) >= rank else 0.0

    def _step_down(self, width: str, percentile: float) -> None:
        self._left_at_ms[width] = percentile
        self._waits[width] = min(2 * self._waits.get(width, 1), _LONGEST_WAIT)
        self._move(self._order[self._order.index(width) + 1])

    def _settle(self, percentile: float) -> None:
        """Every width was too slow: begin at the highest again, with a limit that one of them can keep to."""
        if not self._hold:
            _log.warning(
                "latency budget of %g ms: %s, the lowest width, misses it at the 95th percentile of %d requests; "
                "serving at the highest width that is about as fast as the fastest. Raise the budget, or export a "
                "width that is faster on this device",
                self._budget_ms, self._order[-1], self._window,
            )  # fmt: skip
        self._is_met = False
        # a percentile that a width was left with is the least that it would have been
        self._limit_ms = _ALIKE * min((percentile, *(_ALIKE * left for left in self._left_at_ms.values())))
        self._hold = min(2 * self._hold or _PATIENCE, _LONGEST_WAIT)
        self._waits.clear()
        self._move(self._order[0])

    def _stay(self, width: str, percentile: float) -> None:
        """After a full window within the limit."""
        self._is_met = percentile <= self._budget_ms
        if self._has_room(percentile):
            self._hold = 0
        if self._served >= self._hold * self._window:
            self._limit_ms = self._budget_ms
        if self._served >= self._waits.get(width, 1) * self._window:
            self._waits.pop(width, None)

    def _step_up(self, width: str, percentile: float) -> None:
        """To a higher width, where it is time to try it: the next, or one above it that was faster when it was left.

        For widths need not be the faster the lower they are.
        """
        higher = min(
            reversed(self._order[: self._order.index(width)]), key=lambda each: self._left_at_ms.get(each, 0.0)
        )
        # leaving it has not helped: it was no slower than this one is now
        is_alike = self._left_at_ms.get(higher, math.inf) < _ALIKE * percentile
        wait = self._waits.get(higher, 1) * (1 if is_alike or self._has_room(percentile) else _PATIENCE)
        if self._served < min(wait, _LONGEST_WAIT) * self._window:
            return
        self._waits.pop(width, None)
        if self._is_met:
            # the higher width must not miss what this one keeps
            self._limit_ms = self._budget_ms
        self._move(higher)

    def _has_room(self, percentile: float) -> bool:
        return percentile < self._relax * self._budget_ms

    def _move(self, width: str) -> None:
        self._width, self._served, self._missed = width, 0, 0
        self._latencies.clear()
