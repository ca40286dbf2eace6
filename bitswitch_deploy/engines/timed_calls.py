"""The time of calls to a session that has no clock of its own."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter_ns
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bitswitch_deploy.engines.input_signature import InputSignature


class RunnableSession(Protocol):
    """A loaded network."""

    @property
    def inputs(self) -> tuple[InputSignature, ...]:
        """What it takes."""

    def run_all(self, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """All outputs by name."""


class TimedCalls:
    """Times `run_all` from arrays on the host to arrays on the host, copies included."""

    def __init__(self, session: RunnableSession) -> None:
        self._session = session
        self.inputs = session.inputs

    def time_runs(self, feeds: Mapping[str, np.ndarray], runs: int) -> NDArray[np.float64]:
        """Wall time of each of `runs` calls in ms, [runs].

        Raises:
            BitswitchError: as the session.
        """
        marks = np.empty(runs + 1, np.int64)
        marks[0] = perf_counter_ns()
        for index in range(1, runs + 1):
            self._session.run_all(feeds)
            marks[index] = perf_counter_ns()
        return np.diff(marks) / 1e6
