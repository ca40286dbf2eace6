"""Integer biases that leave every output code what it was. NumPy only.

onnxruntime's integer convolution computes  code = round((acc + b) * u / s_y)  with an int32 b in steps of u = s_x * s_w,
where the network was trained with a real bias. Below 8 bits u is large (64 * 64 times larger at 2 bits than at 8), and
b = round(bias / u) moves the thresholds between output codes far enough to change one code in a hundred.

But acc is an integer. A threshold may move as long as no reachable acc lies in between. With weights stored as
W * 2^k at scale s_w / 2^k, the same products, the reachable accs are the multiples of 2^k in the finer steps, so the
room grows to 2^k steps while the rounding of b stays at half a step. `exact_bias` picks a b in the room that all
thresholds of a channel share. It exists nearly always at 2 and 4 bits, seldom at 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_INT8_LOW, _INT8_HIGH = -128, 127


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasCodes:
    """codes: int32-valued [channels]. exact: bool [channels], False where some output code can differ."""

    codes: NDArray[np.float64]
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


def exact_bias(
    bias: NDArray[np.float64], step: NDArray[np.float64], lattice: NDArray[np.float64], thresholds: NDArray[np.float64]
) -> BiasCodes:
    """Bias codes that keep every threshold between the same two reachable accumulators, where there are any.

    Args:
        bias: real biases [channels]. step: s_x * s_w, value of one accumulator unit [channels].
        lattice: 2^k, distance of reachable accumulators in units [channels].
        thresholds: outputs at which the output code changes [n]; empty when the output is not quantized.

    Returns:
        The shared room's integer nearest to bias / step, or the rounded bias / step where the room has no integer.
    """
    exact_value = bias / step
    crossings = (thresholds[None, :] - bias[:, None]) / step[:, None]
    width = lattice[:, None]
    above = np.ceil(crossings / width) * width
    # crossing + (bias/step - b) must stay in (above - width, above]
    upper = (above - crossings).min(axis=1, initial=np.inf)
    lower = (above - width - crossings).max(axis=1, initial=-np.inf)
    first = np.ceil(exact_value - upper)
    last = np.ceil(exact_value - lower) - 1
    rounded = np.rint(exact_value)
    exact = first <= last
    return BiasCodes(codes=np.where(exact, np.clip(rounded, first, last), rounded), exact=exact)
