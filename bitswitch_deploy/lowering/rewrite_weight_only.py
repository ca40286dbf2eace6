"""RewriteWeightOnly: products of float inputs with quantized weights, in the form that onnxruntime runs fast."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from bitswitch_deploy.graph.channel_axis import along
from bitswitch_deploy.graph.large_tensors import LargeConstant, LargeTensor
from bitswitch_deploy.graph.qdq import WeightPattern, match_weight, reads_codes
from bitswitch_deploy.lowering.approximation import Approximation
from bitswitch_deploy.lowering.lowering_pass import LoweringPass, replace_node
from bitswitch_deploy.quantization import pack_blocks

DOMAIN = "com.microsoft"
# What MatMulNBits computes with: the float inputs as they are, or 8-bit codes of each block of them.
FLOAT_INPUTS, INT8_INPUTS = 1, 4
# Fewer, larger blocks are faster and smaller, up to 128; below 16 there is none (onnxruntime 1.23 to 1.32).
_MIN_BLOCK, _MAX_BLOCK = 16, 128
_PACKED_BITS = 4
_OPERATORS = ("MatMul", "Gemm")


class RewriteWeightOnly(LoweringPass):
    """Let MatMul and Gemm of float inputs read their weights in a form that costs no DequantizeLinear in each run.

    onnxruntime dequantizes such a weight anew in every run, or makes its own MatMulNBits of it, which at 8 bits is
    twenty times slower than float, or rounds the input to int8 without a word. Cases:

    * up to 4 bits: MatMulNBits of 4-bit codes and float inputs. Exact.
    * above: Cast and Mul in place of DequantizeLinear, which onnxruntime folds when it loads the graph: one byte for a
      weight in the file, float32 and its speed in memory. Exact, the same product rounded once.
    * with the approximation `int8-inputs`: MatMulNBits of 4- or 8-bit codes, which rounds blocks of inputs to 8 bits.

    Scales per tensor, channel and block of a power of two from 16 on; a Gemm's bias becomes an Add. Left alone: layers
    that read codes; convolutions; codes with factors; weights with other blocks; Gemm with alpha, beta or transA.
    2-bit codes go into 4 bits: onnxruntime 1.23 has no kernel for 2 bits, that of 1.32 is slower.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Rewrite every layer of the cases; see the class."""
        modified = False
        for node in list(graph.nodes):
            weight = match_weight(node.inputs[1]) if node.op in _OPERATORS and not node.domain else None
            if weight is None or reads_codes(node) or not _is_plain(node, weight):
                continue
            if weight.codes.name in self.context.weight_bits:
                self._rewrite(graph, node, weight)
                modified = True
        return modified

    def _rewrite(self, graph: gs.Graph, node: gs.Node, weight: WeightPattern) -> None:
        bits, rounds = self.context.weight_bits[weight.codes.name], self._rounds_inputs()
        inputs, outputs = _sizes(node, weight)
        size = _block_size(weight, inputs)
        if size is None or (bits > _PACKED_BITS and not rounds):
            node.inputs[1] = _unfolded(graph, weight)
            what = f"weights of {bits} bits become float32 when onnxruntime loads the graph"
            self.record(weight.codes.name, what, exact=True)
            return
        packed = _PACKED_BITS if bits <= _PACKED_BITS else 8
        attributes = {
            "K": inputs,
            "N": outputs,
            "bits": packed,
            "block_size": size,
            "accuracy_level": INT8_INPUTS if rounds else FLOAT_INPUTS,
        }
        operands = [node.inputs[0], *_operands(graph, node, weight, packed, size)]
        _replace(graph, node, operands, attributes)
        if rounds:
            what = f"inputs rounded to 8 bits in blocks of {size}"
            self.record(weight.codes.name, what, exact=False, approximation=Approximation.INT8_INPUTS)

    def _rounds_inputs(self) -> bool:
        return Approximation.INT8_INPUTS in self.context.approximations


class _Blocks(LargeTensor):
    """Codes as MatMulNBits stores them, uint8 [outputs, blocks, bytes of a block]."""

    def __init__(self, codes: gs.Constant, bits: int, size: int, *, transposed: bool) -> None:
        rows, columns = codes.shape if transposed else codes.shape[::-1]
        shape = (rows, -(-columns // size), size * bits // 8)
        super().__init__(shape, onnx.TensorProto.UINT8, math.prod(shape))
        self._codes, self._bits, self._size, self._transposed = codes, bits, size, transposed

    def load(self) -> NDArray[np.uint8]:
        codes = np.asarray(self._codes.values)
        return pack_blocks(codes if self._transposed else codes.T, bits=self._bits, block_size=self._size)


def _is_plain(node: gs.Node, weight: WeightPattern) -> bool:
    """Whether the node is input times weight (plus bias) and nothing else, and the weight a matrix of bare codes."""
    factors = (float(node.attrs.get("alpha", 1.0)), float(node.attrs.get("beta", 1.0)), node.attrs.get("transA", 0))
    return factors == (1.0, 1.0, 0) and weight.factors is None and len(weight.codes.shape) == 2


def _is_transposed(node: gs.Node) -> bool:
    """Whether the weight is [outputs, inputs], as a Gemm of torch has it."""
    return bool(node.attrs.get("transB", 0))


def _sizes(node: gs.Node, weight: WeightPattern) -> tuple[int, int]:
    """Inputs and outputs of the layer."""
    rows, columns = map(int, weight.codes.shape)
    return (columns, rows) if _is_transposed(node) else (rows, columns)


def _block_size(weight: WeightPattern, inputs: int) -> int | None:
    """Inputs that share a scale: the master's blocks, or the largest that are not mostly padding; None: impossible."""
    if weight.is_blocked:
        size = int(weight.dequantize.attrs["block_size"])
        return size if size >= _MIN_BLOCK and size & (size - 1) == 0 else None
    return min(_MAX_BLOCK, max(_MIN_BLOCK, 1 << (inputs - 1).bit_length()))


