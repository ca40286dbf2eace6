"""Mean intersection over union of dense class scores [n, classes, ...] with labels [n, ...]."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.gate.bootstrap import Floats
from bitswitch_deploy.gate.metrics.metric import Labels, Metric, MetricContext, Outputs, Rows, shape_text
from bitswitch_deploy.validation.metrics import IGNORED


class MeanIou(Metric):
    """Mean over classes of intersection / union, summed over all samples, in percent.

    Kept of each sample: pixels of intersection and of union for each class. The classes of the mean are those that the
    labels of the data set have, a fact of the data set: a pixel of another class that is predicted is missing in the
    intersection of its own, and no class falls from nothing to 0 by it. Label 255 is ignored where the network has no
    such class.
    """

    name = "miou"
    dtype = np.uint32

    def measure(self, outputs: Outputs, labels: Labels | None, reference: Outputs | None) -> Rows:
        assert labels is not None
        classes = outputs.shape[1]
        choice = outputs.argmax(axis=1).reshape(len(outputs), -1)
        truth = labels.reshape(len(labels), -1)
        counts = [_counts(mine, true, classes) for mine, true in zip(choice, truth)]
        return np.stack(counts).astype(np.uint32)

    def rows_for(self, rows: Rows, labels: Labels | None) -> Floats:
        """Of the classes that labels have: intersections, unions, and whether a sample has it, [n, 3 * present]."""
        n_classes = rows.shape[1] // 2
        present = _present(labels, n_classes)
        counts = rows[:, np.concatenate((present, present + n_classes))]
        return np.concatenate((counts, _has(labels, n_classes)[:, present]), axis=1, dtype=np.float64)

    def value(self, means: Floats) -> Floats:
        intersection, union, has = np.split(means, 3, axis=-1)
        # a sample may be left out, and with it a class: not one that is only predicted in others
        seen = has > 0
        ratio = np.divide(intersection, union, out=np.zeros_like(union), where=seen)
        return np.asarray(100.0 * ratio.sum(axis=-1) / np.maximum(seen.sum(axis=-1), 1))

    def degenerate(self, rows: Rows, labels: Labels | None, context: MetricContext) -> str:
        present = _present(labels, rows.shape[1] // 2)
        if not present.size:
            return f"no position is judged: every label is {IGNORED}"
        lost = present[rows.sum(axis=0)[present] == 0]
        if not lost.size:
            return ""
        return f"class {', '.join(context.class_name(int(index)) for index in lost[:5])} is never predicted rightly"

    def _misfit(self, outputs: Outputs, labels: Labels | None) -> tuple[str, str]:
        got, classes = shape_text(outputs, labels), outputs.shape[1] if outputs.ndim > 1 else 0
        if labels is None or outputs.ndim < 3 or classes < 2 or labels.shape[1:] != outputs.shape[2:]:
            return got, "dense class scores [n, classes, ...] and labels [n, ...]"
        wrong = labels[(labels >= classes) & (labels != IGNORED)]
        return (
            (f"label {wrong[0]}", f"0 to {classes - 1}, or {IGNORED} for what is not judged")
            if wrong.size
            else ("", "")
        )


def _present(labels: Labels | None, classes: int) -> Labels:
    """The classes that labels [n, ...] have, in order."""
    return np.flatnonzero(_has(labels, classes).any(axis=0))


def _has(labels: Labels | None, classes: int) -> npt.NDArray[np.bool_]:
    """Whether the labels of each sample have a class, [n, classes]."""
    assert labels is not None
    has = np.zeros((len(labels), classes), np.bool_)
    for row, truth in zip(has, labels):
        row[truth[truth < classes]] = True
    return has


def _counts(choice: Labels, truth: Labels, classes: int) -> Labels:
    judged = truth < classes
    choice, truth = choice[judged], truth[judged]
    hit = np.bincount(truth[choice == truth], minlength=classes)
    both = np.bincount(choice, minlength=classes) + np.bincount(truth, minlength=classes)
    return np.concatenate((hit, both - hit))
