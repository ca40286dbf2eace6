"""QuantizeResidual: 8-bit codes on the float branches around residual Adds."""

from __future__ import annotations

from collections import Counter

import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.qdq import ActivationCodes, add_activation_qdq
from bitswitch_deploy.lowering.approximation import Approximation
from bitswitch_deploy.lowering.calibrated_codes import (
    RESIDUAL_NAME,
    code_for_readers,
    fit_codes,
    seen_range,
    symmetric_form,
    trained_readers,
)
from bitswitch_deploy.lowering.lowering_pass import LoweringPass
from bitswitch_deploy.lowering.residuals import CodedTensor, plan_residuals


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
        context = self.context
        if not context.ranges or Approximation.RESIDUAL_CODES not in context.approximations:
            return False
        points = plan_residuals(graph, context.target.quantization.residual)
        tensors = graph.tensors()
        # looked up before any reader moves
        trained = trained_readers(graph, [tensors[point.like] for point in points if point.reader is None])
        refined: Counter[Approximation] = Counter()
        for point in points:
            form, seen = symmetric_form(context.target, unsigned=point.unsigned), seen_range(context, point.like)
            codes, reason = fit_codes(form, seen, trained.get(point.like), context)
            refined.update([reason] if reason is not None else [])
            _quantize(graph, tensors[point.tensor], point, codes)
        if points:
            what = f"{len(points)} tensors in calibrated 8-bit codes"
            self.record("residual branches", what, exact=False, approximation=Approximation.RESIDUAL_CODES)
        for approximation, count in refined.items():
            what = f"{count} tensors in codes of 256 steps like those of the layer behind them"
            self.record("residual branches", what, exact=False, approximation=approximation)
        return bool(points)


def _quantize(graph: gs.Graph, tensor: gs.Tensor, point: CodedTensor, codes: ActivationCodes) -> None:
    name = f"{point.tensor}.{RESIDUAL_NAME}"
    if point.reader is None:
        code_for_readers(graph, tensor, codes, name=name, kept=point.kept)
        return
    readers = [reader for reader in tensor.outputs if reader.name == point.reader]
    quantized = add_activation_qdq(graph, tensor, codes, name=f"{name}.{point.reader}")
    for reader in readers:
        reader.inputs = [quantized if each is tensor else each for each in reader.inputs]
