"""What onnxruntime takes for something else, without a message."""

from __future__ import annotations

from collections.abc import Iterator

from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph
from bitswitch_deploy.graph.lint.qdq_node import EIGHT_BIT
from bitswitch_deploy.graph.lint.rule import Breach, Rule
from bitswitch_deploy.graph.lint.rules.onnxruntime_floats import FLOAT_RULES, wrong_scales


class MisreadScales(Rule):
    """A layer that onnxruntime fuses although its weight scales are not those of output channels.

    It takes them for those of output channels: with as many of them, wrong numbers and no message; with another number,
    an error in the first run (seen with 1.32). Layers that stay float for another reason are computed as written.
    """

    id = "misread-weight-scales"
    severity = "error"
    engines = ("onnxruntime",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        wrong = [(layer, got) for layer in graph.layers if (got := wrong_scales(graph, layer))]
        if not wrong:
            return
        in_float = {id(breach.node) for rule in FLOAT_RULES for breach in rule().breaches(graph)}
        for layer, got in wrong:
            fuses = layer.activation is not None and layer.activation.code_type in EIGHT_BIT
            if fuses and layer.node.operator != "ConvTranspose" and id(layer.node) not in in_float:
                do = "quantize the weight with one scale for each output channel"
                allowed = "scales for each output channel, or one for all"
                yield Breach(node=layer.node, got=f"{got}, read as those of output channels", allowed=allowed, do=do)
