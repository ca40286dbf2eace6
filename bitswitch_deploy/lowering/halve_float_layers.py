"""HalveFloatLayers: what training kept in float computes in float16, where the engine takes types from the graph."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.half_precision import halve
from bitswitch_deploy.graph.qdq import is_dequantized
from bitswitch_deploy.lowering.approximation import Approximation
from bitswitch_deploy.lowering.lowering_pass import LoweringPass
from bitswitch_deploy.target import Target

_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def is_halved(target: Target) -> bool:
    """Whether an export for this target tries to halve its float layers."""
    return target.stack.typing == "strong" and HalveFloatLayers.__name__ in target.lowering


class HalveFloatLayers(LoweringPass):
    """Convolutions and matrix products without quantized inputs compute in float16, with Casts around them. Inexact.

    A strongly typed TensorRT network runs them in float32 otherwise, without tensor cores; weakly typed stacks have the
    builder flag FP16 for that, so there is nothing to do there. Cases: a layer with float32 weights; a product of two
    activations (its weight is no constant). Left alone: layers that read a DequantizeLinear, whose arithmetic is the
    integers' own business; everything between layers, which fuses into them. Nothing to do without the approximation
    `half-layers`.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Halve every float layer; see the class for the cases."""
        is_strong = self.context.target.stack.typing == "strong"
        if not is_strong or Approximation.HALF_LAYERS not in self.context.approximations:
            return False
        layers = [node for node in graph.nodes if node.op in _OPERATORS and not any(map(is_dequantized, node.inputs))]
        for node in layers:
            for tensor in (*node.inputs, *node.outputs):
                # these four operators have one type for all floats, and a skeleton computes in float32
                if isinstance(tensor, gs.Variable) and not tensor.is_empty():
                    tensor.dtype = np.float32
        halve(graph, layers)
        if layers:
            what = f"compute in float16: {', '.join(node.name for node in layers)}"
            self.record("float layers", what, exact=False, approximation=Approximation.HALF_LAYERS)
        return bool(layers)
