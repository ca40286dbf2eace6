from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest, norm

from bitswitch_deploy.gate.paired_counts import (
    drop_interval,
    p_value_of_drop,
    p_value_of_exclusion,
    power_of_drop,
    power_of_exclusion,
    smallest_n,
)
from tests.gate.simulated import HISTORIES, least_finds, most_alarms


@pytest.mark.parametrize(
    ("lost", "gained", "p"), [(5, 1, 7 / 64), (1, 0, 0.5), (0, 0, 1.0), (0, 3, 1.0), (3, 3, 42 / 64)]
)
def test_mcnemar_is_a_tail_of_the_binomial_distribution(lost: int, gained: int, p: float) -> None:
    assert p_value_of_drop(lost, gained, 600, margin=0.0) == pytest.approx(p)


def test_mcnemar_is_exact_for_large_counts_too() -> None:
    expected = binomtest(5200, 10000, alternative="greater").pvalue
    assert p_value_of_drop(5200, 4800, 10**6, margin=0.0) == pytest.approx(expected)


@pytest.mark.parametrize(("lost", "gained", "n", "margin"), [(12, 5, 300, 0.01), (40, 2, 500, 0.05), (7, 3, 50, 0.1)])
def test_the_score_is_that_of_the_restricted_maximum_likelihood(lost: int, gained: int, n: int, margin: float) -> None:
    # An independent way: maximize the likelihood numerically where P(lost) - P(gained) = margin.
    def unlikely(gain: float) -> float:
        loss = gain + margin
        return -float(lost * np.log(loss) + gained * np.log(gain) + (n - lost - gained) * np.log(1 - loss - gain))

    best = minimize_scalar(unlikely, bounds=(1e-9, (1 - margin) / 2 - 1e-9), method="bounded", options={"xatol": 1e-12})
    variance = n * (2 * best.x + margin - margin**2)
    excess = lost - gained - n * margin
    z = np.sign(excess) * (abs(excess) - 0.5) / np.sqrt(variance)
    assert p_value_of_drop(lost, gained, n, margin=margin) == pytest.approx(norm.sf(z), rel=1e-4)
    assert p_value_of_exclusion(lost, gained, n, bound=margin) == pytest.approx(norm.cdf(z), rel=1e-4)


@pytest.mark.parametrize("n", [100, 600, 3000])
@pytest.mark.parametrize("limit", [0.005, 0.01, 0.02])
@pytest.mark.parametrize("gain", [0.0, 0.001, 0.01, 0.1])
def test_no_table_of_outcomes_makes_false_alarms_or_false_clearances_frequent(
    n: int, limit: float, gain: float
) -> None:
    # Exact: the probabilities of all tables at the edge of the hypothesis, where alarms are most frequent.
    loss = gain + limit
    lost = np.arange(min(n, int(n * loss + 10 * np.sqrt(n * loss) + 12)))[:, None]
    gained = np.arange(min(n, int(n * gain + 10 * np.sqrt(n * gain) + 12)))[None]
    weight = binom.pmf(lost, n, loss) * binom.pmf(gained, n - lost, gain / (1 - loss))
    for p in (p_value_of_drop(lost, gained, n, margin=limit), p_value_of_exclusion(lost, gained, n, bound=limit)):
        assert weight[p <= 0.05].sum() <= 0.054


def test_the_interval_is_where_the_test_does_not_reject() -> None:
    lower, upper = drop_interval(12, 5, 600, alpha=0.05)
    assert lower < 7 / 600 < upper
    assert p_value_of_exclusion(12, 5, 600, bound=upper) == pytest.approx(0.05, rel=1e-3)
    assert p_value_of_drop(12, 5, 600, margin=lower) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (600, 0), (0, 600), (300, 300)])
def test_the_interval_of_extreme_tables_stays_in_its_range(lost: int, gained: int) -> None:
    lower, upper = drop_interval(lost, gained, 600, alpha=0.05)
    assert -1 <= lower <= (lost - gained) / 600 <= upper <= 1


@pytest.mark.parametrize(("margin", "drop"), [(0.0, 0.01), (0.01, 0.025)])
def test_power_is_what_simulated_histories_find(margin: float, drop: float) -> None:
    n, changed, rng = 1500, 0.04, np.random.default_rng(3)
    expected = power_of_drop(n, drop=drop, changed=changed, margin=margin, alpha=0.05)
    counts = rng.multinomial(n, ((changed + drop) / 2, (changed - drop) / 2, 1 - changed), size=HISTORIES)
    found = int((p_value_of_drop(counts[:, 0], counts[:, 1], n, margin=margin) <= 0.05).sum())
    assert least_finds(expected) <= found <= most_alarms(expected)


def test_power_to_clear_is_what_simulated_histories_find() -> None:
    n, rng = 1500, np.random.default_rng(4)
    expected = power_of_exclusion(n, drop=0.0, changed=0.04, bound=0.01, alpha=0.05)
    counts = rng.multinomial(n, (0.02, 0.02, 0.96), size=HISTORIES)
    found = int((p_value_of_exclusion(counts[:, 0], counts[:, 1], n, bound=0.01) <= 0.05).sum())
    assert least_finds(expected) <= found <= most_alarms(expected)


@pytest.mark.parametrize("changed", [0.01, 0.05, 0.3])
def test_the_smallest_n_has_the_power_and_a_smaller_one_has_not(changed: float) -> None:
    def power(n: int) -> float:
        return power_of_drop(n, drop=0.01, changed=changed, margin=0.0, alpha=0.0125)

    n = smallest_n(power, wanted=0.8)
    assert power(n) >= 0.8
    assert power(round(0.93 * n)) < 0.8


def test_power_of_a_large_table_is_thinned_out_without_harm() -> None:
    n, drop, changed = 200_000, 0.001, 0.05
    z = drop * np.sqrt(n) / np.sqrt(changed - drop**2) - norm.isf(0.05)
    assert power_of_drop(n, drop=drop, changed=changed, margin=0.0, alpha=0.05) == pytest.approx(norm.cdf(z), abs=0.01)
