"""QuantizeActivations: the input of each planned layer goes through quantize, clip, dequantize."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.passes import GraphPass
from bitswitch_deploy.graph.plan import ActivationPlan, LayerPlan, QuantizationPlan
from bitswitch_deploy.graph.qdq import ActivationCodes, add_activation_qdq

_DATA_INPUT = 0


class QuantizeActivations(GraphPass):
    """Put Q, Clip, DQ before input 0 of each node that computes with a quantized weight.

    Unsigned codes ride in uint8, signed ones in int8, both with zero-point 0. Cases: one node; a weight with several
    nodes (each gets its own pattern); several layers that read one tensor (each its own, since scales differ).
    Left alone: layers whose plan keeps the input in float.
    """

    def __init__(self, plan: QuantizationPlan) -> None:
        self._plan = plan

    def apply(self, graph: gs.Graph) -> bool:
        """Insert every planned pattern; see the class for the cases."""
        nodes = {node.name: node for node in graph.nodes}
        for layer in self._plan.layers:
            if layer.activation is not None:
                self._quantize_inputs(graph, layer, layer.activation, [nodes[name] for name in layer.nodes])
        return any(layer.activation for layer in self._plan.layers)

    @staticmethod
    def _quantize_inputs(graph: gs.Graph, layer: LayerPlan, plan: ActivationPlan, nodes: list[gs.Node]) -> None:
        codes = ActivationCodes(
            scale=np.float32(plan.scale),
            zero_point=0,
            container=np.int8 if plan.signed else np.uint8,
            low=plan.codes.low,
            high=plan.codes.high,
        )
        for index, node in enumerate(nodes):
            suffix = f".{index}" if index else ""
            name = f"{layer.layer.name}.input{suffix}"
            node.inputs[_DATA_INPUT] = add_activation_qdq(graph, node.inputs[_DATA_INPUT], codes, name=name)
