"""ChannelsLast: the integer part of a residual network runs in the layout of its kernels throughout."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.qdq import (
    ActivationPattern,
    activation_patterns,
    hand_out_copy,
    producer_of,
    way_to_codes,
)
from bitswitch_deploy.lowering.lowering_pass import LoweringPass

_FORTH, _BACK = [0, 2, 3, 1], [0, 3, 1, 2]
_ELEMENTWISE = ("Relu", "Clip", "Identity")


class ChannelsLast(LoweringPass):
    """Transpose once where a residual stream comes out of a float convolution, instead of around every convolution.

    onnxruntime's integer convolutions want channels last, and it moves the Transposes around them along the graph only
    where that saves some. The first Add of a residual network joins a branch that is in that layout with one that is
    not, so nothing is saved there, and all later Adds follow. Here the float tensor is transposed in front of its
    QuantizeLinear and back; a Reshape to the shape it has keeps the pair from being cancelled, and onnxruntime moves
    the second Transpose to the end of the stream. The values stay where they were: exact.
    Where it moves a Transpose behind codes, it hands out what these stand for instead of an output of the graph that
    nothing but that Transpose reads (seen with 1.32). A copy that is handed out keeps it from that, as in QuantizeBias.
    Cases: a 2-D convolution with float weights, elementwise operators, QuantizeLinear, an Add behind it, also behind
    MaxPool; an output of the graph in front of a Transpose, of this pass or of the network. Left alone: streams that
    begin behind a quantized layer, and all that no Add reads.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Transpose at the beginning of every such stream; see the class for the cases."""
        patterns = {id(pattern.quantize): pattern for pattern in activation_patterns(graph)}
        starts = {
            pattern.source.name: (pattern.source, _image_channels(pattern.source))
            for pattern in patterns.values()
            if _reaches_add(pattern, patterns)
        }
        starts = {name: start for name, start in starts.items() if start[1]}
        for tensor, channels in starts.values():
            _transpose(graph, tensor, channels, [each.quantize for each in patterns.values() if each.source is tensor])
        transposed = [output for output in graph.outputs if _is_transposed(graph, output)]
        for output in transposed:
            hand_out_copy(graph, output)
        return bool(starts or transposed)


def _image_channels(tensor: gs.Tensor) -> int:
    """Channels of the convolution of images that a tensor comes from, through what changes each value by itself.

    0 where it comes from anything else.
    """
    producer = producer_of(tensor)
    while producer is not None and producer.op in (*_ELEMENTWISE, "BatchNormalization"):
        producer = producer_of(producer.inputs[0])
    if producer is None or producer.op != "Conv":
        return 0
    weight = producer.inputs[1]
    return int(weight.values.shape[0]) if isinstance(weight, gs.Constant) and weight.values.ndim == 4 else 0


def _is_transposed(graph: gs.Graph, output: gs.Tensor) -> bool:
    """Whether the only node that reads an output of the graph is a Transpose with codes behind."""
    if len(output.outputs) != 1:
        return False
    (reader,) = output.outputs
    way = way_to_codes(graph, reader.outputs[0])
    first = next((node.op for node in (reader, *way) if node.op not in ("Identity", "Dropout")), None)
    return bool(way) and first == "Transpose"


def _reaches_add(pattern: ActivationPattern, patterns: dict[int, ActivationPattern]) -> bool:
    for reader in pattern.result.outputs:
        if reader.op == "Add":
            return True
        if reader.op == "MaxPool":
            behind = [patterns[id(node)] for node in reader.outputs[0].outputs if id(node) in patterns]
            if any(_reaches_add(each, patterns) for each in behind):
                return True
    return False


def _transpose(graph: gs.Graph, tensor: gs.Tensor, channels: int, readers: list[gs.Node]) -> None:
    forth, same, back = (gs.Variable(f"{tensor.name}.{part}", dtype=np.float32) for part in ("nhwc", "kept", "nchw"))
    # of an empty batch nothing could be told from a -1
    shape = gs.Constant(f"{tensor.name}.as_it_is", np.asarray([0, 0, 0, channels], np.int64))
    graph.nodes += [
        gs.Node("Transpose", f"{tensor.name}/Forth", {"perm": _FORTH}, [tensor], [forth]),
        gs.Node("Reshape", f"{tensor.name}/Keep", {}, [forth, shape], [same]),
        gs.Node("Transpose", f"{tensor.name}/Back", {"perm": _BACK}, [same], [back]),
    ]
    for reader in readers:
        reader.inputs[0] = back
