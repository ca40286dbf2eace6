"""StoreFloatWeights: float weights in front of Q and DQ, the only form that TensorRT 8 reads."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from bitswitch_deploy.graph.channel_axis import along
from bitswitch_deploy.graph.large_tensors import LargeConstant, LargeTensor
from bitswitch_deploy.graph.qdq import WeightPattern, match_weight
from bitswitch_deploy.lowering.lowering_pass import LoweringPass


class StoreFloatWeights(LoweringPass):
    """Replace int8 codes by the floats code * scale and a QuantizeLinear that gives the same codes back. Exact.

    |round(fl(c * s) / s) - c| = 0 for |c| <= 128: the float error is below 2^-16 of a step.
    Cases: scale per tensor, per channel; codes with factors, of which the products are stored. Left alone: scales per
    block, which the opsets of these stacks do not have. Nothing to do unless the target's stack has
    `weight_form: float_q_dq`.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Rewrite every weight of a stack that wants it; see the class for the cases."""
        if self.context.target.stack.weight_form != "float_q_dq":
            return False
        weights = (match_weight(tensor) for node in graph.nodes for tensor in node.inputs[1:2])
        found = {weight.codes.name: weight for weight in weights if weight is not None and not weight.is_blocked}
        for weight in found.values():
            _store_float(graph, weight)
        if found:
            self.record("weights", "stored as float32 for this TensorRT, four times the bytes", exact=True)
        return bool(found)


class _Floats(LargeTensor):
    """code * scale, float32, of a pattern with a scale per tensor or per channel."""

    def __init__(self, pattern: WeightPattern) -> None:
        shape = tuple(pattern.codes.shape)
        super().__init__(shape, onnx.TensorProto.FLOAT, 4 * math.prod(shape))
        steps, axis = np.asarray(pattern.scale.values), pattern.dequantize.attrs.get("axis", 1)
        if steps.ndim:
            steps = along(axis, steps, len(shape))
        self._pattern, self._steps = pattern, steps

    def load(self) -> NDArray[np.float32]:
        # exact products, rounded once; NumPy would take float64 for them, twice the memory
        return np.asarray(np.multiply(self._pattern.products(), self._steps, dtype=np.float32))


def _store_float(graph: gs.Graph, pattern: WeightPattern) -> None:
    codes, dequantize = pattern.codes, pattern.dequantize
    scale, zero_point = dequantize.inputs[1:3]
    floats = _Floats(pattern)
    is_large = isinstance(codes, LargeConstant)
    weight = LargeConstant(codes.name, floats) if is_large else gs.Constant(codes.name, floats.load())
    codes.outputs.clear()  # the float constant takes the name
    quantized = gs.Variable(f"{codes.name}.codes", dtype=np.int8)
    node = gs.Node(
        op="QuantizeLinear",
        name=f"{codes.name}/QuantizeLinear",
        attrs=dict(dequantize.attrs),
        inputs=[weight, scale, zero_point],
        outputs=[quantized],
    )
    graph.nodes.insert(0, node)
    dequantize.inputs = [quantized, scale, zero_point]
