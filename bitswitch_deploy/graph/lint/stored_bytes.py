"""How many bytes a constant takes, and how many the file has for it (onnx.proto: what each field of a tensor holds)."""

from __future__ import annotations

from math import prod

import onnx

from bitswitch_deploy.graph.lint.operators import type_name

# Codes that share a byte.
BITS = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "float4e2m1": 4}


def size_bytes(constant: onnx.TensorProto) -> int | None:
    """Bytes that a constant of this type and shape takes, packed; None for types without a fixed size."""
    kind = type_name(constant.data_type)
    n_elements = prod(constant.dims)
    if kind in BITS:
        return -(-n_elements * BITS[kind] // 8)
    if kind is None or kind == "string":
        return None
    return n_elements * _item_bytes(constant)


def stored_bytes(constant: onnx.TensorProto) -> int | None:
    """Bytes that there are for a constant; None where the file does not say it, or the type has no fixed size."""
    kind = type_name(constant.data_type)
    if kind is None or kind == "string":
        return None
    if constant.data_location == onnx.TensorProto.EXTERNAL:
        return onnx.external_data_helper.ExternalDataInfo(constant).length
    if constant.HasField("raw_data"):
        return len(constant.raw_data)
    # int32 and uint64 entries hold one narrower element each, or one byte of packed codes
    narrow = 1 if kind in BITS else _item_bytes(constant)
    return (
        4 * len(constant.float_data)
        + 8 * (len(constant.double_data) + len(constant.int64_data))
        + narrow * (len(constant.int32_data) + len(constant.uint64_data))
    )


def _item_bytes(constant: onnx.TensorProto) -> int:
    return onnx.helper.tensor_dtype_to_np_dtype(constant.data_type).itemsize
