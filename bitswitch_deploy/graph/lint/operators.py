"""Names of ONNX that the linter asks for everywhere."""

from __future__ import annotations

import onnx

STANDARD_DOMAINS = ("", "ai.onnx")
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def type_name(data_type: int) -> str | None:
    """`int8`, `float16`, ... of a TensorProto type; None for UNDEFINED and for numbers that onnx does not know."""
    known = data_type in onnx.TensorProto.DataType.values() and data_type
    return onnx.TensorProto.DataType.Name(data_type).lower() if known else None
