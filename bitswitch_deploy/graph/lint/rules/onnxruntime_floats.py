"""Layers that onnxruntime leaves in float on the CPU although they have Q and DQ.

Each rule was checked against the optimised graph of onnxruntime 1.32 on x86-64, see the tests: a layer with a quantized
weight runs in integers exactly when none of these names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from bitswitch_deploy.graph.lint.bias import bias_add, has_computed_bias, has_float_bias, is_flattened, refused_bias
from bitswitch_deploy.graph.lint.matmul_nbits import becomes_matmul_nbits
from bitswitch_deploy.graph.lint.onnxruntime_fusion import (
    finds_q_or_bounds,
    integer_layers,
    is_absorbed,
    is_bias_rounded,
    is_private,
    tail_of,
)
from bitswitch_deploy.graph.lint.output_channels import other_axis
from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph, WeightedLayer
from bitswitch_deploy.graph.lint.qdq_node import EIGHT_BIT, QdqNode
from bitswitch_deploy.graph.lint.rule import Breach, Rule
from bitswitch_deploy.graph.lint.rules.scales import scale_type

_NARROW = ("int4", "uint4", "int2", "uint2")
SCALES_MEND = "quantize it again: one scale for each output channel of a matrix on the right, else one for all"
# Types that have a kernel, or a rule of their own wherever they are.
_NAMED = (None, *EIGHT_BIT, "int16", "uint16")


class NarrowWeight(Rule):
    """An activation in codes with a weight of 4 or 2 bits: there is no kernel for the pair, the layer stays float."""

    id = "narrow-weight"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in graph.layers:
            is_narrow = layer.weight is not None and layer.weight.code_type in _NARROW
            if layer.activation and layer.weight and is_narrow and not becomes_matmul_nbits(graph, layer):
                do = "carry the codes in int8 with the same scale"
                got = f"a weight of type {layer.weight.code_type} with an activation in codes"
                yield Breach(node=layer.node, got=got, allowed="an 8-bit weight", do=do)


class SixteenBitCodes(Rule):
    """A layer with int16 or uint16 codes in front or behind: the CPU has 8-bit kernels only, the layer stays float.

    Some products become MatMulNBits instead, see RoundedMatMul.
    """

    id = "sixteen-bit-codes"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer, qdq in _around(graph, lambda qdq, is_weight: qdq.code_type in ("int16", "uint16")):
            if becomes_matmul_nbits(graph, layer):
                continue
            do = "use uint8 activations, or keep this layer in float and save Q and DQ"
            got = f"{qdq.code_type} codes ({qdq.node.name})"
            yield Breach(node=layer.node, got=got, allowed="8-bit codes", do=do)


class NoKernelForCodes(Rule):
    """A layer with FP8 or FP4 codes, or with 4 or 2 bits in front or behind: 8-bit kernels only, the layer stays float.

    16 bits are SixteenBitCodes', narrow weights NarrowWeight's.
    """

    id = "no-kernel-for-codes"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer, qdq in _around(graph, _is_unnamed):
            do = "quantize to 8 bits for onnxruntime, or keep this layer in float and save Q and DQ"
            got = f"{qdq.code_type} codes ({qdq.node.name})"
            yield Breach(node=layer.node, got=got, allowed="8-bit codes", do=do)


class FloatInput(Rule):
    """A quantized weight and a float input: the layer computes in float.

    MatMul, and Gemm without transB, become MatMulNBits instead where RoundedMatMul says so.
    """

    id = "float-input"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in graph.layers:
            has_codes = layer.weight is not None and layer.has_constant_weight and layer.activation is None
            if has_codes and not becomes_matmul_nbits(graph, layer):
                source = layer.node.argument(1 - layer.weight_index)
                do = "put Q and DQ directly in front of it"
                if layer.node.operator == "Gemm" and layer.node.integer("transB", 0):
                    do += ", or write a MatMul with the weight transposed"
                got = f"a weight in codes, float input {source.name if source else ''}"
                yield Breach(node=layer.node, got=got, allowed="input and weight in codes", do=do)


class FloatOutput(Rule):
    """A layer in codes whose result is not quantized by exactly one Q.

    Cases: Conv without Q behind (read by another operator, by several, or an output); Gemm and MatMul whose result goes
    to a Q and to others as well, or through a Relu or Clip to one reader that is none, while otherwise without a Q they
    run in integers and write float.
    """

    id = "float-output"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in integer_layers(graph):
            tail = tail_of(graph, layer)
            is_float = layer.node.operator == "Conv" or finds_q_or_bounds(graph, layer, tail)
            if tail.quantizer is None and is_float:
                do = "put Q and DQ behind it, read by all of its readers"
                yield Breach(node=layer.node, got=tail.float_because, allowed="one Q as the only reader", do=do)


class UnabsorbedActivation(Rule):
    """A Relu or Clip between a layer and its Q that the Q cannot take over.

    A Relu vanishes where 0 is the lowest code: uint8 with zero-point 0, int8 with -128. A Clip vanishes where its
    bounds, rounded to codes, are the lowest and the highest or beyond: a ReLU6 with the scale 6 / 255. Else the layer
    stays float: so with int8 at zero-point 0, TensorRT's format.
    """

    id = "unabsorbed-activation"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in integer_layers(graph):
            tail = tail_of(graph, layer)
            for node in tail.activations:
                if tail.quantizer is not None and not is_absorbed(graph, node, tail.quantizer):
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

    On x86 onnxruntime turns int8 into uint8 where exactly one DQ, with one reader, reads the codes of a Q; elsewhere,
    as where the codes are an output of the graph, the layer stays float. On ARM int8 is native.
    """

    id = "int8-fan-out"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in integer_layers(graph):
            tail = tail_of(graph, layer)
            ends = [] if tail.quantizer is None or tail.moved else [tail.quantizer]
            is_moved = bool(layer.moved) or is_flattened(graph, layer)
            source = graph.quantizer_of(layer.activation)[0] if layer.activation and not is_moved else None
            is_gemm = layer.node.operator == "Gemm" or bias_add(graph, layer) is not None
            # the second input of a MatMul may be int8
            if source is not None and layer.weight_index and not (is_gemm and tail.quantizer is None):
                ends.append(source)
            if layer.weight and not layer.has_constant_weight and (second := graph.quantizer_of(layer.weight)[0]):
                ends.append(second)
            for quantizer in ends:
                if quantizer.code_type == "int8" and not is_private(graph, quantizer):
                    yield Breach(
                        node=layer.node,
                        got=f"int8 codes of {quantizer.node.name} with several readers",
                        allowed="uint8 codes, or int8 ones that one DQ reads for one node",
                        do='quantize to uint8 for x86, or set the session entry session.qdqisint8allowed to "1"',
                    )
                    break


