"""HalveFloatLayers: what training kept in float computes in float16, where the engine takes types from the graph."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
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
    activations (its weight is no constant); a layer of which only the weight is in codes, whose scales become float16.
    Left alone: such a layer with a scale below 6.1e-5, which float16 has not exactly enough, or whose weight another
    node reads, since nothing may stand between a weight's DequantizeLinear and its layer; layers whose input is in
    codes, whose arithmetic is the integers' own business; everything between layers, which fuses into them. Nothing to
    do without the approximation `half-layers`.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Halve every float layer; see the class for the cases."""
        is_strong = self.context.target.stack.typing == "strong"
        if not is_strong or Approximation.HALF_LAYERS not in self.context.approximations:
            return False
        floats = [node for node in graph.nodes if node.op in _OPERATORS and _is_float(node)]
        layers = [node for node in floats if _takes_half(node, floats)]
        for node in layers:
            _halve_scales(node)
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


def has_half_scales(scales: npt.NDArray[np.float32]) -> bool:
    """Whether float16 has scales of a weight as exactly as other numbers: none of them is subnormal there."""
    return float(np.min(scales)) >= float(np.finfo(np.float16).tiny)


def _takes_half(node: gs.Node, floats: list[gs.Node]) -> bool:
    """Whether the weight of a float layer can be float16; `floats` are all such layers."""
    weight = match_weight(node.inputs[1])
    if weight is None:
        return True
    readers = weight.dequantize.outputs[0].outputs
    return has_half_scales(weight.scale.values) and all(any(each is other for other in floats) for each in readers)


def _halve_scales(node: gs.Node) -> None:
    """Let the weight of a layer come out of its codes in float16."""
    weight = match_weight(node.inputs[1])
    if weight is not None and weight.dequantize.outputs[0].dtype != np.float16:
        scale = weight.scale
        weight.dequantize.inputs[1] = gs.Constant(f"{scale.name}.half", rounded(np.asarray(scale.values)))
        weight.dequantize.outputs[0].dtype = np.float16
