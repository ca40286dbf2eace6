"""What makes onnxruntime fail on a graph that is valid."""

from __future__ import annotations

from collections.abc import Iterator

from bitswitch_deploy.graph.lint.onnxruntime_fusion import bias_add
from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph
from bitswitch_deploy.graph.lint.qdq_node import MOVING
from bitswitch_deploy.graph.lint.rule import Breach, Rule

_FIRST_OPSET = 21


class Int8Moved(Rule):
    """int8 codes in front of an operator that moves values, at opset 21 or newer: onnxruntime does not load the graph.

    Cases: DQ -> MaxPool, Reshape, Slice, Squeeze, Transpose or Unsqueeze -> anything but Q alone, the end of the graph
    included; the Reshape that onnxruntime puts in front of a MatMul with more than two dimensions, static, and an Add
    behind. It pulls Q and DQ through with output_dtype int8, changes their zero-point to uint8 on x86, and refuses its
    own work: "output_dtype INT8 does not match y_zero_point type UINT8" (1.28 to 1.32; 1.26 loads it).
    """

    id = "int8-moved"
    severity = "error"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        if (graph.graph.opset or 0) < _FIRST_OPSET:
            return
        for node in graph.graph.nodes:
            dequantizer = graph.dequantizer_of(node.argument(0))
            if dequantizer is None or dequantizer.code_type != "int8" or graph.is_weight(dequantizer):
                continue
            result = node.outputs[0]
            if result is None or dequantizer.zero_point is None:
                continue
            if MOVING.get(node.operator):
                others = len(graph.graph.readers(result)) - len(graph.quantizers_reading(result))
                fails = others > 0 or graph.graph.is_output(result)
            else:
                layer = graph.layer_at(node)
                shape = graph.graph.shape(node.argument(0))
                fails = bool(layer and bias_add(graph, layer) and shape and len(shape) > 2)
            if fails:
                yield Breach(
                    node=node,
                    got=f"int8 codes at opset {graph.graph.opset}, which onnxruntime does not load",
                    allowed="uint8 codes, or opset 20 or older, or no session optimisation",
                    do="export for onnxruntime with uint8 activations, or put Q and DQ behind this node as well",
                )
