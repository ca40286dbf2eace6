"""QuantizeElementwise: what lies between quantized layers computes with codes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.qdq import ActivationCodes, match_activation, producer_of
from bitswitch_deploy.lowering.approximation import Approximation
from bitswitch_deploy.lowering.calibrated_codes import (
    BETWEEN_NAME,
    affine_form,
    code_for_readers,
    fit_codes,
    halves_unsigned,
    seen_range,
    trained_readers,
)
from bitswitch_deploy.lowering.decompositions import decompose_hard_swish
from bitswitch_deploy.lowering.elementwise import plan_elementwise
from bitswitch_deploy.lowering.lowering_pass import LoweringPass, replace_node

# 0..1, both exactly
_BOUNDED_CODES = ActivationCodes(scale=np.float32(1 / 255), zero_point=0, container=np.uint8, low=0, high=255)


class QuantizeElementwise(LoweringPass):
    """Carry out `plan_elementwise` with the observed ranges. Inexact, and recorded as such.

    Cases: results of Add, Mul, Concat, LeakyRelu and average pooling get all codes between the extremes that were seen,
    with a zero-point of their own; those of Sigmoid and HardSigmoid 0..1; what is only moved (Split, nearest Resize,
    MaxPool, Reshape, ...) keeps the codes it came in. Where a trained quantizer is the only reader, its codes are the
    result. HardSwish becomes HardSigmoid and Mul, a mean over height and width GlobalAveragePool. A tensor that a
    trained quantizer reads beside others: as in QuantizeResidual.
    Left alone: what is not between codes; what the network hands out, if only moved or clipped; AveragePool with
    dilations, and what else has no kernel; targets of int8 with zero-point 0, whose engines
    fuse such operators into the layers in front; everything where ELEMENTWISE_CODES was not asked for.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Insert every planned point; see the class for the cases."""
        context = self.context
        if not context.ranges or Approximation.ELEMENTWISE_CODES not in context.approximations:
            return False
        if halves_unsigned(context.target):
            return False
        plan = plan_elementwise(graph)
        if plan.is_empty:
            return False
        nodes = {node.name: node for node in graph.nodes}
        for name in plan.rewritten:
            _rewrite(graph, nodes[name])
        tensors = graph.tensors()
        trained = trained_readers(graph, [tensors[each.tensor] for each in plan.tensors])
        refined: Counter[Approximation] = Counter()
        for each in plan.tensors:
            tensor = tensors[each.tensor]
            if each.unsigned:
                codes, reason = _BOUNDED_CODES, None
            elif each.like != each.tensor:
                codes, reason = _codes_of_origin(tensor), None
            else:
                seen = seen_range(context, each.tensor)
                codes, reason = fit_codes(affine_form(seen), seen, trained.get(each.tensor), context)
            refined.update([reason] if reason is not None else [])
            code_for_readers(graph, tensor, codes, name=f"{each.tensor}.{BETWEEN_NAME}", kept=each.kept)
        where, what = "between layers", f"{len(plan.tensors)} results in calibrated 8-bit codes"
        self.record(where, what, exact=False, approximation=Approximation.ELEMENTWISE_CODES)
        for approximation, count in refined.items():
            what = f"{count} results in codes of 256 steps like those of the layer behind them"
            self.record(where, what, exact=False, approximation=approximation)
        return True


def _rewrite(graph: gs.Graph, node: gs.Node) -> None:
    """HardSwish with a HardSigmoid in codes; a mean over the plane as GlobalAveragePool."""
    if node.op == "HardSwish":
        gate = decompose_hard_swish(graph, node)
        code_for_readers(graph, gate, _BOUNDED_CODES, name=f"{gate.name}.{BETWEEN_NAME}", kept=())
    else:
        replace_node(graph, node, [gs.Node("GlobalAveragePool", f"{node.name}/Pool", {}, [node.inputs[0]], [])])


def _codes_of_origin(moved: gs.Tensor) -> ActivationCodes:
    """The codes in which the tensor came that was moved."""
    mover = producer_of(moved)
    source = None if mover is None else producer_of(mover.inputs[0])
    pattern = None if source is None else match_activation(source)
    if pattern is None:
        raise AssertionError("inputs come first in the plan, and get codes if they have none")
    return pattern.codes
