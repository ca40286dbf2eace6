"""QuantizeBias: biases become int32 behind a DequantizeLinear, as onnxruntime's integer kernels want them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from bitswitch_deploy.graph.qdq import (
    ActivationCodes,
    ActivationPattern,
    WeightPattern,
    match_activation,
    match_weight,
    multiply_codes,
    producer_of,
    sole_reader,
)
from bitswitch_deploy.lowering.bias_codes import Accumulator, BiasFit, fit_bias, largest_shift
from bitswitch_deploy.lowering.fold_batchnorm import along, channel_axis
from bitswitch_deploy.lowering.lowering_pass import LoweringPass

_BIAS_INPUT = 2
_INT32_MAX = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A layer that onnxruntime runs in integers: codes in, codes out."""

    node: gs.Node
    data: ActivationPattern
    weight: WeightPattern
    output: ActivationCodes
    relu: bool


class QuantizeBias(LoweringPass):
    """Round the bias of Conv and Gemm to int32 in steps of s_x * s_w, its accumulator's unit.

    Not for TensorRT, whose parser refuses a DequantizeLinear on int32. onnxruntime does the same behind the scenes to a
    float bias, rounding to nearest; here steps and bias are chosen so that no output code changes (see bias_codes.py).
    Recorded as inexact with the share of channels where that is not possible.
    Cases: weight scale per tensor and per channel; output codes with and without Relu and Clip.
    Left alone: layers whose input, weight or output is not in codes, scales per block or along another axis; and,
    recorded, a bias that does not fit int32.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Quantize every bias that can be; see the class for the cases."""
        layers = [layer for node in graph.nodes if (layer := _integer_layer(graph, node)) is not None]
        results = [result for layer in layers if (result := self._quantize(graph, layer)) is not None]
        channels = sum(result.exact.size for result in results)
        moved = channels - sum(int(result.exact.sum()) for result in results)
        if moved:
            what = f"int32 rounding moves a code threshold in {moved} of {channels} channels"
            self.record("biases", what, exact=False)
        return bool(results)

    def _quantize(self, graph: gs.Graph, layer: _Layer) -> BiasFit | None:
        """Rewrite one layer; None when its bias stays float."""
        axis, products = channel_axis(layer.node), layer.weight.products()
        bias = np.asarray(layer.node.inputs[_BIAS_INPUT].values, np.float64).ravel()
        factors = np.int32(1) << largest_shift(products, axis)
        # one scale for each channel from here on, since each has a shift and a stretch of its own
        scale = np.broadcast_to(layer.weight.scale.values, bias.shape) / factors
        fit = fit_bias(bias, _accumulator(layer, products, factors, scale), _thresholds(layer))
        if np.abs(fit.codes).max(initial=0.0) > _INT32_MAX // 2:
            name = layer.weight.codes.name
            self.record(name, "bias kept in float: it does not fit int32 steps of s_x * s_w", exact=True)
            return None
        multiply_codes(graph, layer.weight, along(axis, factors, products.ndim))
        stretched = np.asarray(scale * fit.stretch, np.float32)
        layer.weight.scale.values = stretched
        layer.weight.dequantize.inputs[2].values = np.zeros(bias.shape, np.int8)
        layer.weight.dequantize.attrs["axis"] = axis
        step32 = np.asarray(layer.data.codes.scale * stretched, np.float32)
        layer.node.inputs[_BIAS_INPUT] = _dequantized(graph, layer.node.inputs[_BIAS_INPUT].name, fit.codes, step32)
        return fit


def _integer_layer(graph: gs.Graph, node: gs.Node) -> _Layer | None:
    if node.op not in ("Conv", "Gemm") or len(node.inputs) <= _BIAS_INPUT:
        return None
    weight, producer = match_weight(node.inputs[1]), producer_of(node.inputs[0])
    data = match_activation(producer) if producer is not None and producer.op == "DequantizeLinear" else None
    if weight is None or data is None or weight.is_blocked or not isinstance(node.inputs[_BIAS_INPUT], gs.Constant):
        return None
    if np.ndim(weight.scale.values) and weight.dequantize.attrs.get("axis", 1) != channel_axis(node):
        return None
    reader = sole_reader(graph, node.outputs[0])
    relu = reader is not None and reader.op == "Relu"
    if reader is not None and relu:
        reader = sole_reader(graph, reader.outputs[0])
    output = _output_codes(graph, reader)
    return None if output is None else _Layer(node=node, data=data, weight=weight, output=output, relu=relu)


def _output_codes(graph: gs.Graph, quantize: gs.Node | None) -> ActivationCodes | None:
    """The codes that `quantize` leads to, through at most a Clip."""
    if quantize is None or quantize.op != "QuantizeLinear":
        return None
    follower = sole_reader(graph, quantize.outputs[0])
    if follower is not None and follower.op == "Clip":
        follower = sole_reader(graph, follower.outputs[0])
    pattern = match_activation(follower) if follower is not None and follower.op == "DequantizeLinear" else None
    return None if pattern is None else pattern.codes


def _accumulator(
    layer: _Layer, products: NDArray[np.int32], factors: NDArray[np.int32], scale: NDArray[np.float64]
) -> Accumulator:
    axis, codes = channel_axis(layer.node), layer.data.codes
    others = tuple(index for index in range(products.ndim) if index != axis)
    ends = np.stack([products * (codes.low - codes.zero_point), products * (codes.high - codes.zero_point)])
    return Accumulator(
        step=np.float64(codes.scale) * scale,
        lattice=factors.astype(np.float64),
        low=ends.min(axis=0).sum(axis=others, dtype=np.float64) * factors,
        high=ends.max(axis=0).sum(axis=others, dtype=np.float64) * factors,
    )


def _thresholds(layer: _Layer) -> NDArray[np.float64]:
    """Outputs at which the code changes: half-way between neighbouring codes; below zero none survives a Relu."""
    codes = layer.output
    steps = np.arange(codes.low + 1, codes.high + 1, dtype=np.float64) - codes.zero_point - 0.5
    return steps[steps > 0] * codes.scale if layer.relu else steps * codes.scale


def _dequantized(graph: gs.Graph, name: str, codes: NDArray[np.float64], scale: NDArray[np.float32]) -> gs.Tensor:
    output = gs.Variable(f"{name}.dequantized", dtype=np.float32)
    inputs = [
        gs.Constant(f"{name}.codes", codes.astype(np.int32)),
        gs.Constant(f"{name}.codes.scale", scale),
        gs.Constant(f"{name}.codes.zero_point", np.zeros(scale.shape, np.int32)),
    ]
    graph.nodes.insert(0, gs.Node("DequantizeLinear", f"{name}/DequantizeLinear", {"axis": 0}, inputs, [output]))
    return output
