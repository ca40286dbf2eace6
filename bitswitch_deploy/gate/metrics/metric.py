"""What a metric is: what it keeps of each sample, what that is worth, and which outputs it fits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.errors import DataError
from bitswitch_deploy.gate.bootstrap import BootstrapDrop, Floats, bootstrap_drop

Outputs = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]
Rows = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricContext:
    """What a metric may know besides the outputs. class_names: of the data set, in order; empty where it has none."""

    class_names: tuple[str, ...] = ()

    def class_name(self, index: int) -> str:
        """`3` or, where classes have names, `3 (cat)`."""
        return f"{index} ({self.class_names[index]})" if index < len(self.class_names) else str(index)


class Metric(ABC):
    """One metric. Higher is better; values are in `unit`.

    A metric keeps one row of numbers for each sample, [n, k] of type `dtype`; whatever it is worth is computed from
    those.
    """

    name: str
    unit: ClassVar[str] = "points"
    dtype: ClassVar[type[np.generic]] = np.float32
    needs_labels: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False

    @property
    def identity(self) -> str:
        """The name, and what else decides the numbers: two metrics of one identity may be compared."""
        return self.name

    def check_fit(self, outputs: Outputs, labels: Labels | None) -> None:
        """See that outputs [b, ...] and labels [b, ...] are what this metric is about.

        Raises:
            DataError: they are not; the message says what would be.
        """
        if self.needs_labels and labels is None:
            raise self.misfit("a data set without labels", "labels for each sample ('y')")
        got, allowed = self._misfit(outputs, labels)
        if got:
            raise self.misfit(got, allowed)

    @abstractmethod
    def measure(self, outputs: Outputs, labels: Labels | None, reference: Outputs | None) -> Rows:
        """What is kept of each sample, [b, k]. `reference`: outputs of the reference network, where it is needed."""

    def rows_for(self, rows: Rows, labels: Labels | None) -> Floats:
        """What each sample adds to the sums of `value`, float64 [n, j]."""
        return np.asarray(rows, np.float64)

    def value(self, means: Floats) -> Floats:
        """The metric of mean rows, [..., j] -> [...]: the mean of the only column, unless it is overridden."""
        return np.asarray(means[..., 0])

    def score(self, rows: Rows, labels: Labels | None) -> float:
        """The metric over all samples."""
        return float(self.value(self.rows_for(rows, labels).mean(axis=0)))

    def sample_scores(self, rows: Rows, labels: Labels | None) -> Floats:
        """What each sample is worth by itself, [n]; only to count those that became better or worse."""
        return self.value(self.rows_for(rows, labels))

    def bootstrap(self, before: Rows, now: Rows, labels: Labels | None, *, draws: int, seed: int) -> BootstrapDrop:
        """The drop from `before` to `now` with its distribution."""
        s, t = self.rows_for(before, labels), self.rows_for(now, labels)
        return bootstrap_drop(s, t, self.value, largest=self.largest_change(labels), draws=draws, seed=seed)

    def largest_change(self, labels: Labels | None) -> float:
        """The most that one sample can add to a drop; 0 where it can be anything, or is not known."""
        return 0.0

    def check_labels(self, labels: Labels | None, context: MetricContext) -> None:  # noqa: B027 most need no check
        """See that the labels of the whole data set let the metric be computed.

        Raises:
            DataError: they do not.
        """

    def degenerate(self, rows: Rows, labels: Labels | None, context: MetricContext) -> str:
        """What makes outcomes unfit for a baseline, in words; empty when nothing does."""
        return ""

    def misfit(self, got: str, allowed: str) -> DataError:
        """The error for outputs or labels that this metric does not fit."""
        return DataError(
            where=f"metric {self.name}",
            got=got,
            allowed=allowed,
            do="choose a metric that fits the network's output, or a function of your own: metric: module:function",
        )

    @abstractmethod
    def _misfit(self, outputs: Outputs, labels: Labels | None) -> tuple[str, str]:
        """(got, allowed) where they do not fit; ("", "") where they do."""


def shape_text(outputs: Outputs, labels: Labels | None) -> str:
    """The shapes of a batch, for messages."""
    shapes = [f"outputs [n{''.join(f', {size}' for size in outputs.shape[1:])}]"]
    if labels is not None:
        shapes.append(f"labels [n{''.join(f', {size}' for size in labels.shape[1:])}]")
    return " and ".join(shapes)
