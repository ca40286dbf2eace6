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
from bitswitch_deploy.lowering.weight_storage import CodeBlocks, code_blocks, is_plain_product, is_transposed
from bitswitch_deploy.quantization import pack_blocks
from bitswitch_deploy.tensors import BLOCK_SCALES, BLOCKS

DOMAIN = "com.microsoft"
# What MatMulNBits computes with: the float inputs as they are, or 8-bit codes of each block of them.
FLOAT_INPUTS, INT8_INPUTS = 1, 4


class RewriteWeightOnly(LoweringPass):
    """Let MatMul and Gemm of float inputs read their weights in a form that costs no DequantizeLinear in each run.

    onnxruntime dequantizes such a weight anew in every run, or makes its own MatMulNBits of it, which at 8 bits is
    twenty times slower than float, or rounds the input to int8 without a word. Cases:

    * up to 4 bits: MatMulNBits of 4-bit codes and float inputs. Exact.
    * above, for blocks of other sizes, scales of inputs, and weights that layers read both ways round: Cast and Mul in
      place of DequantizeLinear (with a Gather that repeats the scales of blocks), which onnxruntime folds when it loads
      the graph: one byte for a weight in the file, float32 and its speed in memory. Exact, the same product rounded
      once.
    * with the approximation `int8-inputs`: MatMulNBits of 4- or 8-bit codes, which rounds blocks of inputs to 8 bits.

    Scales per tensor, channel and block of a power of two from 16 on (`weight_storage.code_blocks`); a Gemm's bias
    becomes an Add. Left alone: layers that read codes; convolutions; codes with factors; Gemm with alpha, beta or
    transA.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Rewrite every layer of the cases; see the class."""
        modified = False
        self._both_ways = _read_both_ways(graph)
        for node in list(graph.nodes):
            weight = match_weight(node.inputs[1]) if len(node.inputs) > 1 and not node.domain else None
            if weight is None or reads_codes(node) or not _is_plain(node, weight):
                continue
            if weight.codes.name in self.context.weight_bits:
                self._rewrite(graph, node, weight)
                modified = True
        return modified

    def _rewrite(self, graph: gs.Graph, node: gs.Node, weight: WeightPattern) -> None:
        bits, rounds = self.context.weight_bits[weight.codes.name], self._rounds_inputs()
        blocks = None
        if weight.codes.name not in self._both_ways and _has_scales_of_outputs(node, weight):
            blocks = code_blocks(
                tuple(weight.codes.shape),
                transposed=is_transposed(node.attrs),
                bits=bits,
                block_size=int(weight.dequantize.attrs["block_size"]) if weight.is_blocked else None,
                rounds_inputs=rounds,
            )
        if blocks is None:
            node.inputs[1] = _unfolded(graph, weight)
            what = f"weights of {bits} bits become float32 when onnxruntime loads the graph"
            self.record(weight.codes.name, what, exact=True)
            return
        attributes = {
            "K": blocks.inputs,
            "N": blocks.outputs,
            "bits": blocks.bits,
            "block_size": blocks.size,
            "accuracy_level": INT8_INPUTS if rounds else FLOAT_INPUTS,
        }
        operands = [node.inputs[0], *_operands(graph, node, weight, blocks)]
        _replace(graph, node, operands, attributes)
        if rounds:
            what = f"inputs rounded to 8 bits in blocks of {blocks.size}"
            self.record(weight.codes.name, what, exact=False, approximation=Approximation.INT8_INPUTS)

    def _rounds_inputs(self) -> bool:
        return Approximation.INT8_INPUTS in self.context.approximations


class _BlockedCodes(LargeTensor):
    """Codes as MatMulNBits stores them, uint8 [outputs, blocks, bytes of a block]."""

    def __init__(self, codes: gs.Constant, blocks: CodeBlocks, *, transposed: bool) -> None:
        super().__init__(blocks.codes_shape, onnx.TensorProto.UINT8, math.prod(blocks.codes_shape))
        self._codes, self._blocks, self._transposed = codes, blocks, transposed

    def load(self) -> NDArray[np.uint8]:
        codes = np.asarray(self._codes.values)
        by_output = codes if self._transposed else codes.T
        return pack_blocks(by_output, bits=self._blocks.bits, block_size=self._blocks.size)


