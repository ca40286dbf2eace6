"""Measure candidates in turns, never one after the other: what drifts, drifts for all of them.

A turn is about `turn_ms` of runs of one candidate; then comes the next one. The order is drawn anew each time, so that
nobody always runs behind the same neighbour. In front of a turn is a pause, in which the neighbour's idle threads stop
spinning, and its first run is warm-up: caches hold the neighbour's data.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bitswitch_deploy.profiling.statistics import Milliseconds

TURN_MS = 50.0
# Runs of one turn; also what bounds the memory of a turn of a network that takes microseconds.
_MAX_RUNS = 10_000
# onnxruntime's threads spin for about a millisecond behind a run.
_PAUSE_S = 0.002
_SEED = 0

TimeRuns = Callable[[int], Milliseconds]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What a turn of one candidate is: `runs` of about `run_ms` each, and one of warm-up in front."""

    runs: int
    run_ms: float

    @property
    def turn_ms(self) -> float:
        """How long it takes, warm-up and pause included."""
        return (self.runs + 1) * self.run_ms + 1e3 * _PAUSE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How many turns each candidate gets: first `warmup_turns`, which are not measured, then `turns`.

    turn_ms: how long one takes, the mean of all candidates.
    """

    turns: int
    warmup_turns: int
    turn_ms: float


def learn_pace(time_runs: TimeRuns, turn_ms: float) -> Pace:
    """As many runs as fill `turn_ms`, one at least: a turn of a slow network is longer."""
    time_runs(1)  # takes its memory, starts its threads
    run_ms = float(np.median(time_runs(3)))
    return Pace(runs=int(np.clip(round(turn_ms / max(run_ms, 1e-3)), 1, _MAX_RUNS)), run_ms=run_ms)


def interleave(
    candidates: Mapping[str, TimeRuns],
    paces: Mapping[str, Pace],
    schedule: Schedule,
    *,
    after_turn: Callable[[bool], None],
) -> dict[str, tuple[Milliseconds, ...]]:
    """Latencies in ms of each candidate, one array for each turn.

    Args:
        candidates: by label, what runs it a number of times and returns the ms of each run.
        paces: of the same labels. schedule: how often.
        after_turn: called after each turn, outside of what is timed, with whether it was warm-up.
    """
    measured: dict[str, list[Milliseconds]] = {label: [] for label in candidates}
    for turn, labels in zip(range(schedule.warmup_turns + schedule.turns), _orders(tuple(candidates))):
        for label in labels:
            time.sleep(_PAUSE_S)
            latencies = candidates[label](paces[label].runs + 1)[1:]
            is_warmup = turn < schedule.warmup_turns
            if not is_warmup:
                measured[label].append(latencies)
            after_turn(is_warmup)
    return {label: tuple(turns) for label, turns in measured.items()}


def turn_medians(turns: Sequence[Milliseconds]) -> tuple[float, ...]:
    """The median of each turn in ms: one slow run does not make a turn slow."""
    return tuple(float(np.median(turn)) for turn in turns)


def _orders(labels: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """An order for each turn, by chance, where nobody runs twice in a row: each neighbour is as likely as any other."""
    rng, last = random.Random(_SEED), None
    while True:
        order = tuple(rng.sample(labels, len(labels)))
        if order[0] != last or len(labels) == 1:
            last = order[-1]
            yield order
