"""QuantizeWeights: weights become derived integer codes behind a DequantizeLinear."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.large_tensors import DerivedCodes, constant_of, is_large
from bitswitch_deploy.graph.passes import GraphPass
from bitswitch_deploy.graph.plan import LayerPlan, QuantizationPlan
from bitswitch_deploy.graph.qdq import add_weight_dq, redirect_readers
from bitswitch_deploy.master import Master
from bitswitch_deploy.quantization import derive_scale
from bitswitch_deploy.tensors import Granularity


class QuantizeWeights(GraphPass):
    """Replace the weight input of each planned layer by constant codes and DequantizeLinear.

    The constant keeps the name of the master's tensor and holds W_l = double rounding of the master, int8, in the
    same layout; its scale is s_h * 2^(h-l). Cases: scale per tensor, per channel, per block.
    """

    def __init__(self, master: Master, plan: QuantizationPlan) -> None:
        self._master, self._is_large = master, is_large(master)
        self._by_weight = {layer.layer.weight: layer for layer in plan.layers}

    def apply(self, graph: gs.Graph) -> bool:
        """Bind every quantized weight; see the class for the cases."""
        weights = [tensor for tensor in graph.inputs if tensor.name in self._by_weight]
        for tensor in weights:
            self._quantize(graph, tensor, self._by_weight[tensor.name])
        graph.inputs = [tensor for tensor in graph.inputs if tensor.name not in self._by_weight]
        return bool(weights)

    def _quantize(self, graph: gs.Graph, tensor: gs.Tensor, plan: LayerPlan) -> None:
        spec, layer = self._master.spec, plan.layer
        codes = DerivedCodes(
            np.asarray(self._master.tensors[layer.weight]),
            from_bits=spec.bits,
            to_bits=plan.bits,
            rounding=spec.rounding,
        )
        scale = derive_scale(
            np.asarray(self._master.tensors[layer.weight_scale]), from_bits=spec.bits, to_bits=plan.bits
        )
        # its name is free once the graph input is gone
        constant = constant_of(layer.weight, codes, large=self._is_large)
        weight = add_weight_dq(graph, constant, scale, _dequantize_attributes(layer.granularity))
        redirect_readers(graph, tensor, weight)


def _dequantize_attributes(granularity: Granularity) -> dict[str, int]:
    attributes = {}
    if granularity.axis is not None:
        attributes["axis"] = granularity.axis
    if granularity.block_size is not None:
        attributes["block_size"] = granularity.block_size
    return attributes
