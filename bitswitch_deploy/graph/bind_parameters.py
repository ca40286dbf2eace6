"""BindParameters: the float parameters of the skeleton become constants."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.large_tensors import StoredFloats, constant_of, is_large
from bitswitch_deploy.graph.passes import GraphPass
from bitswitch_deploy.graph.plan import QuantizationPlan
from bitswitch_deploy.graph.qdq import redirect_readers
from bitswitch_deploy.master import Master


class BindParameters(GraphPass):
    """Replace each parameter input that stays float by a constant of the same name.

    Cases: a plain parameter; a switchable parameter, of which the planned row is taken; a pinned layer's weight.
    What a branch or loop reads is held in the graph however large the master is: external data is looked for outside.
    Left alone: inputs of the network and weights that are quantized.
    """

    def __init__(self, master: Master, plan: QuantizationPlan) -> None:
        self._master, self._is_large = master, is_large(master)
        self._row = {switch.parameter: switch.index for switch in plan.switches}
        pinned = {layer.weight for layer in master.spec.layers if layer.pinned}
        self._names = pinned | set(master.spec.parameters) | set(master.spec.switchable)

    def apply(self, graph: gs.Graph) -> bool:
        """Bind every float parameter; see the class for the cases."""
        bound = [tensor for tensor in graph.inputs if tensor.name in self._names]
        outside = {id(node) for node in graph.nodes}
        for tensor in bound:
            values = np.asarray(self._master.tensors[tensor.name], np.float32)
            row = self._row.get(tensor.name)
            stored = StoredFloats(values if row is None else np.asarray(values[row]))
            large = self._is_large and all(id(reader) in outside for reader in tensor.outputs)
            constant = constant_of(tensor.name, stored, large=large)
            redirect_readers(graph, tensor, constant)
        graph.inputs = [tensor for tensor in graph.inputs if tensor.name not in self._names]
        return bool(bound)
