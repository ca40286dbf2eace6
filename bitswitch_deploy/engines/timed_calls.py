"""The time of calls to what has no clock of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray


def time_calls(
    call: Callable[[Mapping[str, np.ndarray]], object], feeds: Mapping[str, np.ndarray], runs: int
) -> NDArray[np.float64]:
    """Wall time of each of `runs` calls in ms, [runs]."""
    marks = np.empty(runs + 1, np.int64)
    marks[0] = perf_counter_ns()
    for index in range(1, runs + 1):
        call(feeds)
        marks[index] = perf_counter_ns()
    return np.diff(marks) / 1e6
