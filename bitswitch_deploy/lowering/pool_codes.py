"""PoolCodes: MaxPool works on codes."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.qdq import activation_patterns, add_activation_qdq, producer_of, sole_reader
from bitswitch_deploy.lowering.lowering_pass import LoweringPass

# what the tensors of codes in front of a MaxPool are called: NODE.NAME.PART
POOLED_NAME = "pooled"


class PoolCodes(LoweringPass):
    """Quantize the input of a MaxPool as its output is quantized, so that it moves bytes instead of floats. Exact.

    Rounding is monotone: the code of the largest value is the largest code, and codes that are quantized once more with
    the same scale stay what they are.
    Cases: one quantized reader behind the MaxPool, with or without Clip on its codes; MaxPools in a row.
    Left alone: an input that is in codes already or that other nodes read, an output that float nodes read, a MaxPool
    with indices.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Quantize in front of every MaxPool that can be; see the class for the cases."""
        quantized = {id(pattern.quantize): pattern for pattern in activation_patterns(graph) if not pattern.shift}
        modified = False
        for node in [node for node in reversed(graph.nodes) if node.op == "MaxPool"]:
            reader = sole_reader(graph, node.outputs[0])
            source, pattern = node.inputs[0], quantized.get(id(reader))
            producer = producer_of(source)
            if pattern is None or len(node.outputs) > 1 or sole_reader(graph, source) is None:
                continue
            if producer is not None and producer.op == "DequantizeLinear":
                continue
            node.inputs[0] = add_activation_qdq(graph, source, pattern.codes, name=f"{node.name}.{POOLED_NAME}")
            quantized |= {id(each.quantize): each for each in activation_patterns(graph)}
            modified = True
        return modified
