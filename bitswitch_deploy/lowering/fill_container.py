"""FillContainer: activations use every code of their container within their trained range."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.qdq import (
    ActivationCodes,
    ActivationPattern,
    activation_patterns,
    limit_codes,
    match_activation,
    producer_of,
    redirect_readers,
)
from bitswitch_deploy.lowering.approximation import Approximation
from bitswitch_deploy.lowering.lowering_pass import LoweringContext, LoweringPass

_STEPS = 255
# within a trained range, whose ends move by half of one at most
_FEWEST_STEPS = 32


class FillContainer(LoweringPass):
    """Replace codes low..high of step s by all 256 codes, of step s * (high - low) / 255, without their Clip. Inexact.

    The range that was trained stays, saturation of the container does the clipping for nothing, and rounding gets
    finer: not the function that was trained, but one that runs without an operator between two convolutions.
    Cases: with FULL_RESOLUTION unsigned codes of 2 to 7 bits, or of 8 bits that end at 127; with FULL_RESOLUTION_SIGNED
    signed ones of 2 to 7 bits, whose range is not symmetric: their zero-point moves to where zero is in it (-8..7 at 4
    bits: 136 of 255), which at 3, 5, 6 and 7 bits shifts the range by less than half of a fine step.
    An activation that comes in 256 codes already, those of a residual branch or of what lies between layers, keeps
    these: rounding them once more would make nothing finer. Where they leave the trained range, a Clip on uint8 codes
    holds them in it, in a third of the time of an operator that changes their steps (measured with onnxruntime 1.32 on
    x86); the steps are changed where fewer than 32 of them lie in that range, and on targets of int8 codes.
    Left alone: others that fill their container; codes with a BitShift; codes that have no zero; signed ones for a
    target of int8 with zero-point 0; everything where it was not asked for.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Refine every activation that can be; see the class for the cases."""
        refined: list[tuple[ActivationPattern, ActivationCodes, str]] = []
        for pattern in activation_patterns(graph):
            before = _comes_in(pattern)
            kept = None if before is None else _kept(pattern, before, self.context)
            if kept is not None:
                if kept != pattern.codes:
                    refined.append((pattern, kept, "the steps in which they come, within the trained range"))
            elif pattern.codes.needs_clip and (full := filled(pattern, self.context)) is not None:
                what = f"trained range in {_STEPS + 1} steps instead of as many as were trained"
                refined.append((pattern, full, what))
        made = Counter((made_by(pattern), what) for pattern, _, what in refined)
        for pattern, codes, _ in refined:
            _fill(graph, pattern, codes)
        for (approximation, what), count in made.items():
            self.record(f"{count} activations", what, exact=False, approximation=approximation)
        return bool(refined)


def filled(pattern: ActivationPattern, context: LoweringContext) -> ActivationCodes | None:
    """What FillContainer makes of an activation, its own codes where these fill the container; None if left alone."""
    codes, activation = pattern.codes, context.target.quantization.activation
    below, above = codes.zero_point - codes.low, codes.high - codes.zero_point
    if made_by(pattern) not in context.approximations or FillContainer.__name__ not in context.target.lowering:
        return None
    if pattern.shift or min(below, above) < 0 or codes.low == codes.high:
        return None
    limits = np.iinfo(codes.container)
    zero_point = int(limits.min) + round(below * _STEPS / (below + above))
    if zero_point != 0 and activation.dtype == "int8" and activation.zero_point == 0:
        return None
    return ActivationCodes(
        scale=np.float32(np.float64(codes.scale) * (below + above) / _STEPS),
        zero_point=zero_point,
        container=codes.container,
        low=int(limits.min),
        high=int(limits.max),
    )


def adopts(pattern: ActivationPattern, before: ActivationCodes, context: LoweringContext) -> bool:
    """Whether FillContainer lets an activation that comes in these codes keep them."""
    return _kept(pattern, before, context) == before


def _kept(pattern: ActivationPattern, before: ActivationCodes, context: LoweringContext) -> ActivationCodes | None:
    """The codes that an activation comes in, as far as they lie in its trained range; None if it does not keep them."""
    if before.needs_clip or filled(pattern, context) is None:
        return None
    if pattern.codes.covers(before):
        return before
    low, high = (round(end / float(before.scale)) + before.zero_point for end in pattern.codes.ends)
    low, high = max(low, before.low), min(high, before.high)
    # between int8 codes onnxruntime runs no convolution behind such a Clip in integers
    is_able = context.target.quantization.activation.dtype == "uint8"
    is_worth_it = pattern.codes.needs_clip and high - low >= _FEWEST_STEPS
    return replace(before, low=low, high=high) if is_able and is_worth_it else None


def _comes_in(pattern: ActivationPattern) -> ActivationCodes | None:
    """The codes that an activation is quantized from, as they are."""
    source = producer_of(pattern.source)
    before = None if source is None or source.op != "DequantizeLinear" else match_activation(source)
    return None if before is None or before.shift else before.codes


def made_by(pattern: ActivationPattern) -> Approximation:
    """The approximation by which `filled` and `adopts` give an answer."""
    codes = pattern.codes
    is_signed = codes.needs_clip and codes.low < codes.zero_point
    return Approximation.FULL_RESOLUTION_SIGNED if is_signed else Approximation.FULL_RESOLUTION


def _fill(graph: gs.Graph, pattern: ActivationPattern, full: ActivationCodes) -> None:
    """Give a pattern other codes, and a Clip only where these need it."""
    for node in (pattern.quantize, pattern.dequantize):
        node.inputs[1].values = np.asarray(full.scale, np.float32)
        node.inputs[2].values = np.asarray(full.zero_point, full.container)
    pattern.quantize.outputs[0].dtype = full.container
    if pattern.clip is not None:
        redirect_readers(graph, pattern.clip.outputs[0], pattern.quantize.outputs[0])
        pattern.clip.inputs.clear()
        pattern.clip.outputs.clear()
    if full.needs_clip:
        made = match_activation(pattern.dequantize)
        if made is None:
            raise AssertionError("made above")
        limit_codes(graph, made, low=full.low, high=full.high)
