"""What the codes of a layer look like at a width: weights from the master, inputs as the canonical graph sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.graph.channel_axis import channel_axis_in
from bitswitch_deploy.graph.plan import ActivationPlan, LayerPlan
from bitswitch_deploy.master import Master
from bitswitch_deploy.master.spec import LayerSpec
from bitswitch_deploy.quantization import derive_codes
from bitswitch_deploy.tensors import code_range

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightStatistics:
    """Weight codes of one layer.

    low, counts: the smallest code of the width, and how often it and each following one occurs.
    clipped_percent: weights that rounding takes above the largest code; they become smaller than they should be.
    zero_channels, channels: output channels without any weight but zero, of how many.
    """

    low: int
    counts: tuple[int, ...]
    clipped_percent: float
    zero_channels: int
    channels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InputStatistics:
    """Codes of the input of one layer.

    low, counts: as for weights.
    saturated_percent: inputs beyond the largest or the smallest code.
    peak_ratio: largest input over what the largest code means; far above 1 outliers are cut, far below 1 codes idle.
    dead_channels, channels: input channels that are zero for every sample, of how many.
    """

    low: int
    counts: tuple[int, ...]
    saturated_percent: float
    peak_ratio: float
    dead_channels: int
    channels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStatistics:
    """One layer at one width; input is None where it stays in float."""

    layer: str
    bits: int
    weights: WeightStatistics
    input: InputStatistics | None


def weight_statistics(master: Master, plan: LayerPlan) -> WeightStatistics:
    """Statistics of the weight codes of one layer."""
    spec = master.spec
    stored = np.asarray(master.tensors[plan.layer.weight])
    codes = derive_codes(stored, from_bits=spec.bits, to_bits=plan.bits, rounding=spec.rounding)
    allowed, step = code_range(plan.bits, signed=True), 2 ** (spec.bits - plan.bits)
    # a tie at the upper end goes up under both rules: the largest code is odd
    clipped = np.count_nonzero(stored.astype(np.int16) >= (allowed.high + 0.5) * step) if step > 1 else 0
    weight = codes if codes.ndim > 1 else codes[:, np.newaxis]  # a vector makes one channel
    axis = _channel_axis(master, plan.layer, weight.ndim)
    by_channel = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    counts = np.bincount(codes.ravel().astype(np.int16) - allowed.low, minlength=allowed.high - allowed.low + 1)
    return WeightStatistics(
        low=allowed.low,
        counts=tuple(counts.tolist()),
        clipped_percent=100.0 * clipped / codes.size,
        zero_channels=int((by_channel == 0).all(1).sum()),
        channels=len(by_channel),
    )


def _channel_axis(master: Master, layer: LayerSpec, rank: int) -> int:
    """Of the weight: scales need not run along it, a layer may have one for all channels or for each block."""
    reader = next(node for node in master.skeleton.graph.node if layer.weight in node.input[1:2])
    return channel_axis_in(reader, rank)


class InputObserver:
    """Collects the statistics of one input, batch by batch.

    Args:
        plan: of the activation. channel_axis: of the tensor.
    """

    def __init__(self, plan: ActivationPlan, *, channel_axis: int) -> None:
        self._plan, self._axis = plan, channel_axis
        self._counts = np.zeros(plan.codes.high - plan.codes.low + 1, np.int64)
        self._peak, self._saturated, self._seen = 0.0, 0, 0
        self._alive: npt.NDArray[np.bool_] | None = None

    def add(self, source: Array, dequantized: Array) -> None:
        """Add one batch: the float input, and what became of it."""
        plan, low = self._plan, self._plan.codes.low
        codes = np.rint(dequantized / np.float32(plan.scale)).astype(np.int16)
        self._counts += np.bincount(codes.ravel() - low, minlength=self._counts.size)
        beyond = (source > (plan.codes.high + 0.5) * plan.scale) | (source < (low - 0.5) * plan.scale)
        self._saturated += int(np.count_nonzero(beyond))
        self._seen += source.size
        self._peak = max(self._peak, float(np.abs(source).max(initial=0.0)))
        axis = self._axis % codes.ndim
        alive = codes.any(tuple(index for index in range(codes.ndim) if index != axis))
        self._alive = alive if self._alive is None else self._alive | alive

    def result(self) -> InputStatistics:
        """The statistics so far.

        Raises:
            ValueError: nothing was added.
        """
        if self._alive is None:
            raise ValueError("no batch was added")
        return InputStatistics(
            low=self._plan.codes.low,
            counts=tuple(self._counts.tolist()),
            saturated_percent=100.0 * self._saturated / self._seen,
            peak_ratio=self._peak / (self._plan.scale * self._plan.codes.high),
            dead_channels=int((~self._alive).sum()),
            channels=self._alive.size,
        )
