"""Who runs when, with candidates that only write it down."""

from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise, permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from bitswitch_deploy.profiling.interleave import Schedule, TimeRuns, interleave, learn_pace, turn_medians


class Candidates:
    """Fakes whose runs take the ms in `times`; every call is kept."""

    def __init__(self, **times: float) -> None:
        self.calls: list[tuple[str, int]] = []
        self.times = times

    def runners(self) -> dict[str, TimeRuns]:
        return {label: self._runner(label) for label in self.times}

    def _runner(self, label: str) -> TimeRuns:
        def run(runs: int) -> NDArray[np.float64]:
            self.calls.append((label, runs))
            return np.concatenate([[1000.0], np.full(runs - 1, self.times[label])]) if runs > 1 else np.array([1e6])

        return run


def measure(
    fakes: Candidates, *, turns: int, warmup_turns: int = 1, turn_ms: float = 8.0, warmups: list[bool] | None = None
) -> dict[str, tuple[NDArray[np.float64], ...]]:
    """Learn the paces, forget those calls, and let the fakes take turns."""
    paces = {label: learn_pace(runner, turn_ms) for label, runner in fakes.runners().items()}
    fakes.calls.clear()
    schedule = Schedule(turns=turns, warmup_turns=warmup_turns, turn_ms=turn_ms)
    return interleave(fakes.runners(), paces, schedule, after_turn=(warmups if warmups is not None else []).append)


@pytest.mark.parametrize("labels", ["ab", "abc", "abcdef"])
def test_everybody_runs_behind_everybody_else_alike_and_nobody_twice_in_a_row(
    labels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    fakes = Candidates(**dict.fromkeys(labels, 4.0))
    measure(fakes, turns=400)
    order = [label for label, _ in fakes.calls]
    assert all(sorted(order[at : at + len(labels)]) == list(labels) for at in range(0, len(order), len(labels)))
    expected = 401 / (len(labels) - 1)
    pairs = Counter(pairwise(order))
    assert set(pairs) == set(permutations(labels, 2))
    assert all(0.7 * expected < count < 1.3 * expected for count in pairs.values())


def test_a_candidate_alone_runs_again_and_again() -> None:
    assert [len(turn) for turn in measure(Candidates(a=2.0), turns=2)["a"]] == [4, 4]


def test_a_pause_is_in_front_of_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = Candidates(a=1.0, b=2.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: fakes.calls.append(("pause", 0)))
    measure(fakes, turns=2)
    assert [label == "pause" for label, _ in fakes.calls] == [True, False] * 6


@pytest.mark.parametrize(
    ("run_ms", "runs", "turn_ms"), [(1.0, 50, 53.0), (40.0, 1, 82.0), (1000.0, 1, 2002.0), (0.001, 10_000, 12.001)]
)
def test_a_turn_is_as_long_as_its_runs(run_ms: float, runs: int, turn_ms: float) -> None:
    pace = learn_pace(Candidates(a=run_ms).runners()["a"], 50.0)
    assert pace.runs == runs
    assert pace.turn_ms == pytest.approx(turn_ms)


def test_a_turn_has_as_many_runs_as_fit_and_one_before() -> None:
    fakes = Candidates(a=1.0, b=2.0, slow=500.0)
    measured = measure(fakes, turns=2)
    assert dict(fakes.calls) == {"a": 9, "b": 5, "slow": 2}
    assert {label: [len(turn) for turn in turns] for label, turns in measured.items()} == {
        "a": [8, 8],
        "b": [4, 4],
        "slow": [1, 1],
    }


def test_neither_warm_up_turns_nor_the_first_run_of_a_turn_are_measured() -> None:
    fakes = Candidates(a=2.0)
    warmups: list[bool] = []
    measured = measure(fakes, turns=3, warmup_turns=2, turn_ms=6, warmups=warmups)
    assert warmups == [True, True, False, False, False]
    assert np.concatenate(measured["a"]).tolist() == [2.0] * 9


def test_the_median_of_a_turn_does_not_feel_one_slow_run() -> None:
    assert turn_medians([np.array([1.0, 1.0, 90.0]), np.array([2.0, 4.0])]) == (1.0, 3.0)
