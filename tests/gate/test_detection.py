"""Mean average precision against pycocotools on whole data sets."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.errors import DataError, UnavailableError
from bitswitch_deploy.gate.metrics.detection import KEPT, MeanAveragePrecision
from bitswitch_deploy.gate.metrics.metric import MetricContext

pytest.importorskip("pycocotools", reason="extra `coco` is not installed")
Array = np.ndarray[Any, Any]


def _scene(seed: int, images: int, *, noise: float) -> tuple[Array, Array]:
    """Detections [n, 40, 6] and objects [n, 8, 5]: boxes about where they are, and some that are not."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((images, 8, 5), np.int64)
    found = np.zeros((images, 40, 6), np.float32)
    for image in range(images):
        count = rng.integers(0, 8)
        corner, size = rng.integers(0, 200, (count, 2)), rng.integers(10, 90, (count, 2))
        labels[image, :count] = np.column_stack((corner, corner + size, rng.integers(0, 3, count)))
        boxes = np.repeat(labels[image, :count, :4], 3, axis=0) + rng.normal(0, noise, (3 * count, 4))
        classes = np.where(rng.random(3 * count) < 0.9, np.repeat(labels[image, :count, 4], 3), 2)
        scores = rng.uniform(0.01, 1.0, 3 * count).round(2)  # some are equal
        found[image, : 3 * count] = np.column_stack((boxes, scores, classes))
    return found, labels


