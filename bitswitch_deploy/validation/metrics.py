"""How good outputs are, and how near two sets of outputs: pure functions and one accumulator over batches.

With r the reference and o the other output, all in float64:

    top-1            100 * mean(argmax(o) = y)
    agreement        100 * mean(argmax(o) = argmax(r))
    SQNR             10 * log10(sum r^2 / sum (r - o)^2) dB; infinite when o = r
    max abs error    max |r - o|
    relative error   max |r - o| / max |r|

Of equal scores the first class wins, as in numpy.argmax and torch.argmax on a CPU.
A value that is not finite is never a metric: it raises.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.errors import CheckFailedError, DataError

Outputs = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.integer[Any]]
# the label of positions of a dense output that nobody judged, as in Cityscapes and VOC, where it is no class
IGNORED = 255


def top1_percent(outputs: Outputs, y: Labels) -> float:
    """Share of samples whose highest output [n, classes] is the class y [n], in percent.

    Raises:
        CheckFailedError: an output is not finite.
        ValueError: no samples, or shapes that do not fit.
    """
    return _equal_percent(_choice(outputs), y)


def agreement_percent(outputs_a: Outputs, outputs_b: Outputs) -> float:
    """Share of samples for which both outputs [n, classes] have the same highest class, in percent.

    Raises:
        CheckFailedError: an output is not finite.
        ValueError: no samples, or shapes that do not fit.
    """
    return _equal_percent(_choice(outputs_a), _choice(outputs_b))


def sqnr_db(reference: Outputs, other: Outputs) -> float:
    """Signal to quantization noise ratio of `other`, same shape as `reference`, in dB; infinite when they are equal.

    Raises:
        CheckFailedError: a value is not finite.
        ValueError: the shapes differ.
    """
    error = _finite_difference(reference, other)
    return decibel(_energy(reference), _energy(error))


def max_abs_error(reference: Outputs, other: Outputs) -> float:
    """Largest absolute difference of two arrays of one shape; 0 when they are empty.

    Raises:
        CheckFailedError: a value is not finite.
        ValueError: the shapes differ.
    """
    return _peak(_finite_difference(reference, other))


def relative_error(reference: Outputs, other: Outputs) -> float:
    """Largest absolute difference of two arrays of one shape, over the largest absolute value of `reference`.

    Raises:
        CheckFailedError: a value is not finite.
        ValueError: the shapes differ.
    """
    return _ratio(max_abs_error(reference, other), _peak(reference))


def require_finite(outputs: Outputs, where: str, first_sample: int = 0) -> None:
    """See that every value of `outputs` [n, ...] is finite; `first_sample` is the index of its first row.

    Raises:
        CheckFailedError: the number of values that are not, and the first sample with one.
    """
    bad = ~np.isfinite(outputs)
    if bad.any():
        sample = first_sample + int(np.argwhere(bad)[0][0])
        raise CheckFailedError(
            where=where,
            got=f"{int(bad.sum())} of {outputs.size} values are not finite, first in sample {sample}",
            allowed="finite numbers",
            do="run this sample through the canonical graph: if that is finite, the lowering or the engine is at "
            "fault; if not, look at the scales and the BatchNorm of this width in the master",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What was measured over `n` samples; None where there is nothing to measure, `note` says why.

    lost, gained: samples that the reference has right and this one wrong, and the other way round; of one class each.
    """

    n: int
    top1_percent: float | None
    agreement_percent: float | None
    sqnr_db: float | None
    max_abs_error: float | None
    relative_error: float | None
    lost: int | None
    gained: int | None
    note: str


