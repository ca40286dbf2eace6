"""Paired statistics against values computed elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from bitswitch_deploy.errors import CheckFailedError
from bitswitch_deploy.search.halving import FEW, halve
from bitswitch_deploy.search.score import Scores, score_against, score_labelled
from bitswitch_deploy.search.statistics import (
    Z95,
    cautious_drop,
    compare,
    least_reach,
    mcnemar,
    paired_interval,
    points_interval,
    rank_correlation,
    wilson,
)
from bitswitch_deploy.tensors import WidthAssignment


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"), [(30, 10, 0.00222), (12, 5, 0.14346), (5, 5, 1.0), (120, 80, 0.00569), (0, 0, 1.0)]
)
def test_mcnemar(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar(only_a, only_b) == pytest.approx(p, abs=5e-6)
    assert mcnemar(only_b, only_a) == mcnemar(only_a, only_b)


def test_thousands_of_discordant_samples_stay_finite() -> None:
    assert 0 < mcnemar(5200, 5000) < 0.06


def test_identical_candidates_do_not_differ() -> None:
    scores = Scores(loss=np.linspace(0, 1, 50), right=np.arange(50) % 3 > 0)
    comparison = compare(scores, scores)
    assert comparison.points == comparison.loss
    assert (comparison.points.value, comparison.points.low, comparison.points.high) == (0, 0, 0)
    assert comparison.p_value == 1
    with pytest.raises(ValueError, match="50 samples against 3"):
        compare(scores, scores.first(3))


def test_intervals() -> None:
    interval = paired_interval(np.array([2.0, 4.0, 6.0]), np.array([1.0, 1.0, 1.0]))
    assert interval.value == 3
    assert interval.high - 3 == pytest.approx(1.959964 * 2 / np.sqrt(3), rel=1e-6)
    # 97.5 % and 99.5 % of the normal distribution
    assert paired_interval(np.array([0.0, 2.0]), np.zeros(2)).high == pytest.approx(1 + 1.959964, rel=1e-6)
    assert paired_interval(np.array([0.0, 2.0]), np.zeros(2), comparisons=5).high == pytest.approx(
        1 + 2.575829, rel=1e-6
    )
    share = wilson(90, 100)
    assert (share.value, share.low, share.high) == pytest.approx((90, 82.56, 94.48), abs=0.01)
    assert wilson(10, 10).high == pytest.approx(100)
    assert wilson(0, 10).low == pytest.approx(0)


def test_a_drop_with_its_standard_error() -> None:
    """Three of 100 samples are lost and one is won: shares of 4 and 2 of 102, as Bonett and Price add to them."""
    right = np.ones(100, bool)
    right[:10] = False
    changed = right.copy()
    changed[[0, 20, 21, 22]] ^= True
    loss = np.zeros(100)
    drop = cautious_drop(Scores(loss=loss, right=changed), Scores(loss=loss, right=right))
    assert drop == pytest.approx(100 * (2 / 102 + np.sqrt((6 / 102 - (2 / 102) ** 2) / 102)))


def test_samples_that_do_not_differ_are_no_proof_of_no_drop() -> None:
    """Of another network, which other losses show; the same one loses nothing."""
    right = np.ones(64, bool)
    reference, other = Scores(loss=np.zeros(64), right=right), Scores(loss=np.full(64, 0.1), right=right)
    points = compare(other, reference).points
    assert (points.value, points.high) == (0, least_reach(64))
    assert points.high == -points.low == pytest.approx(100 * Z95 * np.sqrt(2) / 66)
    assert cautious_drop(other, reference) == pytest.approx(100 * np.sqrt(2) / 66)
    assert cautious_drop(reference, reference) == 0


def test_an_interval_of_points() -> None:
    """60 and 30 of 1,000: 61 and 31 of 1,002."""
    interval = points_interval(60, 30, 1000)
    reach = 100 * Z95 * np.sqrt((92 / 1002 - (30 / 1002) ** 2) / 1002)
    assert interval.value == pytest.approx(3)
    assert (interval.low, interval.high) == pytest.approx((3000 / 1002 - reach, 3000 / 1002 + reach))
    assert (points_interval(5, 0, 5).high, points_interval(0, 5, 5).low) == (100, -100)


@pytest.mark.parametrize("n", [64, 600, 2048])
@pytest.mark.parametrize(("only_a", "only_b"), [(0.002, 0.0), (0.01, 0.0), (0.01, 0.005), (0.03, 0.01), (0.05, 0.05)])
def test_intervals_of_points_hold_the_truth_where_few_samples_differ(n: int, only_a: float, only_b: float) -> None:
    """20,000 draws of n samples. Plain Wald intervals hold it in 12 % of (0.002, 0) at 64, and mean 95 %."""
    draws = np.random.default_rng(0).multinomial(n, [only_a, only_b, 1 - only_a - only_b], size=20_000)
    counts, times = np.unique(draws, axis=0, return_counts=True)
    intervals = [points_interval(int(a), int(b), n) for a, b, _ in counts]
    truth = 100 * (only_a - only_b)
    held = sum(int(time) for time, each in zip(times, intervals) if each.low <= truth <= each.high)
    assert held / 20_000 >= 0.93


def test_rank_correlation() -> None:
    random = np.random.default_rng(0)
    a = random.normal(size=50)
    assert rank_correlation(a, np.exp(a)) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    assert rank_correlation(np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 3, 4])) == pytest.approx(0.9486833)
    assert rank_correlation(a, np.zeros(50)) == 0


def test_cross_entropy_and_divergence() -> None:
    outputs = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], np.float32))
    scores = score_labelled(outputs, np.array([0, 1]), where="here")
    assert scores.loss == pytest.approx(-np.log([0.5, 0.2]), rel=1e-6)
    assert scores.right.tolist() == [True, False]
    same = score_against(outputs, outputs, where="here")
    assert same.loss.tolist() == [0, 0]
    assert same.right.all()
    other = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]], np.float32))
    changed = score_against(other, outputs, where="here")
    assert changed.loss == pytest.approx([0.25 * np.log(2), 0], abs=1e-6)
    assert changed.right.tolist() == [False, True]
    outputs[0, 0] = np.nan
    with pytest.raises(CheckFailedError, match="not finite"):
        score_labelled(outputs, np.array([0, 1]), where="here")


def _candidates(count: int) -> list[WidthAssignment]:
    return [WidthAssignment(default=8, overrides=((f"l{index}", 4),)) for index in range(count)]


def test_a_planted_best_candidate_survives_halving_for_every_seed() -> None:
    candidates = _candidates(24)
    for seed in range(100):
        random = np.random.default_rng(seed)
        noise = random.normal(0, 1, (24, 1024)) + random.normal(0, 1, 1024)
        losses = noise + np.where(np.arange(24) == seed % 24, 0.0, np.linspace(0.25, 0.8, 24))[:, None]

        def measure(wanted: list[WidthAssignment], n: int, losses: np.ndarray = losses) -> list[Scores]:
            rows = [losses[candidates.index(each), :n] for each in wanted]
            return [Scores(loss=row, right=row < 0) for row in rows]

        survivors = halve(candidates, measure, start=128, total=1024)  # type: ignore[arg-type]
        assert survivors[0].assignment == candidates[seed % 24]
        assert len(survivors) < 24


def test_halving_drops_only_what_is_worse_and_measures_less() -> None:
    candidates, asked = _candidates(16), []

    def measure(wanted: list[WidthAssignment], n: int) -> list[Scores]:
        asked.append((len(wanted), n))
        # the last eight are clearly worse; all others are the same
        return [
            Scores(loss=np.full(n, 2.0 if candidates.index(e) >= 8 else 1.0), right=np.ones(n, bool)) for e in wanted
        ]

    survivors = halve(candidates, measure, start=100, total=400)  # type: ignore[arg-type]
    assert asked == [(16, 100), (8, 200), (8, 400)]
    assert len(survivors) == 8 > FEW
