"""Every part of a lowered graph alone, given what the canonical graph computes before it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy.typing as npt
import onnx
from onnx import numpy_helper

from bitswitch_deploy.diagnosis.compared_graphs import ForcedGraph, Tensors
from bitswitch_deploy.diagnosis.cuts import find_cuts, input_tensors
from bitswitch_deploy.diagnosis.layer_statistics import InputObserver, LayerStatistics, weight_statistics
from bitswitch_deploy.diagnosis.lowering_errors import CutError, LoweringErrors
from bitswitch_deploy.graph.canonical import CanonicalGraph
from bitswitch_deploy.master import Master
from bitswitch_deploy.master.spec import LayerSpec

Array = npt.NDArray[Any]


class LoweredParts:
    """Compares one lowered graph with its canonical graph part by part, and looks at the codes, batch by batch.

    Args:
        master: its layers and weights. canonical, lowered: the two graphs; both hold all their weights.

    Raises:
        GraphError: onnxruntime refuses the lowered graph.
    """

    def __init__(self, master: Master, canonical: CanonicalGraph, lowered: onnx.ModelProto) -> None:
        self._master, self._plan = master, canonical.plan
        self.cut = find_cuts(canonical, lowered, master.spec.layers)
        self._inputs = input_tensors(canonical)
        layers = {each.layer.name: each for each in canonical.plan.layers}
        plans = {name: plan for name, layer in self._inputs.items() if (plan := layers[layer].activation) is not None}
        self._observers = {
            name: InputObserver(plan, channel_axis=_channel_axis(layers[self._inputs[name]].layer))
            for name, plan in plans.items()
        }
        sources = {node.output[0]: node.input[0] for node in canonical.model.graph.node if node.input}
        self._sources = {name: sources[f"{name.removesuffix('dequantized')}codes"] for name in plans}
        computed = {name for node in canonical.model.graph.node for name in node.output}
        wanted = {*self.cut.compared, *plans, *self._sources.values(), canonical.model.graph.output[0].name}
        self.reference_tensors = tuple(sorted(wanted & computed))
        self._graph = ForcedGraph(lowered, self.cut)
        self._errors = LoweringErrors(self.cut, plans, _written_scales(lowered, plans))

    def add(self, x: Array, reference: Tensors) -> Tensors:
        """Add one batch: inputs [n, ...], and `reference_tensors` of the canonical graph; return what the parts do."""
        for name, observer in self._observers.items():
            observer.add(reference.get(self._sources[name], x), reference[name])
        own, wanted = self._graph.run(x, reference)
        self._errors.add(own, wanted)
        return own

    def result(self) -> tuple[CutError, ...]:
        """The error of every part, in the order of the graph."""
        return self._errors.result()

    def statistics(self) -> tuple[LayerStatistics, ...]:
        """The codes of every quantized layer; of an input that several nodes read, as the first one does."""
        by_layer = {self._inputs[name]: observer.result() for name, observer in reversed(self._observers.items())}
        return tuple(
            LayerStatistics(
                layer=plan.layer.name,
                bits=plan.bits,
                weights=weight_statistics(self._master, plan),
                input=by_layer.get(plan.layer.name),
            )
            for plan in self._plan.layers
        )


def _channel_axis(layer: LayerSpec) -> int:
    """Of the input of a layer."""
    return 1 if layer.operator in ("Conv", "ConvTranspose") else -1


def _written_scales(model: onnx.ModelProto, tensors: Collection[str]) -> dict[str, float]:
    """The scale of each of some tensors that a DequantizeLinear with a single one gives."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    named = {
        node.output[0]: constants[node.input[1]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.output[0] in tensors and node.input[1] in constants
    }
    scales = {name: numpy_helper.to_array(tensor) for name, tensor in named.items()}
    return {name: float(scale.reshape(())) for name, scale in scales.items() if scale.size == 1}
