"""HalveFloatLayers: what training kept in float computes in float16, where the engine takes types from the graph."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.half_precision import halve, rounded
from bitswitch_deploy.graph.qdq import is_dequantized, match_weight
from bitswitch_deploy.lowering.approximation import Approximation
from bitswitch_deploy.lowering.lowering_pass import LoweringPass
from bitswitch_deploy.target import Target

_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def is_halved(target: Target) -> bool:
    """Whether an export for this target tries to halve its float layers."""
    return target.stack.typing == "strong" and HalveFloatLayers.__name__ in target.lowering


class HalveFloatLayers(LoweringPass):
    """Convolutions and matrix products of floats compute in float16, with Casts around them. Inexact.

    A strongly typed TensorRT network runs them in float32 otherwise, without tensor cores; weakly typed stacks have the
    builder flag FP16 for that, so there is nothing to do there. Cases: a layer with float32 weights; a product of two
    activations (its weight is no constant); a layer of which only the weight is in codes, whose scales become float16,
    or, where they are too small for that, what is dequantized. Left alone: layers whose input is in codes, whose
    arithmetic is the integers' own business; everything between layers, which fuses into them. Nothing to do without
    the approximation `half-layers`.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Halve every float layer; see the class for the cases."""
        is_strong = self.context.target.stack.typing == "strong"
        if not is_strong or Approximation.HALF_LAYERS not in self.context.approximations:
            return False
        layers = [node for node in graph.nodes if node.op in _OPERATORS and _is_float(node)]
        for node in layers:
            _halve_scales(node, layers)
        for node in layers:
            for tensor in (*node.inputs, *node.outputs):
                # these four operators have one type for all floats, and a skeleton computes in float32
                if isinstance(tensor, gs.Variable) and not tensor.is_empty() and tensor.dtype != np.float16:
                    tensor.dtype = np.float32
        halve(graph, layers)
        if layers:
            what = f"compute in float16: {', '.join(node.name for node in layers)}"
            self.record("float layers", what, exact=False, approximation=Approximation.HALF_LAYERS)
        return bool(layers)


def _is_float(node: gs.Node) -> bool:
    """Whether a layer computes in floats: codes of its weight alone are made floats first."""
    activation, weight, *others = node.inputs
    is_weight_only = match_weight(weight) is not None
    return not any(map(is_dequantized, (activation, *others) if is_weight_only else node.inputs))


def _halve_scales(node: gs.Node, layers: list[gs.Node]) -> None:
    """Let the weight of a layer come out of its codes in float16, if none but `layers` read it."""
    weight = match_weight(node.inputs[1])
    if weight is None or weight.dequantize.outputs[0].dtype == np.float16:
        return
    scale, floats = weight.dequantize.inputs[1], weight.dequantize.outputs[0]
    is_normal = float(np.min(np.abs(scale.values))) >= np.finfo(np.float16).tiny
    if is_normal and all(any(reader is each for each in layers) for reader in floats.outputs):
        weight.dequantize.inputs[1] = gs.Constant(f"{scale.name}.half", rounded(np.asarray(scale.values)))
        floats.dtype = np.float16
