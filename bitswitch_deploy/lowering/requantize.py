"""Requantize: codes of one scale become codes of another in one operator on bytes."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.qdq import (
    ActivationPattern,
    activation_patterns,
    match_activation,
    producer_of,
)
from bitswitch_deploy.lowering.lowering_pass import LoweringPass

_MAX_CODE = 255


class Requantize(LoweringPass):
    """Write a change of scale as DequantizeLinear, Add of zero, QuantizeLinear, which onnxruntime runs as QLinearAdd.

    That is the fastest operator that it has for this: one vectorised pass over bytes in any layout, where a
    DequantizeLinear and a QuantizeLinear are two through floats with a transposition before and after, and a BitShift
    takes five times as long (measured with onnxruntime 1.32 on x86). The zero is a constant of one code, so the
    NoopElimination of onnxruntime does not see it.
    Cases:
    * from a residual branch to the input of a layer: DQ, Q becomes DQ, Add, Q;
    * codes in finer steps: Clip, BitShift, DQ becomes [Clip,] DQ, Add, Q, DQ;
    * unsigned codes that would be clipped at their top only: the zero-point moves up until the container saturates
      there, and the Clip goes.
    Exact, but for values that lie within 1e-4 of a step from the middle between two codes: QLinearAdd multiplies with
    the quotient of both scales where QuantizeLinear divides.
    Left alone: containers other than uint8, codes that are in the scale already.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Rewrite every change of scale; see the class for the cases."""
        modified = False
        for pattern in activation_patterns(graph):
            if pattern.codes.container is not np.uint8:
                continue
            source = producer_of(pattern.source)
            if pattern.shift:
                _write_finer_steps(graph, pattern)
                modified = True
            if source is None or source.op != "DequantizeLinear" or (before := match_activation(source)) is None:
                continue
            if _is_same_step(source, pattern.quantize):
                continue
            name = pattern.quantize.name.removesuffix("/QuantizeLinear")
            pattern.quantize.inputs[0] = _add_zero(graph, pattern.source, before, name)
            # with a BitShift the codes are counted in other steps behind it
            if not pattern.shift and before.codes.low >= before.codes.zero_point:
                _saturate(pattern)
            modified = True
        return modified


def _is_same_step(dequantize: gs.Node, quantize: gs.Node) -> bool:
    """Whether codes come back as they were; onnxruntime drops the two nodes then."""
    return all(np.array_equal(a.values, b.values) for a, b in zip(dequantize.inputs[1:3], quantize.inputs[1:3]))


def _add_zero(graph: gs.Graph, tensor: gs.Tensor, like: ActivationPattern, name: str) -> gs.Tensor:
    """`tensor` + 0 with the zero in the codes of `like`."""
    scale, zero_point = (np.asarray(each.values) for each in like.dequantize.inputs[1:3])
    zero = gs.Variable(f"{name}.zero", dtype=np.float32)
    constants = [
        gs.Constant(f"{name}.zero.{part}", values.copy())
        for part, values in (("code", zero_point), ("scale", scale), ("zero_point", zero_point))
    ]
    graph.nodes.append(gs.Node("DequantizeLinear", f"{name}/Zero", {}, constants, [zero]))
    total = gs.Variable(f"{name}.rescaled", dtype=np.float32)
    graph.nodes.append(gs.Node("Add", f"{name}/Add", {}, [tensor, zero], [total]))
    return total


def _write_finer_steps(graph: gs.Graph, pattern: ActivationPattern) -> None:
    """Replace the BitShift: codes, DQ, Add of zero, Q in steps finer by 2^shift, saturating where the Clip was."""
    last, codes = pattern.dequantize, pattern.codes
    shifter = producer_of(last.inputs[0])
    if shifter is None:
        raise AssertionError("a pattern with a shift has a BitShift")
    name = pattern.quantize.name.removesuffix("/QuantizeLinear")
    narrow, fine_scale = shifter.inputs[0], last.inputs[1]
    only_top = codes.low == codes.zero_point == 0
    if only_top and pattern.clip is not None:
        narrow = pattern.quantize.outputs[0]
    zero_point = _MAX_CODE - (int(codes.high) << pattern.shift) if only_top else 0
    shifter.inputs.clear()
    shifter.outputs.clear()
    coarse = gs.Variable(f"{name}.coarse", dtype=np.float32)
    quantized = gs.Variable(f"{name}.fine.codes", dtype=np.uint8)
    point = gs.Constant(f"{name}.fine.zero_point", np.asarray(zero_point, np.uint8))
    steps = [narrow, pattern.quantize.inputs[1], pattern.quantize.inputs[2]]
    middle = gs.Node("DequantizeLinear", f"{name}/Coarse", {}, steps, [coarse])
    graph.nodes.append(middle)
    found = match_activation(middle)
    if found is None:
        raise AssertionError("made above")
    total = _add_zero(graph, coarse, found, f"{name}.fine")
    graph.nodes.append(
        gs.Node("QuantizeLinear", f"{name}.fine/QuantizeLinear", {}, [total, fine_scale, point], [quantized])
    )
    last.inputs = [quantized, fine_scale, point]


def _saturate(pattern: ActivationPattern) -> None:
    """Let unsigned codes end at 255 instead of being clipped; what comes in is not negative."""
    codes, clip = pattern.codes, pattern.clip
    if clip is None or codes.low != 0 or codes.zero_point != 0:
        return
    point = gs.Constant(f"{pattern.quantize.name}.zero_point", np.asarray(_MAX_CODE - codes.high, np.uint8))
    pattern.quantize.inputs[2] = point
    pattern.dequantize.inputs[0] = pattern.quantize.outputs[0]
    pattern.dequantize.inputs[2] = point
    clip.inputs.clear()
    clip.outputs.clear()
