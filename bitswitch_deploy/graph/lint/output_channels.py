"""Which axis of a weight holds the output channels (TensorRT issue 1694).

Axis 0 of Conv, 1 of ConvTranspose, the last one of a MatMul's second input (of a first one the last but one), and 1 of
Gemm, 0 with transB.
"""

from __future__ import annotations

from bitswitch_deploy.graph.channel_axis import channel_axis_of
from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph, WeightedLayer
from bitswitch_deploy.graph.lint.qdq_node import QdqNode


def other_axis(graph: QdqGraph, layer: WeightedLayer) -> int | None:
    """The axis that the scales of a constant weight should lie along and do not; None where nothing is wrong or known.

    The axis is one of what the DQ makes: a Transpose between DQ and layer is followed.
    """
    weight = layer.weight
    if not layer.has_constant_weight or weight is None or weight.is_per_tensor or weight.block_size:
        return None
    axis, rank = _channel_axis(graph, layer, weight) or (0, 0)
    return axis if rank and weight.axis % rank != axis else None


def _channel_axis(graph: QdqGraph, layer: WeightedLayer, weight: QdqNode) -> tuple[int, int] | None:
    """The axis of output channels in what `weight` dequantizes, and its rank; None where it cannot be told."""
    rank = _rank_of_codes(graph, weight)
    if rank is None or rank < 2:
        return None
    if layer.node.operator == "MatMul":
        axis = rank - 1 if layer.weight_index else rank - 2
    else:
        axis = channel_axis_of(layer.node.operator, trans_b=bool(layer.node.integer("transB", 0)))
    for node in layer.path:
        if node is weight.node:
            return axis, rank
        order = node.integers("perm", range(rank)[::-1])
        if node.operator not in ("Identity", "Transpose") or sorted(order) != list(range(rank)):
            return None
        axis = order[axis] if node.operator == "Transpose" else axis
    return None


def _rank_of_codes(graph: QdqGraph, weight: QdqNode) -> int | None:
    """Dimensions of the weight that a DQ makes, from the constant behind it."""
    if weight.data is None:
        return None
    path = graph.path_to_constant(weight.data)
    if any(node.operator in ("Reshape", "Squeeze", "Unsqueeze") for node in path):
        return None
    source = path[-1].argument(0) if path else weight.data
    return None if source is None or source.constant is None else len(source.constant.dims)
