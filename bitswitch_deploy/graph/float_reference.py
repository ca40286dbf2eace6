"""The float network behind a master: what every width is compared with when speed is the question.

Same topology, same tensor and node names as the canonical graphs, no quantizer anywhere. Weights are the master's int8
codes times their scale, BatchNormalization is that of the highest trained width. It is the network that a user would
deploy who does not quantize at all: its latency is the honest reference, its accuracy is near that of the highest
width and is not what this graph is for.

`float_graph` computes in float32, for onnxruntime. `half_precision.py` turns it into the FP16 form for TensorRT.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.bind_parameters import BindParameters
from bitswitch_deploy.graph.canonical import CANONICAL_IR_VERSION, CANONICAL_OPSET, check_opset
from bitswitch_deploy.graph.large_tensors import LargeTensor, constant_of, is_large, large_tensors
from bitswitch_deploy.graph.model_io import MEND_NETWORK, export_model, import_model
from bitswitch_deploy.graph.passes import GraphPass, run_passes
from bitswitch_deploy.graph.plan import plan_canonical
from bitswitch_deploy.graph.qdq import redirect_readers
from bitswitch_deploy.master import Master
from bitswitch_deploy.quantization import dequantize
from bitswitch_deploy.tensors import Granularity, WidthAssignment

# Elements made at a time.
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatGraph:
    """The float model. large: tensors that the model only marks, by name (external_data.py writes or runs them)."""

    model: onnx.ModelProto
    large: Mapping[str, LargeTensor] = field(default_factory=dict)


def float_graph(master: Master) -> FloatGraph:
    """The float32 network of a master, at the opset of the canonical graphs. The same master gives the same bytes.

    Raises:
        GraphError: the skeleton is of another opset, or the result is not valid ONNX.
    """
    check_opset(master.skeleton)
    plan = plan_canonical(master, WidthAssignment(default=master.spec.widths[0]))
    graph = import_model(master.skeleton)
    run_passes(graph, [BindParameters(master, plan), DequantizeWeights(master)])
    model = export_model(graph, opset=CANONICAL_OPSET, ir_version=CANONICAL_IR_VERSION, do=MEND_NETWORK)
    return FloatGraph(model=model, large=large_tensors(graph))


class DequantizeWeights(GraphPass):
    """Replace the weight input of each quantized layer by the floats that the master's codes stand for.

    Cases: scale per tensor, per channel, per block. Left alone: pinned layers, whose weights are floats already.
    """

    def __init__(self, master: Master) -> None:
        self._master, self._is_large = master, is_large(master, code_bytes=4)
        self._by_weight = {layer.weight: layer for layer in master.spec.layers if not layer.pinned}

    def apply(self, graph: gs.Graph) -> bool:
        """Bind every quantized weight as float32; see the class for the cases."""
        weights = [tensor for tensor in graph.inputs if tensor.name in self._by_weight]
        for tensor in weights:
            layer, tensors = self._by_weight[tensor.name], self._master.tensors
            floats = _Dequantized(
                np.asarray(tensors[layer.weight]), np.asarray(tensors[layer.weight_scale]), layer.granularity
            )
            redirect_readers(graph, tensor, constant_of(layer.weight, floats, large=self._is_large))
        graph.inputs = [tensor for tensor in graph.inputs if tensor.name not in self._by_weight]
        return bool(weights)


class _Dequantized(LargeTensor):
    """Codes times scale, float32 [shape of the codes]."""

    def __init__(self, codes: npt.NDArray[np.int8], scale: npt.NDArray[np.float32], granularity: Granularity) -> None:
        super().__init__(codes.shape, onnx.TensorProto.FLOAT, 4 * codes.size)
        self._codes, self._scale, self._granularity = codes, scale, granularity

    def load(self) -> npt.NDArray[np.float32]:
        return dequantize(self._codes, self._scale, granularity=self._granularity)

    def chunks(self) -> Iterator[npt.NDArray[np.float32]]:
        """Rows at a time: floats take four times the bytes of the codes. Blocks along the rows are not cut."""
        axis, codes = self._granularity.axis, self._codes
        if axis == 0 and self._granularity.kind == "per_block":
            yield self.load()
            return
        rows = max(1, _CHUNK * len(codes) // max(1, codes.size))
        for start in range(0, len(codes), rows):
            # blocks along another axis have a scale for each row
            by_row = axis == 0 or self._granularity.kind == "per_block"
            scale = self._scale[start : start + rows] if by_row else self._scale
            yield dequantize(codes[start : start + rows], scale, granularity=self._granularity)
