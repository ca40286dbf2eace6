from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.gate.metrics.average_precision import MeanPrecision, Ranked, rank

Array = np.ndarray[Any, Any]


def _ranked(images: list[int], hits: list[list[int]]) -> Ranked:
    """Detections by falling scores; hits of each at each overlap."""
    return rank(np.array(images), np.linspace(0.9, 0.1, len(images)), np.array(hits, bool))


def _one(ranked: Ranked, objects: list[float]) -> MeanPrecision:
    return MeanPrecision(ranked=(ranked,), objects=np.array(objects)[:, None])


def test_precision_is_the_best_at_a_recall_or_a_higher_one() -> None:
    # found, false, found, found, missed: recalls 1/4, 2/4 and 3/4 at precisions 1, 2/3 and 3/4
    mean = _one(_ranked([0, 0, 1, 1], [[1], [0], [1], [1]]), [2, 2])
    at_recalls = [1.0] * 26 + [0.75] * 50 + [0.0] * 25
    assert mean.of(np.ones((1, 2))) == pytest.approx(100 * np.mean(at_recalls))


def test_overlaps_count_the_same() -> None:
    both = _one(_ranked([0, 1], [[1, 0], [1, 0]]), [1, 1])
    assert both.of(np.ones((1, 2))) == pytest.approx(50.0)


def test_an_image_that_counts_twice_is_there_twice() -> None:
    mean = _one(_ranked([0, 1, 0, 2], [[1], [0], [0], [1]]), [1, 2, 1])
    twice = _one(_ranked([0, 3, 1, 0, 3, 2], [[1], [1], [0], [0], [0], [1]]), [1, 2, 1, 1])
    assert mean.of(np.array([[2.0, 1.0, 1.0]])) == pytest.approx(twice.of(np.ones((1, 4))))


def test_a_class_without_objects_is_left_out_of_the_mean() -> None:
    ranked = (_ranked([0, 1], [[1], [1]]), _ranked([2, 0], [[1], [0]]))
    mean = MeanPrecision(ranked=ranked, objects=np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]))
    # 2 of 3 objects, 1 of 1; then without the only image of the second class; then without any
    weights = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert mean.of(weights) == pytest.approx([100 * (67 / 101 + 1) / 2, 100.0, 0.0])
    assert mean.of(weights, [1]) == pytest.approx([50.0, 0.0, 0.0])


def test_data_sets_are_worked_on_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    ranked = rank(rng.integers(9, size=50), rng.random(50), rng.random((50, 10)) < 0.5)
    mean, weights = _one(ranked, [10] * 9), rng.random((7, 9))
    expected = mean.of(weights)
    monkeypatch.setattr("bitswitch_deploy.gate.metrics.average_precision._BLOCK_CELLS", 150)
    assert mean.of(weights) == pytest.approx(expected)


def test_all_objects_are_found_in_whatever_order_their_weights_are_summed() -> None:
    rng, n = np.random.default_rng(0), 60
    mean = _one(rank(np.arange(n), rng.random(n), np.ones((n, 10), bool)), [1] * n)
    assert mean.of(rng.random((200, n))) == pytest.approx(100.0, abs=1e-6)


def test_only_an_order_that_weights_can_tell_makes_classes_differ() -> None:
    images, hits = [0, 1, 2, 3], [[1], [0], [1], [0]]
    first = _one(_ranked(images, hits), [1] * 4)
    assert first.differing(_one(_ranked(images[:3], hits[:3]), [1] * 4)) == []
    assert first.differing(_one(_ranked([1, 0, 2, 3], hits), [1] * 4)) == [0]
    assert first.differing(_one(_ranked(images, [[1], [0], [0], [0]]), [1] * 4)) == [0]
