"""Ranges of float tensors, seen on calibration samples, and the scale that fits them best. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Clipping to 40 % of the maximum is past every optimum of 8-bit codes on bell-shaped and one-sided activations.
_CLIP_FRACTIONS = np.linspace(0.4, 1.0, 61)
_MAX_SAMPLES = 1 << 16
# Gaps in fixed point, exact whatever the number of values. The first is the golden ratio and the others are its
# multiples by powers of two: these fall into step with no length of rows and no number of channels.
_ONE = 1 << 20
_GOLDEN = 1696631
# How much more squared error a scale may have that spares an operator: that of steps of three times the size.
_COST = 9.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRange:
    """What was seen of one tensor: its extremes over all samples and an evenly thinned part of its values [k]."""

    minimum: float
    maximum: float
    values: NDArray[np.float32]


class RangeObserver:
    """Collects the range of one tensor over batches; memory is bounded by `_MAX_SAMPLES` values.

    Of all values, numbered as they come, those at the multiples of one gap are kept; when they get too many, the gap
    widens. So early and late values count alike, and it makes no difference how samples are split into batches.
    """

    def __init__(self) -> None:
        self._minimum, self._maximum = np.inf, -np.inf
        self._seen, self._gap = 0, _ONE
        self._kept = np.empty(0, np.float32)

    def observe(self, batch: NDArray[np.float32]) -> None:
        """Add one batch of any shape."""
        values = np.asarray(batch, np.float32).ravel()
        self._minimum = min(self._minimum, float(values.min()))
        self._maximum = max(self._maximum, float(values.max()))
        first, self._seen = self._seen, self._seen + values.size
        while self._seen * _ONE > self._gap * _MAX_SAMPLES:
            self._widen()
        self._kept = np.append(self._kept, values[_places(first, self._seen, self._gap) - first])

    def result(self) -> TensorRange:
        """The range so far.

        Raises:
            ValueError: nothing was observed.
        """
        if not self._seen:
            raise ValueError("no batch was observed")
        return TensorRange(minimum=self._minimum, maximum=self._maximum, values=self._kept)

    def _widen(self) -> None:
        factor = _GOLDEN if self._gap == _ONE else 2 * _ONE
        self._gap = self._gap * factor // _ONE
        self._kept = self._kept[_places(0, self._kept.size, factor)]


def _places(first: int, end: int, gap: int) -> NDArray[np.int64]:
    """The multiples of a gap, rounded down, from `first` to before `end`."""
    multiples = np.arange(-(-first * _ONE // gap), -(-end * _ONE // gap), dtype=np.int64)
    return multiples * gap // _ONE


def best_scale(seen: TensorRange, *, low: int, high: int) -> float:
    """The symmetric float32 scale whose codes low..high have the least squared error on the values seen.

    Source: the usual search over clipping thresholds (minimum mean squared error), as in post-training quantization.
    A tensor that is zero everywhere gets scale 1.
    """
    smallest = float(np.finfo(np.float32).tiny)
    peak = _peak(seen, low=low, high=high)
    if peak < smallest:
        return 1.0
    return _best(seen, np.maximum(_CLIP_FRACTIONS[::-1] * peak, smallest), low=low, high=high)[0]


def dividing_scale(seen: TensorRange, step: float, *, low: int, high: int) -> float:
    """The best scale step / k with an odd k, where that costs little against `best_scale`; else `best_scale` itself.

    Args:
        step: of a quantizer that reads the codes. Its thresholds, at odd multiples of step / 2, lie midway between two
            multiples of step / k, so rounding to those first never takes a value across one: the quantizer finds in the
            codes what it would have found in the values.
    """
    most = step / (_CLIP_FRACTIONS[0] * max(_peak(seen, low=low, high=high), float(np.finfo(np.float32).tiny)))
    odd = np.arange(1, min(max(most, 1.0), -low + high) + 1, 2)
    scale, _ = _best(seen, step / odd, low=low, high=high)
    little = costs_little(seen, scale, low=low, high=high, own=(low, high))
    return scale if little else best_scale(seen, low=low, high=high)


def costs_little(seen: TensorRange, scale: float, *, low: int, high: int, own: tuple[int, int]) -> bool:
    """Whether codes low..high of this scale have little more squared error than the tensor's own codes at their best.

    Args:
        own: first and last code that the tensor would have otherwise. Measured against the best scale of low..high,
            codes that end short of the values on one side would seem to cost nothing: no scale gets these back.
    """
    first, last = own
    least = _squared_error(seen.values, best_scale(seen, low=first, high=last), low=first, high=last)
    return _squared_error(seen.values, scale, low=low, high=high) <= _COST * least


def _peak(seen: TensorRange, *, low: int, high: int) -> float:
    """The scale at which nothing is clipped."""
    return max(abs(seen.minimum), abs(seen.maximum)) / max(high, -low)


def _best(seen: TensorRange, candidates: NDArray[np.float64], *, low: int, high: int) -> tuple[float, float]:
    """The first of the scales with the least error, and that error. Give wide ones first: unseen values clip last."""
    scales = [float(scale) for scale in candidates.astype(np.float32)]
    errors = [_squared_error(seen.values, scale, low=low, high=high) for scale in scales]
    place = int(np.argmin(errors))
    return scales[place], errors[place]


def _squared_error(values: NDArray[np.float32], scale: float, *, low: int, high: int) -> float:
    restored = np.clip(np.rint(values / np.float32(scale)), low, high) * np.float32(scale)
    return float(np.mean(np.square(restored - values, dtype=np.float64)))
