"""Every part of a lowered graph alone, given what the canonical graph computes before it."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import onnx

from bitswitch_deploy.diagnosis.compared_graphs import ForcedGraph, Tensors
from bitswitch_deploy.diagnosis.cuts import find_cuts, input_tensors
from bitswitch_deploy.diagnosis.lowering_errors import CutError, LoweringErrors
from bitswitch_deploy.graph.canonical import CanonicalGraph
from bitswitch_deploy.master import Master

Array = npt.NDArray[Any]


class LoweredParts:
    """Compares one lowered graph with its canonical graph part by part, batch by batch.

    Args:
        master: its layers. canonical, lowered: the two graphs; both hold all their weights.

    Raises:
        GraphError: onnxruntime refuses the lowered graph.
    """

    def __init__(self, master: Master, canonical: CanonicalGraph, lowered: onnx.ModelProto) -> None:
        self.cut = find_cuts(canonical, lowered, master.spec.layers)
        inputs = input_tensors(canonical)
        activations = {each.layer.name: each.activation for each in canonical.plan.layers}
        highest = {name: plan.codes.high for name, layer in inputs.items() if (plan := activations[layer]) is not None}
        self._graph = ForcedGraph(lowered, self.cut)
        self._errors = LoweringErrors(self.cut, highest)

    def add(self, x: Array, reference: Tensors) -> Tensors:
        """Add one batch: inputs [n, ...], and what the canonical graph computes of them; return what the parts do."""
        own, wanted = self._graph.run(x, reference)
        self._errors.add(own, wanted)
        return own

    def result(self) -> tuple[CutError, ...]:
        """The error of every part, in the order of the graph."""
        return self._errors.result()
