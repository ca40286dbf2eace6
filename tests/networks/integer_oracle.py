"""Double rounding once more, in Python integers and by its definition, and the integers that a graph really holds."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from bitswitch_deploy.tensors import Rounding


def derived(codes: NDArray[np.int8], *, from_bits: int, to_bits: int, rounding: Rounding) -> NDArray[np.int64]:
    """clip(round(code / 2^(h-l)), -2^(l-1), 2^(l-1)-1) of every code, same shape."""
    table = {code: _derive(code, 2 ** (from_bits - to_bits), 2 ** (to_bits - 1), rounding) for code in range(-128, 128)}
    return np.asarray([table[int(code)] for code in codes.ravel()], np.int64).reshape(codes.shape)


def _derive(code: int, divisor: int, limit: int, rounding: Rounding) -> int:
    exact = Fraction(code, divisor)
    nearest = floor(exact + Fraction(1, 2)) if rounding is Rounding.HALF_UP else round(exact)
    return max(-limit, min(limit - 1, nearest))


def stored_codes(model: onnx.ModelProto, weight: str, *, transposed: bool = False) -> NDArray[np.int64]:
    """The integers that a graph holds for `weight`, in whatever form: int8, packed int4 or blocks, or float, Q, DQ."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits" and node.input[1] == f"{weight}.blocks":
            codes = _unpack_blocks(node, numpy_helper.to_array(tensors[node.input[1]]))
            return codes if transposed else codes.transpose()
    tensor = tensors[weight]
    if tensor.data_type == onnx.TensorProto.INT8:
        return numpy_helper.to_array(tensor).astype(np.int64)
    if tensor.data_type == onnx.TensorProto.INT4:
        return _unpack_int4(tensor)
    if tensor.data_type == onnx.TensorProto.FLOAT:
        return _quantized(model, tensor, tensors)
    raise AssertionError(f"{weight} is stored as type {tensor.data_type}")


def _unpack_int4(tensor: onnx.TensorProto) -> NDArray[np.int64]:
    """Two's complement, low half of each byte first (ONNX, "TensorProto: raw_data")."""
    halves = [half for byte in tensor.raw_data for half in (byte & 15, byte >> 4)]
    shape = tuple(tensor.dims)
    values = [half - 16 if half >= 8 else half for half in halves[: int(np.prod(shape))]]
    return np.asarray(values, np.int64).reshape(shape)


def _unpack_blocks(node: onnx.NodeProto, data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """[outputs, inputs] of MatMulNBits: low bits of a byte first, zero point in the middle (ContribOperators.md)."""
    given = {attribute.name: attribute.i for attribute in node.attribute}
    bits, mask = given["bits"], 2 ** given["bits"] - 1
    rows: list[list[int]] = [
        [(int(byte) >> bits * k) & mask for byte in row.ravel() for k in range(8 // bits)] for row in data
    ]
    codes: NDArray[np.int64] = np.asarray(rows, np.int64)[:, : given["K"]] - 2 ** (bits - 1)
    return codes


def _quantized(
    model: onnx.ModelProto, weight: onnx.TensorProto, tensors: dict[str, onnx.TensorProto]
) -> NDArray[np.int64]:
    """What QuantizeLinear makes of a float weight, per tensor or along its axis."""
    (node,) = (n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == weight.name)
    values = numpy_helper.to_array(weight)
    scale = numpy_helper.to_array(tensors[node.input[1]])
    if scale.ndim:
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        scale = scale.reshape([-1 if index == axis else 1 for index in range(values.ndim)])
    return np.asarray(np.clip(np.rint(values / scale), -128, 127), np.int64)
