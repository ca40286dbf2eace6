"""Mean intersection over union of dense class scores [n, classes, ...] with labels [n, ...]."""

from __future__ import annotations

import numpy as np

from bitswitch_deploy.gate.bootstrap import Floats
from bitswitch_deploy.gate.metrics.metric import Labels, Metric, MetricContext, Outputs, Rows, shape_text

# The label of positions that nobody judged, as in Cityscapes and VOC; below it, labels are classes.
IGNORED = 255


class MeanIou(Metric):
    """Mean over classes of intersection / union, summed over all samples, in percent.

    Kept of each sample: pixels of intersection and of union for each class. Classes that neither labels nor predictions
    have are left out of the mean. Label 255 is ignored where the network has no such class.
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

    def value(self, means: Floats) -> Floats:
        intersection, union = np.split(means, 2, axis=-1)
        seen = union > 0
        ratio = np.divide(intersection, union, out=np.zeros_like(union), where=seen)
        return np.asarray(100.0 * ratio.sum(axis=-1) / np.maximum(seen.sum(axis=-1), 1))

    def degenerate(self, rows: Rows, labels: Labels | None, context: MetricContext) -> str:
        intersection, union = np.split(rows.sum(axis=0), 2)
        lost = np.flatnonzero((union > 0) & (intersection == 0))
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


def _counts(choice: Labels, truth: Labels, classes: int) -> Labels:
    judged = truth < classes
    choice, truth = choice[judged], truth[judged]
    hit = np.bincount(truth[choice == truth], minlength=classes)
    both = np.bincount(choice, minlength=classes) + np.bincount(truth, minlength=classes)
    return np.concatenate((hit, both - hit))
