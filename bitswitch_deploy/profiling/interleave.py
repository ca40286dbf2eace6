"""Measure candidates in turns, never one after the other: what drifts, drifts for all of them.

A turn is about `turn_ms` of runs of one candidate; then comes the next one. The order rotates, so that nobody always
runs behind the same neighbour. In front of a turn is a pause, in which the neighbour's idle threads stop spinning, and
its first run is warm-up: caches hold the neighbour's data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bitswitch_deploy.profiling.statistics import Milliseconds

TURN_MS = 50.0
# Runs of one turn; also what bounds the memory of a turn of a network that takes microseconds.
_MAX_RUNS = 10_000
# onnxruntime's threads spin for about a millisecond behind a run.
_PAUSE_S = 0.002

TimeRuns = Callable[[int], Milliseconds]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How many turns each candidate gets: first `warmup_turns`, which are not measured, then `turns`."""

    turns: int
    warmup_turns: int
    turn_ms: float = TURN_MS


def interleave(
    candidates: Mapping[str, TimeRuns], schedule: Schedule, *, after_turn: Callable[[bool], None]
) -> dict[str, tuple[Milliseconds, ...]]:
    """Latencies in ms of each candidate, one array for each turn.

    Args:
        candidates: by label, what runs it a number of times and returns the ms of each run.
        schedule: how often.
        after_turn: called after each turn, outside of what is timed, with whether it was warm-up.
    """
    runs = {label: _runs_of_a_turn(time_runs, schedule.turn_ms) for label, time_runs in candidates.items()}
    measured: dict[str, list[Milliseconds]] = {label: [] for label in candidates}
    for turn in range(schedule.warmup_turns + schedule.turns):
        for label in _rotated(tuple(candidates), turn):
            time.sleep(_PAUSE_S)
            latencies = candidates[label](runs[label] + 1)[1:]
            is_warmup = turn < schedule.warmup_turns
            if not is_warmup:
                measured[label].append(latencies)
            after_turn(is_warmup)
    return {label: tuple(turns) for label, turns in measured.items()}


def turn_medians(turns: Sequence[Milliseconds]) -> tuple[float, ...]:
    """The median of each turn in ms: one slow run does not make a turn slow."""
    return tuple(float(np.median(turn)) for turn in turns)


def _runs_of_a_turn(time_runs: TimeRuns, turn_ms: float) -> int:
    time_runs(1)  # takes its memory, starts its threads
    return int(np.clip(round(turn_ms / max(float(np.median(time_runs(3))), 1e-3)), 1, _MAX_RUNS))


def _rotated(labels: tuple[str, ...], turn: int) -> tuple[str, ...]:
    first = turn % len(labels)
    return labels[first:] + labels[:first]
