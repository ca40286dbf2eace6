from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from bitswitch_deploy.gate.bootstrap import BootstrapDrop, bootstrap_drop, largest_unseen
from bitswitch_deploy.gate.metrics.classification import TopK
from bitswitch_deploy.gate.metrics.segmentation import MeanIou
from tests.gate.simulated import HISTORIES, few, most_alarms, skewed_drops

Array = np.ndarray[Any, Any]
DRAWS = 199


def _drop(drops: Array, *, draws: int = DRAWS, seed: int = 0, largest: float = 0.0) -> BootstrapDrop:
    now = np.random.default_rng(9).normal(0, 3, len(drops))
    return bootstrap_drop((now + drops)[:, None], now[:, None], TopK(1).value, largest=largest, draws=draws, seed=seed)


def test_the_drop_and_its_error_are_those_of_the_differences() -> None:
    drops = skewed_drops(np.random.default_rng(0), 4000, mean=0.3)
    result = _drop(drops, draws=2000)
    assert result.drop == pytest.approx(drops.mean())
    assert result.standard_error == pytest.approx(drops.std(ddof=1) / 4000**0.5, rel=1e-6)
    lower, upper = result.interval(0.05)
    assert (lower, upper) == pytest.approx(result.drop + 1.65 * result.standard_error * np.array([-1, 1]), abs=0.02)


@pytest.mark.parametrize(("lost", "gained"), [(3, 0), (5, 0), (7, 1), (12, 4), (30, 20), (2, 2), (0, 0)])
def test_of_bits_it_is_the_exact_test_of_mcnemar(lost: int, gained: int) -> None:
    drops = np.zeros(200)
    drops[:lost], drops[lost : lost + gained] = 1, -1
    result = _drop(drops, draws=20_000, largest=1.0)
    expected = binom.sf(lost - 1, lost + gained, 0.5)
    assert result.p_value_of_drop(0.0) == pytest.approx(
        expected, abs=4 * (expected * (1 - expected) / 2e4) ** 0.5 + 1e-4
    )
    # as many lost as gained or fewer: the other way round
    mirrored = binom.sf(gained - 1, lost + gained, 0.5)
    assert result.p_value_of_exclusion(0.0) == pytest.approx(mirrored, abs=0.015)


def test_without_changes_a_bounded_outcome_follows_the_rule_of_three() -> None:
    result = _drop(np.zeros(300), draws=20_000, largest=1.0)
    assert result.interval(0.05) == pytest.approx((-3 / 300, 3 / 300), rel=0.05)


