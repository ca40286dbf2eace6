"""A read-only index of any ONNX graph: who makes each tensor, who reads it, what is constant.

Foreign graphs are read as they are. Subgraphs of If, Loop and Scan are included, with their own names; local functions
are inlined; constants may be initializers or Constant nodes, in the file or in external data, and are decoded only when
a rule asks for their values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.lint.folding import FOLDED, folded
from bitswitch_deploy.graph.lint.local_functions import inlined
from bitswitch_deploy.graph.lint.operators import STANDARD_DOMAINS
from bitswitch_deploy.graph.lint.shapes import TensorType, inferred_types
from bitswitch_deploy.graph.lint.subgraphs import subgraphs

# Kinds of NumPy types: strings, objects, complex numbers.
_NO_NUMBERS = "SUOc"
# Nodes behind each other that are folded.
_DEPTH = 32


@dataclass(eq=False, slots=True, kw_only=True)
class Tensor:
    """One tensor: the node that makes it, those that read it, its value where the file holds one."""

    name: str
    producer: Node | None = field(default=None, repr=False)
    readers: list[Node] = field(default_factory=list, repr=False)
    constant: onnx.TensorProto | None = field(default=None, repr=False)
    is_output: bool = False


@dataclass(eq=False, slots=True, kw_only=True)
class Node:
    """One node. inputs [arguments]: None where an optional one is left out. is_inner: part of a branch or loop body."""

    name: str
    operator: str
    domain: str
    proto: onnx.NodeProto
    inputs: list[Tensor | None]
    outputs: list[Tensor | None]
    is_inner: bool

    @property
    def result(self) -> Tensor | None:
        """Its first output, None where it has none."""
        return self.outputs[0] if self.outputs else None

    def integer(self, name: str, default: int) -> int:
        """An integer attribute, or `default` where it is not written or of another type."""
        found = self._attribute(name, onnx.AttributeProto.INT)
        return default if found is None else int(found.i)

    def integers(self, name: str, default: Sequence[int]) -> tuple[int, ...]:
        """A list of integers, or `default` where it is not written or of another type."""
        found = self._attribute(name, onnx.AttributeProto.INTS)
        return tuple(default if found is None else found.ints)

    def number(self, name: str) -> float | None:
        """A float attribute, or None where it is not written or of another type."""
        found = self._attribute(name, onnx.AttributeProto.FLOAT)
        return None if found is None else float(found.f)

    def text(self, name: str, default: str) -> str:
        """A string attribute, or `default` where it is not written or of another type."""
        found = self._attribute(name, onnx.AttributeProto.STRING)
        return default if found is None else found.s.decode(errors="replace")

    def _attribute(self, name: str, kind: int) -> onnx.AttributeProto | None:
        return next((each for each in self.proto.attribute if each.name == name and each.type == kind), None)

    def argument(self, index: int) -> Tensor | None:
        """Input number `index`, or None where there is none."""
        return self.inputs[index] if index < len(self.inputs) else None


class LintedGraph:
    """The index of one model.

    Args:
        model: any ONNX model; its local functions are inlined in a copy.
        where: how messages name it. folder: of its external data, None where it has none.

    Raises:
        GraphError: there is no graph, a local function cannot be inlined, a node reads a tensor that nothing makes, two
            nodes make the same one, or the nodes depend on each other in a circle.
    """

    def __init__(self, model: onnx.ModelProto, *, where: str, folder: Path | None = None) -> None:
        self.where = where
        if not model.graph.node and not model.graph.output:
            raise _refusal(where, "no graph", "an ONNX model with at least one output")
        if model.functions:
            model = inlined(model, where)
        self.opset = next((entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS), None)
        self._folder = folder
        self._model = model
        self._values: dict[int, NDArray[Any] | None] = {}
        self.nodes: list[Node] = []
        self._index(model.graph, {}, prefix="")
        self.nodes = _sorted(self.nodes, where)
        self._constants = _constant_tensors(self.nodes)

    def is_constant(self, tensor: Tensor | None) -> bool:
        """Whether `tensor` depends on nothing but constants."""
        return tensor is not None and (tensor.constant is not None or id(tensor) in self._constants)

    def values(self, tensor: Tensor | None) -> NDArray[Any] | None:
        """The value of a constant, in its own shape, and of what is computed from constants as far as folding.py goes.

        None where it is computed otherwise, where its bytes do not fit its type, or where it holds no numbers.
        """
        return None if tensor is None else self._value(tensor, _DEPTH)

    def data_type(self, tensor: Tensor | None) -> int | None:
        """The TensorProto type of what `values` has a value of; of a constant in the file without decoding it."""
        constant = None if tensor is None else self.source(tensor).constant
        if constant is not None:
            return constant.data_type
        values = self.values(tensor)
        return None if values is None else onnx.helper.np_dtype_to_tensor_dtype(values.dtype)

    def _value(self, tensor: Tensor, depth: int) -> NDArray[Any] | None:
        tensor = self.source(tensor)
        if id(tensor) not in self._values:
            if tensor.constant is not None:
                self._values[id(tensor)] = self._decoded(tensor.constant)
            elif depth and (node := tensor.producer) is not None and self._is_folded(node):
                arguments = [None if each is None else self._value(each, depth - 1) for each in node.inputs]
                self._values[id(tensor)] = folded(node.proto, arguments)
        return self._values.get(id(tensor))

    def _is_folded(self, node: Node) -> bool:
        return node.operator in FOLDED and node.domain in STANDARD_DOMAINS and all(map(self.is_constant, node.inputs))

    def shape(self, tensor: Tensor | None) -> tuple[int | None, ...] | None:
        """Dimensions of a constant or of a tensor of the main graph, None for open ones; None for an unknown rank."""
        if tensor is None or tensor.constant is None:
            found = None if tensor is None else self._types.get(tensor.name)
            return None if found is None else found.shape
        return tuple(tensor.constant.dims)

    def element_type(self, tensor: Tensor | None) -> int | None:
        """The TensorProto type of a constant or of a tensor of the main graph; None where it is not known."""
        if tensor is None or tensor.constant is None:
            found = None if tensor is None else self._types.get(tensor.name)
            return None if found is None else found.data_type
        return tensor.constant.data_type

    @cached_property
    def _types(self) -> dict[str, TensorType]:
        return inferred_types(self._model)

    def source(self, tensor: Tensor) -> Tensor:
        """The tensor that `tensor` is the same as: Identity nodes are passed over, backwards."""
        while tensor.producer is not None and tensor.producer.operator == "Identity":
            argument = tensor.producer.argument(0)
            if argument is None:
                break
            tensor = argument
        return tensor

    def readers(self, tensor: Tensor) -> list[Node]:
        """The nodes that read `tensor`; Identity nodes are passed over, forwards."""
        return [node for same in self._same(tensor) for node in same.readers if node.operator != "Identity"]

    def is_output(self, tensor: Tensor) -> bool:
        """Whether `tensor` leaves its graph, by itself or through an Identity."""
        return any(same.is_output for same in self._same(tensor))

    def _same(self, tensor: Tensor) -> Iterator[Tensor]:
        """`tensor`, and what Identity nodes make of it."""
        waiting = [tensor]
        while waiting:
            same = waiting.pop()
            yield same
            waiting += [node.result for node in same.readers if node.operator == "Identity" and node.result]

    def _decoded(self, proto: onnx.TensorProto) -> NDArray[Any] | None:
        try:
            if proto.data_location == onnx.TensorProto.EXTERNAL:
                copy = onnx.TensorProto()
                copy.CopyFrom(proto)
                onnx.external_data_helper.load_external_data_for_tensor(copy, str(self._folder or Path()))
                proto = copy
            values = np.asarray(onnx.numpy_helper.to_array(proto))
        except (KeyError, ValueError, TypeError, OSError, onnx.checker.ValidationError):
            return None
        return None if values.dtype.kind in _NO_NUMBERS else values

    # --- building ---------------------------------------------------------------------------------------------------

    def _index(self, graph: onnx.GraphProto, outer: Mapping[str, Tensor], *, prefix: str) -> None:
        """Add the nodes of `graph` and of its subgraphs; `outer`: tensors of the graphs around it, by name."""
        own = {value.name: Tensor(name=value.name) for value in graph.input}
        own |= {constant.name: Tensor(name=constant.name, constant=constant) for constant in graph.initializer}
        own |= {sparse.values.name: Tensor(name=sparse.values.name) for sparse in graph.sparse_initializer}
        nodes = [
            self._node(proto, own, f"{prefix}{proto.name or f'{proto.op_type}_{i}'}", is_inner=bool(prefix))
            for i, proto in enumerate(graph.node)
        ]
        scope = {**outer, **own}
        for node in nodes:
            self.nodes.append(node)
            for name in node.proto.input:
                tensor = self._known(scope, name, node) if name else None
                node.inputs.append(tensor)
                if tensor is not None:
                    tensor.readers.append(node)
            for name, body in subgraphs(node.proto):
                self._index(body, scope, prefix=f"{node.name}/{name}/")
        for value in graph.output:
            self._known(scope, value.name, None).is_output = True

    def _node(self, proto: onnx.NodeProto, own: dict[str, Tensor], name: str, *, is_inner: bool) -> Node:
        outputs = [self._made(own, output) if output else None for output in proto.output]
        node = Node(
            name=name,
            operator=str(proto.op_type),
            domain=proto.domain,
            proto=proto,
            inputs=[],
            outputs=outputs,
            is_inner=is_inner,
        )
        for tensor in outputs:
            if tensor is not None:
                tensor.producer = node
        _set_constant(node)
        return node

    def _made(self, own: dict[str, Tensor], name: str) -> Tensor:
        if name in own:
            raise _refusal(self.where, f"tensor {name!r} is made twice", "one node, input or initializer for each name")
        return own.setdefault(name, Tensor(name=name))

    def _known(self, scope: Mapping[str, Tensor], name: str, reader: Node | None) -> Tensor:
        if name not in scope:
            place = self.where if reader is None else f"{self.where}: {reader.operator} {reader.name}"
            verb = "is an output" if reader is None else "is read"
            raise _refusal(place, f"tensor {name!r} {verb} and nothing makes it", "tensors that the graph makes")
        return scope[name]


def _set_constant(node: Node) -> None:
    """Give the output of a Constant node its value."""
    if node.operator != "Constant" or node.domain not in STANDARD_DOMAINS or node.result is None:
        return
    for attribute in node.proto.attribute:
        if attribute.name == "value":
            node.result.constant = attribute.t
        elif attribute.name in ("value_float", "value_floats", "value_int", "value_ints"):
            dtype = np.float32 if "float" in attribute.name else np.int64
            values = np.asarray(onnx.helper.get_attribute_value(attribute), dtype)
            node.result.constant = onnx.numpy_helper.from_array(values)


def _constant_tensors(nodes: Iterable[Node]) -> set[int]:
    """Ids of the tensors that are computed from constants alone; nodes with subgraphs count as not constant."""
    found: set[int] = set()
    for node in nodes:
        arguments = [each for each in node.inputs if each is not None]
        constant = arguments and all(each.constant is not None or id(each) in found for each in arguments)
        if constant and next(subgraphs(node.proto), None) is None:
            found.update(id(each) for each in node.outputs if each is not None)
    return found


def _sorted(nodes: list[Node], where: str) -> list[Node]:
    """The nodes with producers in front of readers, else in their order."""
    waiting = {id(node): len(set(_producers(node))) for node in nodes}
    ready = [node for node in nodes if not waiting[id(node)]]
    done: list[Node] = []
    for node in ready:  # grows while it is read
        done.append(node)
        for reader in {id(reader): reader for out in node.outputs if out for reader in out.readers}.values():
            waiting[id(reader)] -= 1
            if not waiting[id(reader)]:
                ready.append(reader)
    if len(done) != len(nodes):
        stuck = next(node for node in nodes if waiting[id(node)])
        raise _refusal(
            f"{where}: {stuck.operator} {stuck.name}", "it depends on its own result", "a graph with no circle"
        )
    order = {id(node): index for index, node in enumerate(nodes)}
    in_order = all(order[id(producer)] < order[id(node)] for node in nodes for producer in _unique_producers(node))
    return nodes if in_order else done


def _producers(node: Node) -> Iterator[int]:
    return (id(producer) for producer in _unique_producers(node))


def _unique_producers(node: Node) -> Iterable[Node]:
    return {id(each.producer): each.producer for each in node.inputs if each is not None and each.producer}.values()


def _refusal(where: str, got: str, allowed: str) -> GraphError:
    return GraphError(where=where, got=got, allowed=allowed, do="export the model again; onnx.checker names more")
