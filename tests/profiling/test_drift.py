from __future__ import annotations

import numpy as np
import pytest

from bitswitch_deploy.profiling.drift import disturbance, drift
from bitswitch_deploy.profiling.statistics import describe


def test_times_that_rise_are_a_drift() -> None:
    throttled = (1.0,) * 10 + (1.1,) * 10 + (1.25,) * 10
    assert drift("w8", throttled) == "w8 became 25% slower from the first to the last third of the turns"
    assert drift("w8", throttled[::-1]) == "w8 became 20% faster from the first to the last third of the turns"


def test_noise_and_single_outliers_are_none() -> None:
    noise = tuple(np.random.default_rng(0).normal(1.0, 0.05, 60))
    assert drift("w8", noise) is None
    assert drift("w8", (1.0,) * 8 + (50.0,)) is None


@pytest.mark.parametrize(("last", "is_drift"), [(1.099, False), (1.101, True), (0.901, False), (0.899, True)])
def test_more_than_a_tenth_is_a_drift(last: float, is_drift: bool) -> None:
    assert (drift("w8", (1.0,) * 6 + (last,) * 3) is not None) == is_drift


@pytest.mark.parametrize(("slow_ms", "is_disturbed"), [(10.4, False), (10.6, True)])
def test_a_mean_of_more_than_one_and_a_half_medians_is_a_disturbance(slow_ms: float, is_disturbed: bool) -> None:
    """One run of 19: the mean is (18 + slow) / 19."""
    found = disturbance([describe(np.array([1.0] * 18 + [slow_ms]), batch=1)])
    assert (found is not None) == is_disturbed


def test_a_mean_far_above_the_median_is_a_disturbance() -> None:
    calm, busy = describe(np.full(100, 2.0), batch=1), describe(np.array([2.0] * 80 + [20.0] * 20), batch=1)
    assert disturbance([calm]) is None
    assert disturbance([calm, busy]) == (
        "means are up to 2.8 x medians: runs were interrupted, by other work on this machine"
    )
