"""Rules about weights (TensorRT issue 1694)."""

from __future__ import annotations

from collections.abc import Iterator

from bitswitch_deploy.graph.lint.output_channels import other_axis
from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph
from bitswitch_deploy.graph.lint.qdq_node import DEQUANTIZE, EIGHT_BIT, QUANTIZE
from bitswitch_deploy.graph.lint.rule import Breach, Rule


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
    """A convolution with an activation in codes and a weight of 4 bits: TensorRT fails to build it."""

    id = "narrow-conv-weight"
    severity = "error"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in graph.layers:
            weight = layer.weight if layer.node.operator in ("Conv", "ConvTranspose") and layer.activation else None
            if weight is not None and weight.code_type not in (None, *EIGHT_BIT):
                got = f"int8 activation with a weight of type {weight.code_type}"
                do = "carry the codes in int8 with the same scale: TensorRT has int4 for MatMul weights only"
                yield Breach(node=layer.node, got=got, allowed="an int8 weight", do=do)


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


class RoundedMatMul(Rule):
    """A MatMul of a float activation and a quantized weight: onnxruntime makes it MatMulNBits with accuracy_level 4.

    It then rounds the activation to int8 at run time, an error of 1 to 2 % of the output's standard deviation.
    """

    id = "rounded-activation"
    severity = "warning"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for layer in graph.layers:
            if layer.node.operator == "MatMul" and layer.weight and layer.has_constant_weight and not layer.activation:
                yield Breach(
                    node=layer.node,
                    got=f"float activation, {layer.weight.code_type} weight: the activation is rounded to int8",
                    allowed="a session that computes as the graph says",
                    do='set the session entry session.qdq_matmulnbits_accuracy_level to "1"',
                )
