"""One network in which each layer is at a width or in float, chosen by each call: one session for every question.

In float means: inputs not quantized, weights at the width of the master (the nearest to the trained floats that there
is), BatchNormalization of the highest trained width. A layer at a width has everything that the canonical graph gives
it there, its own BatchNormalization as well (graph/plan.py). With every layer at its width the network *is* the
canonical graph, value for value.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bitswitch_deploy.diagnosis.edit_model import add_input, embedded
from bitswitch_deploy.engines.cpu_features import usable_cores
from bitswitch_deploy.engines.reference import ReferenceSession
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.graph.plan import LayerPlan, QuantizationPlan, plan_canonical
from bitswitch_deploy.master import Master
from bitswitch_deploy.quantization import derive_codes, derive_scale
from bitswitch_deploy.tensors import MIN_BITS, WidthAssignment

Array = npt.NDArray[Any]


class SwitchableGraph:
    """Runs a master with any of its layers quantized.

    Args:
        master: the network.

    Raises:
        UsageError: it is too large to be held as one graph.
        GraphError: onnxruntime refuses it.
    """

    def __init__(self, master: Master) -> None:
        self._master = master
        self._codes: dict[tuple[str, int], Array] = {}
        # at the lowest width every activation has its Clip
        canonical = canonical_graph(master, WidthAssignment(default=MIN_BITS))
        self.layers = _running_order(canonical.model, canonical.plan)
        model = embedded(canonical.model, canonical.large)
        self._input, self._output = model.graph.input[0].name, model.graph.output[0].name
        _open_initializers(model, set(self._feeds(canonical.plan, frozenset())))
        for plan in canonical.plan.layers:
            if plan.activation is not None:
                _add_switches(model, plan)
        self._session = ReferenceSession(model.SerializeToString(), threads=usable_cores())

    def run(self, x: Array, assignment: WidthAssignment, quantized: Collection[str]) -> Array:
        """The output for inputs `x` [n, ...] with the layers `quantized` at their widths and all others in float."""
        highest = self._master.spec.widths[0]
        chosen = assignment
        if set(quantized) != set(self.layers):
            overrides = tuple((name, assignment.bits_of(name)) for name in self.layers if name in quantized)
            chosen = WidthAssignment(default=highest, overrides=overrides)
        plan = plan_canonical(self._master, chosen)
        return self._session.run_all({self._input: x, **self._feeds(plan, frozenset(quantized))})[self._output]

    def _feeds(self, plan: QuantizationPlan, quantized: frozenset[str]) -> dict[str, Array]:
        feeds: dict[str, Array] = {}
        for layer in plan.layers:
            name, is_on = layer.layer.name, layer.layer.name in quantized
            feeds.update(self._weight(layer, layer.bits if is_on else self._master.spec.bits))
            if layer.activation is not None:
                container = np.int8 if layer.activation.signed else np.uint8
                feeds[f"{name}.is_quantized"] = np.asarray(is_on)
                for index in range(len(layer.nodes)):
                    prefix = f"{name}.input{f'.{index}' if index else ''}"
                    feeds[f"{prefix}.scale"] = np.asarray(layer.activation.scale, np.float32)
                    feeds[f"{prefix}.low"] = np.asarray(layer.activation.codes.low, container)
                    feeds[f"{prefix}.high"] = np.asarray(layer.activation.codes.high, container)
        for switch in plan.switches:
            feeds[switch.parameter] = np.asarray(self._master.tensors[switch.parameter][switch.index], np.float32)
        return feeds

    def _weight(self, layer: LayerPlan, bits: int) -> dict[str, Array]:
        spec, tensors, weight = self._master.spec, self._master.tensors, layer.layer.weight
        scale = derive_scale(np.asarray(tensors[layer.layer.weight_scale]), from_bits=spec.bits, to_bits=bits)
        key = (weight, bits)
        if key not in self._codes:
            codes = np.asarray(tensors[weight])
            self._codes[key] = derive_codes(codes, from_bits=spec.bits, to_bits=bits, rounding=spec.rounding)
        return {weight: self._codes[key], f"{weight}.scale": scale}


def _running_order(model: onnx.ModelProto, plan: QuantizationPlan) -> tuple[str, ...]:
    """Names of the quantized layers in the order in which they run."""
    by_weight = {f"{each.layer.weight}.dequantized": each.layer.name for each in plan.layers}
    read = [by_weight[name] for node in model.graph.node for name in node.input if name in by_weight]
    return tuple(dict.fromkeys(read))


def _open_initializers(model: onnx.ModelProto, names: set[str]) -> None:
    """Turn initializers into inputs."""
    entries = list(model.graph.initializer)
    del model.graph.initializer[:]
    for entry in entries:
        if entry.name in names:
            add_input(model, entry.name, entry.data_type, len(entry.dims))
        else:
            model.graph.initializer.append(entry)


def _add_switches(model: onnx.ModelProto, plan: LayerPlan) -> None:
    """Let the layer read its input itself where it is in float."""
    flag = f"{plan.layer.name}.is_quantized"
    add_input(model, flag, onnx.TensorProto.BOOL, 0)
    for index in range(len(plan.nodes)):
        prefix = f"{plan.layer.name}.input{f'.{index}' if index else ''}"
        nodes, result = list(model.graph.node), f"{prefix}.dequantized"
        source = next(node.input[0] for node in nodes if node.output[0] == f"{prefix}.codes")
        (maker,) = [place for place, node in enumerate(nodes) if node.output[0] == result]
        nodes[maker].output[0] = f"{prefix}.rounded"
        choice = onnx.helper.make_node("Where", [flag, f"{prefix}.rounded", source], [result])
        del model.graph.node[:]
        model.graph.node.extend([*nodes[: maker + 1], choice, *nodes[maker + 1 :]])
