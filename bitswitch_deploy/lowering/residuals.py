"""The plan for residual branches: which float tensors behind a convolution get 8-bit codes. Data only.

A convolution whose output stays float cannot run in integers on onnxruntime, and on TensorRT a float skip input keeps
the fused convolution and Add from writing int8. The trained network has no codes there, so this is the one place where
a lowering quantizes more than was trained: ranges come from calibration samples and the change is reported as inexact.

With `skip_input` these are the skip inputs of residual Adds. With `both_inputs` they are all tensors around such an
Add, and whatever else a convolution in codes hands on in float: to pooling, a Concat, a SiLU or HardSwish, two layers
with quantizers of their own. Behind a transformer's MatMul nothing is touched: the next node is a float
LayerNormalization, which would gain nothing and lose precision.

A layer with a float weight between codes would not stay float: onnxruntime rounds its weight to int8, with one scale,
when it loads the graph (weight_bias_quantization.cc). Such layers go on reading the float tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.qdq import (
    is_known,
    match_weight,
    producer_of,
    reads_codes,
    sole_reader,
    way_to_codes,
)

Mode = Literal["none", "skip_input", "both_inputs"]

SAME_CODES = ("Slice", "Pad", "MaxPool", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_WEIGHTED = (*_CONVOLUTIONS, "Gemm", "MatMul")
ABSORBED = ("Relu", "Clip")
# What onnxruntime makes part of a float layer, where the other inputs are constants.
_FUSED = ("BatchNormalization", "Add", "Mul")


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedTensor:
    """One tensor that gets 8-bit codes.

    like: the tensor whose scale it shares, because only data movement lies between them; else its own name.
    reader: the one node that reads the codes, None for all readers but `kept`. unsigned: it comes from a Relu or a Clip
    at 0. kept: nodes that go on reading the float tensor.
    """

    tensor: str
    like: str
    reader: str | None
    unsigned: bool
    kept: tuple[str, ...] = ()


def plan_residuals(graph: gs.Graph, mode: Mode) -> tuple[CodedTensor, ...]:
    """The points of a canonical graph, in graph order, each tensor and reader once."""
    if mode == "none":
        return ()
    points: dict[tuple[str, str | None], CodedTensor] = {}
    for add in _residual_adds(graph):
        for point in _skip_point(add) if mode == "skip_input" else _all_points(graph, add):
            points.setdefault((point.tensor, point.reader), point)
    if mode == "both_inputs":
        for tensor in _float_results(graph):
            points.setdefault((tensor.name, None), _point(tensor, reader=None))
        return tuple(_share_scales(keep_float_layers(graph, points.values())))
    return tuple(_share_scales(points.values()))


def _float_results(graph: gs.Graph) -> Iterator[gs.Tensor]:
    """What quantized convolutions hand on in float, behind their BatchNormalization and activation.

    A result that leaves the network, as of each head of a detector, is not among them: it is what the user reads.
    """
    left = leaving(graph, (*SAME_CODES, "Concat"))
    for node in graph.nodes:
        if node.op != "Conv" or match_weight(node.inputs[1]) is None or not reads_codes(node):
            continue
        result = _behind(graph, node.outputs[0], ("BatchNormalization",))
        if not way_to_codes(graph, result):
            result = _behind(graph, result, ABSORBED)
            if id(result) not in left:
                yield result


def leaving(graph: gs.Graph, operators: tuple[str, ...]) -> set[int]:
    """Identities of the tensors that an output of the graph has in it, behind nothing but such operators."""
    found: set[int] = set()
    tensors = list(graph.outputs)
    while tensors:
        tensor = tensors.pop()
        producer = producer_of(tensor)
        if id(tensor) not in found and producer is not None and producer.op in operators:
            tensors += producer.inputs if producer.op == "Concat" else producer.inputs[:1]
        found.add(id(tensor))
    return found


def _behind(graph: gs.Graph, tensor: gs.Tensor, operators: tuple[str, ...]) -> gs.Tensor:
    """What `tensor` becomes behind all such operators that follow it one by one, each its only reader."""
    while (reader := sole_reader(graph, tensor)) is not None and reader.op in operators:
        tensor = reader.outputs[0]
    return tensor


def _residual_adds(graph: gs.Graph) -> list[gs.Node]:
    return [
        node
        for node in graph.nodes
        if node.op == "Add"
        and all(isinstance(tensor, gs.Variable) for tensor in node.inputs)
        and any(_convolution_behind(tensor) for tensor in node.inputs)
    ]


def _convolution_behind(tensor: gs.Tensor) -> gs.Node | None:
    """The quantized convolution that makes `tensor`, with at most a BatchNormalization between."""
    node = producer_of(tensor)
    if node is not None and node.op == "BatchNormalization":
        node = producer_of(node.inputs[0])
    if node is None or node.op not in _CONVOLUTIONS or match_weight(node.inputs[1]) is None:
        return None
    return node


def _skip_point(add: gs.Node) -> list[CodedTensor]:
    """The input that is not the main branch; with a convolution on both, the second one is the main branch."""
    first, second = add.inputs
    skip = second if _convolution_behind(second) is None else first
    return [_point(skip, reader=add.name)]


def _all_points(graph: gs.Graph, add: gs.Node) -> list[CodedTensor]:
    output = add.outputs[0]
    relu = sole_reader(graph, output)
    if relu is not None and relu.op == "Relu":
        output = relu.outputs[0]
    return [*(_point(tensor, reader=None) for tensor in add.inputs), _point(output, reader=None)]


def _point(tensor: gs.Tensor, *, reader: str | None) -> CodedTensor:
    origin = tensor
    while (node := producer_of(origin)) is not None and node.op in SAME_CODES:
        origin = node.inputs[0]
    source = producer_of(origin)
    unsigned = source is not None and (source.op == "Relu" or (source.op == "Clip" and _starts_at_zero(source)))
    return CodedTensor(tensor=tensor.name, like=origin.name, reader=reader, unsigned=unsigned)


def _starts_at_zero(clip: gs.Node) -> bool:
    low = clip.inputs[1] if len(clip.inputs) > 1 else None
    return isinstance(low, gs.Constant) and float(low.values) >= 0


def _share_scales(points: Iterable[CodedTensor]) -> list[CodedTensor]:
    """Keep `like` only where the origin is itself quantized for all readers: then the codes pass through unchanged."""
    listed = list(points)
    wrapped = {point.tensor for point in listed if point.reader is None}
    return [point if point.like in wrapped else replace(point, like=point.tensor) for point in listed]


def keep_float_layers(graph: gs.Graph, points: Iterable[CodedTensor]) -> list[CodedTensor]:
    """The points with the layers that onnxruntime would round as `kept`; without those that nobody else reads."""
    listed, tensors = list(points), graph.tensors()
    coded = {point.tensor for point in listed}
    found = []
    for point in listed:
        readers = tensors[point.tensor].outputs
        kept = tuple(reader.name for reader in readers if _reaches_rounded(reader, coded))
        if not kept or len(kept) < len(readers):
            found.append(replace(point, kept=kept))
    return found


def _reaches_rounded(node: gs.Node, coded: set[str]) -> bool:
    """Whether a float weight is rounded if `node` reads codes: its own, or that of a layer behind data movement."""
    result = node.outputs[0]
    if node.op in SAME_CODES:
        return result.name not in coded and any(_reaches_rounded(reader, coded) for reader in result.outputs)
    if node.op not in _WEIGHTED or match_weight(node.inputs[1]) is not None or not is_known(node.inputs[1]):
        return False
    # a MatMul only where its bias makes it a Gemm
    return (node.op != "MatMul" or [each.op for each in result.outputs] == ["Add"]) and _becomes_codes(result, coded)


def _becomes_codes(tensor: gs.Tensor, coded: set[str]) -> bool:
    """Whether the result of a float layer has codes behind, or will have as one of the tensors `coded`."""
    while tensor.name not in coded:
        if len(tensor.outputs) != 1:
            return False
        (reader,) = tensor.outputs
        if reader.op == "QuantizeLinear":
            return True
        is_fused = reader.op in _FUSED and all(is_known(each) for each in reader.inputs if each is not tensor)
        if not is_fused and reader.op not in (*ABSORBED, *SAME_CODES):
            return False
        tensor = reader.outputs[0]
    return True
