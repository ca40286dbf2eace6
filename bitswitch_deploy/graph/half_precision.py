"""From float32 to float16, node by node, with Casts where the two meet.

Strongly typed TensorRT networks (from 11.0 on there is no other kind, from 10.12 on the other one is deprecated)
compute in the types that the graph states: no builder flag asks for FP16, so the graph itself must say it.

Which inputs and outputs of a node may change is read off the operator's ONNX schema. Constants are rounded to float16,
their magnitude limited to 65504: what a network uses as "minus infinity" must not become one. Numbers below 6e-8 become
zero. Nothing else about a graph changes; names of nodes and of network inputs and outputs stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.float_reference import FloatGraph
from bitswitch_deploy.graph.large_tensors import LargeConstant, LargeTensor, large_tensors
from bitswitch_deploy.graph.model_io import MEND_NETWORK, export_model, import_model

_FLOAT16_MAX = float(np.finfo(np.float16).max)
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


def half_precision(reference: FloatGraph) -> FloatGraph:
    """The whole network in float16, where ONNX has the operators for it; its inputs and outputs stay as they are.

    Raises:
        GraphError: the result is not valid ONNX at its opset.
    """
    model = onnx.shape_inference.infer_shapes(reference.model)
    graph = import_model(model, reference.large)
    opset = graph.opset
    _complete_types(graph)
    halve(graph, [node for node in graph.nodes if can_halve(node, opset)])
    halved = export_model(graph, opset=opset, ir_version=model.ir_version, do=MEND_NETWORK)
    return FloatGraph(model=halved, large=large_tensors(graph))


def _complete_types(graph: gs.Graph) -> None:
    """Types that shape inference left open, by the schemas: in onnx 1.23 GroupNormalization and what follows."""
    for node in graph.nodes:
        if onnx.defs.has(node.op, node.domain or ""):
            ports = _Ports(node, graph.opset)
            known = {
                type_: tensor.dtype for type_, tensor in zip(ports.inputs, node.inputs) if tensor.dtype is not None
            }
            for type_, tensor in zip(ports.outputs, node.outputs):
                if tensor.dtype is None:
                    tensor.dtype = known.get(type_)


def can_halve(node: gs.Node, opset: int) -> bool:
    """Whether a node whose tensors have known types computes in float32 and may do so in float16.

    Not: quantizers; nodes with branches or loops; those whose float output does not have the type of an input (Cast).
    """
    if node.op in _QUANTIZERS or not onnx.defs.has(node.op, node.domain or "") or _has_branch(node):
        return False
    ports = _Ports(node, opset)
    changing = {ports.inputs[index] for index, tensor in enumerate(node.inputs) if ports.takes_half(index, tensor)}
    floats = [ports.outputs[index] for index, tensor in enumerate(node.outputs) if _is_float(tensor)]
    return bool(changing) and bool(floats) and set(floats) <= changing


def halve(graph: gs.Graph, nodes: Iterable[gs.Node]) -> None:
    """Let `nodes` compute in float16, in place. Each must satisfy `can_halve`."""
    chosen = list(nodes)
    opset, ids = graph.opset, {id(node) for node in chosen}
    halves: dict[str, gs.Tensor] = {}
    casts: list[gs.Node] = []
    for node in chosen:
        for index, tensor in enumerate(node.outputs):
            if _is_float(tensor):
                half = gs.Variable(f"{tensor.name}.half", dtype=np.float16, shape=tensor.shape)
                halves[tensor.name] = half
                outside = [reader for reader in tensor.outputs if id(reader) not in ids]
                is_output = any(tensor is output for output in graph.outputs)
                node.outputs[index] = half
                if outside or is_output:
                    casts.append(_cast(half, tensor, onnx.TensorProto.FLOAT))
    for node in chosen:
        ports = _Ports(node, opset)
        for index, tensor in enumerate(list(node.inputs)):
            if ports.takes_half(index, tensor):
                node.inputs[index] = _half_of(tensor, halves, casts)
    graph.nodes.extend(casts)


def _half_of(tensor: gs.Tensor, halves: dict[str, gs.Tensor], casts: list[gs.Node]) -> gs.Tensor:
    """The float16 form of a tensor: that of a halved node, a rounded constant, or a Cast, each made once."""
    if tensor.name not in halves:
        name = f"{tensor.name}.half"
        if isinstance(tensor, LargeConstant):
            halves[tensor.name] = LargeConstant(name, _Half(tensor.tensor))
        elif isinstance(tensor, gs.Constant):
            halves[tensor.name] = gs.Constant(name, rounded(np.asarray(tensor.values)))
        else:
            halves[tensor.name] = gs.Variable(name, dtype=np.float16, shape=tensor.shape)
            casts.append(_cast(tensor, halves[tensor.name], onnx.TensorProto.FLOAT16))
    return halves[tensor.name]


def rounded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """`values` in float16 [same shape], rounded to nearest even, magnitudes above 65504 limited to it."""
    # an array in any case: NumPy makes a scalar of what has no axes
    return np.asarray(np.clip(values, -_FLOAT16_MAX, _FLOAT16_MAX), np.float16)


class _Half(LargeTensor):
    """Another large tensor in float16."""

    def __init__(self, source: LargeTensor) -> None:
        super().__init__(source.shape, onnx.TensorProto.FLOAT16, source.size_bytes // 2)
        self._source = source

    def load(self) -> npt.NDArray[np.float16]:
        return rounded(self._source.load())

    def chunks(self) -> Iterator[npt.NDArray[np.float16]]:
        """As the source's."""
        return map(rounded, self._source.chunks())


class _Ports:
    """Type variable of each input and output of a node, from its schema."""

    def __init__(self, node: gs.Node, opset: int) -> None:
        schema = onnx.defs.get_schema(node.op, opset, node.domain or "")
        self._halvable = {
            each.type_param_str for each in schema.type_constraints if "tensor(float16)" in each.allowed_type_strs
        }
        self.inputs = _spread(schema.inputs, len(node.inputs))
        self.outputs = _spread(schema.outputs, len(node.outputs))

    def takes_half(self, index: int, tensor: gs.Tensor) -> bool:
        return self.inputs[index] in self._halvable and _is_float(tensor)


def _spread(formal: Sequence[onnx.defs.OpSchema.FormalParameter], count: int) -> list[str]:
    """Type strings for `count` actual parameters: the last formal one may stand for several."""
    return [formal[min(index, len(formal) - 1)].type_str for index in range(count)]


def _is_float(tensor: gs.Tensor) -> bool:
    # no np.dtype() of it: where NumPy has no such type, as bfloat16, it is the number of ONNX
    return bool(not tensor.is_empty() and tensor.dtype == np.float32)


def _has_branch(node: gs.Node) -> bool:
    return any(isinstance(value, gs.Graph) for value in node.attrs.values())


def _cast(source: gs.Tensor, target: gs.Tensor, to: int) -> gs.Node:
    return gs.Node("Cast", f"{target.name}/Cast", {"to": to}, [source], [target])
