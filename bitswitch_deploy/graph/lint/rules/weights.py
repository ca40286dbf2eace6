"""Rules about weights (TensorRT issue 1694)."""

from __future__ import annotations

from collections.abc import Iterator

from bitswitch_deploy.graph.lint.matmul_nbits import becomes_matmul_nbits
from bitswitch_deploy.graph.lint.operators import DEQUANTIZE, QUANTIZE
from bitswitch_deploy.graph.lint.output_channels import other_axis
from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph, WeightedLayer
from bitswitch_deploy.graph.lint.rule import Breach, Rule
from bitswitch_deploy.graph.lint.rules.code_types import TENSORRT_TYPES
from bitswitch_deploy.graph.lint.stored_bytes import BITS


class WeightAxis(Rule):
    """Scales of a weight along another axis than its output channels (TensorRT issue 1694).

    The axes stand in `output_channels.py`. TensorRT's documentation allows output channels only; TensorRT for RTX 1.7
    builds the others as well. Scales in blocks may lie on any axis.
    """

    id = "weight-axis"
    severity = "error"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in graph.layers:
            axis = other_axis(graph, layer)
            if layer.weight is not None and axis is not None:
                yield Breach(
                    node=layer.node,
                    got=f"a weight with scales along axis {layer.weight.axis} ({layer.weight.node.name})",
                    allowed=f"axis {axis}, its output channels, or one scale for all",
                    do=f"quantize the weight again along axis {axis}, and write the attribute axis={axis} on its DQ",
                )


class WeightPath(Rule):
    """An operator on the constant codes of a weight, in front of its DQ: TensorRT does not build it.

    Cases: Clip, Cast, Mul, Reshape, Transpose, Identity, ... A float constant, any operator, Q, DQ is folded and fine.
    """

    id = "weight-path"
    severity = "error"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in graph.layers:
            operators = [node.operator for node in layer.path]
            behind = operators[operators.index(DEQUANTIZE) + 1 :] if DEQUANTIZE in operators else []
            if behind and QUANTIZE not in behind:
                yield Breach(
                    node=layer.node,
                    got=f"a weight through {' <- '.join(operators)}",
                    allowed="DequantizeLinear directly behind the constant codes",
                    do="fold the other operators into the codes and scales before the graph is written",
                )


class WeightDetour(Rule):
    """Something between a weight's DQ and its layer, or several DQ: NVIDIA asks for exactly one DQ.

    TensorRT for RTX 1.7 builds it, and ModelOpt writes a Transpose there for Linear layers; whether the layer still
    runs in integers depends on the release. Identity is no detour. Weights that no DQ makes are not this rule's.
    """

    id = "weight-detour"
    severity = "warning"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in graph.layers:
            operators = [node.operator for node in layer.path if node.operator != "Identity"]
            if DEQUANTIZE in operators and (operators[0] != DEQUANTIZE or operators.count(DEQUANTIZE) > 1):
                yield Breach(
                    node=layer.node,
                    got=f"a weight through {' <- '.join(operators)}",
                    allowed="codes, DequantizeLinear, layer",
                    do="apply the other operators to codes and scales before the graph is written",
                )


class FloatWeight(Rule):
    """A layer with a quantized activation and a float constant weight.

    TensorRT computes it in float. With a Q behind, onnxruntime chooses 8-bit codes by itself when it loads the graph
    (seen with 1.32), so the numbers are not the ones that were validated.
    """

    id = "float-weight"
    severity = "warning"
    engines = ("tensorrt", "onnxruntime")

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in graph.layers:
            if layer.activation is not None and layer.has_constant_weight and layer.weight is None:
                got = f"activation in codes ({layer.activation.node.name}), weight in float"
                do = "quantize the weight as well, or take Q and DQ away from the activation"
                yield Breach(node=layer.node, got=got, allowed="both in codes, or both in float", do=do)


class NarrowConvWeight(Rule):
    """A convolution with an activation in codes and a weight of 4 bits or fewer: TensorRT fails to build it.

    It builds the same beside a float activation, and transposed convolutions in any case.
    """

    id = "narrow-conv-weight"
    severity = "error"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in graph.layers:
            if layer.activation and layer.weight and _is_narrow_conv(layer):
                got = f"{layer.activation.code_type} activation with a weight of type {layer.weight.code_type}"
                do = "carry the codes in int8 with the same scale: TensorRT has int4 for MatMul weights only"
                yield Breach(node=layer.node, got=got, allowed="an int8 or float8e4m3fn weight", do=do)


