"""One network, its width changed between requests."""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.engines.input_signature import InputSignature, check_feeds
from bitswitch_deploy.errors import BitswitchError, DataError, UsageError
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.runtime.session_cache import SessionCache

Array = npt.NDArray[Any]

_log = logging.getLogger(__name__)
# Requests before a width that could not be opened is tried again.
_FIRST_WAIT, _LONGEST_WAIT = 100, 100_000


class Session(Protocol):
    """One width, ready to run. Several threads may call `run_all` at once."""

    @property
    def inputs(self) -> tuple[InputSignature, ...]:
        """What it takes."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the order of the graph."""

    def run_all(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """All outputs by name."""


class Policy(Protocol):
    """Chooses the width of each request. Called from every thread that runs requests.

    A policy sees latencies; whatever else it goes by, such as battery or load, it looks up itself. A width that is not
    open is opened by the request that it was chosen for, which waits for it; requests of other threads are answered at
    the active width meanwhile (before onnxruntime 1.31 they wait as well: it holds Python's lock while it loads a
    graph). A width that cannot be opened is not offered for the next 100 requests, and for twice as many each time that
    it fails again; one that there is no room for at all never. What a policy raises comes out of the request.
    """

    def choose(self, widths: tuple[str, ...], active: str) -> str:
        """One of `widths`, which run from the highest to the lowest; `active` answered the last request."""

    def observe(self, width: str, latency_ms: float) -> None:
        """A request was answered at `width`, by a session that took so long: without what it took to open it."""


class Switcher:
    """A package whose width can be changed at any time. Made by `load`.

    Every method may be called from any thread, also at the same time. `switch` returns when the new width is ready:
    requests that begin later are computed at it, those in flight finish at theirs, and no answer mixes two. Of switches
    at the same time the one that was called last counts; none to an open width waits for one that is opened. A switch
    that fails raises, and the switcher goes on at the last good width, though others that were open may have made room
    for the new one. A wrong input changes nothing either.

    Args:
        widths: labels, from the highest to the lowest.
        sessions: opens and keeps them.
        width: label of the first one.
        policy: chooses the width of each request; `switch` is refused then.
        preprocessing: how raw pixels become the input; None where the master did not say.

    Raises:
        BitswitchError: the first session cannot be opened.
    """

    def __init__(
        self,
        widths: tuple[str, ...],
        sessions: SessionCache[Session],
        *,
        width: str,
        policy: Policy | None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        self.widths = widths
        self.preprocessing = preprocessing
        self._sessions, self._policy = sessions, policy
        # of widths that could not be opened: the request at which each is offered again, and how many it waits for
        self._left_out: dict[str, float] = {}
        self._waits: dict[str, float] = {}
        self._requests = itertools.count()
        # a switch that was asked for before another one, and is ready after it, changes nothing
        self._calls, self._last_call = itertools.count(), -1
        # a signal handler that closes runs in a thread that may be switching
        self._switch_lock = threading.RLock()
        # one attribute, so that a request sees a label and its own session whatever happens beside it
        self._active: tuple[str, Session] | None = width, sessions.get(width)

    def __enter__(self) -> Switcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def width(self) -> str:
        """Label of the width that the next request is computed at; with a policy, that the last one was."""
        return self._current()[0]

    @property
    def inputs(self) -> tuple[InputSignature, ...]:
        """What the network takes."""
        return self._current()[1].inputs

    @property
    def usable_widths(self) -> tuple[str, ...]:
        """What a policy chooses from: all but those that could not be opened some requests ago."""
        left_out = self._left_out
        return tuple(width for width in self.widths if width not in left_out)

    @property
    def open_widths(self) -> tuple[str, ...]:
        """Widths that a switch finds ready, the least recently used first."""
        return self._sessions.labels

    def switch(self, width: int | str) -> None:
        """Compute at `width` from the next request on: a number of bits, or a label such as `w4` or `mixed`.

        Raises:
            UsageError: the package has no such width, or a policy chooses.
            CheckFailedError: the files are not those that were loaded any more.
            BitswitchError: the session cannot be opened. In each case the width stays as it is.
        """
        if self._policy is not None:
            do = "load the package without a policy, or let the policy choose this width"
            raise UsageError(where="switch", got="a call beside a policy", allowed="a policy or calls", do=do)
        label = width_label(width, self.widths)
        self._current()
        call = next(self._calls)
        session = self._sessions.get(label)
        with self._switch_lock:
            active = self._current()  # it may have been closed meanwhile
            if call > self._last_call:
                self._active, self._last_call = (label, session), call
            else:
                self._sessions.keep(*active)

    def run(self, x: Array) -> Array:
        """The first output for `x`, which feeds the only input; shapes and type are the graph's.

        Raises:
            DataError: shape, type or values do not fit: NaN is refused.
            UsageError: the network has more than one input.
            GraphError: onnxruntime fails while it runs.
        """
        session = self._current()[1]
        if len(session.inputs) != 1:
            names = ", ".join(value.name for value in session.inputs)
            got = f"{len(session.inputs)} inputs: {names}"
            raise UsageError(where="run", got=got, allowed="one input", do="use run_all")
        return self.run_all({session.inputs[0].name: x})[session.output_names[0]]

    def run_all(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """All outputs by name.

        Raises:
            DataError: shape, type or values of an array do not fit its input: NaN is refused.
            UsageError: an input is missing or unknown.
            GraphError: onnxruntime fails while it runs.
        """
        if not isinstance(feeds, Mapping):
            do = "hand in {name: array}, or use run for the only input"
            raise DataError(where="run_all", got=type(feeds).__name__, allowed="arrays by name", do=do)
        for name, array in feeds.items():
            _check_values(name, array)
        active = self._current()[1]
        if self._policy is None:
            return active.run_all(feeds)
        check_feeds(active.inputs, feeds, where="run_all")  # before the policy opens another width for them
        label, session = self._chosen(self._policy)
        started = time.perf_counter()
        outputs = session.run_all(feeds)
        self._policy.observe(label, (time.perf_counter() - started) * 1e3)
        return outputs

    def close(self) -> None:
        """Drop every session; requests in flight are answered, later ones are refused. A signal handler may call it."""
        with self._switch_lock:
            self._active = None
            self._sessions.close()

    def _current(self) -> tuple[str, Session]:
        active = self._active
        if active is None:
            do = "load the package again"
            raise UsageError(where="switcher", got="a call after close", allowed="calls before close", do=do)
        return active

    def _chosen(self, policy: Policy) -> tuple[str, Session]:
        """Label and session of this request; the active ones where the choice is not open and cannot be opened now."""
        active = self._current()
        self._offer_again(next(self._requests))
        usable = self.usable_widths
        label = width_label(policy.choose(usable, active[0]), self.widths)
        if label == active[0] or label not in usable:
            return active
        try:
            session = self._sessions.get_unless_busy(label)
        except BitswitchError as error:
            self._leave_out(label, active[0], error)
            return active
        if session is None:
            return active
        chosen = label, session
        self._waits.pop(label, None)
        with self._switch_lock:
            # a switcher that was closed meanwhile answers this request, which was in flight, and stays closed
            if self._active is not None:
                self._active = chosen
        return chosen

    def _leave_out(self, label: str, active: str, error: BitswitchError) -> None:
        with self._switch_lock:
            if label in self._left_out:
                # another request has said so
                return
            if isinstance(error, UsageError):  # there will never be room for it
                wait: float = math.inf
            else:
                wait = min(2 * self._waits[label], _LONGEST_WAIT) if label in self._waits else _FIRST_WAIT
            self._waits[label] = wait
            self._left_out = {**self._left_out, label: next(self._requests) + wait}
        again = f"it is tried again after {wait} requests" if math.isfinite(wait) else "it is not tried again"
        _log.warning("%s cannot be used, going on at %s: %s\n  %s", label, active, error, again)

    def _offer_again(self, request: int) -> None:
        if any(request >= due for due in self._left_out.values()):
            with self._switch_lock:
                self._left_out = {label: due for label, due in self._left_out.items() if due > request}


def width_label(width: int | str, widths: tuple[str, ...]) -> str:
    """The label of a width that is given as a number of bits or as a label.

    Raises:
        UsageError: it is none of `widths`.
    """
    label = width if isinstance(width, str) else f"w{width}"
    if label not in widths:
        do = "choose one of these, or export the package with this width"
        raise UsageError(where="width", got=label, allowed=", ".join(widths), do=do)
    return label


def _check_values(name: str, array: Array) -> None:
    where = f"input {name!r}"
    if not isinstance(array, np.ndarray):
        do = "convert with numpy.asarray"
        raise DataError(where=where, got=type(array).__name__, allowed="a NumPy array", do=do)
    # min lets NaN through and needs no mask
    array = array.view(np.ndarray)  # min of a masked array leaves out what the session reads
    if array.dtype.kind == "f" and array.size and np.isnan(array.min()):
        places = np.argwhere(np.isnan(array))
        got = f"{len(places)} NaN, the first at {places[0].tolist()}"
        raise DataError(where=where, got=got, allowed="numbers", do="look at what makes the input")
