"""Double rounding and packing as ONNX functions: what a graph reads, from the master's codes, inside the graph.

    half_up     min(round_half_even((w + 1/4) / 2^D), 2^(l-1) - 1)
    half_even   min(round_half_even( w        / 2^D), 2^(l-1) - 1)        D = h - l

w is an integer, so w + 1/4 is never half-way between two codes, and what was half-way goes up. Everything is exact in
float32: w + 1/4 has ten bits, and 2^D is a power of two. QuantizeLinear divides and rounds half to even (its ONNX
definition); the cut at the upper end follows on the int8 codes, and the lower end cannot be left.

onnxruntime puts the nodes of a function in the place of each call and folds them when it loads a session (seen with
1.23.2 and 1.32.0). It folds neither a DequantizeLinear nor operators of its own domain, and has neither Add nor a
signed BitShift for int8; a Gather from a table of 256 codes is folded, but takes seven times as long.

A byte of 4-bit codes as MatMulNBits reads them is (even + 8) + 16 * (odd + 8), one of 8-bit codes code + 128.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bitswitch_deploy.quantization import BlockPacking
from bitswitch_deploy.tensors import Rounding, code_range

# Of the functions of a model, which are called by it and a name.
DOMAIN = "bitswitch_deploy"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Derivation:
    """How codes of the master become those that a graph reads.

    from_bits, to_bits: of the master, of the result. multiplies: the int8 result is multiplied by int8 factors, which
    broadcast against it; products fit int8.
    """

    from_bits: int
    to_bits: int
    rounding: Rounding
    multiplies: bool

    @property
    def name(self) -> str:
        """Of the function in `DOMAIN`."""
        return f"derive_w{self.to_bits}" + ("_times" if self.multiplies else "")

    def call(self, source: str, result: str, *, factors: str | None = None) -> onnx.NodeProto:
        """A node that computes the int8 tensor `result` of the int8 tensor `source` [same shape]."""
        return onnx.helper.make_node(self.name, [source, *([factors] if factors else [])], [result], domain=DOMAIN)

    def function(self, *, opset: int) -> onnx.FunctionProto:
        """What such nodes call. opset: of the model."""
        inputs = ["master", *(["factors"] if self.multiplies else [])]
        imports = [onnx.helper.make_opsetid("", opset)]
        return onnx.helper.make_function(DOMAIN, self.name, inputs, ["result"], self._nodes(), imports)

    def _nodes(self) -> list[onnx.NodeProto]:
        nodes, codes = self._rounding_nodes() if self.to_bits < self.from_bits else ([], "master")
        if self.multiplies:
            make = onnx.helper.make_node
            nodes += [
                make("Cast", [codes], ["integers"], to=onnx.TensorProto.INT32),
                make("Cast", ["factors"], ["integer_factors"], to=onnx.TensorProto.INT32),
                make("Mul", ["integers", "integer_factors"], ["products"]),
                make("Cast", ["products"], ["result"], to=onnx.TensorProto.INT8),
            ]
        return nodes

    def _rounding_nodes(self) -> tuple[list[onnx.NodeProto], str]:
        make = onnx.helper.make_node
        codes = "codes" if self.multiplies else "result"
        highest = code_range(self.to_bits, signed=True).high
        nodes = [
            _constant("step", np.float32(2 ** (self.from_bits - self.to_bits))),
            _constant("zero", np.int8(0)),
            _constant("highest", np.int8(highest)),
            make("Cast", ["master"], ["wide"], to=onnx.TensorProto.FLOAT),
        ]
        wide = "wide"
        if self.rounding is Rounding.HALF_UP:
            wide = "off_ties"
            nodes += [_constant("quarter", np.float32(0.25)), make("Add", ["wide", "quarter"], [wide])]
        nodes += [
            make("QuantizeLinear", [wide, "step", "zero"], ["rounded"]),
            make("Clip", ["rounded", "", "highest"], [codes]),
        ]
        return nodes, codes


def call_packing(packing: BlockPacking, source: str, result: str, *, pads: str, shape: str) -> onnx.NodeProto:
    """A node that packs the int8 matrix `source` into the uint8 tensor `result`; blocks of all sizes call one function.

    pads: name of int64 [4], what `source`, [outputs, inputs] then, is filled up with. shape: name of int64, the shape
    of the codes, [outputs, blocks, bytes of a block, codes in a byte].
    """
    return onnx.helper.make_node(_packing_name(packing), [source, pads, shape], [result], domain=DOMAIN)


def packing_function(packing: BlockPacking, *, opset: int) -> onnx.FunctionProto:
    """What such nodes call. opset: of the model."""
    make, bits = onnx.helper.make_node, packing.bits
    places = 2 ** np.arange(0, 8, bits, dtype=np.int32)
    matrix = "by_output" if packing.transposes else "codes"
    nodes = [
        _constant("places", places),
        _constant("zeros", np.int32(2 ** (bits - 1) * places.sum())),
        _constant("last", np.array([-1], np.int64)),
        *([make("Transpose", ["codes"], [matrix], perm=[1, 0])] if packing.transposes else []),
        make("Cast", [matrix], ["integers"], to=onnx.TensorProto.INT32),
        make("Pad", ["integers", "pads"], ["filled"]),
        make("Reshape", ["filled", "shape"], ["parts"]),
        make("Mul", ["parts", "places"], ["placed"]),
        make("ReduceSum", ["placed", "last"], ["sums"], keepdims=0),
        make("Add", ["sums", "zeros"], ["bytes"]),
        make("Cast", ["bytes"], ["result"], to=onnx.TensorProto.UINT8),
    ]
    imports = [onnx.helper.make_opsetid("", opset)]
    inputs = ["codes", "pads", "shape"]
    return onnx.helper.make_function(DOMAIN, _packing_name(packing), inputs, ["result"], nodes, imports)


def _packing_name(packing: BlockPacking) -> str:
    return f"pack_{packing.bits}" + ("_transposed" if packing.transposes else "")


def _constant(name: str, value: np.generic | npt.NDArray[Any]) -> onnx.NodeProto:
    return onnx.helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(np.asarray(value)))
