"""Products in codes whose Relu or Clip goes on in float, written so that onnxruntime runs them in integers."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.qdq import is_dequantized, sole_reader, way_to_codes

_PRODUCTS, _CLIPPING = ("Gemm", "MatMul"), ("Relu", "Clip")


def free_products(graph: gs.Graph) -> bool:
    """Write a Relu or Clip behind a product as Max and Min, where one operator in float reads its result.

    Behind a Relu or Clip with one reader onnxruntime looks for a QuantizeLinear, and runs the product in float where it
    finds none; behind a Max it does not look, and the product in integers writes floats. A bias stands between already,
    as a Sub. Left alone: a Relu or Clip on the way to codes, one with other readers or none, bounds that are computed.
    """
    activations = [_read_once(graph, node) for node in graph.nodes if node.op in _PRODUCTS and _reads_codes(node)]
    found = [node for node in activations if node is not None]
    for node in found:
        _write(graph, node)
    return bool(found)


def _reads_codes(node: gs.Node) -> bool:
    return all(is_dequantized(tensor) for tensor in node.inputs[:2])


def _read_once(graph: gs.Graph, product: gs.Node) -> gs.Node | None:
    """The Relu or Clip behind a product that it can take for one in front of codes."""
    node = sole_reader(graph, product.outputs[0])
    if node is None or node.op not in _CLIPPING or not all(isinstance(each, gs.Constant) for each in _bounds(node)):
        return None
    result = node.outputs[0]
    return node if sole_reader(graph, result) is not None and not way_to_codes(graph, result) else None


def _bounds(node: gs.Node) -> list[gs.Tensor]:
    return [each for each in node.inputs[1:] if not each.is_empty()]


def _write(graph: gs.Graph, node: gs.Node) -> None:
    if node.op == "Relu":
        limits = {"Max": gs.Constant(f"{node.name}.zero", np.zeros((), np.float32))}
    else:
        low, high = [*node.inputs[1:], gs.Variable.empty(), gs.Variable.empty()][:2]
        limits = {op: bound for op, bound in (("Max", low), ("Min", high)) if not bound.is_empty()}
    tensor, output = node.inputs[0], node.outputs[0]
    node.inputs, node.outputs = [], []
    for place, (op, bound) in enumerate(limits.items(), start=1):
        result = output if place == len(limits) else gs.Variable(f"{node.name}.{op}", dtype=np.float32)
        graph.nodes.append(gs.Node(op, f"{node.name}/{op}", {}, [tensor, bound], [result]))
        tensor = result
