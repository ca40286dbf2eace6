"""When onnxruntime makes MatMulNBits of a float activation and a weight in codes (seen with 1.32, all of it).

An activation in 16-bit codes is a float one to it: it has no kernel for such codes.
"""

from __future__ import annotations

from bitswitch_deploy.graph.lint.onnxruntime_fusion import finds_q_or_bounds, is_absorbed, tail_of
from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph, WeightedLayer
from bitswitch_deploy.graph.lint.qdq_node import QdqNode

_TYPES = ("int8", "uint8", "int4", "uint4", "int2", "uint2")
_SMALLEST_BLOCK = 16
# A Q of these does not count.
_WIDE = ("int16", "uint16")


def becomes_matmul_nbits(graph: QdqGraph, layer: WeightedLayer) -> bool:
    """Whether it does so: MatMul, or Gemm as a MatMul with a bias for each column, of a weight that is read once.

    Shapes: codes [rows, columns]; scales () or [columns], or blocks of a power of two from 16 along the rows. No Q of 8
    bits or fewer may read the result, nor a Relu or Clip that has one reader: the layer then stays float.
    """
    weight = layer.weight
    is_float = layer.activation is None or layer.activation.code_type in _WIDE
    if not is_float or weight is None or not layer.has_constant_weight or layer.weight_index != 1:
        return False
    shape = graph.graph.shape(weight.data)
    if weight.code_type not in _TYPES or shape is None or len(shape) != 2 or not _is_read_once(graph, weight):
        return False
    is_plain = layer.node.operator == "MatMul" or _is_plain_gemm(graph, layer, columns=shape[1])
    is_plain = is_plain and _has_right_scales(weight, columns=shape[1]) and _is_direct(layer, weight)
    return is_plain and not _finds_q(graph, layer)


def _finds_q(graph: QdqGraph, layer: WeightedLayer) -> bool:
    """Whether onnxruntime looks for the form with a Q behind, and does not find that one either."""
    tail = tail_of(graph, layer)
    behind = tail.quantizer
    if behind is None or behind.code_type not in _WIDE:
        return behind is not None or finds_q_or_bounds(graph, layer, tail)
    return not all(is_absorbed(graph, node, behind) for node in tail.activations)


def _is_read_once(graph: QdqGraph, weight: QdqNode) -> bool:
    result = weight.result
    return result is not None and len(graph.graph.readers(result)) == 1 and not graph.graph.is_output(result)


def _has_right_scales(weight: QdqNode, *, columns: int | None) -> bool:
    """It looks at the axis as it is written: -1 is another one than 1."""
    scales, size = weight.scale_values, weight.block_size
    if scales is None:
        return False
    if size:
        return weight.axis == 0 and size >= _SMALLEST_BLOCK and size & (size - 1) == 0
    return scales.shape == () or (weight.axis == 1 and scales.shape == (columns,))


def _is_direct(layer: WeightedLayer, weight: QdqNode) -> bool:
    """Whether the layer reads the DQ; a Transpose between them is moved into codes with one scale."""
    detour = [node.operator for node in layer.path[: layer.path.index(weight.node)] if node.operator != "Identity"]
    return not detour or (set(detour) == {"Transpose"} and weight.is_per_tensor)


def _is_plain_gemm(graph: QdqGraph, layer: WeightedLayer, *, columns: int | None) -> bool:
    node = layer.node
    if node.operator != "Gemm" or node.integer("transA", 0) or node.integer("transB", 0):
        return False
    bias = node.argument(2)
    factors = [node.number("alpha"), None if bias is None else node.number("beta")]
    has_row = bias is None or graph.graph.shape(bias) == (columns,)
    return has_row and all(factor in (None, 1.0) for factor in factors)
