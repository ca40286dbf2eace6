"""HardSigmoidCodes: a HardSigmoid between codes is a change of scale."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.qdq import ActivationPattern, match_activation, producer_of, sole_reader
from bitswitch_deploy.lowering.lowering_pass import LoweringPass, replace_node

_ALPHA, _BETA = 0.2, 0.5  # where the attributes are missing


class HardSigmoidCodes(LoweringPass):
    """Write HardSigmoid between codes as an Add, which onnxruntime runs as QLinearAdd; it has no such HardSigmoid.

    HardSigmoid(x) = clip(alpha x + beta, 0, 1). Codes of x that are dequantized with alpha times their scale are
    alpha x, and a QuantizeLinear whose first and last code stand for 0 and 1 clips by saturation:
    DQ(scale), HardSigmoid, Q  becomes  DQ(alpha scale), Add(beta), Q.  Exact but for rounding ties.
    Left alone: a HardSigmoid that does not read codes or has no codes of 0..1 behind it, or several readers; an
    alpha that is not positive, which is no scale.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Rewrite every HardSigmoid that can be; see the class for the cases."""
        rewritten = False
        for node in [node for node in graph.nodes if node.op == "HardSigmoid"]:
            source = producer_of(node.inputs[0])
            pattern = match_activation(source) if source is not None and source.op == "DequantizeLinear" else None
            rises = node.attrs.get("alpha", _ALPHA) > 0
            if pattern is not None and rises and _saturates_at_ends(graph, node.outputs[0]):
                _write_add(graph, node, pattern)
                rewritten = True
        return rewritten


def _saturates_at_ends(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether the only reader is a QuantizeLinear of which the container ends at 0 and at 1."""
    reader = sole_reader(graph, tensor)
    if reader is None or reader.op != "QuantizeLinear":
        return False
    scale, zero_point = (np.asarray(each.values) for each in reader.inputs[1:3])
    limits = np.iinfo(zero_point.dtype)
    return int(zero_point) == limits.min and scale * (limits.max - limits.min) == np.float32(1.0)


def _write_add(graph: gs.Graph, node: gs.Node, pattern: ActivationPattern) -> None:
    alpha, beta = (np.float32(node.attrs.get(name, usual)) for name, usual in (("alpha", _ALPHA), ("beta", _BETA)))
    dequantize, name = pattern.dequantize, node.name
    zero_point = np.asarray(dequantize.inputs[2].values)
    slope = gs.Constant(f"{name}.slope", np.asarray(alpha * dequantize.inputs[1].values, np.float32))
    scaled, offset = (gs.Variable(f"{name}.{part}", dtype=np.float32) for part in ("scaled", "offset"))
    graph.nodes.append(
        gs.Node("DequantizeLinear", f"{name}/Scaled", {}, [dequantize.inputs[0], slope, dequantize.inputs[2]], [scaled])
    )
    # one step above or below zero is beta, exactly
    step, code, zero = np.abs(beta) or np.float32(1), int(beta > 0), int(beta < 0)
    constants = [
        gs.Constant(f"{name}.offset.{part}", np.asarray(value, dtype))
        for part, value, dtype in (
            ("code", code, zero_point.dtype),
            ("scale", step, np.float32),
            ("zero_point", zero, zero_point.dtype),
        )
    ]
    graph.nodes.append(gs.Node("DequantizeLinear", f"{name}/Offset", {}, constants, [offset]))
    replace_node(graph, node, [gs.Node("Add", f"{name}/Add", {}, [scaled, offset], [])])
