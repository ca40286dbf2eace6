"""Biases in few bytes, for the graphs of a package with shared weights: each width has its own.

Works on the finished model, as `share_weights` does. onnxruntime folds what is added here when it loads a session.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from bitswitch_deploy.lowering.unused_names import unused_names

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm")
_BIAS_INPUT = 2
_LIMITS = np.iinfo(np.int16)


def shorten_biases(graph: onnx.GraphProto, *, least_bytes: int) -> None:
    """Store int32 biases as int16 and a Cast, and their scales as a Mul of the two that they come from, in place.

    Cases, of `least_bytes` or more each: codes that fit int16 and that nothing but one DequantizeLinear reads; its
    scale, where nothing else reads it and it is bit for bit the product in float32 of the scales of the data and of
    the weight of the layer that reads the bias. Left alone: everything else, constants whose values are elsewhere, and
    those that a caller can give instead.
    """
    given = {value.name for value in graph.input}
    constants = {each.name: each for each in graph.initializer if each.raw_data and each.name not in given}
    names = unused_names(graph, "int16")
    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def is_worth_it(name: str) -> bool:
        stored = name in constants and len(constants[name].raw_data) >= least_bytes
        return stored and len(readers[name]) == 1

    added: list[onnx.NodeProto] = []
    for node in graph.node:
        codes, scale = node.input[:2] if node.op_type == "DequantizeLinear" else ("", "")
        if codes not in constants or constants[codes].data_type != onnx.TensorProto.INT32:
            continue
        factors = _scales_of_layer(node, producers, readers) if is_worth_it(scale) else None
        if factors is not None and _is_product(scale, factors, constants):
            added.append(onnx.helper.make_node("Mul", factors, [scale]))
        if is_worth_it(codes) and (short := _as_int16(constants[codes], names)) is not None:
            graph.initializer.append(short)
            added.append(onnx.helper.make_node("Cast", [short.name], [codes], to=onnx.TensorProto.INT32))
    computed = {name for node in added for name in node.output}
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name in computed:
            del graph.initializer[place]
    # they read initializers only, so they may come before all others
    nodes = [*added, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _scales_of_layer(
    dequantize: onnx.NodeProto, producers: dict[str, onnx.NodeProto], readers: dict[str, list[onnx.NodeProto]]
) -> list[str] | None:
    """Names of the scales of data and weight of the layer that reads this bias; None where no such layer does."""
    found = readers.get(dequantize.output[0], [])
    if len(found) != 1 or found[0].op_type not in _WEIGHTED:
        return None
    if list(found[0].input).index(dequantize.output[0]) != _BIAS_INPUT:
        return None
    sources = [producers.get(name) for name in found[0].input[:_BIAS_INPUT]]
    scales = [each.input[1] for each in sources if each is not None and each.op_type == "DequantizeLinear"]
    return scales if len(scales) == len(sources) else None


def _is_product(scale: str, factors: list[str], constants: dict[str, onnx.TensorProto]) -> bool:
    if any(name not in constants for name in factors):
        return False
    values, data, weight = (onnx.numpy_helper.to_array(constants[name]) for name in (scale, *factors))
    if not values.dtype == data.dtype == weight.dtype == np.float32:
        return False
    product = np.asarray(data * weight)
    return product.shape == values.shape and product.tobytes() == values.tobytes()


def _as_int16(codes: onnx.TensorProto, names: Iterator[str]) -> onnx.TensorProto | None:
    """The same numbers in half the bytes, under the next of these names; None where they do not fit."""
    values = onnx.numpy_helper.to_array(codes)
    if values.min() < _LIMITS.min or values.max() > _LIMITS.max:
        return None
    return onnx.numpy_helper.from_array(values.astype(np.int16), next(names))
