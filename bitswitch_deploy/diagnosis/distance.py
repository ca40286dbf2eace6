"""How far two tensors are from each other, over batches: sums only, so memory does not grow with the samples.

With r the reference and o the other, d = o - r:

    SQNR     10 * log10(sum r^2 / sum d^2) dB; infinite when o = r
    cosine   sum r * o / sqrt(sum r^2 * sum o^2); 1 when both are zero

and for each channel, whose values vary by var(r) around their mean:

    gain     cov(o, r) / var(r)            2 when a scale was doubled, -1 when a sign was lost
    offset   mean(d) / std(r)              what a rounded bias does
    noise    var(d) / var(r)               all but the offset

Where no channel varies, as with one sample and one value for each channel, mean(r^2) of the tensor is in the place of
var(r): all of an error is an offset then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.validation.metrics import decibel

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

# A channel that hardly varies is held against a hundredth of the usual amplitude: float rounding is not a fault.
_LEAST_VARIANCE = 1e-4
# Of one sample, or of samples that are all alike, float32 sums leave up to this share of the energy as variance.
_NO_VARIANCE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorError:
    """Distance of a tensor from its reference."""

    sqnr_db: float
    cosine: float


class Distance:
    """Collects the distance of one tensor."""

    def __init__(self) -> None:
        self._rr = self._oo = self._ro = self._dd = 0.0

    def add(self, reference: Array, other: Array) -> None:
        """Add one batch, two arrays of one shape."""
        # float32 products: their rounding is a millionth of a sum, and tensors are large
        r, o = np.ravel(_floats(reference)), np.ravel(_floats(other))
        d = o - r
        self._rr += float(r @ r)
        self._oo += float(o @ o)
        self._ro += float(r @ o)
        self._dd += float(d @ d)

    def result(self) -> TensorError:
        """The distance so far."""
        return TensorError(sqnr_db=decibel(self._rr, self._dd), cosine=self._cosine())

    def _cosine(self) -> float:
        if self._rr == 0.0 or self._oo == 0.0:
            return 1.0 if self._rr == self._oo else 0.0
        return min(self._ro / math.sqrt(self._rr * self._oo), 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelError:
    """The worst channel of a tensor: its index, its gain, offset and noise (see the module), of how many values."""

    channel: int
    gain: float
    offset: float
    noise_db: float
    values: int


class ChannelDistance:
    """Collects the distance of one tensor for each of its channels.

    A tensor of less than two axes, or with another number of channels in another batch, is one channel.

    Args:
        axis: of the channels.
    """

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._n = 0
        self._sums: Floats | None = None

    def add(self, reference: Array, other: Array) -> None:
        """Add one batch, two arrays [n, ...] of one shape."""
        r = self._by_channel(_floats(reference))
        d = self._by_channel(_floats(other)) - r
        if self._sums is not None and self._sums.shape[1] != len(r):
            self._n *= self._sums.shape[1]
            self._sums, r, d = self._sums.sum(1, keepdims=True), r.reshape(1, -1), d.reshape(1, -1)
        sums = np.zeros((5, len(r)))
        sums[:2] = r.sum(1, dtype=np.float64), _row_products(r, r)
        if d.any():
            sums[2:] = d.sum(1, dtype=np.float64), _row_products(d, d), _row_products(r, d)
        self._sums = sums if self._sums is None else self._sums + sums
        self._n += r.shape[1]

    def worst(self) -> ChannelError:
        """The channel with the largest noise, of equals the first.

        Raises:
            ValueError: nothing was added.
        """
        if self._sums is None:
            raise ValueError("no batch was added")
        r, rr, d, dd, rd = self._sums / self._n
        variance, noise, covariance = rr - r * r, np.maximum(dd - d * d, 0.0), rd - r * d
        varies = bool((variance > _NO_VARIANCE * rr).any())
        least = _LEAST_VARIANCE * float(variance.mean()) if varies else float(rr.mean())
        held = np.maximum(variance, max(least, np.finfo(np.float32).tiny))
        # a rounded bias may be off by what is much for a channel that hardly varies, and little for whoever reads it
        offset = d / np.sqrt(np.where(variance < least, np.maximum(held, variance.mean()), held))
        worst = int(np.argmax(noise / held + offset * offset))
        return ChannelError(
            channel=worst,
            gain=float(1.0 + covariance[worst] / held[worst]),
            offset=float(offset[worst]),
            noise_db=decibel(float(held[worst]), float(noise[worst])),
            values=self._n,
        )

    def _by_channel(self, values: Array) -> Array:
        if values.ndim < 2 or (self._sums is not None and self._sums.shape[1] == 1):
            return values.reshape(1, -1)
        moved = np.moveaxis(values, self._axis, 0)
        return moved.reshape(moved.shape[0], -1)


def _row_products(a: Array, b: Array) -> Floats:
    """The inner product of each row of two arrays, [rows]: in float64, as squares of means are taken from it."""
    return np.asarray(np.einsum("ij,ij->i", a, b, dtype=np.float64))


def _floats(values: Array) -> Array:
    """Values that can be subtracted: of whole numbers and truth values float64, of floats themselves."""
    return values if values.dtype.kind == "f" else values.astype(np.float64)
