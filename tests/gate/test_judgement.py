"""The three verdicts, on hand-made outcomes and on 1,000 simulated histories of four widths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.gate.bootstrap import bootstrap_drop
from bitswitch_deploy.gate.config import Limits
from bitswitch_deploy.gate.judgement import Evidence, judge, samples_needed, verdicts, weigh
from bitswitch_deploy.gate.metrics.classification import TopK
from bitswitch_deploy.gate.metrics.similarity import Cosine
from tests.gate.simulated import HISTORIES, few, least_finds, most_alarms, paired_bits, skewed_drops

LIMITS = Limits(max_drop=0.0, effect=1.0)
CASES = 4


def _bits(lost: int, gained: int, n: int, limits: Limits = LIMITS) -> Evidence:
    before, now = np.ones((n, 1), bool), np.ones((n, 1), bool)
    now[:lost], before[lost : lost + gained] = False, False
    return weigh(TopK(1), before, now, None, limits, cases=1)


def test_evidence_in_points() -> None:
    evidence = _bits(12, 4, 400)
    assert (evidence.before, evidence.now, evidence.drop) == pytest.approx((99.0, 97.0, 2.0))
    assert (evidence.lost, evidence.gained, evidence.n, evidence.method) == (12, 4, 400, "McNemar")
    assert evidence.lower < 2.0 < evidence.upper


@pytest.mark.parametrize(
    ("lost", "gained", "n", "verdict"),
    [
        (20, 2, 1000, "regressed"),
        (2, 2, 2000, "not shown to regress"),
        (2, 2, 200, "too few samples to tell"),
        (0, 0, 10, "too few samples to tell"),
        (2, 20, 1000, "not shown to regress"),
    ],
)
def test_verdicts(lost: int, gained: int, n: int, verdict: str) -> None:
    (judgement,) = judge([_bits(lost, gained, n)], LIMITS)
    assert judgement.verdict == verdict
    assert (judgement.needed is not None) == (verdict == "too few samples to tell")
    assert judgement.needed is None or judgement.needed > n


def test_a_margin_forgives_a_drop_that_is_shown() -> None:
    limits = replace(LIMITS, max_drop=2.0)
    evidence = _bits(60, 20, 5000, limits)
    assert evidence.method == "score test"
    assert judge([evidence], limits)[0].verdict == "not shown to regress"
    assert judge([_bits(60, 20, 5000)], LIMITS)[0].verdict == "regressed"
    assert judge([_bits(300, 20, 5000, limits)], limits)[0].verdict == "regressed"


@pytest.mark.parametrize("max_drop", [99.9, 100.0, 250.0])
@pytest.mark.parametrize("lost", [0, 600])
def test_a_margin_of_everything_is_never_exceeded(max_drop: float, lost: int) -> None:
    limits = replace(LIMITS, max_drop=max_drop)
    assert judge([_bits(lost, 0, 600, limits)], limits)[0].verdict == "not shown to regress"


def test_an_effect_that_hardly_any_number_of_samples_shows_is_answered_at_once() -> None:
    limits = replace(LIMITS, max_drop=1.0, effect=0.0005)
    assert samples_needed(_bits(3, 3, 300, limits), limits, cases=1) > 10**8


def test_one_drop_among_many_cases_needs_more_evidence() -> None:
    weak, calm = _bits(10, 2, 2000), _bits(2, 2, 2000)
    assert judge([weak], LIMITS)[0].verdict == "regressed"
    assert judge([weak, *[calm] * 19], LIMITS)[0].verdict != "regressed"


def test_a_drop_in_between_is_told_what_half_the_effect_needs() -> None:
    evidence = _bits(120, 90, 6000)  # 0.5 points, neither shown nor excluded
    full = samples_needed(replace(evidence, lost=12, gained=9, n=600), LIMITS, cases=4)
    assert full < 6000
    assert samples_needed(evidence, LIMITS, cases=4) == pytest.approx(4 * full, rel=0.1)


@pytest.mark.parametrize(("max_drop", "changed"), [(0.0, 0.05), (1.0, 0.03)])
def test_a_thousand_histories_without_a_regression_alarm_seldom(max_drop: float, changed: float) -> None:
    limits, rng, n, alarms = replace(LIMITS, max_drop=max_drop), np.random.default_rng(5), 800, 0
    shares = {"loss": (changed + max_drop / 100) / 2, "gain": (changed - max_drop / 100) / 2}
    weighed = cache(lambda lost, gained: _bits(lost, gained, n, limits))
    for _ in range(HISTORIES):
        pairs = [paired_bits(rng, n, right=0.9, **shares) for _ in range(CASES)]
        evidence = [weighed(int((before & ~now).sum()), int((now & ~before).sum())) for before, now in pairs]
        alarms += any(each.verdict == "regressed" for each in verdicts(evidence, limits))
    assert alarms <= 0.05 * HISTORIES


def test_with_the_samples_that_it_asks_for_it_finds_and_it_clears() -> None:
    pilot = _bits(3, 3, 300)
    n = samples_needed(pilot, LIMITS, cases=4)
    changed, rng, found, cleared = 7 / 301, np.random.default_rng(6), 0, 0
    for _ in range(HISTORIES):
        calm = [paired_bits(rng, n, loss=changed / 2, gain=changed / 2, right=0.9) for _ in range(3)]
        fallen = paired_bits(rng, n, loss=changed / 2 + 0.005, gain=changed / 2 - 0.005, right=0.9)
        evidence = [weigh(TopK(1), *pair, None, LIMITS, cases=4) for pair in (fallen, *calm)]
        first, *others = verdicts(evidence, LIMITS)
        found += first.verdict == "regressed"
        cleared += others[0].verdict == "not shown to regress"
    assert found >= least_finds(LIMITS.power)
    assert cleared >= least_finds(LIMITS.power)


def test_real_valued_outcomes_are_bootstrapped() -> None:
    rng = np.random.default_rng(7)
    before = rng.uniform(0.9, 1.0, (500, 1)).astype(np.float32)
    fallen = before - rng.uniform(0.0, 0.02, (500, 1)).astype(np.float32)
    evidence = weigh(Cosine(), before, fallen, None, LIMITS, cases=1)
    assert (evidence.method, evidence.lost, evidence.gained) == ("bootstrap", 500, 0)
    assert evidence.drop == pytest.approx(1.0, abs=0.1)
    assert judge([evidence], LIMITS)[0].verdict == "regressed"


@pytest.mark.parametrize("n", [1, 5, 29])
def test_what_few_samples_need_is_what_many_like_them_need(n: int) -> None:
    drops = np.tile(np.array([[0.1], [-0.1], [0.2], [-0.2], [0.0]]), (100, 1))
    many = weigh(Cosine(), drops, np.zeros_like(drops), None, LIMITS, cases=1)
    few = weigh(Cosine(), drops[:n], np.zeros((n, 1)), None, LIMITS, cases=1)
    assert (few.p_drop, few.p_excluded, few.lower, few.upper) == (1.0, 1.0, -np.inf, np.inf)
    (judgement,) = judge([few], LIMITS)
    assert judgement.verdict == "too few samples to tell"
    assert judgement.needed == pytest.approx(samples_needed(many, LIMITS, cases=1), rel=0.9 if n == 1 else 0.6)


def test_of_few_samples_none_of_which_changed_thirty_are_asked_for() -> None:
    rows = np.ones((9, 1))
    assert judge([weigh(Cosine(), rows, rows, None, LIMITS, cases=1)], LIMITS)[0].needed == 30


@pytest.mark.parametrize("pilot", [(3, 3, 300), (0, 0, 100)])
def test_with_a_margin_the_samples_that_it_asks_for_find_a_drop_beyond_it(pilot: tuple[int, int, int]) -> None:
    limits, rng = replace(LIMITS, max_drop=1.0), np.random.default_rng(6)
    n = samples_needed(_bits(*pilot, limits), limits, cases=CASES)
    changed = max((pilot[0] + pilot[1] + 1) / (pilot[2] + 1), 0.02)
    weighed, found = cache(lambda lost, gained: _bits(lost, gained, n, limits)), 0
    for lost, gained, _ in rng.multinomial(n, (changed / 2 + 0.01, changed / 2 - 0.01, 1 - changed), size=HISTORIES):
        found += weighed(int(lost), int(gained)).p_drop <= limits.alpha / CASES
    assert least_finds(limits.power) <= found <= most_alarms(0.9)


# What samples add to a drop, of mean 0: all change a little, few change much, most gain a little and few lose much.
CHANGES: dict[str, Callable[[np.random.Generator, int], np.ndarray[Any, Any]]] = {
    "normal": lambda rng, n: rng.normal(0, 4, n),
    "few changed": lambda rng, n: few(rng, n, 0.2) * rng.normal(0, 10, n),
    "skewed": lambda rng, n: 2 * skewed_drops(rng, n, mean=0.0),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_with_the_samples_that_it_asks_for_a_bootstrap_finds_and_clears(kind: str) -> None:
    """Both a drop of half a point and none, where samples change as those did that it saw; four cases in the run."""
    limits = replace(LIMITS, effect=0.5)
    drops = CHANGES[kind](np.random.default_rng(8), 300)
    drops -= drops.mean()
    evidence = weigh(Cosine(), drops[:, None] / 100, np.zeros((300, 1)), None, limits, cases=CASES)
    n, found, cleared = samples_needed(evidence, limits, cases=CASES), 0, 0
    for seed in range(HISTORIES):
        sample = np.random.default_rng(seed).choice(drops, (n, 1))
        fallen = bootstrap_drop(sample + 0.5, np.zeros((n, 1)), TopK(1).value, draws=399, seed=seed)
        found += fallen.p_value_of_drop(0.0) <= limits.alpha / CASES
        cleared += fallen.p_value_of_exclusion(1.0) <= limits.alpha
    assert least_finds(limits.power) <= found
    assert least_finds(limits.power) <= cleared
