"""StoreFloatWeights: float weights in front of Q and DQ, the only form that TensorRT 8 reads."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.qdq import match_weight
from bitswitch_deploy.lowering.lowering_pass import LoweringPass


class StoreFloatWeights(LoweringPass):
    """Replace int8 codes by the floats code * scale and a QuantizeLinear that gives the same codes back. Exact.

    |round(fl(c * s) / s) - c| = 0 for |c| <= 128: the float error is below 2^-16 of a step.
    Cases: scale per tensor, per channel. Nothing to do unless the target's stack has `weight_form: float_q_dq`.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Rewrite every weight of a stack that wants it; see the class for the cases."""
        if self.context.target.stack.weight_form != "float_q_dq":
            return False
        weights = (match_weight(tensor) for node in graph.nodes for tensor in node.inputs[1:2])
        dequantizers = {weight.codes.name: weight.dequantize for weight in weights if weight is not None}
        for dequantize in dequantizers.values():
            _store_float(graph, dequantize)
        if dequantizers:
            self.record("weights", "stored as float32 for this TensorRT, four times the bytes", exact=True)
        return bool(dequantizers)


def _store_float(graph: gs.Graph, dequantize: gs.Node) -> None:
    codes, scale, zero_point = dequantize.inputs
    values, steps = np.asarray(codes.values), np.asarray(scale.values)
    if steps.ndim:
        axis = dequantize.attrs.get("axis", 1)
        steps = steps.reshape(tuple(-1 if index == axis else 1 for index in range(values.ndim)))
    weight = gs.Constant(codes.name, np.asarray(values * steps, np.float32))
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
