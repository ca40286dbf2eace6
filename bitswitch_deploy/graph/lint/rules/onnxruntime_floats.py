"""Layers that onnxruntime leaves in float on the CPU although they have Q and DQ: platforms 5.2.

Each rule was checked against the optimised graph of onnxruntime 1.32 on x86-64, see the tests: a layer with a quantized
weight runs in integers exactly when none of these names it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bitswitch_deploy.graph.lint.linted_graph import Node, Tensor
from bitswitch_deploy.graph.lint.output_channels import other_axis
from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph, WeightedLayer
from bitswitch_deploy.graph.lint.qdq_node import EIGHT_BIT, MOVING, QdqNode
from bitswitch_deploy.graph.lint.rule import Breach, Rule
from bitswitch_deploy.graph.lint.rules.scales import scale_type

_ABSORBABLE = ("Relu", "Clip")
_NARROW = ("int4", "uint4", "int2", "uint2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """What follows a layer, up to the Q of its result.

    activations: Relu and Clip nodes in between. moved: an operator that moves values is in between. quantizer: None
    where the result stays float, for the reason `float_because`. The Add of a MatMul's bias belongs to the layer.
    """

    activations: tuple[Node, ...]
    moved: bool
    quantizer: QdqNode | None
    float_because: str


class NarrowWeight(Rule):
    """An activation in codes with a weight of 4 or 2 bits: there is no kernel for the pair, the layer stays float."""

    id = "narrow-weight"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in graph.layers:
            if layer.activation and layer.weight and layer.weight.code_type in _NARROW:
                do = "carry the codes in int8 with the same scale"
                got = f"a weight of type {layer.weight.code_type} with an activation in codes"
                yield Breach(node=layer.node, got=got, allowed="an 8-bit weight", do=do)


class SixteenBitCodes(Rule):
    """A layer with int16 or uint16 codes in front or behind: the CPU has 8-bit kernels only, the layer stays float."""

    id = "sixteen-bit-codes"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in graph.layers:
            if not (layer.activation and layer.weight):
                continue
            for qdq in (layer.activation, layer.weight, tail_of(graph, layer).quantizer):
                if qdq is not None and qdq.code_type in ("int16", "uint16"):
                    do = "use uint8 activations, or keep this layer in float and save Q and DQ"
                    got = f"{qdq.code_type} codes ({qdq.node.name})"
                    yield Breach(node=layer.node, got=got, allowed="8-bit codes", do=do)
                    break


class FloatInput(Rule):
    """A quantized weight and a float input: Conv, ConvTranspose and Gemm with transB compute in float.

    MatMul, and Gemm without transB, become MatMulNBits instead.
    """

    id = "float-input"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in graph.layers:
            if layer.activation is not None or layer.weight is None or not layer.has_constant_weight:
                continue
            operator = layer.node.operator
            if operator != "MatMul" and (operator != "Gemm" or layer.node.integer("transB", 0)):
                source = layer.node.argument(0)
                do = "put Q and DQ directly in front of it"
                if operator == "Gemm":
                    do += ", or write a MatMul with the weight transposed"
                got = f"a weight in codes, float input {source.name if source else ''}"
                yield Breach(node=layer.node, got=got, allowed="input and weight in codes", do=do)


class FloatOutput(Rule):
    """A layer in codes whose result is not quantized by exactly one Q.

    Cases: Conv without Q behind (read by another operator, by several, or an output); Gemm and MatMul whose result goes
    to a Q and to others as well, while without any Q they run in integers and write float.
    """

    id = "float-output"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in _integer_layers(graph):
            tail = tail_of(graph, layer)
            reads = layer.result is not None and graph.quantizers_reading(layer.result)
            if tail.quantizer is None and (layer.node.operator == "Conv" or reads):
                do = "put Q and DQ behind it, read by all of its readers"
                yield Breach(node=layer.node, got=tail.float_because, allowed="one Q as the only reader", do=do)


class UnabsorbedActivation(Rule):
    """A Relu or Clip between a layer and its Q that the Q cannot take over.

    A Relu vanishes where 0 is the lowest code: uint8 with zero-point 0, int8 with -128. A Clip vanishes where all codes
    lie within its bounds. Else the layer stays float: so with int8 at zero-point 0, TensorRT's format.
    """

    id = "unabsorbed-activation"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in _integer_layers(graph):
            tail = tail_of(graph, layer)
            for node in tail.activations:
                if tail.quantizer is not None and not _is_absorbed(graph, node, tail.quantizer):
                    do = (
                        "for a Relu: uint8 codes with zero-point 0; for a Clip: clip the codes between Q and DQ instead"
                    )
                    yield Breach(
                        node=layer.node,
                        got=f"{node.operator} {node.name} in front of {tail.quantizer.node.name}",
                        allowed="a Q whose codes cover exactly what the activation lets through",
                        do=do,
                    )
                    break


class Int8FanOut(Rule):
    """int8 codes around a layer that are read more than once, or through an operator on codes.

    On x86 onnxruntime turns int8 into uint8 where exactly one DQ, with one reader, reads the codes of a Q; elsewhere
    the layer stays float. On ARM int8 is native.
    """

    id = "int8-fan-out"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in _integer_layers(graph):
            tail = tail_of(graph, layer)
            ends = [] if tail.quantizer is None or tail.moved else [tail.quantizer]
            source = graph.quantizer_of(layer.activation)[0] if layer.activation and not layer.moved else None
            is_gemm = layer.node.operator == "Gemm" or bias_add(graph, layer) is not None
            if source is not None and not (is_gemm and tail.quantizer is None):
                ends.append(source)
            if layer.weight and not layer.has_constant_weight and (second := graph.quantizer_of(layer.weight)[0]):
                ends.append(second)
            for quantizer in ends:
                if quantizer.code_type == "int8" and not _is_private(graph, quantizer):
                    yield Breach(
                        node=layer.node,
                        got=f"int8 codes of {quantizer.node.name} with several readers",
                        allowed="uint8 codes, or int8 ones that one DQ reads for one node",
                        do='quantize to uint8 for x86, or set the session entry session.qdqisint8allowed to "1"',
                    )
                    break


class NoIntegerKernel(Rule):
    """Layers in codes without an integer form: ConvTranspose, Gemm with a bias and alpha or beta other than 1."""

    id = "no-integer-kernel"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in graph.layers:
            if not (layer.activation and layer.weight):
                continue
            written = [layer.node.number(name) for name in ("alpha", "beta")]
            factors = [1.0 if factor is None else factor for factor in written]
            if layer.node.operator == "ConvTranspose":
                do = "leave it in float, without Q and DQ"
                yield Breach(node=layer.node, got="a transposed convolution", allowed="Conv, MatMul or Gemm", do=do)
            elif layer.node.operator == "Gemm" and layer.node.argument(2) is not None and factors != [1.0, 1.0]:
                got, do = f"alpha {factors[0]:g}, beta {factors[1]:g}", "fold the factors into scales and bias"
                yield Breach(node=layer.node, got=got, allowed="alpha = beta = 1", do=do)


class ScalesInsideTheSum(Rule):
    """Weight scales that are not those of output channels: they cannot be taken out of the sum, the layer stays float.

    Cases: scales along another axis, or in blocks, of a MatMul with a Q behind, of a Conv or Gemm with a float bias;
    blocks of a Gemm. In the other cases onnxruntime takes them for those of output channels, see MisreadScales.
    """

    id = "scales-inside-the-sum"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in _integer_layers(graph):
            wrong = wrong_scales(graph, layer)
            if layer.node.operator == "MatMul":
                is_float = tail_of(graph, layer).quantizer is not None
            else:
                is_blocked = layer.weight is not None and layer.weight.block_size > 0
                is_float = _has_float_bias(graph, layer) or (is_blocked and layer.node.operator == "Gemm")
            if wrong and is_float:
                do = "quantize the weight with one scale for each output channel"
                yield Breach(
                    node=layer.node, got=wrong, allowed="scales for each output channel, or one for all", do=do
                )


class HalfScale(Rule):
    """Scales in float16 or bfloat16: the quantized operators of onnxruntime take float32 ones.

    Q and DQ then run one by one and the layer between them in float (seen with 1.32).
    """

    id = "half-scale"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in graph.layers:
            kinds = [scale_type(graph, each) for each in (layer.activation, layer.weight) if each is not None]
            kind = next((kind for kind in kinds if kind in ("float16", "bfloat16")), None)
            if kind is not None:
                do = "quantize the float32 network for onnxruntime; keep the half one for GPUs"
                yield Breach(node=layer.node, got=f"{kind} scales", allowed="float32 scales", do=do)


class PerChannelInput(Rule):
    """An activation with a scale for each channel in front of a layer: no integer kernel, the layer stays float."""

    id = "per-channel-input"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in graph.layers:
            if layer.activation and layer.weight and not layer.activation.is_per_tensor:
                got = f"scales for each channel in {layer.activation.node.name}"
                do = "use one scale for the tensor"
                yield Breach(node=layer.node, got=got, allowed="one scale", do=do)


class FloatBias(Rule):
    """A float bias of a layer in codes: onnxruntime rounds it to int32 when it loads the graph (seen with 1.32).

    The step is the product of both scales: at low widths the result can differ from what was validated.
    """

    id = "float-bias"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in _integer_layers(graph):
            if _has_float_bias(graph, layer) and tail_of(graph, layer).quantizer is not None:
                do = "store int32 codes at scale activation * weight with a DQ behind, and validate with them"
                got = "a float bias, which becomes int32 when the graph is loaded"
                yield Breach(node=layer.node, got=got, allowed="a bias in int32 codes", do=do)


class FloatBiasOfGemm(Rule):
    """A Gemm in codes with a float bias and no Q behind: it stays float.

    The same holds for MatMul and Add where onnxruntime makes a Gemm of them: two dimensions, or static shapes.
    """

    id = "float-bias-of-gemm"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in _integer_layers(graph):
            if layer.node.operator == "Conv" or not _has_float_bias(graph, layer):
                continue
            if tail_of(graph, layer).quantizer is None:
                do = "store int32 codes at scale activation * weight with a DQ behind, or quantize the output"
                yield Breach(
                    node=layer.node, got="a float bias and a float output", allowed="one of them in codes", do=do
                )


def wrong_scales(graph: QdqGraph, layer: WeightedLayer) -> str | None:
    """How the scales of a weight lie where they are not for each output channel; None where they are."""
    weight = layer.weight
    if weight is None:
        return None
    if weight.block_size:
        return f"a weight with scales in blocks of {weight.block_size}"
    if other_axis(graph, layer) is None:
        return None
    return f"a weight with scales along axis {weight.axis} ({weight.node.name})"


def tail_of(graph: QdqGraph, layer: WeightedLayer) -> Tail:
    """What follows `layer`."""
    activations: list[Node] = []
    moved = False
    add = bias_add(graph, layer)
    tensor = layer.result if add is None else add.outputs[0]
    while True:
        quantizer, following, because = _next(graph, tensor, moved)
        if following is None:
            return Tail(activations=tuple(activations), moved=moved, quantizer=quantizer, float_because=because)
        if following.operator in _ABSORBABLE:
            activations.append(following)
        else:
            moved = True
        tensor = following.outputs[0]


def _next(graph: QdqGraph, tensor: Tensor | None, moved: bool) -> tuple[QdqNode | None, Node | None, str]:
    """The Q that ends a tail, or the node that continues it, or why the tail ends in float."""
    if tensor is None or graph.graph.is_output(tensor):
        return None, None, "its result is an output of the graph"
    readers = graph.graph.readers(tensor)
    quantizers = graph.quantizers_reading(tensor)
    if quantizers and len(quantizers) == len(readers):
        same = all(_is_same(each, quantizers[0]) for each in quantizers)
        return (quantizers[0], None, "") if same else (None, None, f"its result is read by {len(readers)} different Q")
    if len(readers) != 1:
        return None, None, f"its result is read by {len(readers)} nodes that are not all Q"
    (reader,) = readers
    if (reader.operator in _ABSORBABLE and not moved) or MOVING.get(reader.operator):
        return None, reader, ""
    return None, None, f"its result is read by {reader.operator} {reader.name}"


def bias_add(graph: QdqGraph, layer: WeightedLayer) -> Node | None:
    """The Add of a constant that onnxruntime makes one Gemm with this MatMul, or None."""
    if layer.node.operator != "MatMul" or layer.result is None or not layer.has_constant_weight:
        return None
    readers = graph.graph.readers(layer.result)
    if len(readers) != 1 or readers[0].operator != "Add" or graph.graph.is_output(layer.result):
        return None
    other = [tensor for tensor in readers[0].inputs if graph.graph.is_constant(tensor)]
    shape = graph.graph.shape(layer.node.argument(0))
    becomes_gemm = shape is not None and (len(shape) == 2 or None not in shape)
    return readers[0] if other and becomes_gemm else None


def _has_float_bias(graph: QdqGraph, layer: WeightedLayer) -> bool:
    add = bias_add(graph, layer)
    if add is not None:
        bias = next(tensor for tensor in add.inputs if graph.graph.is_constant(tensor))
    elif layer.node.operator == "MatMul":
        return False
    else:
        bias = layer.node.argument(2)
    return bias is not None and graph.dequantizer_of(bias) is None


def _integer_layers(graph: QdqGraph) -> Iterator[WeightedLayer]:
    """Layers of which onnxruntime has an integer form, with 8-bit codes on both inputs."""
    for layer in graph.layers:
        both = (layer.activation, layer.weight)
        if layer.node.operator != "ConvTranspose" and all(each and each.code_type in EIGHT_BIT for each in both):
            yield layer


def _is_absorbed(graph: QdqGraph, node: Node, quantizer: QdqNode) -> bool:
    scale, zero = quantizer.scale_values, quantizer.zero_values
    if quantizer.code_type not in EIGHT_BIT or scale is None or scale.size != 1:
        return False
    limits = np.iinfo(np.int8 if quantizer.code_type == "int8" else np.uint8)
    zero_point = 0 if zero is None else int(zero.ravel()[0])
    low, high = ((limit - zero_point) * float(scale.ravel()[0]) for limit in (limits.min, limits.max))
    if node.operator == "Relu":
        return low == 0
    bounds = [node.number(name) for name in ("min", "max")]  # opset 6 to 10
    for index in (0, 1):
        value = graph.graph.values(node.argument(index + 1))
        if value is not None and value.size == 1:
            bounds[index] = float(value.ravel()[0])
        elif node.argument(index + 1) is not None:
            return False
    return (bounds[0] is None or bounds[0] <= low) and (bounds[1] is None or high <= bounds[1])


def _is_same(one: QdqNode, other: QdqNode) -> bool:
    """Whether onnxruntime merges two Q: they have the very same inputs."""
    return one.node.inputs == other.node.inputs


def _is_private(graph: QdqGraph, quantizer: QdqNode) -> bool:
    """Whether one DQ, with one reader, reads the codes; Q nodes with the very same inputs count as one."""
    codes = quantizer.result
    siblings = [] if quantizer.data is None else graph.quantizers_reading(quantizer.data)
    if any(each is not quantizer and _is_same(each, quantizer) for each in siblings):
        return False
    readers = [] if codes is None else graph.graph.readers(codes)
    dequantizer = graph.at(readers[0]) if len(readers) == 1 else None
    if dequantizer is None or dequantizer.is_quantizer or dequantizer.result is None:
        return False
    n_readers = len(graph.graph.readers(dequantizer.result)) + graph.graph.is_output(dequantizer.result)
    return n_readers == 1


# Together: the layers with a quantized weight that run in float. The first one is the only one that depends on the
# release for MatMul, see MisreadScales.
FLOAT_RULES: tuple[type[Rule], ...] = (
    ScalesInsideTheSum,
    FloatInput,
    FloatOutput,
    UnabsorbedActivation,
    Int8FanOut,
    NarrowWeight,
    SixteenBitCodes,
    HalfScale,
    PerChannelInput,
    NoIntegerKernel,
    FloatBiasOfGemm,
)