def _is_plain(node: gs.Node, weight: WeightPattern) -> bool:
    """Whether the node is a plain product, and its weight bare codes."""
    return weight.factors is None and is_plain_product(node.op, node.attrs, tuple(weight.codes.shape))


def _read_both_ways(graph: gs.Graph) -> set[str]:
    """Names of codes that several layers read, as [inputs, outputs] and the other way: they have no one packed form."""
    ways: dict[str, set[bool]] = {}
    for node in graph.nodes:
        weight = match_weight(node.inputs[1]) if len(node.inputs) > 1 else None
        if weight is not None:
            ways.setdefault(weight.codes.name, set()).add(is_transposed(node.attrs))
    return {name for name, found in ways.items() if len(found) > 1}


def _has_scales_of_outputs(node: gs.Node, weight: WeightPattern) -> bool:
    """Whether the scales can be taken out of a sum over inputs, or over a block of them."""
    if not weight.is_blocked and np.ndim(weight.scale.values) == 0:
        return True
    of_outputs = weight.dequantize.attrs.get("axis", 1) == (0 if is_transposed(node.attrs) else 1)
    return bool(of_outputs != weight.is_blocked)


def _operands(graph: gs.Graph, node: gs.Node, weight: WeightPattern, blocks: CodeBlocks) -> list[gs.Constant]:
    """Codes and scales of MatMulNBits; several nodes that read one weight share them."""
    known = graph.tensors()
    name = weight.codes.name
    if f"{name}{BLOCKS}" in known:
        return [known[f"{name}{BLOCKS}"], known[f"{name}{BLOCK_SCALES}"]]
    blocked = _BlockedCodes(weight.codes, blocks, transposed=is_transposed(node.attrs))
    is_large = isinstance(weight.codes, LargeConstant)
    codes = LargeConstant(f"{name}{BLOCKS}", blocked) if is_large else gs.Constant(f"{name}{BLOCKS}", blocked.load())
    return [codes, gs.Constant(f"{name}{BLOCK_SCALES}", _block_scales(node, weight, blocks.scales_shape))]


def _block_scales(node: gs.Node, weight: WeightPattern, shape: tuple[int, int]) -> NDArray[np.float32]:
    """A scale for each block, float32 [outputs, blocks]."""
    scale = np.asarray(weight.scale.values, np.float32)
    if weight.is_blocked:
        by_output = scale if is_transposed(node.attrs) else scale.T
    elif scale.ndim:
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
    if scale.ndim and not weight.is_blocked:
        scale = along(dequantize.attrs.get("axis", 1), scale, 2)
    floats, result = gs.Variable(f"{codes.name}.floats", dtype=np.float32), gs.Variable(name, dtype=np.float32)
    # those of blocks are as the master has them, and keep their name
    is_named = weight.is_blocked and isinstance(weight.scale, gs.Constant)
    steps: gs.Tensor = weight.scale if is_named else gs.Constant(f"{codes.name}.steps", np.ascontiguousarray(scale))
    nodes = [gs.Node("Cast", f"{codes.name}/Cast", {"to": onnx.TensorProto.FLOAT}, [codes], [floats])]
    if weight.is_blocked:
        axis, size = int(dequantize.attrs["axis"]), int(dequantize.attrs["block_size"])
        blocks = gs.Constant(f"{codes.name}.block_of", np.arange(codes.shape[axis], dtype=np.int32) // np.int32(size))
        repeated = gs.Variable(f"{codes.name}.repeated_steps", dtype=np.float32)
        nodes.append(gs.Node("Gather", f"{codes.name}/Gather", {"axis": axis}, [steps, blocks], [repeated]))
        steps = repeated
    graph.nodes[0:0] = [*nodes, gs.Node("Mul", f"{codes.name}/Mul", {}, [floats, steps], [result])]
    return result
