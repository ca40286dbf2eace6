"""ShortcutConvolution: every second pixel, padded with channels of zeros, by one integer convolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.qdq import (
    ActivationPattern,
    activation_patterns,
    add_weight_dq,
    match_activation,
    match_weight,
    producer_of,
    sole_reader,
)
from bitswitch_deploy.lowering.lowering_pass import LoweringPass

_ROWS, _COLUMNS, _CHANNELS = 2, 3, 1
_SAME_CHANNELS = ("Relu", "Clip", "Identity", "MaxPool", "BatchNormalization", "QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shortcut:
    """The chain DequantizeLinear, Slice, ..., Pad, QuantizeLinear: what goes in, what it does, what comes out."""

    source: gs.Tensor
    stride: tuple[int, int]
    channels: tuple[int, int, int]
    end: gs.Node


class ShortcutConvolution(LoweringPass):
    """Replace the parameter-free shortcut of a residual network (option A of He et al., 2015).

    onnxruntime moves single bytes slowly: Slice and Pad take 8 % of the time of a ResNet-20, this 3 %. A 1x1
    convolution with a stride, and weights that are an identity matrix with rows of zeros, computes the same codes in
    the fast integer kernel: the accumulator is the code, and its scale is 1. Exact.
    Cases: Slices along rows, columns or both from the first pixel on with a step; a Pad with zeros along the channels.
    Left alone: other Slices and Pads, a chain whose codes change their scale or that others read, a number of channels
    that no convolution in front of it tells.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Replace every such chain; see the class for the cases."""
        found = [chain for pattern in activation_patterns(graph) if (chain := _shortcut(graph, pattern)) is not None]
        for chain in found:
            _replace(graph, chain)
        return bool(found)


def _shortcut(graph: gs.Graph, pattern: ActivationPattern) -> _Shortcut | None:
    end = pattern.quantize
    pad = producer_of(pattern.source)
    if pattern.clip is not None or pad is None or pad.op != "Pad" or sole_reader(graph, pad.outputs[0]) is not end:
        return None
    added = _added_channels(pad)
    tensor, steps = pad.inputs[0], {_ROWS: 1, _COLUMNS: 1}
    while (node := producer_of(tensor)) is not None and node.op == "Slice":
        taken = _steps(node)
        if taken is None or sole_reader(graph, tensor) is None:
            return None
        for axis, step in taken.items():
            steps[axis] *= step
        tensor = node.inputs[0]
    before = match_activation(node) if node is not None and node.op == "DequantizeLinear" else None
    channels = _channels(tensor)
    if added is None or before is None or before.shift or channels is None or tuple(steps.values()) == (1, 1):
        return None
    if (before.codes.scale, before.codes.zero_point) != (pattern.codes.scale, pattern.codes.zero_point):
        return None
    first, last = added
    return _Shortcut(source=tensor, stride=(steps[_ROWS], steps[_COLUMNS]), channels=(first, channels, last), end=end)


def _added_channels(pad: gs.Node) -> tuple[int, int] | None:
    """Channels of zeros that a Pad puts first and last, None when it does anything else."""
    constants = [tensor for tensor in pad.inputs[1:] if not tensor.is_empty()]
    if not all(isinstance(tensor, gs.Constant) for tensor in constants) or len(pad.inputs) > 3:
        return None
    if pad.attrs.get("mode", "constant") != "constant" or any(np.any(tensor.values) for tensor in constants[1:]):
        return None
    pads = [int(amount) for amount in constants[0].values]
    if len(pads) != 8 or any(pads[axis] for axis in (0, 2, 3, 4, 6, 7)) or min(pads) < 0:
        return None
    return pads[_CHANNELS], pads[_CHANNELS + 4]


def _steps(node: gs.Node) -> dict[int, int] | None:
    """Step along each axis of a Slice that takes every so many pixels from the first to the last; None for others."""
    if len(node.inputs) != 5 or not all(isinstance(tensor, gs.Constant) for tensor in node.inputs[1:]):
        return None
    starts, ends, axes, steps = ([int(each) for each in tensor.values] for tensor in node.inputs[1:])
    if any(starts) or any(end < np.iinfo(np.int32).max for end in ends):
        return None
    if not all(axis in (_ROWS, _COLUMNS) and step > 0 for axis, step in zip(axes, steps)):
        return None
    return dict(zip(axes, steps))


def _channels(tensor: gs.Tensor) -> int | None:
    """Channels of an image, as the convolution tells that it comes from; of a sum, as one of its inputs tells."""
    producer = producer_of(tensor)
    while producer is not None and producer.op in _SAME_CHANNELS:
        producer = producer_of(producer.inputs[0])
    if producer is not None and producer.op == "Add":
        # one channel may be broadcast, more are those of the sum
        known = (_channels(each) for each in producer.inputs)
        return next((channels for channels in known if channels is not None and channels > 1), None)
    if producer is None or producer.op != "Conv":
        return None
    weight = match_weight(producer.inputs[1])
    constant = weight.codes if weight is not None else producer.inputs[1]
    if not isinstance(constant, gs.Constant) or constant.values.ndim != 4:
        return None
    return int(constant.values.shape[0])


def _replace(graph: gs.Graph, chain: _Shortcut) -> None:
    first, channels, last = chain.channels
    codes = np.zeros((first + channels + last, channels, 1, 1), np.int8)
    codes[np.arange(first, first + channels), np.arange(channels)] = 1
    name = chain.end.name.removesuffix("/QuantizeLinear")
    weight = add_weight_dq(graph, gs.Constant(f"{name}.identity", codes), np.ones((), np.float32), {})
    moved = gs.Variable(f"{name}.moved", dtype=np.float32)
    attributes = {"kernel_shape": [1, 1], "strides": list(chain.stride)}
    graph.nodes.append(gs.Node("Conv", f"{name}/Conv", attributes, [chain.source, weight], [moved]))
    chain.end.inputs[0] = moved
