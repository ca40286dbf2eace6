"""Rules about where Q and DQ stand (TensorRT issues 3861 and 4467)."""

from __future__ import annotations

from collections.abc import Iterator

from bitswitch_deploy.graph.lint.bias import bias_add
from bitswitch_deploy.graph.lint.linted_graph import Node, Tensor
from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph
from bitswitch_deploy.graph.lint.qdq_node import MOVING, QdqNode
from bitswitch_deploy.graph.lint.rule import Breach, Rule

_CONVOLUTIONS = ("Conv", "ConvTranspose")
# Without a weight, and with integer kernels that need codes on every input and on the output.
_ELEMENTWISE = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool")
_ORT_ONLY = ("LeakyRelu", "Sigmoid", "Softmax")


class QdqBetweenConvAndAdd(Rule):
    """Q and DQ between a convolution and its residual Add, and no other convolution that the Add could join.

    TensorRT computes conv and Add as one kernel only where the Add reads the convolution itself; Q and DQ belong on the
    skip input. onnxruntime wants both inputs in codes: an export for each engine.
    """

    id = "qdq-between-conv-and-add"
    severity = "warning"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for node, inputs in _residual_adds(graph):
            if any(_makes(graph, tensor) in _CONVOLUTIONS for tensor in inputs):
                continue
            for dequantizer in (graph.dequantizer_of(tensor) for tensor in inputs):
                quantizer = None if dequantizer is None else graph.quantizer_of(dequantizer)[0]
                if quantizer is not None and _makes(graph, quantizer.data) in _CONVOLUTIONS:
                    yield Breach(
                        node=node,
                        got=f"{quantizer.node.name} between it and its convolution",
                        allowed="the result of the convolution itself, Q and DQ on the skip input only",
                        do="take Q and DQ off the branch that the Add shall be fused with",
                    )
                    break


class FloatSkip(Rule):
    """A residual Add whose convolution is in codes and whose skip input is float.

    The fused conv + Add of TensorRT then writes float, and the next Q cannot join it. A BatchNormalization between
    convolution and Add is passed over.
    """

    id = "float-skip"
    severity = "warning"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        in_codes = {id(layer.node) for layer in graph.layers if layer.activation and layer.weight}
        for node, inputs in _residual_adds(graph):
            joined = [tensor for tensor in inputs if id(_maker(graph, tensor)) in in_codes]
            skips = [t for t in inputs if _makes(graph, t) not in _CONVOLUTIONS]
            if joined and skips and graph.dequantizer_of(skips[0]) is None and not _is_moved_codes(graph, skips[0]):
                do = "put Q and DQ on the skip input"
                got = f"a float skip input, {skips[0].name}"
                yield Breach(node=node, got=got, allowed="a skip input in codes", do=do)


class PartlyQuantized(Rule):
    """An operator without weight that has codes on one side and float on another: it runs in float.

    Cases: Add, Mul, Concat and average pooling with some inputs in codes and others not, or with codes on the inputs
    and no Q behind (a Relu or Clip in between is passed over). An Add next to a convolution is
    QdqBetweenConvAndAdd's and FloatSkip's for TensorRT; the Add of a MatMul's bias belongs to the MatMul.
    """

    id = "partly-quantized"
    severity = "warning"
    engines = ("tensorrt", "onnxruntime")

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        adds = {id(bias_add(graph, layer)) for layer in graph.layers}
        for node in graph.graph.nodes:
            if node.operator in _ELEMENTWISE and id(node) not in adds and not _joins_convolution(graph, node):
                yield from _partly(graph, node)


class PartlyQuantizedOrt(Rule):
    """LeakyRelu, Sigmoid or Softmax, or an Add or Mul that reads a convolution, partly in codes: it runs in float.

    The cases are those of PartlyQuantized. Only onnxruntime has integer kernels for the first three, and TensorRT joins
    the other two with the convolution.
    """

    id = "partly-quantized-onnxruntime"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for node in graph.graph.nodes:
            if node.operator in _ORT_ONLY or (node.operator in _ELEMENTWISE and _joins_convolution(graph, node)):
                yield from _partly(graph, node)


class UnequalConcatScales(Rule):
    """A Concat whose inputs are in codes of several grids, or of another one than the Q behind it.

    TensorRT moves Q through a Concat where the grids are equal, else it requantizes each input.
    onnxruntime has a kernel for unequal ones.
    """

    id = "unequal-concat-scales"
    severity = "warning"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for node in graph.graph.nodes:
            if node.operator != "Concat":
                continue
            sides = [each for tensor in node.inputs if tensor and (each := graph.dequantizer_of(tensor))]
            behind = _quantizer_behind(graph, node)
            if len(sides) > 1 and behind is not None:
                sides.append(behind)
            if len(sides) > 1 and not all(sides[0].same_grid(each) for each in sides[1:]):
                scales = sorted(
                    {float(each.scale_values.ravel()[0]) for each in sides if each.scale_values is not None}
                )
                do = "calibrate its inputs and its output together: one scale, of the widest range"
                got = f"scales {', '.join(f'{scale:g}' for scale in scales[:4])} around it"
                yield Breach(node=node, got=got, allowed="one scale for all inputs and the output", do=do)


