"""What onnxruntime takes for something else, without a message."""

from __future__ import annotations

from collections.abc import Iterator

from bitswitch_deploy.graph.lint.bias import misread_bias
from bitswitch_deploy.graph.lint.onnxruntime_fusion import integer_layers
from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph
from bitswitch_deploy.graph.lint.rule import Breach, Rule
from bitswitch_deploy.graph.lint.rules.onnxruntime_floats import (
    FLOAT_RULES,
    SCALES_MEND,
    ScalesInsideTheSum,
    has_unfused_scales,
    wrong_scales,
)


class MisreadScales(Rule):
    """A layer that onnxruntime fuses although its weight scales are not those of output channels.

    It takes them for those of output channels: with as many of them, wrong numbers and no message; with another number,
    an error in the first run (seen with 1.31 and 1.32). Layers that stay float for another reason are computed as
    written. A MatMul with a Q behind is misread up to 1.31 and stays float with 1.32. Several scales of its first
    input, or of more than two dimensions, fail in the run where no Q is behind.
    """

    id = "misread-weight-scales"
    severity = "error"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        wrong = [(layer, got) for layer in graph.layers if (got := wrong_scales(graph, layer))]
        if not wrong:
            return
        in_float = _in_float(graph)
        for layer, got in wrong:
            reason = in_float.get(id(layer.node))
            if (
                reason is ScalesInsideTheSum
                and layer.node.operator == "MatMul"
                and not has_unfused_scales(graph, layer)
            ):
                reason = None
            if layer.activation is not None and reason is None:
                allowed = "scales for each output channel, or one for all"
                yield Breach(
                    node=layer.node, got=f"{got}, read as those of output channels", allowed=allowed, do=SCALES_MEND
                )


class MisreadBias(Rule):
    """An int32 bias whose scale or zero-point onnxruntime does not read, although they say something else.

    It fuses the layer and adds the codes to its sums, at the scale activation * weight: wrong numbers and no message
    (seen with 1.32). Cases: Gemm, and MatMul with the Add of its bias, with another scale, one scale beside those of
    channels, or a zero-point; Conv with a scale so small that onnxruntime takes it for the right one, within 1e-6. With
    other ones a Conv stays float, see NoIntegerKernel.
    """

    id = "misread-bias"
    severity = "error"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        wrong = [(layer, got) for layer in integer_layers(graph) if (got := misread_bias(graph, layer))]
        in_float = _in_float(graph) if wrong else {}
        for layer, got in wrong:
            if id(layer.node) not in in_float:
                do = "store the bias again, as int32 codes at scale activation * weight with zero-point 0"
                allowed = "the scale of the sums, activation * weight, and no zero-point"
                yield Breach(node=layer.node, got=got, allowed=allowed, do=do)


def _in_float(graph: QdqGraph) -> dict[int, type[Rule]]:
    """The layers that stay float, by the id of their node, each with the last rule that says so."""
    return {id(breach.node): rule for rule in FLOAT_RULES for breach in rule().breaches(graph)}
