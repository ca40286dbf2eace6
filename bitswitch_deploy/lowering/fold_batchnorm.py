"""FoldBatchNorm: BatchNormalization behind a quantized layer goes into its scale, signs and bias."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.channel_axis import along, channel_axis
from bitswitch_deploy.graph.qdq import WeightPattern, match_weight, multiply_codes, producer_of, sole_reader
from bitswitch_deploy.lowering.lowering_pass import LoweringPass

# Sums times it are too small for any output to notice, and times the scale of an input it is still a normal number.
_SMALLEST_SCALE = 2.0**-80
_LOWEST_CODE = -128


@dataclass(frozen=True, slots=True, kw_only=True)
class _Affine:
    """BatchNormalization as y = gain * x + offset, each [channels]."""

    gain: NDArray[np.float32]
    offset: NDArray[np.float32]


class FoldBatchNorm(LoweringPass):
    """Fold y = gain * conv(x) + offset, gain = gamma / sqrt(var + eps), into the layer. Exact on the integer codes.

    TensorRT needs positive scales, so a negative gain flips the signs of its channel's codes and the scale takes
    |gain|. The flip is a factor -1 beside the codes, which stay the ones derived from the master. A channel that holds
    -128, whose negative has no int8 code, keeps its signs and gets a negative scale where the target takes one.
    Training with weight decay leaves channels that died: their gain is zero, or so small that their scale would
    underflow. They get a scale so small that their sums vanish beside the offset and beside every code.
    Cases: scale per tensor (becomes per channel) or per channel; Conv, Gemm and ungrouped ConvTranspose; layer with or
    without bias; several BatchNormalizations in a row.
    Left alone, and recorded: a gain too large for a float32 scale; a negative gain in a channel that holds -128 for a
    target without negative scales; scales per block; grouped ConvTranspose, whose channels share a scale across groups;
    a weight that several nodes read; Gemm with alpha or beta; a bias, mean or the like that is computed; training mode.
    Left alone: a layer whose output others read, too. A BatchNormalization behind a float layer is the runtime's own
    business.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Fold every foldable node; see the class for the cases."""
        modified = False
        for node in [node for node in graph.nodes if node.op == "BatchNormalization"]:
            layer = producer_of(node.inputs[0])
            if layer is None or layer.op not in ("Conv", "ConvTranspose", "Gemm"):
                continue
            weight = match_weight(layer.inputs[1])
            if weight is None or sole_reader(graph, layer.outputs[0]) is not node:
                continue
            shared = sole_reader(graph, layer.inputs[1]) is None
            obstacle = "several nodes read the weight" if shared else self._obstacle(layer, weight, node)
            if obstacle is not None:
                self.record(weight.codes.name, f"BatchNormalization kept: {obstacle}", exact=True)
                continue
            self._fold(graph, layer, weight, node)
            modified = True
        return modified

    def _obstacle(self, layer: gs.Node, weight: WeightPattern, node: gs.Node) -> str | None:
        return _obstacle_of_kind(layer, weight, node) or self._obstacle_of_value(layer, weight, _affine(node))

    def _obstacle_of_value(self, layer: gs.Node, weight: WeightPattern, affine: _Affine) -> str | None:
        with np.errstate(over="ignore"):
            folded = weight.scale.values * np.abs(affine.gain)
        if not np.all(np.isfinite([*folded, *affine.offset])):
            return "a gain too large for a float32 scale"
        if _unflippable(layer, weight, affine).any() and not self.context.target.quantization.negative_scales:
            return "a negative gain in a channel with code -128"
        return None

    def _fold(self, graph: gs.Graph, layer: gs.Node, weight: WeightPattern, node: gs.Node) -> None:
        affine = _affine(node)
        axis, name = channel_axis(layer), weight.codes.name
        mirrored = _unflippable(layer, weight, affine)
        flipped = (affine.gain < 0) & ~mirrored
        if flipped.any():
            signs = np.where(flipped, -1, 1).astype(np.int32)
            multiply_codes(graph, weight, along(axis, signs, len(weight.codes.shape)))
            self._record(name, "signs flipped", flipped, "negative BatchNormalization gain")
        if mirrored.any():
            self._record(name, "scale negated", mirrored, "negative BatchNormalization gain and code -128")
        # it has a sign already where another BatchNormalization was folded before
        before = np.where(mirrored, -weight.scale.values, weight.scale.values)
        size = np.maximum(np.abs(before * affine.gain), _SMALLEST_SCALE)
        weight.scale.values = np.asarray(np.copysign(size, before), np.float32)
        zero_point = weight.dequantize.inputs[2]
        zero_point.values = np.zeros(weight.scale.values.shape, zero_point.values.dtype)
        weight.dequantize.attrs["axis"] = axis
        bias = affine.offset
        if len(layer.inputs) > 2 and not layer.inputs[2].is_empty():
            bias = (bias + affine.gain * np.asarray(layer.inputs[2].values)).astype(np.float32)
        layer.inputs = [*layer.inputs[:2], gs.Constant(f"{name}.folded_bias", bias)]
        output = node.outputs[0]
        node.outputs.clear()
        layer.outputs = [output]

    def _record(self, name: str, what: str, channels: NDArray[np.bool_], why: str) -> None:
        listed = ", ".join(str(channel) for channel in np.flatnonzero(channels))
        self.record(name, f"{what} in output channels {listed} ({why})", exact=True)


def _affine(node: gs.Node) -> _Affine:
    gamma, beta, mean, variance = (np.asarray(tensor.values, np.float64) for tensor in node.inputs[1:5])
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    if not np.all(variance + epsilon > 0):
        raise GraphError(
            where=f"BatchNormalization {node.name}",
            got=f"running variance down to {variance.min()}",
            allowed=f"more than {-epsilon}",
            do="correct the running statistics in the master",
        )
    gain = gamma / np.sqrt(variance + epsilon)
    with np.errstate(over="ignore"):
        return _Affine(gain=gain.astype(np.float32), offset=(beta - mean * gain).astype(np.float32))


def _obstacle_of_kind(layer: gs.Node, weight: WeightPattern, node: gs.Node) -> str | None:
    if node.attrs.get("training_mode", 0) or not all(isinstance(tensor, gs.Constant) for tensor in node.inputs[1:5]):
        return "training mode, or parameters that are not constants"
    scale = np.asarray(weight.scale.values)
    axis = channel_axis(layer)
    if weight.is_blocked or (scale.ndim == 1 and weight.dequantize.attrs.get("axis", 1) != axis):
        return "the scale does not run along the output channels"
    if layer.op == "ConvTranspose" and layer.attrs.get("group", 1) != 1:
        return "output channels of a grouped ConvTranspose share their scales"
    if layer.op == "Gemm" and (layer.attrs.get("alpha", 1.0), layer.attrs.get("beta", 1.0)) != (1.0, 1.0):
        return "Gemm with alpha or beta"
    if len(layer.inputs) > 2 and not isinstance(layer.inputs[2], gs.Constant) and not layer.inputs[2].is_empty():
        return "the bias is not a constant"
    return None


def _unflippable(layer: gs.Node, weight: WeightPattern, affine: _Affine) -> NDArray[np.bool_]:
    """Channels with a negative gain and a code whose negative does not exist."""
    codes, axis = np.asarray(weight.codes.values), channel_axis(layer)
    lowest = codes.min(axis=tuple(index for index in range(codes.ndim) if index != axis))
    return np.asarray((affine.gain < 0) & (lowest == _LOWEST_CODE), np.bool_)
