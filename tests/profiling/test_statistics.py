"""Percentiles as trtexec takes them, by hand; intervals against the binomial distribution and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bitswitch_deploy.profiling.statistics import describe, percentile, ratio


@pytest.mark.parametrize(
    ("count", "percent", "expected"),
    [
        # all - 1 - int((1 - p / 100) * all), of the values 1..all
        (10, 50, 5),
        (10, 90, 9),
        (10, 95, 10),
        (10, 99, 10),
        (100, 90, 90),
        (100, 99, 100),  # 1 - 0.99f is just below 0.01, so none is left out
        (101, 50, 51),
        (1, 99, 1),
        (1, 0, 1),
        (4, 0, 1),
        (4, 100, 4),
        (1000, 95, 950),
    ],
)
def test_percentile_is_the_value_that_trtexec_picks(count: int, percent: float, expected: int) -> None:
    values = np.random.default_rng(1).permutation(np.arange(1.0, count + 1))
    assert percentile(values, percent) == expected


def test_percentile_is_computed_in_float32_as_in_trtexec() -> None:
    """In float64 (1 - 0.9) * 100 is just below 10, and the next value would be taken."""
    assert int((1 - 0.9) * 100) == 9
    assert percentile(np.arange(1.0, 101.0), 90) == 90


def test_outliers_stay_in_every_number() -> None:
    statistics = describe(np.array([1.0, 1.0, 1.0, 97.0]), batch=8)
    assert (statistics.runs, statistics.min_ms, statistics.max_ms, statistics.mean_ms) == (4, 1.0, 97.0, 25.0)
    assert (statistics.p50_ms, statistics.p99_ms) == (1.0, 97.0)
    assert statistics.cv == pytest.approx(math.sqrt((3 * 24**2 + 72**2) / 4) / 25)
    assert statistics.throughput_per_s == 8 * 1000 / 25


@pytest.mark.parametrize(("turns", "rank"), [(6, 1), (8, 1), (9, 2), (20, 6), (40, 14), (100, 40)])
def test_the_interval_has_the_ranks_of_the_sign_test(turns: int, rank: int) -> None:
    """Ranks from tables of the sign test at 95 % (two-sided)."""
    quotients = np.arange(1.0, turns + 1)
    result = ratio(np.random.default_rng(2).permutation(quotients), np.ones(turns), reference="float32")
    assert (result.low, result.high) == (rank, turns + 1 - rank)
    below = sum(math.comb(turns, k) for k in range(rank)) / 2**turns
    assert result.confidence == pytest.approx(1 - 2 * below)
    assert result.confidence >= 0.95
    assert 1 - 2 * (below + math.comb(turns, rank) / 2**turns) < 0.95


def test_the_ranks_of_an_hour_of_turns() -> None:
    """By the normal approximation of the sign test, which is exact to a rank or two there."""
    turns = 72_000
    result = ratio(np.arange(1.0, turns + 1), np.ones(turns), reference="float32")
    assert result.low == pytest.approx(turns / 2 - 1.96 * math.sqrt(turns) / 2, abs=2)
    assert 0.95 <= result.confidence < 0.951


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    held = []
    for _ in range(500):
        drift = rng.uniform(0.5, 2.0, 25)  # hits both alike, so it cancels
        result = ratio(drift * np.exp(rng.laplace(size=25) / 50) * 0.8, drift, reference="float32")
        held.append(result.low <= 0.8 <= result.high)
    assert 0.93 < np.mean(held) < 0.99


def test_ratios_are_of_the_same_turn() -> None:
    result = ratio([1.0, 20.0, 3.0, 40.0, 5.0, 60.0], [2.0, 40.0, 6.0, 80.0, 10.0, 120.0], reference="float32")
    assert (result.value, result.low, result.high, result.turns) == (0.5, 0.5, 0.5, 6)


def test_five_turns_hold_no_interval() -> None:
    with pytest.raises(ValueError, match=r"5 turns hold no interval of 95%: 6 are needed"):
        ratio([1.0] * 5, [1.0] * 5, reference="float32")