def _operands(graph: gs.Graph, node: gs.Node, weight: WeightPattern, bits: int, size: int) -> list[gs.Constant]:
    """Codes and scales of MatMulNBits; several nodes that read one weight share them."""
    known = graph.tensors()
    name = weight.codes.name
    if f"{name}.blocks" in known:
        return [known[f"{name}.blocks"], known[f"{name}.block_scales"]]
    blocks = _Blocks(weight.codes, bits, size, transposed=_is_transposed(node))
    is_large = isinstance(weight.codes, LargeConstant)
    codes = LargeConstant(f"{name}.blocks", blocks) if is_large else gs.Constant(f"{name}.blocks", blocks.load())
    scales = _block_scales(node, weight, (blocks.shape[0], blocks.shape[1]))
    return [codes, gs.Constant(f"{name}.block_scales", scales)]


def _block_scales(node: gs.Node, weight: WeightPattern, shape: tuple[int, int]) -> NDArray[np.float32]:
    """A scale for each block, float32 [outputs, blocks]."""
    scale = np.asarray(weight.scale.values, np.float32)
    if weight.is_blocked:
        by_output = scale if _is_transposed(node) else scale.T
    elif scale.ndim:
        by_channel = (weight.dequantize.attrs.get("axis", 1) == 0) == _is_transposed(node)
        if not by_channel:
            raise AssertionError(f"{node.name}: a scale for each input, which no master has")
        by_output = scale[:, None]
    else:
        by_output = scale.reshape(1, 1)
    return np.ascontiguousarray(np.broadcast_to(by_output, shape))


def _replace(graph: gs.Graph, node: gs.Node, operands: list[gs.Tensor], attributes: dict[str, int]) -> None:
    """Put MatMulNBits, and an Add where there is a bias, in the place of the node."""
    product = gs.Node("MatMulNBits", f"{node.name}/MatMulNBits", attributes, operands, [], domain=DOMAIN)
    bias = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    if bias is None:
        replace_node(graph, node, [product])
        return
    partial = gs.Variable(f"{node.outputs[0].name}.product", dtype=np.float32)
    product.outputs = [partial]
    replace_node(graph, node, [product, gs.Node("Add", f"{node.name}/Add", {}, [partial, bias], [])])


def _unfolded(graph: gs.Graph, weight: WeightPattern) -> gs.Tensor:
    """The weight by Cast and Mul with the scale; nodes that read one weight share it."""
    dequantize, codes = weight.dequantize, weight.codes
    name = f"{codes.name}.unfolded"
    known = graph.tensors()
    if name in known:
        return known[name]
    scale = np.asarray(weight.scale.values, np.float32)
    if weight.is_blocked:
        axis, size = int(dequantize.attrs["axis"]), int(dequantize.attrs["block_size"])
        scale = np.take(np.repeat(scale, size, axis), np.arange(codes.shape[axis]), axis)
    elif scale.ndim:
        scale = along(dequantize.attrs.get("axis", 1), scale, 2)
    floats, result = gs.Variable(f"{codes.name}.floats", dtype=np.float32), gs.Variable(name, dtype=np.float32)
    steps = gs.Constant(f"{codes.name}.steps", np.ascontiguousarray(scale))
    graph.nodes[0:0] = [
        gs.Node("Cast", f"{codes.name}/Cast", {"to": onnx.TensorProto.FLOAT}, [codes], [floats]),
        gs.Node("Mul", f"{codes.name}/Mul", {}, [floats, steps], [result]),
    ]
    return result
