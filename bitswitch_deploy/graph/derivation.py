"""Double rounding as ONNX operators: codes of a lower width from the master's, inside the graph.

    half_up     min(round_half_even((w + 1/4) / 2^D), 2^(l-1) - 1)
    half_even   min(round_half_even( w        / 2^D), 2^(l-1) - 1)        D = h - l

w is an integer, so w + 1/4 is never half-way between two codes, and what was half-way goes up. Everything is exact in
float32: w + 1/4 has ten bits, and 2^D is a power of two. QuantizeLinear divides and rounds half to even (its ONNX
definition); the cut at the upper end follows on the int8 codes, and the lower end cannot be left.

onnxruntime folds the chain when it loads a session (all of 1.23 to 1.32). It folds neither a DequantizeLinear nor
operators of its own domain, and has neither Add nor a signed BitShift for int8; a Gather from a table of 256 codes is
folded, but takes seven times as long.
"""

from __future__ import annotations

import numpy as np
import onnx

from bitswitch_deploy.tensors import Rounding, code_range

_QUARTER, _ZERO = "derive.quarter", "derive.zero"


def derivation_nodes(
    source: str, result: str, *, from_bits: int, to_bits: int, rounding: Rounding
) -> list[onnx.NodeProto]:
    """Nodes that compute the int8 tensor `result` from the int8 tensor `source` [same shape]."""
    make, prefix = onnx.helper.make_node, f"derive.w{to_bits}"
    wide, rounded = f"{source}.wide", f"{source}.rounded"
    nodes = [make("Cast", [source], [wide], to=onnx.TensorProto.FLOAT)]
    if rounding is Rounding.HALF_UP:
        nodes.append(make("Add", [wide, _QUARTER], [f"{source}.off_ties"]))
        wide = f"{source}.off_ties"
    nodes.append(make("QuantizeLinear", [wide, f"{prefix}.step", _ZERO], [rounded]))
    nodes.append(make("Clip", [rounded, "", f"{prefix}.highest"], [result]))
    return nodes


def derivation_constants(widths: set[int], *, from_bits: int, rounding: Rounding) -> list[onnx.TensorProto]:
    """Initializers that the nodes read, once for each of the `widths` that are derived."""
    constants = {_ZERO: np.int8(0)} | ({_QUARTER: np.float32(0.25)} if rounding is Rounding.HALF_UP else {})
    for bits in sorted(widths):
        constants[f"derive.w{bits}.step"] = np.float32(2 ** (from_bits - bits))
        constants[f"derive.w{bits}.highest"] = np.int8(code_range(bits, signed=True).high)
    return [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
