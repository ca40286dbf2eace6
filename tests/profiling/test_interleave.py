"""Who runs when, with candidates that only write it down."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from bitswitch_deploy.profiling.interleave import Schedule, interleave, turn_medians


class Candidates:
    """Fakes whose runs take the ms in `times`; every call is kept."""

    def __init__(self, **times: float) -> None:
        self.calls: list[tuple[str, int]] = []
        self.times = times

    def runners(self) -> dict[str, object]:
        return {label: self._runner(label) for label in self.times}

    def _runner(self, label: str):  # type: ignore[no-untyped-def]
        def run(runs: int) -> NDArray[np.float64]:
            self.calls.append((label, runs))
            return np.concatenate([[1000.0], np.full(runs - 1, self.times[label])]) if runs > 1 else np.array([1e6])

        return run


def test_candidates_take_turns_in_a_rotating_order() -> None:
    fakes = Candidates(a=1.0, b=2.0, c=4.0)
    interleave(fakes.runners(), Schedule(turns=3, warmup_turns=1, turn_ms=8), after_turn=lambda _: None)  # type: ignore[arg-type]
    turns = fakes.calls[6:]  # two calls of each before, to learn how long a run is
    assert [label for label, _ in turns] == [*"abc", *"bca", *"cab", *"abc"]
    assert max(len(list(group)) for _, group in groupby(turns)) <= 2


def test_a_turn_has_as_many_runs_as_fit_and_one_before() -> None:
    fakes = Candidates(a=1.0, b=2.0, slow=500.0)
    measured = interleave(fakes.runners(), Schedule(turns=2, warmup_turns=1, turn_ms=8), after_turn=lambda _: None)  # type: ignore[arg-type]
    assert dict(fakes.calls[6:]) == {"a": 9, "b": 5, "slow": 2}
    assert {label: [len(turn) for turn in turns] for label, turns in measured.items()} == {
        "a": [8, 8],
        "b": [4, 4],
        "slow": [1, 1],
    }


def test_neither_warm_up_turns_nor_the_first_run_of_a_turn_are_measured() -> None:
    fakes = Candidates(a=2.0)
    warmups: list[bool] = []
    measured = interleave(fakes.runners(), Schedule(turns=3, warmup_turns=2, turn_ms=6), after_turn=warmups.append)  # type: ignore[arg-type]
    assert warmups == [True, True, False, False, False]
    assert np.concatenate(measured["a"]).tolist() == [2.0] * 9


def test_the_median_of_a_turn_does_not_feel_one_slow_run() -> None:
    assert turn_medians([np.array([1.0, 1.0, 90.0]), np.array([2.0, 4.0])]) == (1.0, 3.0)
