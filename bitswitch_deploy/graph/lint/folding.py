"""Constants that a foreign graph computes from constants: scales that are cast, zero-points that are built.

Engines fold them when they load the graph. Only what exporters write in front of Q and DQ is here, and only small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

Array = NDArray[Any]

# Elements of the largest result.
_LARGEST = 1 << 22

_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Abs": np.abs,
    "Add": np.add,
    "Exp": np.exp,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Reciprocal": np.reciprocal,
    "Sqrt": np.sqrt,
    "Sub": np.subtract,
}


FOLDED = (
    *_ELEMENTWISE,
    "Cast",
    "ConstantOfShape",
    "DequantizeLinear",
    "Div",
    "Expand",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
)


def folded(node: onnx.NodeProto, arguments: Sequence[Array | None]) -> Array | None:
    """What `node`, one of FOLDED, makes of constant arguments; None where it is large or they do not fit."""
    known = [each for each in arguments if each is not None]
    # broadcast to each other they have no more elements than this
    if len(known) != len(arguments) or prod(each.size for each in known) > _LARGEST:
        return None
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    try:
        with np.errstate(all="ignore"):
            result = _computed(node.op_type, attributes, known)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None
    return None if result is None or np.asarray(result).dtype.kind not in "biufV" else np.asarray(result)


def _computed(operator: str, attributes: Mapping[str, Any], arguments: Sequence[Array]) -> Any:
    first = arguments[0]
    if operator in _ELEMENTWISE:
        return _ELEMENTWISE[operator](*arguments)
    if operator == "Cast":
        return first.astype(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))
    if operator == "Div":
        return np.divide(*arguments) if np.issubdtype(first.dtype, np.floating) else None
    if operator == "DequantizeLinear":
        return _dequantized(*arguments)
    if operator == "ConstantOfShape":
        value = onnx.numpy_helper.to_array(attributes["value"]) if attributes else np.zeros(1, np.float32)
        return _spread(value.reshape(()), first)
    if operator == "Expand":
        return _spread(first, arguments[1])
    return _reshaped(operator, first, attributes.get("axes", ()) if len(arguments) == 1 else arguments[1])


def _spread(values: Array, shape: Array) -> Array | None:
    fits = prod(shape.tolist()) * values.size <= _LARGEST
    return np.broadcast_to(values, np.broadcast_shapes(values.shape, tuple(shape))) if fits else None


def _dequantized(codes: Array, scale: Array, zero: Array | None = None) -> Any:
    """Codes with one scale, as those that are themselves scales of blocks."""
    if scale.size != 1:
        return None
    shifted = codes.astype(scale.dtype) - (0 if zero is None else zero.astype(scale.dtype).ravel())
    return (shifted * scale.ravel()).reshape(codes.shape)


def _reshaped(operator: str, values: Array, to: Iterable[int]) -> Array:
    numbers = tuple(int(each) for each in to)
    if operator == "Unsqueeze":
        return np.expand_dims(values, numbers)
    if operator == "Squeeze":
        return np.squeeze(values, numbers or None)
    return values.reshape([each or values.shape[index] for index, each in enumerate(numbers)])
