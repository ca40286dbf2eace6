"""DeepenInput: for the first convolution an image of three channels becomes a smaller one of twelve, or one of four."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from bitswitch_deploy.graph.qdq import (
    ActivationPattern,
    WeightPattern,
    activation_patterns,
    match_weight,
    producer_of,
    sole_reader,
    way_to_codes,
)
from bitswitch_deploy.lowering.lowering_pass import LoweringPass

_COLOURS, _BLOCK, _WORD = 3, 2, 4
# Blocks that a window only touches are multiplied whole: beyond this a fourth channel saves more. 3x3 is at 1.8.
_MOST_WORK = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """A window of stride 2 along one axis, in blocks of two pixels: their number, and those of padding on both sides.

    before: zero weights in front of the trained ones.
    """

    blocks: int
    padding: tuple[int, int]
    before: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stem:
    """The quantized input, the convolution that reads it, its weights and the integers that it multiplies by."""

    pattern: ActivationPattern
    conv: gs.Node
    weight: WeightPattern
    integers: NDArray[np.int32]

    @property
    def strides(self) -> list[int]:
        return list(self.conv.attrs.get("strides", [1, 1]))

    @property
    def padding(self) -> list[int]:
        """Rows above, columns before, rows below, columns behind."""
        return list(self.conv.attrs.get("pads", [0, 0, 0, 0]))


class DeepenInput(LoweringPass):
    """Change the shape of what a first convolution of 8-bit codes reads, not the numbers that it adds up. Exact.

    onnxruntime copies the window of each pixel before it multiplies, a few bytes for a row of three channels, and
    multiplies four at a time. Of a window with stride 2, blocks of four pixels make a smaller one: 7x7 becomes 4x4 of
    twelve channels, zeros where it ends within a block. Otherwise a fourth channel of zeros makes each row whole words.
    Either way that convolution takes about two thirds of its time (tools/bench/latency.py --split shows the network's).
    Cases: a 2-D convolution of three channels that are an input of the network, one group, no dilation, weights
    quantized after training, the only reader of its codes, codes behind it; blocks where the network says that height
    and width are even. Left alone: convolutions that run in float, which only have more to multiply then; those behind
    another layer, whose codes are not in the image's order; weights with codes of the master, which other graphs may
    share; signed codes; windows of whole words that no blocks suit.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Deepen the input of every such convolution; see the class for the cases."""
        stems = [stem for pattern in activation_patterns(graph) if (stem := self._stem(graph, pattern)) is not None]
        changed = [_in_blocks(graph, stem) or _with_fourth_channel(graph, stem) for stem in stems]
        return any(changed)

    def _stem(self, graph: gs.Graph, pattern: ActivationPattern) -> _Stem | None:
        conv = sole_reader(graph, pattern.result)
        if conv is None or conv.op != "Conv" or not _is_plain(conv) or not _is_chain(graph, pattern):
            return None
        if producer_of(pattern.source) is not None or not way_to_codes(graph, conv.outputs[0]):
            return None
        # around signed codes onnxruntime wants Q and DQ without anything in between
        if pattern.codes.container is not np.uint8:
            return None
        weight = match_weight(conv.inputs[1])
        if weight is None or weight.codes.name in self.context.weight_bits:
            return None
        integers = weight.products()
        is_colour = integers.ndim == 4 and integers.shape[1] == _COLOURS
        if not is_colour or sole_reader(graph, conv.inputs[1]) is None:
            return None
        return _Stem(pattern=pattern, conv=conv, weight=weight, integers=integers)


def _is_chain(graph: gs.Graph, pattern: ActivationPattern) -> bool:
    """Whether nothing else reads the codes, in any form."""
    node = pattern.quantize
    while node is not pattern.dequantize:
        reader = sole_reader(graph, node.outputs[0])
        if reader is None:
            return False
        node = reader
    return True


def _is_plain(conv: gs.Node) -> bool:
    return (
        conv.attrs.get("group", 1) == 1
        and set(conv.attrs.get("dilations", [1])) == {1}
        and conv.attrs.get("auto_pad", "NOTSET") == "NOTSET"
    )


def _in_blocks(graph: gs.Graph, stem: _Stem) -> bool:
    image = stem.pattern.source.shape
    if image is None or len(image) != 4 or stem.strides != [_BLOCK, _BLOCK]:
        return False
    above, left, below, right = stem.padding
    rows = _axis(image[2], stem.integers.shape[2], (above, below))
    columns = _axis(image[3], stem.integers.shape[3], (left, right))
    if rows is None or columns is None:
        return False
    outputs, channels = stem.integers.shape[:2]
    shape = (outputs, channels, rows.blocks, _BLOCK, columns.blocks, _BLOCK)
    if np.prod(shape) > _MOST_WORK * stem.integers.size:
        return False
    ends = [_BLOCK * axis.blocks - axis.before - size for axis, size in zip((rows, columns), stem.integers.shape[2:])]
    padded = np.pad(stem.integers, [(0, 0), (0, 0), (rows.before, ends[0]), (columns.before, ends[1])])
    # channels count as column in the block, colour, row in the block: see _move_to_blocks
    blocks = padded.reshape(shape).transpose(0, 5, 1, 3, 2, 4)
    integers = blocks.reshape(outputs, _BLOCK * channels * _BLOCK, rows.blocks, columns.blocks)
    _move_to_blocks(graph, stem.pattern, image[2] // _BLOCK, image[3] // _BLOCK)
    pads = [rows.padding[0], columns.padding[0], rows.padding[1], columns.padding[1]]
    _set(stem, integers, strides=[1, 1], pads=pads)
    return True


def _move_to_blocks(graph: gs.Graph, pattern: ActivationPattern, rows: int, columns: int) -> None:
    """Move the codes to [n, 12, rows, columns], in the steps that cost least.

    Whole rows first, then colours and rows in the block become the last axis, where two columns beside each other are
    one block as they lie there. The last transposition is undone by the one that onnxruntime puts before the
    convolution. SpaceToDepth takes thrice as long: it has no kernel for bytes in old versions, and one thread.
    """
    codes = pattern.dequantize.inputs[0]
    width, parts = _BLOCK * columns, _COLOURS * _BLOCK
    steps: list[tuple[str, list[int]]] = [
        ("Reshape", [0, _COLOURS, rows, _BLOCK, width]),
        ("Transpose", [0, 1, 3, 2, 4]),
        ("Reshape", [0, parts, rows, width]),
        ("Transpose", [0, 2, 3, 1]),
        ("Reshape", [0, rows, columns, parts * _BLOCK]),
        ("Transpose", [0, 3, 1, 2]),
    ]
    tensor = codes
    for index, (operator, numbers) in enumerate(steps):
        name = f"{codes.name}.blocks.{index}"
        moved = gs.Variable(name, dtype=pattern.codes.container)
        inputs, attributes = [tensor], {"perm": numbers}
        if operator == "Reshape":
            inputs, attributes = [tensor, gs.Constant(f"{name}.shape", np.asarray(numbers, np.int64))], {}
        graph.nodes.append(gs.Node(operator, f"{name}/{operator}", attributes, inputs, [moved]))
        tensor = moved
    pattern.dequantize.inputs[0] = tensor


def _axis(pixels: object, window: int, padding: tuple[int, int]) -> _Axis | None:
    """The same windows in blocks: the one of output o goes from pixel 2 o - padding on, which may be within a block."""
    if not isinstance(pixels, int) or pixels % _BLOCK:
        return None
    outputs = (pixels + sum(padding) - window) // _BLOCK + 1
    first, last = -padding[0] // _BLOCK, (window - 1 - padding[0]) // _BLOCK
    blocks = last - first + 1
    behind = outputs - 1 + blocks - pixels // _BLOCK + first
    return _Axis(blocks=blocks, padding=(-first, behind), before=-padding[0] - _BLOCK * first)


def _with_fourth_channel(graph: gs.Graph, stem: _Stem) -> bool:
    if stem.integers[0].size % _WORD == 0:
        return False
    # bytes are padded faster than floats, and which ones makes no difference to weights of 0
    missing, dequantize = _WORD - _COLOURS, stem.pattern.dequantize
    codes = dequantize.inputs[0]
    pads = gs.Constant(f"{codes.name}.fourth_channel", np.asarray([0, 0, 0, 0, 0, missing, 0, 0], np.int64))
    padded = gs.Variable(f"{codes.name}.padded", dtype=stem.pattern.codes.container)
    graph.nodes.append(gs.Node("Pad", f"{codes.name}/Pad", {"mode": "constant"}, [codes, pads], [padded]))
    dequantize.inputs[0] = padded
    integers = np.pad(stem.integers, [(0, 0), (0, missing), (0, 0), (0, 0)])
    _set(stem, integers, strides=stem.strides, pads=stem.padding)
    return True


def _set(stem: _Stem, integers: NDArray[np.int32], *, strides: list[int], pads: list[int]) -> None:
    """Store the integers as they are multiplied: factors, which fit int8 by contract, are no use to anybody here."""
    codes = gs.Constant(f"{stem.weight.codes.name}.deep", np.ascontiguousarray(integers.astype(np.int8)))
    stem.weight.dequantize.inputs[0] = codes
    stem.conv.inputs[1].to_variable(dtype=np.float32, shape=list(integers.shape))
    stem.conv.attrs |= {"kernel_shape": list(integers.shape[2:]), "strides": strides, "pads": pads}
