"""Mean average precision by the rules of COCO (extra `coco`), of decoded detections.

Outputs [n, d, 6]: x1, y1, x2, y2 in pixels, score, class; detections of score 0 are none. Labels [n, m, 5], integers:
x1, y1, x2, y2, class; rows of zeros are none. That is what detectors with their suppression in the graph put out.

pycocotools matches detections and objects, image by image: that is where the rules are. What it decided is kept of
the 100 best detections of each image: class, score, and at which of the ten overlaps (0.50, 0.55 ... 0.95) it found an
object. The 100 are those of all classes together, as detectors put them out; pycocotools takes 100 of each class, and
says something else where a network puts out more.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from threading import Lock
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.errors import UnavailableError
from bitswitch_deploy.gate.bootstrap import BootstrapDrop, Floats, draw_bounds, largest_unseen, no_drop, pseudo_values
from bitswitch_deploy.gate.metrics.average_precision import MeanPrecision, rank
from bitswitch_deploy.gate.metrics.metric import Labels, Metric, MetricContext, Outputs, Rows, shape_text

KEPT = 100
_OVERLAPS = 10
# Changed images whose own part in the drop is computed, evenly spaced over all that changed.
_PROBED = 500
_FIELDS = 3  # class, score, overlaps as bits
_PRINTING = Lock()


class MeanAveragePrecision(Metric):
    """AP@[.50:.95] over all areas, of the 100 best detections of each image, in percent.

    Raises:
        UnavailableError: pycocotools is not installed.
    """

    name = "map"
    dtype: ClassVar[type[np.generic]] = np.float32

    def __init__(self) -> None:
        _coco_tools()

    def measure(self, outputs: Outputs, labels: Labels | None, reference: Outputs | None) -> Rows:
        assert labels is not None
        rows = np.zeros((len(outputs), KEPT, _FIELDS), np.float32)
        for row, found, truth in zip(rows, outputs, labels):
            matched = _matched(found[found[:, 4] > 0], truth[truth.any(axis=1)])
            row[: len(matched)] = matched
        return rows.reshape(len(outputs), KEPT * _FIELDS)

    def score(self, rows: Rows, labels: Labels | None) -> float:
        return float(_precision(rows, labels).of(np.ones((1, len(rows))))[0])

    def sample_scores(self, rows: Rows, labels: Labels | None) -> Floats:
        """Objects found, counted over the ten overlaps, [n]."""
        hits = _bits(rows.reshape(len(rows), KEPT, _FIELDS)[..., 2])
        return np.asarray(hits.sum(axis=(1, 2)), np.float64)

    def bootstrap(self, before: Rows, now: Rows, labels: Labels | None, *, draws: int, seed: int) -> BootstrapDrop:
        """The drop in data sets of weighted images."""
        first, second, n = _precision(before, labels), _precision(now, labels), len(before)
        classes = first.differing(second)
        if not classes:
            return no_drop(draws)
        changed = np.flatnonzero((before != now).any(axis=1))

        def drops(weights: Floats) -> Floats:
            return first.of(weights, classes) - second.of(weights, classes)

        drop = float(drops(np.ones((1, n)))[0])
        probed = changed[np.linspace(0, len(changed) - 1, min(len(changed), _PROBED)).astype(np.int64)]
        without = np.ones((len(probed), n))
        without[np.arange(len(probed)), probed] = 0.0
        changes = np.zeros(len(probed) + n - len(changed))
        changes[: len(probed)] = pseudo_values(drop, drops(without), n)
        low, high = draw_bounds(drops, n, unseen := largest_unseen(changes), draws=draws, seed=seed)
        # between the two is the drop of what was seen
        error = float(((low + high) / 2).std(ddof=1))
        return BootstrapDrop(drop=drop, standard_error=error, unseen=unseen, low=low, high=high)

    def degenerate(self, rows: Rows, labels: Labels | None, context: MetricContext) -> str:
        if self.sample_scores(rows, labels).any():
            return ""
        why = "boxes may be in other units, classes counted from 1, or labels those of another data set"
        return f"no object is found: {why}"

    def _misfit(self, outputs: Outputs, labels: Labels | None) -> tuple[str, str]:
        if outputs.ndim != 3 or outputs.shape[2] != 6 or labels is None or labels.ndim != 3 or labels.shape[2] != 5:
            return shape_text(outputs, labels), "detections [n, d, 6] and labels [n, m, 5]"
        return "", ""


def _precision(rows: Rows, labels: Labels | None) -> MeanPrecision:
    assert labels is not None
    kept = rows.reshape(len(rows), KEPT, _FIELDS)
    image, place = np.nonzero(kept[..., 1] > 0)
    found = kept[image, place]
    owner, index = np.nonzero(labels.any(axis=2))
    classes, truth = np.unique(labels[owner, index, 4], return_inverse=True)
    objects = np.zeros((len(rows), len(classes)))
    np.add.at(objects, (owner, truth), 1.0)
    ranked = []
    for label in classes:
        mine = found[:, 0] == label
        ranked.append(rank(image[mine], found[mine, 1], _bits(found[mine, 2])))
    return MeanPrecision(ranked=tuple(ranked), objects=objects)


def _matched(found: Outputs, truth: Labels) -> npt.NDArray[np.float32]:
    """Class, score, and overlaps as bits of the best detections of one image, [k, 3], by pycocotools."""
    coco, coco_eval = _coco_tools()
    classes = np.unique(np.concatenate((found[:, 5].astype(np.int64), truth[:, 4])))
    best = found[np.argsort(-found[:, 4], kind="mergesort")]
    if not len(best):
        return np.zeros((0, _FIELDS), np.float32)
    # it prints how long it took; the lock because threads that redirect in turn would leave stdout with one of them
    with _PRINTING, redirect_stdout(StringIO()):
        objects, detections = coco(), coco()
        boxes = [(box[:4].astype(np.float64), int(box[4]), 1.0) for box in truth]
        _fill(objects, boxes, classes)
        _fill(detections, [(box[:4].astype(np.float64), int(box[5]), float(box[4])) for box in best], classes)
        judged = coco_eval(objects, detections, "bbox")
        judged.params.areaRng, judged.params.areaRngLbl = [[0, 1e10]], ["all"]
        judged.evaluate()
    rows = []
    for each in judged.evalImgs:
        if each is not None:
            powers = 2 ** np.arange(_OVERLAPS)
            bits = ((np.asarray(each["dtMatches"]) > 0) * powers[:, None]).sum(axis=0)
            # what it ignores are boxes without an area: neither found nor false
            counted = list(np.logical_not(each["dtIgnore"]).any(axis=0))
            label = each["category_id"] - 1
            rows += [(label, score, bit) for score, bit, is_in in zip(each["dtScores"], bits, counted) if is_in]
    rows.sort(key=lambda row: -row[1])
    return np.asarray(rows[:KEPT], np.float32).reshape(-1, _FIELDS)


def _fill(coco: Any, boxes: list[tuple[Floats, int, float]], classes: Labels) -> None:
    """Put the boxes of one image into an index of pycocotools; ids count from 1, 0 means no match there."""
    annotations = []
    for index, (corners, label, score) in enumerate(boxes, start=1):
        width, height = corners[2] - corners[0], corners[3] - corners[1]
        annotations.append(
            {
                "id": index,
                "image_id": 1,
                "category_id": label + 1,
                "bbox": [corners[0], corners[1], width, height],
                "area": width * height,
                "iscrowd": 0,
                "score": score,
            }
        )
    categories = [{"id": int(label) + 1} for label in classes]
    coco.dataset = {"images": [{"id": 1}], "categories": categories, "annotations": annotations}
    coco.createIndex()


def _bits(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """The ten overlaps of each detection, [..., 10]."""
    return np.asarray((values.astype(np.int64)[..., None] >> np.arange(_OVERLAPS)) & 1 == 1)


def _coco_tools() -> tuple[Any, Any]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as exc:
        raise UnavailableError(
            where="metric map",
            got="pycocotools, which matches detections by the rules of COCO, is not installed",
            allowed="pycocotools",
            do="pip install 'bitswitch-deploy[coco]'",
        ) from exc
    return COCO, COCOeval
