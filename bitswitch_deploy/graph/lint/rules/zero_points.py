"""Rules about zero-points (TensorRT issues 4698 and 2081)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bitswitch_deploy.graph.lint.linted_graph import LintedGraph, Node
from bitswitch_deploy.graph.lint.operators import type_name
from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph
from bitswitch_deploy.graph.lint.qdq_node import QdqNode
from bitswitch_deploy.graph.lint.rule import Breach, Rule

_CHANNELS = 1


class MissingZeroPoint(Rule):
    """QuantizeLinear without zero-point and without output_dtype: uint8 to ONNX, int8 to TensorRT.

    A DequantizeLinear without one takes the type of its codes, which both read alike.
    """

    id = "missing-zero-point"
    severity = "error"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.quantizers:
            if _has_no_type(qdq):
                yield Breach(
                    node=qdq.node,
                    got="no zero-point: uint8 to ONNX and onnxruntime, int8 to TensorRT",
                    allowed="an explicit zero-point tensor, which fixes the type",
                    do="add a zero-point 0 of the type that was trained, int8 for TensorRT, to it and to its DQ",
                )


class UnsignedCodes(Rule):
    """uint8 codes: TensorRT reads them as int8 with only a warning, so all above 127 are lost.

    As weights they are not imported at all, nor behind output_dtype. A Q that names no type is MissingZeroPoint's.
    """

    id = "uint8-codes"
    severity = "error"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.heads:
            if qdq.code_type == "uint8" and not _has_no_type(qdq):
                lost = "not imported" if graph.is_weight(qdq) else "read as int8: the upper half of the range is lost"
                do = "quantize symmetrically to int8, zero-point 0; up to 7 bits fit after a float Clip in front of Q"
                yield Breach(node=qdq.node, got=f"uint8 codes, {lost}", allowed="int8 codes", do=do)


class NonZeroZeroPoint(Rule):
    """A zero-point other than 0: TensorRT parses it neither for activations nor for weights."""

    id = "nonzero-zero-point"
    severity = "error"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.heads:
            zero = qdq.zero_values
            if zero is not None and np.any(zero):
                values = np.unique(np.asarray(zero, np.float64))
                shown = f"{values[0]:g}" if values.size == 1 else f"{values[0]:g} .. {values[-1]:g}"
                do = "quantize symmetrically: zero-point 0 and the scale from the largest magnitude"
                yield Breach(node=qdq.node, got=f"zero-point {shown}", allowed="zero-point 0", do=do)


class TypesDisagree(Rule):
    """A Q or DQ whose codes are of one type and its zero-point of another: int8 codes taken as uint8 or the reverse.

    Of a Q, the codes are of the type that output_dtype names: neither ONNX nor onnxruntime takes two.
    """

    id = "q-dq-types-disagree"
    severity = "error"
    engines = ("tensorrt", "onnxruntime")

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.nodes:
            codes = type_name(qdq.node.integer("output_dtype", 0)) if qdq.is_quantizer else graph.type_of(qdq.data)
            if codes is not None and qdq.code_type is not None and codes != qdq.code_type:
                do = "give Q and DQ zero-points of one type"
                got = f"{codes} codes with a zero-point of type {qdq.code_type}"
                yield Breach(node=qdq.node, got=got, allowed=f"a zero-point of type {codes}", do=do)


class AxesDisagree(Rule):
    """A DQ right behind a Q has its scales along another axis, or in blocks of another size.

    Both engines do what is written: each channel is multiplied by the scales of others. Nothing is said where all
    scales are equal, or where nobody knows which axis a negative one is.
    """

    id = "q-dq-axes-disagree"
    severity = "error"
    engines = ("tensorrt", "onnxruntime")

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.dequantizers:
            quantizer, between = graph.quantizer_of(qdq)
            if quantizer is None or between or not (_has_scales(quantizer) and _has_scales(qdq)):
                continue
            axes = [_axis(graph.graph, quantizer, each) for each in (quantizer, qdq)]
            sizes = [each.block_size for each in (quantizer, qdq)]
            if sizes[0] != sizes[1] or (None not in axes and axes[0] != axes[1]):
                shown = [
                    f"axis {each.axis}" + (f" in blocks of {each.block_size}" if each.block_size else "")
                    for each in (qdq, quantizer)
                ]
                do = "write the axis and block_size of one on the other, or quantize the tensor again"
                got = f"scales along {shown[0]}, those of {quantizer.node.name} along {shown[1]}"
                yield Breach(node=qdq.node, got=got, allowed="scales along the axis of its Q", do=do)


class GridsDisagree(Rule):
    """A DQ right behind a Q has another scale or zero-point: every value is multiplied or shifted on the way.

    Both engines do what is written. It is seldom what was meant. With an operator on the codes in between (Clip,
    BitShift, ...) nothing is said.
    """

    id = "q-dq-scales-disagree"
    severity = "warning"
    engines = ("tensorrt", "onnxruntime")

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.dequantizers:
            quantizer, between = graph.quantizer_of(qdq)
            if quantizer is None or between or quantizer.code_type != qdq.code_type:
                continue
            if not quantizer.same_grid(qdq):
                got = f"another scale or zero-point than {quantizer.node.name}, whose codes it reads"
                do = "use the scale and zero-point of Q; to rescale on purpose, say so with a Mul"
                yield Breach(node=qdq.node, got=got, allowed="the grid of its Q", do=do)


class PaddedCodes(Rule):
    """A Pad of codes that fills with another code than the zero-point: the border is no zero to what reads it.

    Of channels nothing is said: weights of 0 may wait for them. Nor of a Pad whose numbers are computed.
    """

    id = "padded-codes"
    severity = "warning"
    engines = ("tensorrt", "onnxruntime")

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.dequantizers:
            quantizer, between = graph.quantizer_of(qdq)
            zero = 0 if qdq.zero_point is None else qdq.zero_values
            if quantizer is None or zero is None or np.size(zero) != 1:
                continue
            for node in between:
                fill = _border(graph.graph, node)
                if fill is not None and fill != float(np.asarray(zero).item()):
                    got = f"a border of code {fill:g} by {node.name}, which stands for another number than 0"
                    do = "give the Pad the zero-point as its value, or pad in float in front of Q"
                    yield Breach(node=qdq.node, got=got, allowed=f"a border of the zero-point, {zero}", do=do)


def _has_scales(qdq: QdqNode) -> bool:
    """Whether it matters along which axis its scales lie."""
    scales = qdq.scale_values
    return scales is not None and np.unique(scales.astype(np.float64)).size > 1


def _axis(graph: LintedGraph, quantizer: QdqNode, qdq: QdqNode) -> int | None:
    """The axis of scales from the front; None where it is written from the back of a tensor of unknown rank."""
    shape = graph.shape(quantizer.data)
    if qdq.axis >= 0:
        return qdq.axis
    return None if shape is None else qdq.axis + len(shape)


def _has_no_type(qdq: QdqNode) -> bool:
    return qdq.is_quantizer and qdq.zero_point is None and not qdq.node.integer("output_dtype", 0)


def _border(graph: LintedGraph, node: Node) -> float | None:
    """The code that a Pad puts around rows or columns; None where it does not, or nobody knows."""
    if node.operator != "Pad" or node.text("mode", "constant") != "constant":
        return None
    pads, fill, axes = (graph.values(node.argument(index)) for index in (1, 2, 3))
    fill = np.zeros(1, np.int64) if node.argument(2) is None else fill
    if pads is None or fill is None or fill.size != 1 or pads.size % 2:
        return None
    ends = pads.reshape(2, -1)
    axes = np.arange(ends.shape[1]) if node.argument(3) is None else axes
    if axes is None or axes.shape != ends.shape[1:] or axes.min(initial=0) < 0:
        return None
    return float(fill.item()) if np.any(ends[:, axes != _CHANNELS]) else None
