"""What onnxruntime takes for the bias of a layer, and how it reads the DQ of one (seen with 1.32, all of it).

An integer layer adds int32 codes to its sums, in steps of the activation's scale times the weight's. Conv asks whether
the scale of the bias is that product, |scale - product| <= 1e-6 + 0.01 product, and its zero-point 0; Gemm asks for
int32 alone. None of them reads the scale afterwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitswitch_deploy.graph.lint.linted_graph import Node, Tensor
from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph, WeightedLayer
from bitswitch_deploy.graph.lint.qdq_node import QdqNode

_TOLERANCE, _SLACK = 1e-2, 1e-6
# A bias that is off by more than this was meant for another scale; one in float16 is within.
_MISREAD = 1e-3


def bias_add(graph: QdqGraph, layer: WeightedLayer) -> Node | None:
    """The Add of a constant that onnxruntime makes one Gemm with this MatMul, or None."""
    if layer.node.operator != "MatMul" or layer.result is None or not layer.has_constant_weight:
        return None
    readers = graph.graph.readers(layer.result)
    if len(readers) != 1 or readers[0].operator != "Add" or graph.graph.is_output(layer.result):
        return None
    other = [tensor for tensor in readers[0].inputs if graph.graph.is_constant(tensor)]
    shape, weight_shape = (graph.graph.shape(layer.node.argument(index)) for index in (0, 1))
    becomes_gemm = shape is not None and (len(shape) == 2 or None not in shape) and len(weight_shape or ()) <= 2
    return readers[0] if other and becomes_gemm else None


def is_flattened(graph: QdqGraph, layer: WeightedLayer) -> bool:
    """Whether onnxruntime makes a MatMul of more than two dimensions and its bias_add a Gemm between two Reshape."""
    return bias_add(graph, layer) is not None and len(graph.graph.shape(layer.node.argument(0)) or ()) > 2


def result_of(graph: QdqGraph, layer: WeightedLayer) -> Tensor | None:
    """What a layer makes, its bias_add included."""
    add = bias_add(graph, layer)
    return layer.result if add is None else add.result


def has_float_bias(graph: QdqGraph, layer: WeightedLayer) -> bool:
    """Whether a constant bias belongs to the layer, its bias_add included, and it is made from no DQ."""
    bias = _bias(graph, layer)
    return bias is not None and _is_folded(graph, bias)


def has_computed_bias(graph: QdqGraph, layer: WeightedLayer) -> bool:
    """Whether a bias of the layer is computed at run time, by something else than a DQ."""
    bias = _bias(graph, layer)
    return bias is not None and graph.dequantizer_of(bias) is None and not _is_folded(graph, bias)


def refused_bias(graph: QdqGraph, layer: WeightedLayer) -> str | None:
    """What onnxruntime refuses in the DQ of a bias, so that the layer stays float; None where it takes it."""
    bias = graph.dequantizer_of(_bias(graph, layer))
    if bias is None or bias.code_type is None:
        return None
    if bias.code_type != "int32":
        return f"a bias in {bias.code_type} codes ({bias.node.name})"
    if layer.node.operator != "Conv":
        return None
    if layer.activation is None or not all(map(graph.graph.is_constant, (bias.scale, layer.activation.scale))):
        return f"a bias in codes with a scale that is computed at run time ({bias.node.name})"
    if bias.zero_point is not None and not graph.graph.is_constant(bias.zero_point):
        return f"a bias in codes with a zero-point that is computed at run time ({bias.node.name})"
    return _shift(bias) or _other_scale(layer, bias, tolerance=_TOLERANCE, slack=_SLACK)


def misread_bias(graph: QdqGraph, layer: WeightedLayer) -> str | None:
    """What onnxruntime does not read of an int32 bias, where the layer runs in integers; None where nothing is lost."""
    bias = graph.dequantizer_of(_bias(graph, layer))
    if bias is None or bias.code_type != "int32":
        return None
    codes = graph.graph.values(bias.data)
    if codes is not None and not np.any(codes) and not _shift(bias):
        return None  # zeros are the same at any scale
    return _shift(bias) or _other_scale(layer, bias, tolerance=_MISREAD)


def _bias(graph: QdqGraph, layer: WeightedLayer) -> Tensor | None:
    add = bias_add(graph, layer)
    if add is not None:
        return next(tensor for tensor in add.inputs if graph.graph.is_constant(tensor))
    return None if layer.node.operator == "MatMul" else layer.node.argument(2)


def _is_folded(graph: QdqGraph, bias: Tensor) -> bool:
    """Whether onnxruntime computes it when it loads the graph: it folds no DQ."""
    if not graph.graph.is_constant(bias):
        return False
    made = (graph.at(node) for node in graph.path_to_constant(bias))
    return all(each is None or each.is_quantizer for each in made)


def _shift(bias: QdqNode) -> str | None:
    has_shift = bias.zero_values is not None and np.any(bias.zero_values)
    return f"a bias in codes with a zero-point other than 0 ({bias.node.name})" if has_shift else None


def _other_scale(layer: WeightedLayer, bias: QdqNode, *, tolerance: float, slack: float = 0) -> str | None:
    """How the scales of a bias differ from the product of the others, as far as they are known."""
    scales, product = bias.scale_values, _product(layer)
    if scales is None or product is None:
        return None
    if scales.size != product.size and 1 not in (scales.size, product.size):
        return f"a bias with {scales.size} scales beside {product.size} of its weight ({bias.node.name})"
    written, expected = np.broadcast_arrays(scales.astype(np.float64).ravel(), product)
    wrong = ~np.isclose(written, expected, rtol=tolerance, atol=slack)
    if not wrong.any():
        return None
    index = int(np.argmax(wrong))
    return f"a bias at scale {written[index]:g}, activation * weight {expected[index]:g} ({bias.node.name})"


def _product(layer: WeightedLayer) -> NDArray[Any] | None:
    """Scales of a layer's sums, [channels] or [1]; None where they are not known."""
    factors = [None if each is None else each.scale_values for each in (layer.activation, layer.weight)]
    if factors[0] is None or factors[1] is None or factors[0].size != 1:
        return None
    return np.asarray(factors[0].astype(np.float64).ravel() * factors[1].astype(np.float64).ravel())
