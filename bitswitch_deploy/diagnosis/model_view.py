"""A model as a diagnosis looks at it: who makes a tensor, what depends on the input, what is a float."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class ModelView:
    """Lookups into a model with inferred types; the model itself is not changed.

    Args:
        model: a canonical or lowered graph with all its weights.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.producers = {name: node for node in model.graph.node for name in node.output if name}
        self.inputs = {value.name for value in model.graph.input}
        self.outputs = [value.name for value in model.graph.output]
        self._live = self._depend_on(self.inputs, model.graph.node)
        self._values = _values(model)

    @property
    def live_floats(self) -> list[str]:
        """Computed float tensors of known rank that depend on the input, in the order of the graph."""
        return [name for name in self.producers if name in self._live and self.element_type(name) == _FLOAT]

    def element_type(self, name: str) -> int:
        """ONNX element type of a tensor, 0 where it could not be inferred."""
        return self._values.get(name, (0, 0))[0]

    def rank(self, name: str) -> int:
        """Number of axes of a tensor whose type is known."""
        return self._values[name][1]

    def segment(self, tensor: str, cuts: Iterable[str]) -> list[onnx.NodeProto]:
        """The nodes that compute `tensor` from cuts, network inputs and constants, last one first."""
        stop, seen, waiting = set(cuts), {tensor}, [tensor]
        nodes: list[onnx.NodeProto] = []
        while waiting:
            node = self.producers.get(waiting.pop(0))
            if node is None:
                continue
            if not any(node is each for each in nodes):
                nodes.append(node)
            for name in node.input:
                if name and name not in seen and name not in stop:
                    seen.add(name)
                    waiting.append(name)
        return nodes

    def weights_of(self, node: onnx.NodeProto) -> set[str]:
        """Names of every tensor that the weight of a weighted node is made from."""
        if node.op_type not in WEIGHTED or len(node.input) < 2:
            return set()
        names, waiting = set(), [name for name in node.input[:2] if name not in self._live]
        while waiting:
            name = waiting.pop()
            if name and name not in names:
                names.add(name)
                waiting += list(self.producers[name].input) if name in self.producers else []
        return names

    @staticmethod
    def _depend_on(names: set[str], nodes: Iterable[onnx.NodeProto]) -> set[str]:
        live = set(names)
        for node in nodes:
            read = set(node.input)
            read |= {name for attribute in node.attribute for each in _inner(attribute) for name in each.input}
            if read & live:
                live |= set(node.output)
        return live - names


_FLOAT = onnx.TensorProto.FLOAT


def _inner(attribute: onnx.AttributeProto) -> Iterable[onnx.NodeProto]:
    for graph in (attribute.g, *attribute.graphs):
        for node in graph.node:
            yield node
            for each in node.attribute:
                yield from _inner(each)


def _values(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: (int(value.type.tensor_type.elem_type), len(value.type.tensor_type.shape.dim))
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