class OperandTypes(Rule):
    """A layer with an activation and a weight in codes of two types that TensorRT does not build together.

    Cases: int8, int4, float8e4m3fn and float4e2m1 with each other in Conv, MatMul and Gemm. Fine are equal types, and
    int8 with int4 in MatMul and Gemm where the weight has several scales. Transposed convolutions are not looked at.
    """

    id = "operand-types"
    severity = "error"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in graph.layers:
            both = [each.code_type for each in (layer.activation, layer.weight) if each is not None]
            known = len(both) == 2 and set(both) <= set(TENSORRT_TYPES)
            if known and not _is_multiplied(layer, set(both)) and not _is_narrow_conv(layer):
                do = (
                    "quantize both to one type; for int4 weights of a MatMul, one scale for each output channel will do"
                )
                yield Breach(node=layer.node, got=f"{both[0]} codes times {both[1]} codes", allowed="one type", do=do)


class BlockedConvWeight(Rule):
    """A convolution whose weight has scales in blocks.

    TensorRT blocks the last or second last axis only, which a Conv has no use for.
    """

    id = "blocked-conv-weight"
    severity = "error"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in graph.layers:
            if layer.node.operator in ("Conv", "ConvTranspose") and layer.weight and layer.weight.block_size:
                got = f"a weight with scales in blocks of {layer.weight.block_size}"
                do = "quantize the weight with one scale for each output channel"
                yield Breach(node=layer.node, got=got, allowed="scales for each output channel", do=do)


class BlockedProduct(Rule):
    """A product of an activation in codes and a weight with scales in blocks.

    The sums of an integer product run over all blocks, so that no scale of a block fits them. TensorRT for RTX 1.7.1
    builds one integer product of it all the same and multiplies the sum; its numbers were not seen, which takes a GPU.
    """

    id = "blocked-product"
    severity = "error"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in graph.layers:
            activation, weight = layer.activation, layer.weight
            is_product = layer.node.operator in ("MatMul", "Gemm")
            if is_product and activation is not None and weight is not None and weight.block_size:
                got = f"{activation.code_type} activation, weight scales in blocks of {weight.block_size}"
                allowed = "a float activation, or one scale for each output channel"
                do = (
                    "quantize the weight again by output channels (in a master granularity per_channel), or take Q and "
                    "DQ away from the activation (in a master activation none)"
                )
                yield Breach(node=layer.node, got=got, allowed=allowed, do=do)


class RoundedMatMul(Rule):
    """A float activation and a quantized weight of MatMul or Gemm: onnxruntime makes MatMulNBits, accuracy_level 4.

    An activation in 16-bit codes, too. It then rounds the activation to int8 at run time, an error of 1 to 2 % of the
    output's standard deviation. Which layers it takes stands in `matmul_nbits.py`; the others stay float, see
    FloatInput.
    """

    id = "rounded-activation"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in graph.layers:
            if layer.weight is not None and becomes_matmul_nbits(graph, layer):
                kind = "float" if layer.activation is None else layer.activation.code_type
                yield Breach(
                    node=layer.node,
                    got=f"{kind} activation, {layer.weight.code_type} weight: the activation is rounded to int8",
                    allowed="a session that computes as the graph says",
                    do='set the session entry session.qdq_matmulnbits_accuracy_level to "1"',
                )


def _is_narrow_conv(layer: WeightedLayer) -> bool:
    return layer.node.operator == "Conv" and layer.weight is not None and layer.weight.code_type in BITS


def _is_multiplied(layer: WeightedLayer, types: set[str | None]) -> bool:
    """Whether TensorRT has a layer of this kind for codes of these types."""
    if len(types) == 1 or layer.node.operator == "ConvTranspose":
        return True
    has_scales = layer.weight is not None and not layer.weight.is_per_tensor
    return layer.node.operator != "Conv" and types == {"int8", "int4"} and has_scales
