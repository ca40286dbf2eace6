"""QuantizePinned: layers that training kept in float get 8-bit weights and inputs, if the user wants that."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.channel_axis import along, channel_axis
from bitswitch_deploy.graph.qdq import ActivationCodes, add_activation_qdq, add_weight_dq, is_dequantized
from bitswitch_deploy.lowering.approximation import Approximation
from bitswitch_deploy.lowering.lowering_pass import LoweringPass
from bitswitch_deploy.lowering.ranges import TensorRange, best_scale

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LARGEST = 127
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


class QuantizePinned(LoweringPass):
    """Quantize float layers after training: a small network spends most of its time in the first one. Inexact.

    Weights: one symmetric scale for each output channel, max |w| / 127. Inputs: the range seen on calibration samples.
    Cases: Conv, ungrouped ConvTranspose, Gemm, MatMul with a constant 2-D or larger float weight; an input that is in
    codes already keeps them. Left alone: a weight that is computed or that several nodes read, grouped ConvTranspose;
    everything where PINNED_LAYERS was not asked for.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Quantize every float layer that can be; see the class for the cases."""
        if Approximation.PINNED_LAYERS not in self.context.approximations:
            return False
        layers = pinned_layers(graph)
        for node in layers:
            self._quantize(graph, node)
        if layers:
            where, what = ", ".join(node.name for node in layers), "8-bit weights and inputs after training"
            self.record(where, what, exact=False, approximation=Approximation.PINNED_LAYERS)
        return bool(layers)

    def _quantize(self, graph: gs.Graph, node: gs.Node) -> None:
        tensor, weight = node.inputs[0], node.inputs[1]
        if not is_dequantized(tensor):
            seen = self.context.ranges.get(tensor.name)
            if seen is None:
                raise GraphError(
                    where=f"input {tensor.name} of {node.name}",
                    got="no observed range",
                    allowed="a range for every tensor of calibrated_tensors",
                    do="observe the ranges on the canonical graph that is lowered",
                )
            node.inputs[0] = add_activation_qdq(graph, tensor, self._codes(seen), name=f"{node.name}.input")
        axis = channel_axis(node)
        values = np.asarray(weight.values, np.float64)
        scale = _scales(values, axis)
        steps = along(axis, scale, values.ndim).astype(np.float64)
        codes = np.clip(np.rint(values / steps), -_LARGEST, _LARGEST)
        stored = gs.Constant(f"{weight.name}.codes", codes.astype(np.int8))
        node.inputs[1] = add_weight_dq(graph, stored, scale, {"axis": axis})

    def _codes(self, seen: TensorRange) -> ActivationCodes:
        activation = self.context.target.quantization.activation
        halved = activation.dtype == "int8" and activation.zero_point == 0
        unsigned = seen.minimum >= 0
        low, high = (0, _LARGEST if halved else 255) if unsigned else (-128, _LARGEST)
        return ActivationCodes(
            scale=np.float32(best_scale(seen, low=low, high=high)),
            zero_point=0,
            container=np.uint8 if unsigned else np.int8,
            low=low,
            high=high,
        )


def pinned_layers(graph: gs.Graph) -> list[gs.Node]:
    """The float layers of a canonical graph that the pass quantizes, in graph order."""
    return [node for node in graph.nodes if _is_pinned(node)]


def _is_pinned(node: gs.Node) -> bool:
    if node.op not in _WEIGHTED or not isinstance(node.inputs[1], gs.Constant):
        return False
    weight = node.inputs[1]
    if weight.values.dtype != np.float32 or weight.values.ndim < 2 or len(weight.outputs) != 1:
        return False
    if node.op == "MatMul" and weight.values.ndim != 2:
        return False
    return not (node.op == "ConvTranspose" and node.attrs.get("group", 1) != 1)


def _scales(values: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    others = tuple(index for index in range(values.ndim) if index != axis)
    scales = np.abs(values).max(axis=others) / _LARGEST
    return np.where(scales < _SMALLEST_SCALE, 1.0, scales).astype(np.float32)
