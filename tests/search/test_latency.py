"""What a latency table says once the differences that are noise are gone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bitswitch_deploy.latency_table import LatencyTable, LayerLatency
from bitswitch_deploy.master import Master
from bitswitch_deploy.search.budget import parse_budget
from bitswitch_deploy.search.dominance import remove_dominated
from bitswitch_deploy.search.latency import NOISE, UNSTABLE_NOISE, Times, checked_table, without_noise
from tests.search.masters import two_blocks
from tests.search.problems import WIDTHS, problem
from tests.search.test_resources import resources, table


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (((8, 1.0), (4, 0.5)), ((8, 1.0), (4, 0.5))),
        (((8, 1.0), (6, 1.04), (4, 0.5)), ((8, 1.02), (6, 1.02), (4, 0.5))),
        # a chain of small steps does not make one of all: 1.08 is farther from 1.0 than the noise
        (((8, 1.08), (6, 1.04), (4, 1.0), (2, 1.12)), ((8, 1.1), (6, 1.02), (4, 1.02), (2, 1.1))),
        # a microsecond is what the clock counts
        (((8, 0.0032), (6, 0.0027), (4, 0.0021)), ((8, 0.0032), (6, 0.0024), (4, 0.0024))),
        (((8, 0.0), (4, 0.0)), ((8, 0.0), (4, 0.0))),
    ],
)
def test_times_that_are_no_farther_apart_than_their_noise_become_one(times: Times, expected: Times) -> None:
    settled = without_noise(times, 0.05)
    assert [width for width, _ in settled] == [width for width, _ in expected]
    assert [ms for _, ms in settled] == pytest.approx([ms for _, ms in expected])


def noisy(master: Master, spread: float, seed: int) -> LatencyTable:
    """Every width takes the same time in truth."""
    random = np.random.default_rng(seed)
    layers = tuple(
        LayerLatency(
            name=each.name, latency_ms=tuple((b, float(t)) for b, t in zip(WIDTHS, random.normal(1, spread, 4)))
        )
        for each in table(master).layers
    )
    return table(master, layers=layers, end_to_end_ms=tuple((bits, 2.1) for bits in WIDTHS))


@pytest.mark.parametrize("seed", range(5))
def test_widths_that_differ_by_noise_collapse_and_no_budget_buys_it(seed: int) -> None:
    master = two_blocks()
    given = noisy(master, 0.01, seed)
    budget = parse_budget("latency_p50_ms<=2.2@jetson-orin-nano")
    row = resources(master, tables=(given,)).row(budget)
    _, dominated = remove_dominated(problem([(0.0, 1.0, 2.0, 4.0)] * 2, row))
    assert {(each.width, each.by) for each in dominated} == {(6, 8), (4, 8), (2, 8)}
    # nothing that is promised is below what was measured
    assert row.minimum >= 2_100_000


def test_unstable_tables_have_more_noise_and_the_check_says_how_much() -> None:
    master = two_blocks()
    times = ((8, 0.4), (6, 0.37), (4, 0.3), (2, 0.3))
    layers = tuple(replace(each, latency_ms=times) for each in table(master).layers)

    def checked(**changes: object) -> tuple[LatencyTable, float, int, int]:
        given = table(master, layers=layers, **changes)
        settled, check = checked_table(given, master, layers=["a", "b"], widths=WIDTHS)
        return settled, check.noise_percent, check.n_alike, check.n_times

    settled, *check = checked()
    assert (settled.layers, check) == (layers, [100 * NOISE, 0, 8])
    settled, *check = checked(unstable=("hot",))
    assert check == [100 * UNSTABLE_NOISE, 4, 8]
    assert dict(settled.layers[0].latency_ms) == pytest.approx({8: 0.385, 6: 0.385, 4: 0.3, 2: 0.3})
