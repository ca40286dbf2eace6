"""Shapes and element types of a foreign graph, without touching its weights."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from math import prod

import onnx
import onnx.shape_inference

from bitswitch_deploy.graph.lint.operators import DEQUANTIZE, QUANTIZE
from bitswitch_deploy.graph.lint.stored_bytes import size_bytes, stored_bytes

# Elements of a constant that shape inference may want to read: shapes, axes, pads.
_SMALL = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorType:
    """What is known of a tensor. shape: dimensions, None for open ones; None for an unknown rank.

    data_type: its TensorProto type, None where it is not known.
    """

    shape: tuple[int | None, ...] | None
    data_type: int | None


def inferred_types(model: onnx.ModelProto) -> dict[str, TensorType]:
    """Shapes and types by tensor name, of the main graph and as far as onnx infers them."""
    stripped = _without_weights(model)
    # what the file itself says counts even where inference gives up
    with suppress(onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        stripped = onnx.shape_inference.infer_shapes(stripped, data_prop=True)
    graph = stripped.graph
    return {value.name: _type_of(value.type.tensor_type) for value in (*graph.input, *graph.value_info, *graph.output)}


def _type_of(kind: onnx.TypeProto.Tensor) -> TensorType:
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    return TensorType(shape=dims if kind.HasField("shape") else None, data_type=kind.elem_type or None)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the values of large constants, for the sake of memory.

    A constant that claims more than the file has is left out: onnx computes with vectors that may be shapes, number by
    number.
    """
    copy = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    for field in ("node", "input", "output", "value_info"):
        getattr(copy.graph, field).extend(getattr(model.graph, field))
    for node in copy.graph.node:
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            node.domain = ""  # onnx infers nothing of those of com.microsoft, which have the same shapes
    for tensor in model.graph.initializer:
        if stored_bytes(tensor) not in (None, size_bytes(tensor)):
            continue
        if prod(tensor.dims) > _SMALL or tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        copy.graph.initializer.append(tensor)
    return copy
