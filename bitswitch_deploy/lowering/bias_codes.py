"""Integer biases that leave every output code what it was. NumPy only.

onnxruntime's integer convolution computes  code = round((acc + b) * u / s_y)  with b in int32 and u = s_x * s_w. The
network was trained with a real bias. Below 8 bits u is large (64 * 64 times larger at 2 bits than at 8), and
b = round(bias / u) moves the thresholds between output codes far enough to change one code in a hundred.

But acc is an integer. A threshold may move as long as no reachable acc lies in between. Four freedoms make that room
enough, and the first three cost nothing at run time:

* weights stored as W * 2^k at scale s_w / 2^k give the same products, but now the reachable accs are the multiples of
  2^k in steps 2^k times finer;
* b need not be the nearest integer, only one that suits all thresholds of its channel;
* the step u itself may be stretched a little (about 1e-3), which moves far thresholds more than near ones;
* input codes that leave bits of their container free may be shifted left, X * 2^k at scale s_x / 2^k.

`fit_bias` searches b and the stretch. It succeeds for nearly every channel from 2 to 4 bits, for some at 5 and 6 and
for few above, where neither weights nor inputs leave bits free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_INT8_LOW, _INT8_HIGH = -128, 127
# How far from the nearest integer a bias is searched, nearest first; the room rarely reaches farther.
_CANDIDATES = np.asarray(sorted(range(-12, 13), key=abs), np.float64)
# A bias out of reach of all thresholds may be any number out of their reach; the sum with an accumulator fits int32.
LARGEST_CODE = 2.0**30
_MAX_STRETCH = 0.01
# Relative; ten times what float32 loses on the way from the accumulator to the code.
_MIN_ROOM = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasFit:
    """For each of [channels]: integer `codes`, `stretch` to multiply the step with, and whether all codes are kept."""

    codes: NDArray[np.float64]
    stretch: NDArray[np.float64]
    exact: NDArray[np.bool_]


def largest_shift(weights: NDArray[np.int32], axis: int) -> NDArray[np.int32]:
    """The largest k of each index of `axis`, 0..6, for which weights * 2^k still fits int8; [channels]."""
    others = tuple(index for index in range(weights.ndim) if index != axis)
    low, high = weights.min(axis=others, initial=0), weights.max(axis=others, initial=0)
    shifts = np.zeros(low.shape, np.int32)
    for k in range(1, 7):
        fits = (low * 2**k >= _INT8_LOW) & (high * 2**k <= _INT8_HIGH)
        shifts[fits] = k
    return shifts


@dataclass(frozen=True, slots=True, kw_only=True)
class Accumulator:
    """What the integer sum of each of [channels] can be: multiples of `lattice` in low..high, one unit worth `step`."""

    step: NDArray[np.float64]
    lattice: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def finer(self, factor: int) -> Accumulator:
        """The same sums counted in units of `step` / `factor`."""
        return Accumulator(
            step=self.step / factor, lattice=self.lattice * factor, low=self.low * factor, high=self.high * factor
        )


def fit_bias(bias: NDArray[np.float64], accumulator: Accumulator, thresholds: NDArray[np.float64]) -> BiasFit:
    """Bias codes, and stretches of the step, that keep every threshold between the same two reachable accumulators.

    Args:
        bias: real biases [channels].
        accumulator: with step s_x * s_w and lattice 2^k.
        thresholds: outputs at which the output code changes, not 0 [n].

    Returns:
        The fit with the least stretch; where there is none, bias / step rounded to nearest in -2^30..2^30, marked not
        exact.
    """
    nearest = np.clip(np.rint(bias / accumulator.step), -LARGEST_CODE, LARGEST_CODE)
    fits = [
        _fit_channel(c, float(bias[c]), accumulator, thresholds, nearest[c] + _CANDIDATES) for c in range(bias.size)
    ]
    return BiasFit(
        codes=np.asarray([fit[0] if fit else rounded for fit, rounded in zip(fits, nearest)], np.float64),
        stretch=np.asarray([fit[1] if fit else 1.0 for fit in fits], np.float64),
        exact=np.asarray([fit is not None for fit in fits], np.bool_),
    )


def _fit_channel(
    channel: int, bias: float, reach: Accumulator, thresholds: NDArray[np.float64], candidates: NDArray[np.float64]
) -> tuple[float, float] | None:
    """(code, stretch) of one channel, or None.

    The accumulator crosses threshold t at (t - bias) / step; the first reachable one past it is `above`. With code b
    and a step of step * stretch it crosses at z * t / step - b, z = 1 / stretch, which must stay in
    (above - lattice, above], without an end where no reachable accumulator lies beyond it. That is an interval of z for
    each threshold, and the intervals must intersect.
    """
    step, lattice = reach.step[channel], reach.lattice[channel]
    low, high = reach.low[channel], reach.high[channel]
    above = np.ceil((thresholds - bias) / step / lattice) * lattice
    first = np.where(above <= low, -np.inf, np.minimum(above - lattice, high))
    last = np.where(above > high, np.inf, np.maximum(above, low))
    ends = np.sort((np.stack([first, last]) + candidates[:, None, None]) / (thresholds / step), axis=1)
    least = ends[:, 0].max(axis=1, initial=1 - _MAX_STRETCH)
    most = ends[:, 1].min(axis=1, initial=1 + _MAX_STRETCH)
    # in the middle of the room: the float32 arithmetic of the runtime moves thresholds, too
    middle = (least + most) / 2
    usable = most - least > _MIN_ROOM
    if not usable.any():
        return None
    best = int(np.argmin(np.where(usable, np.abs(middle - 1), np.inf)))
    return float(candidates[best]), float(1 / middle[best])
