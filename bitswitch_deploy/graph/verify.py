"""Invariants of every Q/DQ graph that this project emits."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.qdq import is_known

_REPORT = "this is a bug in a pass if the master is valid: please report it with the master"
_QDQ = ("QuantizeLinear", "DequantizeLinear")


def verify_qdq(graph: gs.Graph, *, where: str, do: str = _REPORT) -> None:
    """Check each QuantizeLinear and DequantizeLinear: scale constant, finite and positive; zero-point always there.

    Scales of weights and biases may be negative: whether the target takes that is its profile's affair. A missing
    zero-point means uint8 to ONNX and int8 to TensorRT, so it is never left out.

    do: what the reader of the error may do.

    Raises:
        GraphError: with the name of the first node that breaks an invariant.
    """
    for node in graph.nodes:
        if node.op not in _QDQ:
            continue
        problem = _problem(node)
        if problem is not None:
            raise GraphError(
                where=f"{where}: {node.op} {node.name}",
                got=problem,
                allowed="a constant positive scale and an explicit constant zero-point",
                do=do,
            )


def _problem(node: gs.Node) -> str | None:
    if len(node.inputs) != 3 or node.inputs[2].is_empty():
        return "no zero-point"
    scale, zero_point = node.inputs[1], node.inputs[2]
    if not isinstance(scale, gs.Constant) or not isinstance(zero_point, gs.Constant):
        return "scale or zero-point is not a constant"
    values = np.asarray(scale.values)
    usable = np.isfinite(values) & (values > 0)
    # asked last: for an activation it walks to the inputs of the network
    if not usable.all() and node.op == "DequantizeLinear" and is_known(node.inputs[0]):
        usable = np.isfinite(values) & (values != 0)
    if not usable.all():
        return f"scale in {values.min()} .. {values.max()}"
    if tuple(scale.shape) != tuple(zero_point.shape):
        return f"scale of shape {tuple(scale.shape)} with a zero-point of shape {tuple(zero_point.shape)}"
    return None