def _official(found: Array, labels: Array) -> float:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def index(rows: list[tuple[int, Array, int, float]]) -> Any:
        coco = COCO()
        annotations = [
            {
                "id": number,
                "image_id": image,
                "category_id": label + 1,
                "bbox": [*box[:2], *(box[2:] - box[:2])],
                "area": float(np.prod(box[2:] - box[:2])),
                "iscrowd": 0,
                "score": score,
            }
            for number, (image, box, label, score) in enumerate(rows, start=1)
        ]
        images, categories = [{"id": i} for i in range(len(found))], [{"id": c + 1} for c in range(3)]
        coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
        coco.createIndex()
        return coco

    with redirect_stdout(StringIO()):
        truth = [(i, b[:4].astype(float), int(b[4]), 1.0) for i, bs in enumerate(labels) for b in bs if b.any()]
        mine = [(i, b[:4].astype(float), int(b[5]), float(b[4])) for i, bs in enumerate(found) for b in bs if b[4] > 0]
        judged = COCOeval(index(truth), index(mine), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return 100.0 * float(judged.stats[0])


@pytest.mark.parametrize(("seed", "noise"), [(0, 2.0), (1, 6.0), (2, 0.0)])
def test_it_is_what_pycocotools_says_of_the_whole_set(seed: int, noise: float) -> None:
    found, labels = _scene(seed, 40, noise=noise)
    metric = MeanAveragePrecision()
    metric.check_fit(found, labels)
    rows = np.concatenate(
        [metric.measure(found[:17], labels[:17], None), metric.measure(found[17:], labels[17:], None)]
    )
    assert rows.dtype == metric.dtype
    assert metric.score(rows, labels) == pytest.approx(_official(found, labels), abs=1e-9)


def test_a_drawn_data_set_is_the_data_set_with_copies() -> None:
    found, labels = _scene(3, 40, noise=4.0)
    metric = MeanAveragePrecision()
    before = metric.measure(found, labels, None)
    worse, _ = _scene(3, 40, noise=9.0)
    now = metric.measure(worse, labels, None)
    result = metric.bootstrap(before, now, labels, draws=60, seed=0)
    assert result.drop == pytest.approx(_official(found, labels) - _official(worse, labels), abs=1e-9)
    copies = np.random.default_rng(0).integers(40, size=(200, 40))
    drops = [metric.score(before[i], labels[i]) - metric.score(now[i], labels[i]) for i in copies]
    assert result.standard_error == pytest.approx(np.std(drops), rel=0.35)
    assert result.low.mean() < result.drop < result.high.mean()
    assert metric.sample_scores(before, labels).sum() > metric.sample_scores(now, labels).sum()


def test_of_more_than_a_hundred_detections_the_best_of_all_classes_count() -> None:
    found, labels = _scene(4, 20, noise=4.0)
    more = np.concatenate((found, *(_scene(seed, 20, noise=25.0)[0] for seed in range(5, 19))), axis=1)
    more[..., 4] *= 1 - 1e-6 * np.arange(more.shape[1])  # none are equal
    more[(more[..., 2:4] <= more[..., :2]).any(axis=2)] = 0  # boxes without an area would count for nothing
    best = np.take_along_axis(more, np.argsort(-more[..., 4], axis=1)[:, :KEPT, None], axis=1)
    assert ((more[..., 4] > 0).sum(axis=1) > KEPT).any()
    metric = MeanAveragePrecision()
    score = metric.score(metric.measure(more, labels, None), labels)
    assert score == pytest.approx(_official(best, labels), abs=1e-9)
    assert score != pytest.approx(_official(more, labels), abs=1e-3)


def _outcomes(rng: np.random.Generator, labels: Array, *, found: float) -> Array:
    """Rows as `measure` keeps them: each object is found with this probability up to a random overlap, a false one now
    and then."""
    rows = np.zeros((len(labels), KEPT, 3), np.float32)
    for row, truth in zip(rows, labels):
        objects = truth[truth.any(axis=1)]
        hits = rng.binomial(10, 0.7, len(objects)) * (rng.random(len(objects)) < found)
        kept = [(label, rng.uniform(0.3, 1.0), 2**hit - 1) for label, hit in zip(objects[:, 4], hits)]
        kept += [(rng.integers(3), rng.uniform(0.0, 0.7), 0)] * (rng.random() < 0.3)
        for place, each in enumerate(sorted(kept, key=lambda each: -each[1])):
            row[place] = each
    return rows.reshape(len(labels), -1)


@pytest.mark.parametrize("share", [0.1, 1.0], ids=["few images changed", "all changed"])
def test_histories_without_a_drop_alarm_seldom_and_a_large_drop_is_found(share: float) -> None:
    metric, histories, few, n = MeanAveragePrecision(), 100, 20, 60
    alarms = cleared = found = 0
    for seed in range(histories):
        rng = np.random.default_rng(seed)
        labels = np.zeros((n, 4, 5), np.int64)
        labels[:, :, 2:4], labels[:, :, 4] = 9, rng.integers(3, size=(n, 4))
        labels[rng.random((n, 4)) < 0.5] = 0
        before, other, worse = (_outcomes(rng, labels, found=p) for p in (0.9, 0.9, 0.3))
        now = np.where(rng.random(n)[:, None] < share, other, before)
        same = metric.bootstrap(before, now, labels, draws=59, seed=seed)
        alarms += same.p_value_of_drop(0.0) <= 0.05
        cleared += same.p_value_of_exclusion(0.0) <= 0.05
        if seed < few:
            found += metric.bootstrap(before, worse, labels, draws=59, seed=seed).p_value_of_drop(0.0) <= 0.05
    assert max(alarms, cleared) <= 0.05 * histories
    assert found >= 0.9 * few


def test_histories_with_classes_of_one_image_alarm_seldom() -> None:
    metric, histories, n = MeanAveragePrecision(), 100, 60
    alarms = cleared = 0
    for seed in range(histories):
        rng = np.random.default_rng(seed)
        labels = np.zeros((n, 3, 5), np.int64)
        labels[:, :, 2:4], labels[:, :, 4] = 9, rng.integers(3, size=(n, 3))
        for image, label in zip(rng.choice(n, 5, replace=False), range(3, 8)):
            labels[image, 0, 4] = label
        before, now = (_outcomes(rng, labels, found=0.9) for _ in range(2))
        same = metric.bootstrap(before, now, labels, draws=59, seed=seed)
        alarms += same.p_value_of_drop(0.0) <= 0.05
        cleared += same.p_value_of_exclusion(0.0) <= 0.05
    assert max(alarms, cleared) <= 0.05 * histories


def test_outcomes_that_did_not_change_are_judged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found, labels = _scene(3, 40, noise=4.0)
    metric = MeanAveragePrecision()
    rows = metric.measure(found, labels, None)
    monkeypatch.setattr("bitswitch_deploy.gate.metrics.detection.draw_bounds", None)
    same = metric.bootstrap(rows, rows, labels, draws=60, seed=0)
    assert (same.drop, same.standard_error, same.unseen) == (0.0, 0.0, 0.0)
    assert not same.low.any()
    assert same.low.shape == same.high.shape == (60,)


@pytest.mark.parametrize("mistake", ["units", "classes"])
def test_a_baseline_that_finds_nothing_says_what_may_be_wrong(mistake: str) -> None:
    found, labels = _scene(0, 40, noise=2.0)
    metric = MeanAveragePrecision()
    assert metric.degenerate(metric.measure(found, labels, None), labels, MetricContext()) == ""
    if mistake == "units":
        found[..., :4] /= 640
    else:
        found[..., 5] += 3
    rows = metric.measure(found, labels, None)
    assert metric.score(rows, labels) == 0.0
    assert "no object is found: boxes may be in other units" in metric.degenerate(rows, labels, MetricContext())


def test_nothing_found_and_nothing_there() -> None:
    metric = MeanAveragePrecision()
    found, labels = np.zeros((3, 4, 6), np.float32), np.zeros((3, 2, 5), np.int64)
    assert metric.score(metric.measure(found, labels, None), labels) == 0.0
    labels[0, 0] = (1, 1, 9, 9, 0)
    rows = metric.measure(found, labels, None)
    assert metric.score(rows, labels) == 0.0
    same = metric.bootstrap(rows, rows, labels, draws=5, seed=0)
    assert (same.drop, same.standard_error) == (0.0, 0.0)


def test_other_outputs_do_not_fit() -> None:
    with pytest.raises(DataError, match=r"detections \[n, d, 6\] and labels \[n, m, 5\]"):
        MeanAveragePrecision().check_fit(np.zeros((2, 4, 5), np.float32), np.zeros((2, 2, 5), np.int64))


def test_without_pycocotools_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(UnavailableError, match="pycocotools") as info:
        MeanAveragePrecision()
    assert "bitswitch-deploy[coco]" in info.value.do
