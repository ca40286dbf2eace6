"""Shapes of a foreign graph, without touching its weights."""

from __future__ import annotations

from contextlib import suppress
from math import prod

import onnx
import onnx.shape_inference

# Elements of a constant that shape inference may want to read: shapes, axes, pads.
_SMALL = 64


def inferred_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Dimensions by tensor name, None for open ones, of the main graph and as far as onnx infers them."""
    stripped = _without_weights(model)
    # what the file itself says counts even where inference gives up
    with suppress(onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        stripped = onnx.shape_inference.infer_shapes(stripped, data_prop=True)
    graph = stripped.graph
    found = {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info, *graph.output)}
    return {
        name: tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
        for name, kind in found.items()
        if kind.HasField("shape")
    }


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the values of large constants, for the sake of memory."""
    copy = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    for field in ("node", "input", "output", "value_info"):
        getattr(copy.graph, field).extend(getattr(model.graph, field))
    for tensor in model.graph.initializer:
        if prod(tensor.dims) > _SMALL or tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        copy.graph.initializer.append(tensor)
    return copy
