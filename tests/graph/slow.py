"""The mathematics of a canonical graph once more: exact fractions, one number at a time, nothing shared."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from bitswitch_deploy.tensors import Rounding

Array = np.ndarray[Any, np.dtype[Any]]


def derived(codes: Array, from_bits: int, to_bits: int, rule: Rounding) -> Array:
    """Round W_h / 2^D and clip it to the lower width; a tie goes up or to the even neighbour."""

    def one(code: int) -> int:
        exact = Fraction(code, 2 ** (from_bits - to_bits))
        nearest = math.floor(exact + Fraction(1, 2)) if rule is Rounding.HALF_UP else round(exact)
        half = 1 << (to_bits - 1)
        return max(-half, min(half - 1, nearest))

    return _shaped([one(int(code)) for code in codes.ravel()], codes)


def activation_codes(x: Array, scale: np.float32, low: int, high: int) -> Array:
    """Divide in float32, round a tie to the even neighbour, clip."""
    quotients = [float(np.float32(value) / np.float32(scale)) for value in x.ravel()]
    return _shaped([max(low, min(high, round(quotient))) for quotient in quotients], x)


def _shaped(values: list[int], like: Array) -> Array:
    return np.reshape(np.array(values, np.int64), like.shape)


def spread(scale: Array, shape: tuple[int, ...], axis: int | None, block: int | None) -> Array:
    """Give every element of a weight its scale."""
    if axis is None:
        return np.full(shape, scale)
    result = np.zeros(shape, np.float32)
    for index in np.ndindex(shape):
        place = index[axis] if block is None else (*index[:axis], index[axis] // block, *index[axis + 1 :])
        result[index] = scale[place]
    return result
