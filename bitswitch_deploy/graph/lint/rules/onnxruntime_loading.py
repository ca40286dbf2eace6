"""What makes onnxruntime fail on a graph that is valid."""

from __future__ import annotations

from collections.abc import Iterator

from bitswitch_deploy.graph.lint.bias import is_flattened
from bitswitch_deploy.graph.lint.linted_graph import Node
from bitswitch_deploy.graph.lint.operators import STANDARD_DOMAINS
from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph
from bitswitch_deploy.graph.lint.qdq_node import MOVING, QdqNode
from bitswitch_deploy.graph.lint.rule import Breach, Rule

_FIRST_OPSET = 21


class Int8Moved(Rule):
    """int8 codes in front of an operator that moves values, at opset 21 or newer: onnxruntime does not load the graph.

    Cases: DQ -> MaxPool, Reshape, Slice, Squeeze, Transpose or Unsqueeze -> one reader, or the end of the graph, that
    no Q leads back from; the Reshape that onnxruntime puts in front of a MatMul with more than two dimensions, static,
    and an Add behind. It pulls Q and DQ through with output_dtype int8, changes their zero-point to uint8 on x86, and
    refuses its own work: "output_dtype INT8 does not match y_zero_point type UINT8" (1.28 to 1.32; 1.26 loads it). It
    leaves alone results that are read several times, Q and DQ of com.microsoft, with scales per channel or computed at
    run time, and with constants from outside a branch: of branches nothing is said.
    """

    id = "int8-moved"
    severity = "error"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        if (graph.graph.opset or 0) < _FIRST_OPSET:
            return
        for node in graph.graph.nodes:
            dequantizer = graph.dequantizer_of(node.argument(0))
            if node.is_inner or dequantizer is None or not _is_pulled(graph, dequantizer):
                continue
            if MOVING.get(node.operator):
                fails = _gets_pair(graph, node)
            else:
                layer = graph.layer_at(node)
                fails = layer is not None and is_flattened(graph, layer)
            if fails:
                yield Breach(
                    node=node,
                    got=f"int8 codes at opset {graph.graph.opset}, which onnxruntime does not load",
                    allowed="uint8 codes, or opset 20 or older, or no session optimisation",
                    do="export for onnxruntime with uint8 activations, or put Q and DQ behind this node as well",
                )


def _is_pulled(graph: QdqGraph, dequantizer: QdqNode) -> bool:
    """Whether onnxruntime pulls a DQ of int8 activations through what reads it."""
    arguments = (dequantizer.scale, dequantizer.zero_point)
    return (
        dequantizer.code_type == "int8"
        and dequantizer.node.domain in STANDARD_DOMAINS
        and dequantizer.is_per_tensor
        and all(graph.graph.is_constant(each) for each in arguments)
        and not graph.is_weight(dequantizer)
    )


def _gets_pair(graph: QdqGraph, move: Node) -> bool:
    """Whether onnxruntime puts a pair of its own, one Q with one DQ, behind an operator that moves values.

    Behind a result that is read several times it puts none that fails, and looks at the moves among the readers.
    """
    waiting = [move]
    while waiting:
        result = waiting.pop().result
        if result is None or graph.quantizers_reading(result):
            continue
        readers = graph.graph.readers(result)
        if len(readers) + graph.graph.is_output(result) > 1:
            waiting += [reader for reader in set(readers) if MOVING.get(reader.operator)]
        elif not (readers and _is_pulled_back(graph, readers[0])):
            return True
    return False


def _is_pulled_back(graph: QdqGraph, node: Node) -> bool:
    """Whether a Q behind moves, `node` the first of them, is pulled in front of all, which comes first."""
    while MOVING.get(node.operator) and (result := node.result) is not None and not graph.graph.is_output(result):
        readers = graph.graph.readers(result)
        if len(readers) != 1:
            break
        for quantizer in graph.quantizers_reading(result):
            return quantizer.is_per_tensor and graph.graph.is_constant(quantizer.scale)
        (node,) = readers
    return False
