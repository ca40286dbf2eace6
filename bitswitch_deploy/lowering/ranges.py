"""Ranges of float tensors, seen on calibration samples, and the scale that fits them best. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Clipping to 40 % of the maximum is past every optimum of 8-bit codes on bell-shaped and one-sided activations.
_CLIP_FRACTIONS = np.linspace(0.4, 1.0, 61)
_MAX_SAMPLES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRange:
    """What was seen of one tensor: its extremes over all samples and an evenly thinned part of its values [k]."""

    minimum: float
    maximum: float
    values: NDArray[np.float32]


class RangeObserver:
    """Collects the range of one tensor over batches; memory is bounded by `_MAX_SAMPLES` values."""

    def __init__(self) -> None:
        self._minimum, self._maximum = np.inf, -np.inf
        self._parts: list[NDArray[np.float32]] = []

    def observe(self, batch: NDArray[np.float32]) -> None:
        """Add one batch of any shape."""
        values = np.asarray(batch, np.float32).ravel()
        self._minimum = min(self._minimum, float(values.min()))
        self._maximum = max(self._maximum, float(values.max()))
        self._parts.append(_thin(values))
        if len(self._parts) > 8:
            self._parts = [_thin(np.concatenate(self._parts))]

    def result(self) -> TensorRange:
        """The range so far.

        Raises:
            ValueError: nothing was observed.
        """
        if not self._parts:
            raise ValueError("no batch was observed")
        values = _thin(np.concatenate(self._parts))
        return TensorRange(minimum=self._minimum, maximum=self._maximum, values=values)


def _thin(values: NDArray[np.float32]) -> NDArray[np.float32]:
    stride = -(-values.size // _MAX_SAMPLES)
    # an odd stride does not fall into step with power-of-two rows and channels
    return values[:: stride | 1].copy() if stride > 1 else values


def best_scale(seen: TensorRange, *, low: int, high: int) -> float:
    """The symmetric float32 scale whose codes low..high have the least squared error on the values seen.

    Source: the usual search over clipping thresholds (minimum mean squared error), as in post-training quantization.
    A tensor that is zero everywhere gets scale 1.
    """
    steps = max(high, -low)
    peak = max(abs(seen.minimum), abs(seen.maximum))
    smallest = float(np.finfo(np.float32).tiny)
    if peak / steps < smallest:
        return 1.0
    candidates = np.maximum(_CLIP_FRACTIONS * peak / steps, smallest).astype(np.float32)
    errors = [_squared_error(seen.values, scale, low=low, high=high) for scale in candidates]
    # the widest of equals: values that were not seen clip last
    return float(candidates[len(errors) - 1 - int(np.argmin(errors[::-1]))])


def _squared_error(values: NDArray[np.float32], scale: np.float32, *, low: int, high: int) -> float:
    restored = np.clip(np.rint(values / scale), low, high) * scale
    return float(np.mean(np.square(restored - values, dtype=np.float64)))
