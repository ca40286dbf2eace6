"""What onnxruntime looks at when it decides whether a layer runs in integers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bitswitch_deploy.graph.lint.bias import bias_add, has_float_bias, is_flattened, result_of
from bitswitch_deploy.graph.lint.linted_graph import Node, Tensor
from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph, WeightedLayer
from bitswitch_deploy.graph.lint.qdq_node import EIGHT_BIT, MOVING, QdqNode

_ABSORBABLE = ("Relu", "Clip")
_ABSORBING = (*EIGHT_BIT, "int16", "uint16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """What follows a layer, up to the Q of its result.

    activations: Relu and Clip nodes in between. moved: an operator that moves values is in between, or onnxruntime puts
    one there. quantizer: None where the result stays float, for the reason `float_because`. The Add of a MatMul's bias
    belongs to the layer.
    """

    activations: tuple[Node, ...]
    moved: bool
    quantizer: QdqNode | None
    float_because: str


def tail_of(graph: QdqGraph, layer: WeightedLayer) -> Tail:
    """What follows `layer`."""
    activations: list[Node] = []
    moved = is_flattened(graph, layer)
    tensor = result_of(graph, layer)
    while True:
        quantizer, following, because = _next(graph, tensor, moved)
        if following is None:
            return Tail(activations=tuple(activations), moved=moved, quantizer=quantizer, float_because=because)
        if following.operator in _ABSORBABLE:
            activations.append(following)
        else:
            moved = True
        tensor = following.result


def _next(graph: QdqGraph, tensor: Tensor | None, moved: bool) -> tuple[QdqNode | None, Node | None, str]:
    """The Q that ends a tail, or the node that continues it, or why the tail ends in float."""
    if tensor is None or graph.graph.is_output(tensor):
        return None, None, "its result is an output of the graph"
    readers = graph.graph.readers(tensor)
    quantizers = graph.quantizers_reading(tensor)
    if quantizers and len(quantizers) == len(readers):
        same = all(_is_same(each, quantizers[0]) for each in quantizers)
        return (quantizers[0], None, "") if same else (None, None, f"its result is read by {len(readers)} different Q")
    if len(readers) != 1:
        return None, None, f"its result is read by {len(readers)} nodes that are not all Q"
    (reader,) = readers
    if (reader.operator in _ABSORBABLE and not moved) or MOVING.get(reader.operator):
        return None, reader, ""
    return None, None, f"its result is read by {reader.operator} {reader.name}"


def finds_q_or_bounds(graph: QdqGraph, layer: WeightedLayer, tail: Tail) -> bool:
    """Whether onnxruntime finds a Q among the readers of the result, or a Relu or Clip that has one reader.

    It then looks for the Q behind that Relu or Clip, and takes no other reader for an answer. An Identity whose result
    is an output of the graph is no Q, whoever reads it.
    """
    result = result_of(graph, layer)
    if result is None or is_flattened(graph, layer):
        return False
    bounded = tail.activations[0].result if tail.activations else None
    is_copied_out = graph.graph.is_output(result) and not result.is_output
    found = [graph.at(each) for each in (result.readers if is_copied_out else graph.graph.readers(result))]
    reads = any(each is not None and each.is_quantizer for each in found)
    return reads or (bounded is not None and _is_read_once(graph, bounded))


def _is_read_once(graph: QdqGraph, tensor: Tensor) -> bool:
    n_reads = sum(node.inputs.count(tensor) for node in graph.graph.readers(tensor))
    return n_reads == 1 and not graph.graph.is_output(tensor)


def is_bias_rounded(graph: QdqGraph, layer: WeightedLayer) -> bool:
    """Whether onnxruntime rounds a float bias of the layer to int32: it has, or seems to have, one Q behind.

    An output of the graph is no node that reads a result, and onnxruntime counts nodes (weight_bias_quantization.cc).
    """
    if not has_float_bias(graph, layer):
        return False
    return tail_of(graph, layer).quantizer is not None or _leads_to_q(graph, layer, past=_ABSORBABLE)


def is_weight_rounded(graph: QdqGraph, layer: WeightedLayer) -> bool:
    """Whether onnxruntime rounds a float weight of the layer to int8 with one scale: codes in front and one Q behind.

    It makes a BatchNormalization part of the layer before it looks for the Q.
    """
    if layer.activation is None or not layer.activation.is_per_tensor or layer.weight or not layer.has_constant_weight:
        return False
    is_gemm = layer.node.operator != "MatMul" or bias_add(graph, layer) is not None
    return is_gemm and _leads_to_q(graph, layer, past=(*_ABSORBABLE, "BatchNormalization"))


def _leads_to_q(graph: QdqGraph, layer: WeightedLayer, *, past: tuple[str, ...]) -> bool:
    tensor = None if is_flattened(graph, layer) else result_of(graph, layer)
    while tensor is not None and len(readers := graph.graph.readers(tensor)) == 1:
        if graph.graph.is_output(tensor) and not tensor.is_output:
            return False  # an Identity hands it out, which is a node that reads it
        (reader,) = readers
        if reader.operator not in past:
            return bool(graph.quantizers_reading(tensor))
        tensor = reader.result
    return False


def integer_layers(graph: QdqGraph) -> Iterator[WeightedLayer]:
    """Layers of which onnxruntime has an integer form, with 8-bit codes on both inputs."""
    for layer in graph.layers:
        both = (layer.activation, layer.weight)
        if layer.node.operator != "ConvTranspose" and all(each and each.code_type in EIGHT_BIT for each in both):
            yield layer


def is_absorbed(graph: QdqGraph, node: Node, quantizer: QdqNode) -> bool:
    """Whether the bounds of a Relu or Clip, rounded to codes of the Q behind it, leave out none of its codes."""
    scale, zero = quantizer.scale_values, quantizer.zero_values
    if quantizer.code_type not in _ABSORBING or scale is None or scale.size != 1:
        return False
    if zero is None:
        zero = np.zeros(1)
    limits = np.iinfo(quantizer.code_type)
    bounds = _bounds(graph, node)
    if bounds is None or zero.size != 1:
        return False
    # in float32, as onnxruntime does it
    with np.errstate(all="ignore"):
        low, high = np.rint(np.array(bounds, np.float32) / scale.astype(np.float32).ravel()) + float(zero.item())
    return bool(low <= limits.min and high >= limits.max)


def _bounds(graph: QdqGraph, node: Node) -> tuple[float, float] | None:
    """What a Relu or Clip lets through; None where it is computed."""
    if node.operator == "Relu":
        return 0, np.inf
    bounds = [-np.inf, np.inf]
    for index, name in enumerate(("min", "max")):
        argument, written = node.argument(index + 1), node.number(name)  # written: opset 6 to 10
        value = graph.graph.values(argument)
        if value is not None and value.size == 1:
            bounds[index] = float(value.item())
        elif argument is not None:
            return None
        elif written is not None:
            bounds[index] = written
    return bounds[0], bounds[1]


def _is_same(one: QdqNode, other: QdqNode) -> bool:
    """Whether onnxruntime merges two Q: they have the very same inputs."""
    return one.node.inputs == other.node.inputs


def is_private(graph: QdqGraph, quantizer: QdqNode) -> bool:
    """Whether nothing but one DQ, with one reader, takes the codes; Q nodes with the very same inputs count as one."""
    codes = quantizer.result
    if codes is None or graph.graph.is_output(codes):
        return False
    siblings = [] if quantizer.data is None else graph.quantizers_reading(quantizer.data)
    if any(each is not quantizer and _is_same(each, quantizer) for each in siblings):
        return False
    readers = graph.graph.readers(codes)
    dequantizer = graph.at(readers[0]) if len(readers) == 1 else None
    if dequantizer is None or dequantizer.is_quantizer or dequantizer.result is None:
        return False
    n_readers = len(graph.graph.readers(dequantizer.result)) + graph.graph.is_output(dequantizer.result)
    return n_readers == 1
