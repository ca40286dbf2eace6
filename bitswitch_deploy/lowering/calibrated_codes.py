"""8-bit codes for a float tensor by what calibration saw of it, and by the trained quantizers that read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
from bitswitch_deploy.lowering.fill_container import adopts, filled, made_by
from bitswitch_deploy.lowering.lowering_pass import LoweringContext
from bitswitch_deploy.lowering.ranges import TensorRange, best_scale, costs_little, dividing_scale
from bitswitch_deploy.target import Target

# what the tensors of codes on residual branches and between layers are called: TENSOR.NAME.PART
RESIDUAL_NAME, BETWEEN_NAME = CODED_NAMES = ("residual", "between")
# of a form whose scale is still to be found
_NO_SCALE = np.float32(1.0)
_STEPS = 255


def seen_range(context: LoweringContext, tensor: str) -> TensorRange:
    """What calibration saw of a tensor.

    Raises:
        GraphError: nothing, or what is no range.
    """
    seen = context.ranges.get(tensor)
    if seen is not None and np.isfinite([seen.minimum, seen.maximum]).all():
        return seen
    raise GraphError(
        where=f"tensor {tensor}",
        got="no observed range" if seen is None else f"an observed range of {seen.minimum} to {seen.maximum}",
        allowed="a finite range for every tensor of calibrated_tensors",
        do="observe the ranges on the canonical graph that is lowered, with samples on which it is finite",
    )


def symmetric_form(target: Target, *, unsigned: bool) -> ActivationCodes:
    """Codes 0..255 or -128..127 with zero-point 0, of no scale yet; 0..127 where unsigned ones ride in int8."""
    low, high = (0, 127 if halves_unsigned(target) else 255) if unsigned else (-128, 127)
    container = np.uint8 if unsigned else np.int8
    return ActivationCodes(scale=_NO_SCALE, zero_point=0, container=container, low=low, high=high)


def affine_form(seen: TensorRange) -> ActivationCodes:
    """All codes between the extremes, zero among them: uint8 from 0 for a tensor that is never negative, else int8."""
    low, high = min(seen.minimum, 0.0), max(seen.maximum, 0.0)
    if low == 0.0:
        return ActivationCodes(scale=_NO_SCALE, zero_point=0, container=np.uint8, low=0, high=_STEPS)
    zero_point = round(-low * _STEPS / (high - low)) - 128
    return ActivationCodes(scale=_NO_SCALE, zero_point=zero_point, container=np.int8, low=-128, high=127)


def halves_unsigned(target: Target) -> bool:
    """Whether a tensor that is never negative uses half of a container: int8 with zero-point 0."""
    activation = target.quantization.activation
    return activation.dtype == "int8" and activation.zero_point == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedReaders:
    """The trained quantizers that read a tensor, at least one. alone: nothing else reads it within the network."""

    patterns: tuple[ActivationPattern, ...]
    alone: bool

    @property
    def widest(self) -> ActivationPattern | None:
        """The one whose range holds those of all, None where there is no such."""
        ranges = [pattern.codes for pattern in self.patterns]
        return next((each for each in self.patterns if all(each.codes.covers(codes) for codes in ranges)), None)


def fit_codes(
    form: ActivationCodes, seen: TensorRange, trained: TrainedReaders | None, context: LoweringContext
) -> tuple[ActivationCodes, Approximation | None]:
    """The form with its scale; and the approximation without which the codes would be others.

    trained: quantizers that read the tensor, whose codes shall not change. With FULL_RESOLUTION they may, and sharing
        them spares an operator: the form's own codes, where these lie in all their ranges, else those of the widest
        range, where they fit nearly as well as the form's own, or where nothing but such a quantizer reads them.
    """
    low, high = form.low - form.zero_point, form.high - form.zero_point
    own = replace(form, scale=np.float32(best_scale(seen, low=low, high=high)))
    if trained is None or (widest := trained.widest) is None:
        return own, None
    usual, steps = own, {float(each.codes.scale) for each in trained.patterns}
    if len(steps) == 1:
        usual = replace(form, scale=np.float32(dividing_scale(seen, *steps, low=low, high=high)))
    full = filled(widest, context)
    if full is None:
        return usual, None
    below, above = full.low - full.zero_point, full.high - full.zero_point
    if all(adopts(each, own, context) for each in trained.patterns):
        chosen = own
    elif trained.alone or costs_little(seen, float(full.scale), low=below, high=above, own=(low, high)):
        chosen = full
    else:
        # steps that FillContainer refines are nothing to divide
        chosen = own if full.scale != widest.codes.scale else usual
    return chosen, made_by(widest) if chosen != usual else None


def trained_readers(graph: gs.Graph, tensors: Sequence[gs.Tensor]) -> Mapping[str, TrainedReaders]:
    """The trained readers of each tensor by its name, without those that have none."""
    patterns = {id(pattern.quantize): pattern for pattern in activation_patterns(graph)}
    found = {}
    for tensor in tensors:
        readers = tuple(patterns[id(node)] for node in tensor.outputs if id(node) in patterns)
        if readers:
            found[tensor.name] = TrainedReaders(patterns=readers, alone=len(readers) == len(tensor.outputs))
    return found


def code_for_readers(
    graph: gs.Graph, tensor: gs.Tensor, codes: ActivationCodes, *, name: str, kept: Sequence[str]
) -> None:
    """Let all readers of a tensor read its codes, but nodes named in `kept`."""
    readers = list(tensor.outputs)
    quantized = add_activation_qdq(graph, tensor, codes, name=name)
    quantizer = next(node for node in tensor.outputs if node not in readers)
    redirect_readers(graph, tensor, quantized, keep=[quantizer, *(node for node in readers if node.name in kept)])
