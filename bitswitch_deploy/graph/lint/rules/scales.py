"""Rules about scales (TensorRT issue 2984)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitswitch_deploy.graph.lint.linted_graph import Node
from bitswitch_deploy.graph.lint.operators import STANDARD_DOMAINS, type_name
from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph
from bitswitch_deploy.graph.lint.qdq_node import QdqNode
from bitswitch_deploy.graph.lint.rule import Breach, Rule

_FLOATS = ("float", "float16", "bfloat16", "double")
# The first one whose Q may have its scale in another type than its tensor.
_OPSET_OF_TWO_TYPES = 23
_POSITIVE = "finite scales above 0"


class ScaleNotPositive(Rule):
    """A scale that is zero, negative, infinite or not a number.

    TensorRT refuses the graph. onnxruntime runs it: a negative scale of activations mirrors the grid, so the code -128
    has no partner and ties round the other way; a zero scale divides by zero. Negative scales of constants are a rule
    of their own: onnxruntime computes with them as with any other.
    """

    id = "scale-not-positive"
    severity = "error"
    engines = ("tensorrt", "onnxruntime")

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.nodes:
            values = _numbers(qdq)
            if values is None:
                continue
            bad = ~(np.isfinite(values) & ((values != 0) if _holds_constants(graph, qdq) else (values > 0)))
            if bad.any():
                got = f"{_some(values, bad)} as a scale"
                do = "flip the signs of the codes instead of the scale; a channel of zeros takes any scale, such as 1"
                yield Breach(node=qdq.node, got=got, allowed=_POSITIVE, do=do)


class NegativeWeightScale(Rule):
    """A negative scale of a weight or bias: constant codes behind nothing but a DequantizeLinear.

    TensorRT refuses the graph. The integer kernels of onnxruntime multiply with it (measured with 1.23 and 1.32 on x86:
    the codes of its float kernels, exactly).
    """

    id = "negative-weight-scale"
    severity = "error"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.nodes:
            values = _numbers(qdq)
            if values is None or not _holds_constants(graph, qdq):
                continue
            negative = np.isfinite(values) & (values < 0)
            if negative.any():
                got, do = f"{_some(values, negative)} as a scale", "flip the signs of the codes instead of the scale"
                yield Breach(node=qdq.node, got=got, allowed=_POSITIVE, do=do)


class TinyScale(Rule):
    """A positive scale below the smallest normal number of its type (1.2e-38 in float32, 6.1e-5 in float16).

    Processors that flush such numbers read it as 0, and onnxruntime multiplies it with another one for the bias.
    """

    id = "tiny-scale"
    severity = "warning"
    engines = ("tensorrt", "onnxruntime")

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.nodes:
            values = _numbers(qdq)
            if values is None or qdq.scale_values is None:
                continue
            smallest = float(np.finfo(np.float16 if qdq.scale_values.dtype == np.float16 else np.float32).tiny)
            tiny = (values > 0) & (values < smallest)
            if tiny.any():
                do = "give channels that hold (nearly) nothing a scale of the size of their neighbours'"
                yield Breach(
                    node=qdq.node, got=f"{_some(values, tiny)} as a scale", allowed=f"{smallest:.2g} or more", do=do
                )


class ScaleNotConstant(Rule):
    """A scale or zero-point that is computed while the network runs.

    TensorRT wants scales when it builds the engine up to 10.7, and constant zero-points always.
    TensorRT for RTX 1.7.1 dies on such a scale. What is computed from constants alone is fine: both engines fold it.
    """

    id = "scale-not-constant"
    severity = "error"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.nodes:
            for word, tensor in (("scale", qdq.scale), ("zero-point", qdq.zero_point)):
                if tensor is not None and not graph.graph.is_constant(tensor):
                    allowed = "constants: TensorRT before 10.13 takes no other scale, and no release another zero-point"
                    do = "calibrate, and store the result as an initializer"
                    yield Breach(node=qdq.node, got=f"its {word} is computed at run time", allowed=allowed, do=do)


class ScaleShape(Rule):
    """Scales, zero-points and the tensor do not fit each other.

    Cases: a scale vector whose length is not the size of the axis; an axis that the tensor lacks; a zero-point of
    another shape than the scale; blocks that do not cover the tensor. Sizes are known for constants. onnxruntime fuses
    such weights and fails in the first run; TensorRT does not parse them.
    """

    id = "scale-shape"
    severity = "error"
    engines = ("tensorrt", "onnxruntime")

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.nodes:
            for got, allowed in _misfits(graph, qdq):
                yield Breach(node=qdq.node, got=got, allowed=allowed, do="compute the scales again for this tensor")


class NoNumbers(Rule):
    """A scale or zero-point that holds no numbers: strings, complex numbers, a type that ONNX lacks, or nothing at all.

    Neither engine reads such a file.
    """

    id = "no-numbers"
    severity = "error"
    engines = ("tensorrt", "onnxruntime")

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.nodes:
            for word, tensor in (("scale", qdq.scale), ("zero-point", qdq.zero_point)):
                constant = None if tensor is None else graph.graph.source(tensor).constant
                if constant is None:
                    continue
                kind = type_name(constant.data_type) or f"type {constant.data_type}, which ONNX does not know"
                if kind.startswith(("string", "complex", "type")) or 0 in constant.dims:
                    got = f"a {word} of {kind} {list(constant.dims)}"
                    yield Breach(
                        node=qdq.node, got=got, allowed="numbers", do="compute its scales and zero-points again"
                    )


class ScaleType(Rule):
    """A scale in another float type than the tensors around it: float16 or bfloat16 beside float32, or the reverse.

    Cases: a Q whose tensor has another type than its scale, before opset 23; a DQ whose result, in the type of its
    scale unless output_dtype names one, is declared in another, or is read by a layer beside an input of another.
    ONNX has no such graph, onnxruntime does not load it; TensorRT for RTX 1.7 refuses the layer and builds the others.
    """

    id = "scale-type"
    severity = "error"
    engines = ("tensorrt", "onnxruntime")

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for node in graph.graph.nodes:
            qdq = graph.at(node)
            got = _misfit_type(graph, qdq) if qdq is not None else _mixed_types(graph, node)
            if got is not None:
                do = "store the scales in the type of the network"
                yield Breach(node=node, got=got, allowed="one float type", do=do)


def _misfit_type(graph: QdqGraph, qdq: QdqNode) -> str | None:
    """How the float types of a Q or DQ differ; None where they do not, or are not known."""
    scale = _float_type(graph.graph.element_type(qdq.scale))
    if qdq.is_quantizer:
        other, what = _float_type(graph.graph.element_type(qdq.data)), "tensor"
        if qdq.node.domain in STANDARD_DOMAINS and (graph.graph.opset or 0) >= _OPSET_OF_TWO_TYPES:
            return None
    else:
        scale = _float_type(qdq.node.integer("output_dtype", 0)) or scale
        other, what = _float_type(graph.graph.element_type(qdq.result)), "result"
    return None if scale is None or other in (None, scale) else f"a {scale} scale, a {other} {what}"


def _mixed_types(graph: QdqGraph, node: Node) -> str | None:
    """The float types of a layer that reads a DQ; None where they are one, or not known."""
    if graph.layer_at(node) is None or not any(map(graph.dequantizer_of, node.inputs)):
        return None
    kinds = [_float_type(graph.graph.element_type(each)) for each in node.inputs]
    known = [kind for kind in kinds if kind is not None]
    return f"inputs in {', '.join(known)}" if len(set(known)) > 1 else None


def _float_type(data_type: int | None) -> str | None:
    """`float`, `float16`, ...; None where it is not known, or no float."""
    kind = None if data_type is None else type_name(data_type)
    return kind if kind in _FLOATS else None


def scale_type(graph: QdqGraph, qdq: QdqNode) -> str | None:
    """`float`, `float16`, ... of a constant scale."""
    data_type = graph.graph.data_type(qdq.scale)
    return None if data_type is None else type_name(data_type)


def _holds_constants(graph: QdqGraph, qdq: QdqNode) -> bool:
    return not qdq.is_quantizer and qdq.data is not None and graph.graph.is_constant(qdq.data)


def _numbers(qdq: QdqNode) -> NDArray[np.float64] | None:
    values = qdq.scale_values
    return None if values is None else np.asarray(values, np.float64).ravel()


def _some(values: NDArray[np.float64], chosen: NDArray[np.bool_]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[chosen][:3])
    return shown if chosen.sum() <= 3 else f"{shown} and {chosen.sum() - 3} more"


def _misfits(graph: QdqGraph, qdq: QdqNode) -> Iterator[tuple[str, str]]:
    scale, zero = qdq.scale_values, qdq.zero_values
    if scale is not None and zero is not None and scale.shape != zero.shape and (scale.size, zero.size) != (1, 1):
        yield f"scale of shape {list(scale.shape)}, zero-point of shape {list(zero.shape)}", "equal shapes"
    constant = None if qdq.data is None else graph.graph.source(qdq.data).constant
    if scale is None or constant is None or qdq.is_per_tensor:
        return
    shape = tuple(constant.dims)
    axis = qdq.axis + (len(shape) if qdq.axis < 0 else 0)
    if not 0 <= axis < len(shape):
        yield f"axis {qdq.axis} of a tensor of shape {list(shape)}", f"an axis in {-len(shape)}..{len(shape) - 1}"
    elif scale.shape != _scale_shape(shape, axis, qdq.block_size):
        wanted = list(_scale_shape(shape, axis, qdq.block_size))
        what = f"blocks of {qdq.block_size} along axis {axis}" if qdq.block_size else f"axis {axis}"
        yield f"scale of shape {list(scale.shape)} for {what} of {list(shape)}", f"shape {wanted}"


def _scale_shape(shape: tuple[Any, ...], axis: int, block_size: int) -> tuple[int, ...]:
    if not block_size:
        return (shape[axis],)
    return (*shape[:axis], -(-shape[axis] // block_size), *shape[axis + 1 :])