def test_equal_arguments_give_equal_results_and_other_seeds_nearly() -> None:
    drops = skewed_drops(np.random.default_rng(1), 200, mean=0.0)
    first, again, other = (_drop(drops, draws=999, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.low, again.low)
    assert other.p_value_of_drop(0.0) == pytest.approx(first.p_value_of_drop(0.0), abs=0.05)


def test_outcomes_that_did_not_change_leave_nothing_to_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitswitch_deploy.gate.bootstrap.draw_bounds", None)
    rows = np.random.default_rng(2).normal(size=(100, 1))
    for now in (rows, rows * (1 + 1e-15)):
        same = bootstrap_drop(rows, now, TopK(1).value, draws=99, seed=0)
        assert (same.drop, same.p_value_of_drop(0.0), same.p_value_of_exclusion(1.0)) == (0.0, 1.0, 0.01)
        assert same.interval(0.05) == (0.0, 0.0)


def test_what_may_be_missed_grows_with_the_change_and_shrinks_with_the_number_that_changed() -> None:
    changes = np.zeros(400)
    changes[:100] = 2.0
    assert largest_unseen(changes) == pytest.approx(2.0 * 1.2)
    changes[10:] = 0
    assert largest_unseen(-changes) == pytest.approx(2.0 * 3.0)
    # one that is ten times as large as the rest makes up most of the change
    changes[0] = 20.0
    assert largest_unseen(changes) == pytest.approx(20.0 * (1 + 20 * (9 * 4 + 400) / (9 * 2 + 20) ** 2))
    # the same in all samples tells nothing about others, also where rounding makes it differ
    assert largest_unseen(np.float64(3.0) + 1e-15 * np.arange(50.0)) == pytest.approx(3.0 * 21)


def test_what_a_sample_adds_to_a_mean_is_its_own_drop_however_few_there_are() -> None:
    drops = skewed_drops(np.random.default_rng(3), 5, mean=1.0)
    assert _drop(drops).standard_error == pytest.approx(drops.std(ddof=1) / 5**0.5)
    assert _drop(drops).unseen == pytest.approx(largest_unseen(drops))
    single = _drop(drops[:1])
    assert (single.standard_error, single.unseen) == pytest.approx((0.0, 21 * abs(drops[0])))


def test_samples_that_are_no_pairs_are_refused() -> None:
    for before, now in ((np.zeros((5, 1)), np.zeros((4, 1))), (np.zeros((0, 1)), np.zeros((0, 1)))):
        with pytest.raises(ValueError, match=r"paired samples \[n, k\] are needed"):
            bootstrap_drop(before, now, TopK(1).value, draws=9, seed=0)


def test_a_class_that_one_image_has_adds_what_it_is_worth() -> None:
    """Whatever that image weighs, intersection / union of the class is the same; without the image it is gone."""
    hits, union = np.full((40, 2), 50.0), np.full((40, 2), 100.0)
    hits[1:, 1] = union[1:, 1] = 0
    now = hits.copy()
    now[0, 1] = 40
    rows = [np.hstack((each, union, union > 0)) for each in (hits, now)]
    result = bootstrap_drop(rows[0], rows[1], MeanIou().value, draws=99, seed=0)
    # 10 points of one of two classes, made up by one image of 40
    assert result.drop == pytest.approx(5.0)
    assert result.unseen == pytest.approx(40 * 5.0 * 21)
    assert result.standard_error == pytest.approx((40 * 5.0 - 5.0) / 40)
    assert result.p_value_of_drop(0.0) > 0.05


# Drops of mean 0. Skewed to gains: most samples lose a little, few gain much; where these are missed it looks like a
# regression.
NO_DROP: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy tails": lambda rng, n: rng.standard_t(2, n),
    "skewed to losses": lambda rng, n: skewed_drops(rng, n, mean=0.0),
    "skewed to gains": lambda rng, n: -skewed_drops(rng, n, mean=0.0),
    "few changed": lambda rng, n: rng.normal(0, 0.01, n) + few(rng, n, 0.1) * rng.normal(size=n),
    "few changed, skewed to losses": lambda rng, n: few(rng, n, 0.1) * skewed_drops(rng, n, mean=0.0),
    "few changed, skewed to gains": lambda rng, n: few(rng, n, 0.1) * -skewed_drops(rng, n, mean=0.0),
    "very few changed, skewed to gains": lambda rng, n: few(rng, n, 0.03) * -skewed_drops(rng, n, mean=0.0),
    "all lose what few gain": lambda rng, n: 1 - few(rng, n, 0.05) * rng.exponential(20, n),
}


@pytest.mark.parametrize("n", [60, 400])
@pytest.mark.parametrize("kind", NO_DROP)
def test_a_thousand_histories_without_a_drop_alarm_seldom(kind: str, n: int) -> None:
    alarms = cleared = 0
    for seed in range(HISTORIES):
        result = _drop(NO_DROP[kind](np.random.default_rng(seed), n), seed=seed)
        alarms += result.p_value_of_drop(0.0) <= 0.05
        cleared += result.p_value_of_exclusion(0.0) <= 0.05
    # at the edge of both hypotheses a clearance is as false as an alarm
    assert max(alarms, cleared) <= 0.05 * HISTORIES


