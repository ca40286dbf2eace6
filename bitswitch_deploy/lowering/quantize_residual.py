"""QuantizeResidual: 8-bit codes on the float branches around residual Adds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.qdq import (
    ActivationCodes,
    ActivationPattern,
    activation_patterns,
    add_activation_qdq,
    redirect_readers,
)
from bitswitch_deploy.lowering.approximation import Approximation
from bitswitch_deploy.lowering.fill_container import filled, made_by
from bitswitch_deploy.lowering.lowering_pass import LoweringPass
from bitswitch_deploy.lowering.ranges import TensorRange, best_scale, costs_little, dividing_scale
from bitswitch_deploy.lowering.residuals import ResidualPoint, plan_residuals


class QuantizeResidual(LoweringPass):
    """Carry out `plan_residuals` with the observed ranges. Inexact, and recorded as such.

    Cases: a tensor for all its readers (`both_inputs`); only the edge into the Add (`skip_input`); a tensor behind data
    movement takes the scale of its origin; a tensor that a trained quantizer reads as well takes codes that do not
    change what that one gives, or with FULL_RESOLUTION the very codes of that one, which spares an operator, where they
    fit the branch nearly as well as its own. Left alone: layers with a float weight between codes, which read the float
    tensor as before; everything when there are no ranges, which the caller decides
    and reports.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Insert every planned point; see the class for the cases."""
        ranges = self.context.ranges
        if not ranges or Approximation.RESIDUAL_CODES not in self.context.approximations:
            return False
        points = plan_residuals(graph, self.context.target.quantization.residual)
        tensors = graph.tensors()
        # looked up before any reader moves
        patterns = {id(pattern.quantize): pattern for pattern in activation_patterns(graph)}
        trained = {point.like: _trained(tensors[point.like], patterns) for point in points if point.reader is None}
        refined: Counter[Approximation] = Counter()
        for point in points:
            if point.like not in ranges:
                raise GraphError(
                    where=f"residual tensor {point.like}",
                    got="no observed range",
                    allowed="a range for every tensor of plan_residuals",
                    do="observe the ranges on the canonical graph that is lowered",
                )
            codes, reason = self._codes(point, trained.get(point.like))
            refined.update([reason] if reason is not None else [])
            self._quantize(graph, tensors[point.tensor], point, codes)
        if points:
            what = f"{len(points)} tensors in calibrated 8-bit codes"
            self.record("residual branches", what, exact=False, approximation=Approximation.RESIDUAL_CODES)
        for approximation, count in refined.items():
            what = f"{count} tensors in codes of 256 steps like those of the layer behind them"
            self.record("residual branches", what, exact=False, approximation=approximation)
        return bool(points)

    def _quantize(self, graph: gs.Graph, tensor: gs.Tensor, point: ResidualPoint, codes: ActivationCodes) -> None:
        suffix = f".{point.reader}" if point.reader is not None else ""
        readers = list(tensor.outputs)
        quantized = add_activation_qdq(graph, tensor, codes, name=f"{point.tensor}.residual{suffix}")
        if point.reader is None:
            kept = [reader for reader in readers if reader.name in point.kept]
            redirect_readers(graph, tensor, quantized, keep=[quantized_by(tensor, readers), *kept])
            return
        for reader in readers:
            if reader.name == point.reader:
                reader.inputs = [quantized if each is tensor else each for each in reader.inputs]

    def _codes(
        self, point: ResidualPoint, trained: ActivationPattern | None
    ) -> tuple[ActivationCodes, Approximation | None]:
        """Codes of a branch; and the approximation without which they would be others."""
        activation = self.context.target.quantization.activation
        # an int8 container with zero-point 0 leaves half of its codes to a tensor that is never negative
        halved = activation.dtype == "int8" and activation.zero_point == 0
        low, high = (0, 127 if halved else 255) if point.unsigned else (-128, 127)
        seen = self.context.ranges[point.like]

        def own(scale: float) -> ActivationCodes:
            container = np.uint8 if point.unsigned else np.int8
            return ActivationCodes(scale=np.float32(scale), zero_point=0, container=container, low=low, high=high)

        if trained is None:
            return own(best_scale(seen, low=low, high=high)), None
        usual = own(dividing_scale(seen, float(trained.codes.scale), low=low, high=high))
        full = filled(trained, self.context)
        if full is None:
            return usual, None
        if _fits(full, seen, own=(low, high)):
            chosen = full
        elif full.scale != trained.codes.scale:
            # steps that FillContainer refines are nothing to divide
            chosen = own(best_scale(seen, low=low, high=high))
        else:
            chosen = usual
        return chosen, made_by(trained) if chosen != usual else None


def _fits(codes: ActivationCodes, seen: TensorRange, *, own: tuple[int, int]) -> bool:
    """Whether these codes suit the branch nearly as well as `own` would, of a scale of their own."""
    low, high = codes.low - codes.zero_point, codes.high - codes.zero_point
    return costs_little(seen, float(codes.scale), low=low, high=high, own=own)


def _trained(tensor: gs.Tensor, patterns: Mapping[int, ActivationPattern]) -> ActivationPattern | None:
    """What the trained readers of `tensor` make of it; None where there is none, or their scales differ."""
    found = [patterns[id(node)] for node in tensor.outputs if id(node) in patterns]
    return found[0] if len({float(each.codes.scale) for each in found}) == 1 else None


def quantized_by(tensor: gs.Tensor, readers_before: list[gs.Node]) -> gs.Node:
    """The QuantizeLinear that was added to the readers of `tensor` last."""
    return next(node for node in tensor.outputs if node not in readers_before)
