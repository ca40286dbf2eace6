"""What onnxruntime takes for something else, without a message."""

from __future__ import annotations

from collections.abc import Iterator

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
        in_float = {id(breach.node): rule for rule in FLOAT_RULES for breach in rule().breaches(graph)}
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