class HopAccumulator:
    """Metrics of one hop, batch by batch; holds sums only, so memory does not grow with the data set.

    Args:
        where: whose outputs they are, for messages: "w4 engine".
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._n = 0
        self._choices = self._judged = 0
        self._right: int | None = None
        self._same: int | None = None
        self._changed: tuple[int, int] | None = None
        self._signal = 0.0
        self._noise = 0.0
        self._peak = 0.0
        self._error: float | None = None
        self._note = "no samples"

    def update(self, outputs: Outputs, *, reference: Outputs | None = None, labels: Labels | None = None) -> None:
        """Add one batch.

        Args:
            outputs: [b, classes], or any other shape [b, ...].
            reference: what to compare with, the same shape; None leaves the comparison out.
            labels: [b], or [b, ...] when each position of a dense output [b, classes, ...] has a class, or is IGNORED.

        Raises:
            CheckFailedError: an output is not finite, or has another shape than the reference.
            DataError: a label is no class of the output.
        """
        require_finite(outputs, f"{self._where} output", self._n)
        if reference is not None:
            self._add_error(outputs, reference)
        self._note = _why_no_top1(outputs, labels)
        if has_classes(outputs, labels):
            self._add_choices(outputs, reference, labels)
        self._n += len(outputs)

    def metrics(self) -> Metrics:
        """Return the metrics of everything added so far."""
        error = self._error
        return Metrics(
            n=self._n,
            top1_percent=100.0 * self._right / self._judged if self._right is not None and self._judged else None,
            agreement_percent=None if self._same is None else 100.0 * self._same / self._choices,
            sqnr_db=None if error is None else decibel(self._signal, self._noise),
            max_abs_error=error,
            relative_error=None if error is None else _ratio(error, self._peak),
            lost=None if self._changed is None else self._changed[0],
            gained=None if self._changed is None else self._changed[1],
            note=self._note,
        )

    def _add_error(self, outputs: Outputs, reference: Outputs) -> None:
        if outputs.shape != reference.shape:
            raise CheckFailedError(
                where=f"{self._where} output",
                got=f"shape {list(outputs.shape)}",
                allowed=f"{list(reference.shape)}, as the canonical graph",
                do="run both hops on the same output of the network",
            )
        error = _difference(reference, outputs)
        self._signal += _energy(reference)
        self._noise += _energy(error)
        self._peak = max(self._peak, _peak(reference))
        self._error = max(self._error or 0.0, _peak(error))

    def _add_choices(self, outputs: Outputs, reference: Outputs | None, labels: Labels | None) -> None:
        choice = outputs.argmax(axis=1)
        before = None if reference is None else reference.argmax(axis=1)
        self._choices += choice.size
        if before is not None:
            self._same = (self._same or 0) + int((choice == before).sum())
        if labels is None or labels.shape != choice.shape:
            return
        classes, judged = outputs.shape[1], np.ones(labels.shape, np.bool_)
        if labels.ndim > 1 and classes <= IGNORED:
            judged = labels != IGNORED
        low, high = int(labels.min(initial=0, where=judged)), int(labels.max(initial=0, where=judged))
        if low < 0 or high >= classes:
            raise DataError(
                where=f"labels for the {self._where} output",
                got=f"classes from {low} to {high}",
                allowed=f"0 to {classes - 1}",
                do="count classes from 0 in the order of the network's outputs, or name the data set of this network",
            )
        right = (choice == labels) & judged
        self._judged += int(judged.sum())
        self._right = (self._right or 0) + int(right.sum())
        if before is not None and labels.ndim == 1:
            was_right = before == labels
            lost, gained = self._changed or (0, 0)
            self._changed = (lost + int((was_right & ~right).sum()), gained + int((right & ~was_right).sum()))


def has_classes(outputs: Outputs, labels: Labels | None) -> bool:
    """Whether axis 1 of `outputs` holds the scores of classes, so that its maximum means something.

    A row of at least two scores does. Of a dense output [n, classes, ...] only labels [n, ...] tell:
    axis 1 of a detector holds boxes as well.
    """
    if outputs.ndim < 2 or outputs.shape[1] < 2:
        return False
    return outputs.ndim == 2 or _labels_fit(outputs, labels)


def _labels_fit(outputs: Outputs, labels: Labels | None) -> bool:
    return labels is not None and labels.shape == (len(outputs), *outputs.shape[2:])


def _why_no_top1(outputs: Outputs, labels: Labels | None) -> str:
    shape = ["n", *outputs.shape[1:]]
    if not has_classes(outputs, labels):
        return f"no top-1 and no agreement: outputs [{', '.join(map(str, shape))}] are not one row of class scores"
    if labels is None:
        return "no top-1: the data set has no labels"
    if not _labels_fit(outputs, labels):
        return f"no top-1: labels with {labels.ndim} dimensions do not fit outputs with {outputs.ndim}"
    return ""


def _choice(outputs: Outputs) -> npt.NDArray[np.intp]:
    require_finite(outputs, "outputs")
    if outputs.ndim < 2:
        raise ValueError(f"outputs [n, classes] are needed, got shape {list(outputs.shape)}")
    choice: npt.NDArray[np.intp] = outputs.argmax(axis=1)
    return choice


def _equal_percent(a: Labels, b: Labels) -> float:
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"classes of shape {list(a.shape)} and {list(b.shape)} cannot be compared")
    return 100.0 * int((a == b).sum()) / a.size


def _finite_difference(reference: Outputs, other: Outputs) -> npt.NDArray[np.float64]:
    require_finite(reference, "reference outputs")
    require_finite(other, "outputs")
    if reference.shape != other.shape:
        raise ValueError(f"outputs of shape {list(other.shape)} cannot be compared with {list(reference.shape)}")
    return _difference(reference, other)


def _difference(reference: Outputs, other: Outputs) -> npt.NDArray[np.float64]:
    return reference.astype(np.float64) - other.astype(np.float64)


def _energy(values: Outputs) -> float:
    wide = values.astype(np.float64, copy=False)
    return float(np.vdot(wide, wide))


def _peak(values: Outputs) -> float:
    return float(np.abs(values).max(initial=0.0))


def decibel(signal: float, noise: float) -> float:
    """Ratio of two energies in dB; infinite without noise."""
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf


def _ratio(error: float, peak: float) -> float:
    if error == 0.0:
        return 0.0
    return error / peak if peak > 0.0 else math.inf
