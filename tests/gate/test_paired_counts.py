from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest, norm

from bitswitch_deploy.gate.paired_counts import (
    _most_gained,
    _score,
    critical_score,
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
    assert p_value_of_exclusion(lost, gained, n, bound=margin) == pytest.approx(norm.cdf(z), rel=1e-4)


def _scores(lost: Any, gained: Any, n: int, margin: float) -> Any:
    return norm.ppf(p_value_of_exclusion(lost, gained, n, bound=margin))


def _tables(n: int, loss: float, gain: float) -> tuple[Any, Any, Any]:
    """Numbers of lost and of gained samples, and the probabilities of the tables."""
    lost = np.arange(min(n + 1, int(n * loss + 10 * np.sqrt(n * loss) + 12)))[:, None]
    gained = np.arange(min(n + 1, int(n * gain + 10 * np.sqrt(n * gain) + 12)))[None]
    return lost, gained, binom.pmf(lost, n, loss) * binom.pmf(gained, n - lost, gain / (1 - loss))


@pytest.mark.parametrize(("lost", "gained", "margin"), [(4, 0, 0.05), (6, 2, 0.02), (3, 3, 0.1), (0, 0, 0.05)])
def test_the_p_value_of_a_drop_beyond_a_margin_is_exact(lost: int, gained: int, margin: float) -> None:
    # An independent way: every table of 30 samples, at many shares of gained ones.
    n, highest = 30, 0.0
    score = _scores(lost, gained, n, margin) - 1e-9
    for gain in np.linspace(0, (1 - margin) / 2, 600):
        all_lost, all_gained, weight = _tables(n, gain + margin, gain)
        possible = all_lost + all_gained <= n
        at = _scores(np.where(possible, all_lost, 0), np.where(possible, all_gained, 0), n, margin)
        highest = max(highest, float(weight[possible & (at >= score)].sum()))
    assert p_value_of_drop(lost, gained, n, margin=margin) == pytest.approx(highest, rel=2e-3)


@pytest.mark.parametrize("n", [100, 600])
@pytest.mark.parametrize("limit", [0.005, 0.01, 0.02])
@pytest.mark.parametrize("alpha", [0.05, 0.00125], ids=["alone", "of 40 cases"])
def test_no_share_of_changes_makes_false_alarms_more_frequent_than_the_level(
    n: int, limit: float, alpha: float
) -> None:
    # Exact: the probabilities of all tables at the edge of the hypothesis, where alarms are most frequent.
    critical = critical_score(n, margin=limit, alpha=alpha)
    for gain in (0.0, 0.00037, 0.0031, 0.017, 0.09):
        lost, gained, weight = _tables(n, gain + limit, gain)
        assert weight[_scores(lost, gained, n, limit) >= critical].sum() <= alpha


def test_the_critical_score_is_that_of_the_p_value() -> None:
    critical = critical_score(300, margin=0.01, alpha=0.05)
    for lost in range(2, 30):
        is_shown = p_value_of_drop(lost, 3, 300, margin=0.01) <= 0.05
        assert is_shown == (_scores(lost, 3, 300, 0.01) >= critical), lost


@pytest.mark.parametrize(
    ("n", "margin", "score"), [(31, 0.05, 1.6), (4000, 0.001, 2.3), (4000, 0.6, -1.0), (90, 0.9, 7)]
)
def test_no_more_gained_samples_have_the_score_than_are_said_to(n: int, margin: float, score: float) -> None:
    lost = np.arange(n + 1.0)
    most = _most_gained(lost, n, margin, score)
    has, beyond = (_score(lost, np.maximum(each, 0), n, margin) >= score for each in (most, most + 1))
    assert has[most >= 0].all()
    assert not beyond[most < n - lost].any()


@pytest.mark.parametrize("n", [100, 600, 3000])
@pytest.mark.parametrize("limit", [0.005, 0.01, 0.02])
@pytest.mark.parametrize("alpha", [0.05, 0.00125])
def test_no_share_of_changes_makes_false_clearances_more_frequent_than_the_level(
    n: int, limit: float, alpha: float
) -> None:
    for gain in (0.0, 0.001, 0.01, 0.1):
        lost, gained, weight = _tables(n, gain + limit, gain)
        assert weight[p_value_of_exclusion(lost, gained, n, bound=limit) <= alpha].sum() <= alpha


@pytest.mark.parametrize("n", [30, 100, 600])
@pytest.mark.parametrize("limit", [0.005, 0.05, 0.3])
def test_the_level_of_a_clearance_is_passed_by_little_where_all_samples_change(n: int, limit: float) -> None:
    most = []
    for changed in (*np.linspace(limit, 0.95, 20), 0.98, 1.0):
        lost, gained, weight = _tables(n, (changed + limit) / 2, (changed - limit) / 2)
        most.append(weight[p_value_of_exclusion(lost, gained, n, bound=limit) <= 0.05].sum())
    assert max(most[:-2]) <= 0.05
    assert max(most) <= 0.06


def test_the_interval_is_where_the_test_does_not_reject() -> None:
    lower, upper = drop_interval(12, 5, 600, alpha=0.05)
    assert lower < 7 / 600 < upper
    assert p_value_of_exclusion(12, 5, 600, bound=upper) == pytest.approx(0.05, rel=1e-3)
    assert p_value_of_exclusion(12, 5, 600, bound=lower) == pytest.approx(0.95, rel=1e-3)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (600, 0), (0, 600), (300, 300)])
def test_the_interval_of_extreme_tables_stays_in_its_range(lost: int, gained: int) -> None:
    lower, upper = drop_interval(lost, gained, 600, alpha=0.05)
    assert -1 <= lower <= (lost - gained) / 600 <= upper <= 1


def test_power_is_what_simulated_histories_find() -> None:
    n, drop, changed, rng = 1500, 0.01, 0.04, np.random.default_rng(3)
    expected = power_of_drop(n, drop=drop, changed=changed, margin=0.0, alpha=0.05)
    counts = rng.multinomial(n, ((changed + drop) / 2, (changed - drop) / 2, 1 - changed), size=HISTORIES)
    found = sum(p_value_of_drop(int(lost), int(gained), n, margin=0.0) <= 0.05 for lost, gained, _ in counts)
    assert least_finds(expected) <= found <= most_alarms(expected)


@pytest.mark.parametrize(("margin", "drop", "changed"), [(0.01, 0.025, 0.04), (0.01, 0.02, 0.02)])
def test_power_beyond_a_margin_is_what_simulated_histories_find(margin: float, drop: float, changed: float) -> None:
    n, rng = 1500, np.random.default_rng(3)
    critical = critical_score(n, margin=margin, alpha=0.01)
    expected = power_of_drop(n, drop=drop, changed=changed, margin=margin, alpha=0.01, critical=critical)
    counts = rng.multinomial(n, ((changed + drop) / 2, (changed - drop) / 2, 1 - changed), size=HISTORIES)
    found = int((_scores(counts[:, 0], counts[:, 1], n, margin) >= critical).sum())
    # the promise is for the worst of the numbers of samples near by
    assert least_finds(expected) <= found <= most_alarms(min(1.0, expected + 0.1))


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