class RequantizedMove(Rule):
    """Q and DQ with other grids on the two sides of an operator that only moves values (MaxPool, Reshape, Slice, ...).

    With equal ones both engines move the codes themselves; with unequal ones they dequantize, move floats and quantize.
    """

    id = "requantized-move"
    severity = "warning"
    engines = ("tensorrt", "onnxruntime")

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for node in graph.graph.nodes:
            if node.operator not in MOVING:
                continue
            before, behind = graph.dequantizer_of(node.argument(0)), _quantizer_behind(graph, node, pass_over=())
            if before is not None and behind is not None and not before.same_grid(behind):
                yield Breach(
                    node=node,
                    got=f"other scales in front ({before.node.name}) than behind ({behind.node.name})",
                    allowed="the same scale and zero-point on both sides",
                    do="take Q and DQ behind it away, or give them the scale of those in front",
                )


class OperatorOnCodes(Rule):
    """An operator on the codes of an activation, between Q and DQ, other than one that moves them.

    Cases: Clip, BitShift, Cast, Mul, Min, Max, Pad. TensorRT fuses Q and DQ with what they touch, and this is in their
    way. onnxruntime keeps it as an integer operator of its own, the fast form of a width below 8 bits there.
    """

    id = "operator-on-codes"
    severity = "warning"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.dequantizers:
            quantizer, between = graph.quantizer_of(qdq)
            operators = [node for node in between if node.operator not in (*MOVING, "Concat")]
            if quantizer is not None and operators:
                names = ", ".join(node.operator for node in operators[::-1])
                do = "clip or pad in float in front of Q; give the DQ the scale of its own codes"
                got = f"{names} between it and {quantizer.node.name}"
                yield Breach(node=qdq.node, got=got, allowed="DQ directly behind Q", do=do)


def _residual_adds(graph: QdqGraph) -> Iterator[tuple[Node, list[Tensor]]]:
    """Every Add of two tensors that are both computed from the input."""
    for node in graph.graph.nodes:
        inputs = [tensor for tensor in node.inputs if tensor is not None]
        if node.operator == "Add" and len(inputs) == 2 and not any(map(graph.graph.is_constant, inputs)):
            yield node, inputs


def _maker(graph: QdqGraph, tensor: Tensor | None) -> Node | None:
    """The node that makes a tensor; a BatchNormalization, which engines fold, counts as what it normalizes."""
    producer = None if tensor is None else graph.graph.source(tensor).producer
    if producer is not None and producer.operator == "BatchNormalization" and producer.argument(0) is not None:
        return _maker(graph, producer.argument(0))
    return producer


def _makes(graph: QdqGraph, tensor: Tensor | None) -> str | None:
    """The operator of the node that makes a tensor, as `_maker`."""
    maker = _maker(graph, tensor)
    return None if maker is None else maker.operator


def _joins_convolution(graph: QdqGraph, node: Node) -> bool:
    return node.operator in ("Add", "Mul") and any(_makes(graph, tensor) in _CONVOLUTIONS for tensor in node.inputs)


def _is_moved_codes(graph: QdqGraph, tensor: Tensor) -> bool:
    """Whether a tensor is what operators that move values make of a DQ's result."""
    while (producer := graph.graph.source(tensor).producer) is not None and producer.operator in MOVING:
        moved = producer.argument(0)
        if moved is None or graph.dequantizer_of(moved) is not None:
            return moved is not None
        tensor = moved
    return False


def _quantizer_behind(graph: QdqGraph, node: Node, pass_over: tuple[str, ...] = ("Relu", "Clip")) -> QdqNode | None:
    """The first Q that reads what `node` makes, directly or through operators that are passed over."""
    tensor = node.result
    while tensor is not None:
        readers = graph.graph.readers(tensor)
        found = next(iter(graph.quantizers_reading(tensor)), None)
        if found is not None or len(readers) != 1 or readers[0].operator not in pass_over:
            return found
        tensor = readers[0].result
    return None


def _partly(graph: QdqGraph, node: Node) -> Iterator[Breach]:
    inputs = [tensor for tensor in node.inputs if tensor is not None]
    in_codes = [graph.dequantizer_of(tensor) is not None or _is_moved_codes(graph, tensor) for tensor in inputs]
    if not any(in_codes):
        return
    floats = [tensor.name for tensor, codes in zip(inputs, in_codes) if not codes]
    if floats:
        do = "put Q and DQ on this input as well, or take them off the others"
        yield Breach(
            node=node, got=f"float input {', '.join(floats[:3])} beside one in codes", allowed="all in codes", do=do
        )
    elif _quantizer_behind(graph, node) is None:
        do = "put Q and DQ behind it, or take them off its inputs"
        yield Breach(node=node, got="inputs in codes, output in float", allowed="a Q behind it", do=do)