@pytest.mark.parametrize("n", [60, 400])
def test_a_known_bound_keeps_the_level_where_no_test_without_one_does(n: int) -> None:
    """A sample in a hundred gains 20, and all others lose that: half of the histories have none that gains."""
    alarms, blind = 0, 0
    for seed in range(HISTORIES):
        rng = np.random.default_rng(seed)
        drops = np.where(few(rng, n, 0.2), np.where(few(rng, n, 1 / 21), -20.0, 1.0), 0.0)
        alarms += _drop(drops, seed=seed, largest=20.0).p_value_of_drop(0.0) <= 0.05
        blind += _drop(drops, seed=seed).p_value_of_drop(0.0) <= 0.05
    assert alarms <= 0.05 * HISTORIES
    assert n > 60 or blind > most_alarms(0.05)


def test_a_drop_beyond_a_margin_alarms_seldom_where_it_is_the_margin() -> None:
    alarms = 0
    for seed in range(HISTORIES):
        rng = np.random.default_rng(seed)
        drops = few(rng, 400, 0.05) * rng.exponential(20, 400)
        alarms += _drop(drops, seed=seed).p_value_of_drop(1.0) <= 0.05
    assert alarms <= 0.05 * HISTORIES


@pytest.mark.parametrize("share", [0.1, 1.0], ids=["few images changed", "all changed"])
def test_a_thousand_histories_of_a_ratio_alarm_seldom(share: float) -> None:
    metric, alarms, n = MeanIou(), 0, 60
    for seed in range(HISTORIES):
        rng = np.random.default_rng(seed)
        # objects of very different size, that are found in full or hardly
        union = np.ceil(rng.lognormal(3, 1, (n, 2)))
        before, other = (rng.binomial(union.astype(int), rng.beta(0.8, 0.2, (n, 2))) for _ in range(2))
        now = np.where(few(rng, n, share)[:, None], other, before)
        s, t = (np.hstack((hits, union, union > 0)) for hits in (before, now))
        alarms += bootstrap_drop(s, t, metric.value, draws=DRAWS, seed=seed).p_value_of_drop(0.0) <= 0.05
    assert alarms <= 0.05 * HISTORIES


@pytest.mark.parametrize("images", [1, 2], ids=["one image", "two images"])
def test_a_thousand_histories_with_classes_of_few_images_alarm_seldom(images: int) -> None:
    metric, n, classes, rare = MeanIou(), 60, 10, 5
    alarms = cleared = 0
    for seed in range(HISTORIES):
        rng = np.random.default_rng(seed)
        union = rng.integers(200, 2000, (n, classes)) * (rng.random((n, classes)) < 0.5)
        union[:, :rare] = 0
        for label in range(rare):
            union[rng.choice(n, images, replace=False), label] = 1000
        shares = (np.clip(rng.normal(0.7, 0.1, (n, classes)), 0, 1) for _ in range(2))
        s, t = (np.hstack((np.round(union * share), union, union > 0)) for share in shares)
        result = bootstrap_drop(s, t, metric.value, draws=DRAWS, seed=seed)
        alarms += result.p_value_of_drop(0.0) <= 0.05
        cleared += result.p_value_of_exclusion(0.0) <= 0.05
    assert max(alarms, cleared) <= 0.05 * HISTORIES


def test_the_error_of_a_ratio_is_that_of_repeated_data_sets() -> None:
    metric, drops, errors = MeanIou(), [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        union = rng.integers(20, 60, (200, 3))
        rows = [np.hstack((rng.binomial(union, share), union, union > 0)) for share in (0.8, 0.7)]
        result = bootstrap_drop(rows[0], rows[1], metric.value, draws=19, seed=0)
        drops.append(result.drop)
        errors.append(result.standard_error)
    assert np.mean(drops) == pytest.approx(10.0, abs=0.2)
    assert np.mean(errors) == pytest.approx(np.std(drops, ddof=1), rel=0.25)