class NoIntegerKernel(Rule):
    """Layers in codes without an integer form: ConvTranspose, Gemm with factors, an odd bias, int8 on the left.

    Cases: Gemm with a bias and alpha or beta other than 1; a bias of Conv or Gemm that is computed at run time, or from
    the result of a DQ; a bias in other codes than int32; for Conv, an int32 bias with another scale than the product of
    the others (see `bias.py`) or a zero-point; a MatMul whose first input is a constant in int8, where the kernels of
    x86 want uint8. The Add of a MatMul's bias counts as in Gemm.
    """

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
            elif has_computed_bias(graph, layer):
                do = "make the bias a constant, or add it behind the layer"
                yield Breach(
                    node=layer.node, got="a bias that is computed at run time", allowed="a constant bias", do=do
                )
            elif (refused := refused_bias(graph, layer)) is not None:
                do = "store int32 codes at scale activation * weight, for each channel that the weight has a scale for"
                yield Breach(node=layer.node, got=refused, allowed="int32 codes that fit the sums", do=do)
            elif layer.weight_index == 0 and layer.weight.code_type == "int8":
                do = "use uint8 codes for the constant, or exchange the factors by transposing both"
                yield Breach(node=layer.node, got="int8 codes as the first input", allowed="uint8 codes there", do=do)


