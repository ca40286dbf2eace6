"""Top-k accuracy and recall over classes, of class scores [n, classes] or [n, classes, ...].

Of equal scores the first class wins, as in numpy.argmax.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from bitswitch_deploy.gate.bootstrap import Floats
from bitswitch_deploy.gate.metrics.metric import Labels, Metric, MetricContext, Outputs, Rows, shape_text


class TopK(Metric):
    """Share of samples whose class is among the `k` highest scores, in percent."""

    dtype = np.bool_

    def __init__(self, k: int) -> None:
        self.name = f"top-{k}"
        self._k = k

    def measure(self, outputs: Outputs, labels: Labels | None, reference: Outputs | None) -> Rows:
        assert labels is not None
        own = np.take_along_axis(outputs, labels[:, None], axis=1)
        classes = np.arange(outputs.shape[1])
        ahead = (outputs > own) | ((outputs == own) & (classes < labels[:, None]))
        return np.asarray(ahead.sum(axis=1) < self._k)[:, None]

    def rows_for(self, rows: Rows, labels: Labels | None) -> Floats:
        return 100.0 * np.asarray(rows, np.float64)

    def degenerate(self, rows: Rows, labels: Labels | None, context: MetricContext) -> str:
        return "" if rows.any() else "no sample is right: the labels may be those of another data set"

    def _misfit(self, outputs: Outputs, labels: Labels | None) -> tuple[str, str]:
        allowed = f"class scores [n, classes] with more than {self._k} classes, and labels [n]"
        return _class_misfit(outputs, labels, self._k, allowed)


class Recall(Metric):
    """Mean over classes of the share of their samples that is recognized, in percent ("balanced accuracy").

    Each class counts the same, however many samples it has: a class that is lost cannot hide behind the frequent ones.
    The number of samples of a class is a fact of the data set, so that a sample of class c, of which there are n_c of
    n, adds n / (classes * n_c) when it is right, and the mean of that is the metric.
    """

    name = "recall"
    dtype: ClassVar[type[np.generic]] = np.int32

    def measure(self, outputs: Outputs, labels: Labels | None, reference: Outputs | None) -> Rows:
        return np.asarray(outputs.argmax(axis=1)).astype(np.int32)[:, None]

    def rows_for(self, rows: Rows, labels: Labels | None) -> Floats:
        assert labels is not None
        return np.asarray(_points(labels) * (rows[:, 0] == labels))[:, None]

    def largest_change(self, labels: Labels | None) -> float:
        """That of a sample of the rarest class."""
        assert labels is not None
        return float(_points(labels).max())

    def check_labels(self, labels: Labels | None, context: MetricContext) -> None:
        assert labels is not None
        if labels.ndim != 1:
            raise self.misfit(f"labels [n, {', '.join(map(str, labels.shape[1:]))}]", "labels [n]")
        # of more classes than samples one has none: no table as long as the largest label is needed to say so
        classes = max(len(context.class_names), min(int(labels.max()), len(labels)) + 1)
        empty = np.setdiff1d(np.arange(classes), labels)
        if empty.size:
            names = ", ".join(context.class_name(int(index)) for index in empty[:5])
            raise self.misfit(f"no sample of class {names}", "at least one sample of each class, numbered 0, 1, 2 ...")

    def degenerate(self, rows: Rows, labels: Labels | None, context: MetricContext) -> str:
        assert labels is not None
        never = np.setdiff1d(labels, rows[:, 0])
        if not never.size:
            return ""
        return f"class {', '.join(context.class_name(int(index)) for index in never[:5])} is never predicted"

    def _misfit(self, outputs: Outputs, labels: Labels | None) -> tuple[str, str]:
        return _class_misfit(outputs, labels, 1, "class scores [n, classes] and labels [n]")


def _class_misfit(outputs: Outputs, labels: Labels | None, more_than: int, allowed: str) -> tuple[str, str]:
    if outputs.ndim != 2 or outputs.shape[1] <= more_than or labels is None or labels.ndim != 1:
        return shape_text(outputs, labels), allowed
    highest, classes = int(labels.max()), outputs.shape[1]
    return ("", "") if highest < classes else (f"label {highest}", f"0 to {classes - 1}, the classes of the output")


def _points(labels: Labels) -> Floats:
    """What each sample adds to the mean when it is right, [n]."""
    per_class = np.bincount(labels)
    return np.asarray(100.0 * len(labels) / (np.count_nonzero(per_class) * per_class[labels]))
