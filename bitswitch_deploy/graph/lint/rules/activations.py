"""Rules about activations."""

from __future__ import annotations

from collections.abc import Iterator

from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph
from bitswitch_deploy.graph.lint.rule import Breach, Rule


class PerChannelActivation(Rule):
    """An activation with a scale for each channel: TensorRT has per-channel scales for weights only.

    TensorRT for RTX 1.7.1 builds it, which its own headers rule out.
    """

    id = "per-channel-activation"
    severity = "error"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.heads:
            if not qdq.is_per_tensor and not graph.is_weight(qdq):
                got = f"{qdq.scale_values.size if qdq.scale_values is not None else 0} scales along axis {qdq.axis}"
                do = "use one scale for the tensor; move differences between channels into the weights"
                yield Breach(node=qdq.node, got=got, allowed="one scale for an activation", do=do)
