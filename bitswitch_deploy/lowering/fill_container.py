"""FillContainer: activations use every code of their container within their trained range."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.qdq import ActivationPattern, activation_patterns, redirect_readers
from bitswitch_deploy.lowering.approximation import Approximation
from bitswitch_deploy.lowering.lowering_pass import LoweringPass

_MAX_CODE = 255


class FillContainer(LoweringPass):
    """Replace codes 0..M of step s, M < 255, by codes 0..255 of step s * M / 255, without their Clip. Inexact.

    The range that was trained stays, saturation of uint8 does the clipping for nothing, and rounding gets finer: not
    the function that was trained, but one that runs without an operator between two convolutions.
    Cases: unsigned codes with zero-point 0, of 2 to 7 bits, or of 8 bits that end at 127. Left alone: signed codes,
    whose range is not symmetric and cannot be filled; codes with a BitShift; everything where FULL_RESOLUTION was not
    asked for.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Refine every activation that can be; see the class for the cases."""
        if Approximation.FULL_RESOLUTION not in self.context.approximations:
            return False
        narrow = [pattern for pattern in activation_patterns(graph) if _can_be_filled(pattern)]
        for pattern in narrow:
            _fill(graph, pattern)
        if narrow:
            what = "trained range in 256 steps instead of as many as were trained"
            self.record(f"{len(narrow)} activations", what, exact=False)
        return bool(narrow)


def _can_be_filled(pattern: ActivationPattern) -> bool:
    codes = pattern.codes
    if codes.container is not np.uint8 or codes.zero_point != 0 or codes.low != 0 or pattern.shift:
        return False
    return 0 < codes.high < _MAX_CODE


def _fill(graph: gs.Graph, pattern: ActivationPattern) -> None:
    scale = np.asarray(np.float64(pattern.codes.scale) * pattern.codes.high / _MAX_CODE, np.float32)
    for node in (pattern.quantize, pattern.dequantize):
        node.inputs[1].values = scale
    if pattern.clip is not None:
        redirect_readers(graph, pattern.clip.outputs[0], pattern.quantize.outputs[0])
        pattern.clip.inputs.clear()
        pattern.clip.outputs.clear()
