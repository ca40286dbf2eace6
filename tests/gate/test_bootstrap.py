from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.gate.bootstrap import MIN_SAMPLES, bootstrap_drop, mean_value
from bitswitch_deploy.gate.metrics.segmentation import MeanIou
from tests.gate.simulated import HISTORIES, most_alarms, skewed_drops


def _pairs(drops: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    now = np.random.default_rng(9).normal(0, 3, len(drops))
    return (now + drops)[:, None], now[:, None]


def test_the_drop_and_its_error_are_those_of_the_differences() -> None:
    drops = skewed_drops(np.random.default_rng(0), 400, mean=0.3)
    result = bootstrap_drop(*_pairs(drops), mean_value, draws=2000, seed=0)
    assert result.drop == pytest.approx(drops.mean())
    assert result.standard_error == pytest.approx(drops.std(ddof=1) / 20, rel=1e-6)
    lower, upper = result.interval(0.05)
    assert lower < result.drop < upper
    assert (lower, upper) == pytest.approx(result.drop + 1.65 * result.standard_error * np.array([-1, 1]), abs=0.06)


def test_equal_arguments_give_equal_results_and_other_seeds_nearly() -> None:
    pairs = _pairs(skewed_drops(np.random.default_rng(1), 200, mean=0.0))
    first, again, other = (bootstrap_drop(*pairs, mean_value, draws=999, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.ratios, again.ratios)
    assert other.p_value_of_drop(0.0) == pytest.approx(first.p_value_of_drop(0.0), abs=0.05)


def test_samples_that_did_not_change_leave_nothing_to_chance() -> None:
    rows = np.random.default_rng(2).normal(size=(100, 1))
    same = bootstrap_drop(rows, rows, mean_value, draws=99, seed=0)
    assert (same.drop, same.p_value_of_drop(0.0), same.p_value_of_exclusion(1.0)) == (0.0, 1.0, 0.0)
    assert same.interval(0.05) == (0.0, 0.0)


def test_a_constant_drop_is_certain() -> None:
    rows = np.random.default_rng(2).normal(size=(100, 1))
    fallen = bootstrap_drop(rows, rows - 0.5, mean_value, draws=99, seed=0)
    assert (fallen.p_value_of_drop(0.0), fallen.p_value_of_drop(0.6)) == (0.0, 1.0)
    assert (fallen.p_value_of_exclusion(0.4), fallen.p_value_of_exclusion(0.6)) == (1.0, 0.0)


def test_too_few_samples_are_refused() -> None:
    rows = np.zeros((MIN_SAMPLES - 1, 1))
    with pytest.raises(ValueError, match="30 or more"):
        bootstrap_drop(rows, rows, mean_value, draws=9, seed=0)


@pytest.mark.parametrize("kind", ["skewed", "few changed"])
def test_false_alarms_stay_below_the_level(kind: str) -> None:
    alarms, n = 0, 120
    for seed in range(HISTORIES):
        rng = np.random.default_rng(seed)
        skewed, still = skewed_drops(rng, n, mean=0.0), rng.normal(0, 0.01, n)
        drops = skewed if kind == "skewed" else still + (rng.random(n) < 0.1) * rng.normal(size=n)
        result = bootstrap_drop(*_pairs(drops), mean_value, draws=199, seed=seed)
        alarms += result.p_value_of_drop(0.0) <= 0.05
    assert alarms <= most_alarms(0.05)


def test_the_error_of_a_ratio_is_that_of_repeated_data_sets() -> None:
    metric, drops, errors = MeanIou(), [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        union = rng.integers(20, 60, (200, 3))
        rows = [np.hstack((rng.binomial(union, share), union)) for share in (0.8, 0.7)]
        result = bootstrap_drop(rows[0], rows[1], metric.value, draws=19, seed=0)
        drops.append(result.drop)
        errors.append(result.standard_error)
    assert np.mean(drops) == pytest.approx(10.0, abs=0.2)
    assert np.mean(errors) == pytest.approx(np.std(drops, ddof=1), rel=0.25)
