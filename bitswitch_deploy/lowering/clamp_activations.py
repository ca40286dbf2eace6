"""ClampActivations: unsigned codes in signed containers, for runtimes that know only INT8 with zero-point 0."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.qdq import ActivationPattern, activation_patterns, producer_of, redirect_readers
from bitswitch_deploy.lowering.lowering_pass import LoweringPass

_INT8_MAX = 127


class ClampActivations(LoweringPass):
    """Replace Q(uint8 or int8), integer Clip, DQ by float Clip, Q(int8, zero-point 0), DQ.

    TensorRT reads UINT8 with zero-point 0 as INT8 and only warns: half of the range is lost. Codes 0..M with M <= 127
    fit int8, and clipping x to [0, M * s] before rounding gives the same codes as clipping the codes after it: exact.
    Cases: unsigned with M <= 127; signed narrower than 8 bits; no Clip where saturation at +-127 and a preceding Relu
    already do the work; unsigned with M > 127, whose scale is widened to s * M / 127: inexact, recorded. Left alone:
    signed 8-bit codes. Refused: codes with another zero-point than 0, as RecentreActivations makes them.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Rewrite every activation pattern that needs it; see the class for the cases.

        Raises:
            GraphError: codes have another zero-point than 0.
        """
        modified = False
        widened = []
        for pattern in activation_patterns(graph):
            if pattern.codes.zero_point != 0:
                raise GraphError(
                    where=f"QuantizeLinear {pattern.quantize.name}",
                    got=f"zero-point {pattern.codes.zero_point}",
                    allowed="zero-point 0 in front of ClampActivations",
                    do="take RecentreActivations out of the target's list of passes",
                )
            if pattern.codes.container is np.int8 and pattern.clip is None:
                continue
            if pattern.codes.high > _INT8_MAX:
                widened.append(pattern.source.name)
            _rewrite(graph, pattern)
            modified = True
        if widened:
            self.record(f"{len(widened)} activations", "uint8 codes 0..255 re-scaled to 0..127 of int8", exact=False)
        return modified


def _rewrite(graph: gs.Graph, pattern: ActivationPattern) -> None:
    codes, quantize = pattern.codes, pattern.quantize
    high = min(codes.high, _INT8_MAX)
    scale = np.float32(codes.scale * np.float32(codes.high / high))
    name = quantize.outputs[0].name.removesuffix(".codes")
    for node in (quantize, pattern.dequantize):
        node.inputs[1].values = np.asarray(scale)
        node.inputs[2].values = np.asarray(0, np.int8)
    quantize.outputs[0].dtype = np.int8
    if pattern.clip is not None:
        clipped = pattern.clip.outputs[0]
        pattern.clip.outputs.clear()
        redirect_readers(graph, clipped, quantize.outputs[0])
    # int8 saturates at 127 by itself, and codes that low were never negative behind a Relu
    producer = producer_of(pattern.source)
    if high < _INT8_MAX or producer is None or producer.op != "Relu":
        low_value = gs.Constant(f"{name}.clip_low", np.asarray(codes.low * scale, np.float32))
        high_value = gs.Constant(f"{name}.clip_high", np.asarray(high * scale, np.float32))
        clamped = gs.Variable(f"{name}.clamped", dtype=np.float32)
        graph.nodes.append(
            gs.Node(op="Clip", name=f"{name}/Clip", inputs=[pattern.source, low_value, high_value], outputs=[clamped])
        )
        quantize.inputs[0] = clamped
