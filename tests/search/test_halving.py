"""Who stays in a round of successive halving: the better half, and whoever chance alone may have put behind it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bitswitch_deploy.search.halving import halve
from bitswitch_deploy.search.score import Scores
from bitswitch_deploy.search.statistics import compare
from bitswitch_deploy.tensors import WidthAssignment


def test_a_noisy_tie_with_the_last_that_stays_is_not_dropped() -> None:
    """The fifth of eight is worse by less than the error of the difference, those behind it beyond chance."""
    noise = np.random.default_rng(0).normal(size=1024)
    of_its_own = noise.reshape(2, 512)[:, ::-1].ravel()  # of the same mean in both rounds
    means = [0.0, 0.001, 0.002, 0.003, 0.02, 5.0, 6.0, 7.0]
    candidates = [WidthAssignment(default=8, overrides=((f"layer{place}", 4),)) for place in range(8)]
    losses = {
        each: mean + (of_its_own if place == 4 else noise) for place, (each, mean) in enumerate(zip(candidates, means))
    }
    asked: list[list[WidthAssignment]] = []

    def measure(wanted: Sequence[WidthAssignment], n: int) -> list[Scores]:
        asked.append(list(wanted))
        return [Scores(loss=losses[each][:n], right=np.ones(n, bool)) for each in wanted]

    survivors = halve(candidates, measure, start=512, total=1024)
    fourth, fifth = (Scores(loss=losses[each][:512], right=np.ones(512, bool)) for each in candidates[3:5])
    loss = compare(fifth, fourth).loss
    assert loss.low < 0 < loss.value
    assert asked == [candidates, candidates[:5]]
    assert {each.assignment for each in survivors} == set(candidates[:5])