class ScalesInsideTheSum(Rule):
    """Weight scales that are not those of output channels: they cannot be taken out of the sum, the layer stays float.

    Cases: scales along another axis, or in blocks, of a MatMul with a Q behind, of a Conv or Gemm with a float bias;
    blocks of a Gemm; several scales of a MatMul's first input or of more than two dimensions. In the other cases
    onnxruntime takes them for those of output channels, see MisreadScales.
    """

    id = "scales-inside-the-sum"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in integer_layers(graph):
            wrong = wrong_scales(graph, layer)
            if layer.node.operator == "MatMul":
                is_float = tail_of(graph, layer).quantizer is not None
            else:
                is_blocked = layer.weight is not None and layer.weight.block_size > 0
                is_float = has_float_bias(graph, layer) or (is_blocked and layer.node.operator == "Gemm")
            if wrong and is_float:
                allowed = "scales for each output channel, or one for all"
                yield Breach(node=layer.node, got=wrong, allowed=allowed, do=SCALES_MEND)


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

    The step is the product of both scales: at low widths the result can differ from what was validated. That holds as
    well for a layer that stays float because its result, or that of a Relu or Clip behind it, is an output of the graph
    beside its only Q.
    """

    id = "float-bias"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in integer_layers(graph):
            if is_bias_rounded(graph, layer):
                do = "store int32 codes at scale activation * weight with a DQ behind, and validate with them"
                got = "a float bias, which becomes int32 when the graph is loaded"
                yield Breach(node=layer.node, got=got, allowed="a bias in int32 codes", do=do)


class FloatBiasOfGemm(Rule):
    """A Gemm in codes with a float bias and no Q behind: it stays float.

    The same holds for MatMul and Add where onnxruntime makes a Gemm of them: two dimensions, or static shapes. Of more
    than two it makes a Gemm and a Reshape, so that a Q behind a Relu or Clip does not count.
    """

    id = "float-bias-of-gemm"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in integer_layers(graph):
            if layer.node.operator == "Conv":
                continue
            if has_float_bias(graph, layer) and not is_bias_rounded(graph, layer):
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
    if has_unfused_scales(graph, layer):
        where = f"{len(graph.graph.shape(weight.data) or ())} dimensions" if layer.weight_index else "the first input"
        return f"several scales on {where} of a MatMul ({weight.node.name})"
    if other_axis(graph, layer) is None:
        return None
    return f"a weight with scales along axis {weight.axis} ({weight.node.name})"


def has_unfused_scales(graph: QdqGraph, layer: WeightedLayer) -> bool:
    """Whether it is a MatMul with several scales on its first input, or on a weight of more than two dimensions."""
    weight = layer.weight
    if layer.node.operator != "MatMul" or weight is None or weight.is_per_tensor or not layer.has_constant_weight:
        return False
    return layer.weight_index == 0 or len(graph.graph.shape(weight.data) or ()) > 2


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
    NoKernelForCodes,
    HalfScale,
    PerChannelInput,
    NoIntegerKernel,
    FloatBiasOfGemm,
)


def _around(graph: QdqGraph, is_meant: Callable[[QdqNode, bool], bool]) -> Iterator[tuple[WeightedLayer, QdqNode]]:
    """Layers in codes, each with the first that is meant of its activation, its weight (True) and the Q behind it."""
    for layer in graph.layers:
        if layer.activation and layer.weight:
            nodes = (layer.activation, layer.weight, tail_of(graph, layer).quantizer)
            meant = (qdq for qdq in nodes if qdq is not None and is_meant(qdq, qdq is layer.weight))
            yield from ((layer, qdq) for qdq in islice(meant, 1))


def _is_unnamed(qdq: QdqNode, is_weight: bool) -> bool:
    """Whether no other rule speaks of codes of this type."""
    return qdq.code_type not in (*_NAMED, *(_NARROW if is_weight else ()))
