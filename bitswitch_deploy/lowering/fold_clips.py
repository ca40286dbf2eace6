"""FoldClips: a float Clip in front of a QuantizeLinear becomes part of the Clip on its codes."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.qdq import ActivationPattern, activation_patterns, limit_codes
from bitswitch_deploy.lowering.lowering_pass import LoweringPass


class FoldClips(LoweringPass):
    """Take Relu6 and the like out of the way between a layer and its QuantizeLinear. Exact.

    onnxruntime runs a convolution in integers only with QuantizeLinear directly behind it (or behind a Relu). Rounding
    is monotone, so  quantize(clip(x, a, b)) = clip(quantize(x), quantize(a), quantize(b))  code for code.
    Cases: Clip with constant bounds, one or both, also several in a row; one or several quantized readers, each with a
    Clip of its own. A bound that no code reaches needs none.
    Left alone: a Clip that a float node or the output of the graph reads, too; bounds that are computed; crossed
    bounds; codes with a BitShift.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Fold every Clip that can be; see the class for the cases."""
        folded = False
        # one without outputs was taken out by a pass before
        for node in [node for node in reversed(graph.nodes) if node.op == "Clip" and node.outputs]:
            bounds, output = _bounds(node), node.outputs[0]
            # anew each time: a Clip behind this one may have narrowed the codes
            patterns = {id(pattern.quantize): pattern for pattern in activation_patterns(graph) if not pattern.shift}
            readers = [patterns.get(id(reader)) for reader in output.outputs]
            if bounds is None or not readers or any(each is output for each in graph.outputs):
                continue
            found = [pattern for pattern in readers if pattern is not None]
            if len(found) < len(readers):
                continue
            for pattern in found:
                low, high = (_code(pattern, bound) for bound in bounds)
                pattern.quantize.inputs[0] = node.inputs[0]
                limit_codes(graph, pattern, low=low, high=high)
            node.inputs.clear()
            node.outputs.clear()
            folded = True
        return folded


def _bounds(clip: gs.Node) -> tuple[float, float] | None:
    """Lower and upper bound of a float Clip, infinite where it has none; None if they are not known or crossed."""
    found = [-np.inf, np.inf]
    for place, tensor in enumerate(clip.inputs[1:3]):
        if not tensor.is_empty():
            if not isinstance(tensor, gs.Constant):
                return None
            found[place] = float(tensor.values)
    low, high = found
    return (low, high) if np.issubdtype(clip.outputs[0].dtype or np.float32, np.floating) and low <= high else None


def _code(pattern: ActivationPattern, bound: float) -> int:
    """What QuantizeLinear makes of a value, in its own float32 arithmetic."""
    codes, limits = pattern.codes, np.iinfo(pattern.codes.container)
    with np.errstate(over="ignore"):
        steps = np.rint(np.float32(bound) / codes.scale)
    return int(np.clip(steps + codes.zero_point, limits.min, limits.max))
