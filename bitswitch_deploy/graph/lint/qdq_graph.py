"""What the rules of the linter look at: the Q/DQ nodes of a graph, its weighted layers, and the ways between them."""

from __future__ import annotations

from dataclasses import dataclass

from bitswitch_deploy.graph.lint.linted_graph import LintedGraph, Node, Tensor
from bitswitch_deploy.graph.lint.operators import DEQUANTIZE, QUANTIZE, WEIGHTED, type_name
from bitswitch_deploy.graph.lint.qdq_node import DOMAINS, MOVING, ON_CODES, QdqNode

# What ONNX reads where QuantizeLinear has neither zero-point nor output_dtype.
_DEFAULT_TYPE = "uint8"


@dataclass(eq=False, frozen=True, kw_only=True)
class WeightedLayer:
    """A Conv, ConvTranspose, Gemm or MatMul.

    activation, weight: the DQ that makes each of them, None where it is float. A product of two activations has both,
    and no constant. weight_index: which input the weight is. moved: nodes between the layer and the DQ of its
    activation that only move values, the nearest one first. path: nodes from the layer back to the constant that the
    weight is made from, the nearest one first; empty where the layer reads the constant itself.
    """

    node: Node
    activation: QdqNode | None
    weight: QdqNode | None
    weight_index: int
    has_constant_weight: bool
    moved: tuple[Node, ...]
    path: tuple[Node, ...]

    @property
    def result(self) -> Tensor | None:
        """What the layer makes."""
        return self.node.result


class QdqGraph:
    """Q/DQ nodes and weighted layers of `graph`, in its order.

    Attributes:
        nodes: every Q and DQ. quantizers, dequantizers: the two kinds. layers: the weighted layers.
        heads: one node for each quantized tensor, its Q, or its DQ where no Q makes the codes.
    """

    def __init__(self, graph: LintedGraph) -> None:
        self.graph = graph
        self._by_node: dict[int, QdqNode] = {}
        self._types: dict[int, str | None] = {}
        for node in graph.nodes:
            if node.operator in (QUANTIZE, DEQUANTIZE) and node.domain in DOMAINS:
                self._by_node[id(node)] = self._read(node)
            elif node.operator in ON_CODES and node.result is not None and node.argument(0):
                self._types[id(node.result)] = self._type_behind(node)
        every = list(self._by_node.values())
        self.nodes = every
        self.quantizers = [each for each in every if each.is_quantizer]
        self.dequantizers = [each for each in every if not each.is_quantizer]
        # One of each pair: every Q, and each DQ that reads no Q.
        self.heads = [each for each in every if each.is_quantizer or self.quantizer_of(each)[0] is None]
        self.layers = [
            self._layer(node) for node in graph.nodes if node.operator in WEIGHTED and node.domain in DOMAINS
        ]
        self._layers_by_node = {id(layer.node): layer for layer in self.layers}

    def at(self, node: Node) -> QdqNode | None:
        """`node` as a Q or DQ, or None."""
        return self._by_node.get(id(node))

    def layer_at(self, node: Node) -> WeightedLayer | None:
        """`node` as a weighted layer, or None."""
        return self._layers_by_node.get(id(node))

    def dequantizer_of(self, tensor: Tensor | None) -> QdqNode | None:
        """The DQ that makes `tensor`, or None."""
        if tensor is None:
            return None
        producer = self.graph.source(tensor).producer
        found = None if producer is None else self.at(producer)
        return found if found is not None and not found.is_quantizer else None

    def is_weight(self, qdq: QdqNode) -> bool:
        """Whether it works on constants: a weight or bias, not an activation."""
        return self.graph.is_constant(qdq.data)

    def quantizer_of(self, dequantizer: QdqNode) -> tuple[QdqNode | None, tuple[Node, ...]]:
        """The Q whose codes `dequantizer` reads, and the nodes that work on the codes in between, the last one first.

        None where the codes come from a constant, from outside or from another operator.
        """
        between: list[Node] = []
        tensor = dequantizer.data
        while tensor is not None and (node := tensor.producer) is not None:
            qdq = self.at(node)
            if qdq is not None:
                return (qdq if qdq.is_quantizer else None), tuple(between)
            if node.operator not in ON_CODES:
                break
            if node.operator != "Identity":
                between.append(node)
            tensor = node.argument(0)
        return None, tuple(between)

    def quantizers_reading(self, tensor: Tensor) -> list[QdqNode]:
        """Every Q that reads `tensor`."""
        readers = (self.at(reader) for reader in self.graph.readers(tensor))
        return [reader for reader in readers if reader is not None and reader.is_quantizer]

    def path_to_constant(self, tensor: Tensor) -> tuple[Node, ...]:
        """The nodes that make a constant tensor, the last one first; each is followed to what it computes on."""
        path: list[Node] = []
        while tensor.constant is None and tensor.producer is not None:
            path.append(tensor.producer)
            tensor = self._operand(tensor.producer)
        return tuple(path)

    def _operand(self, node: Node) -> Tensor:
        """What a node computes on: the data of a Q or DQ, never its scale; of other nodes the first computed input."""
        arguments = [each for each in node.inputs if each is not None]
        if self.at(node) is not None:
            return arguments[0]
        return next((each for each in arguments if each.constant is None), arguments[0])

    def _read(self, node: Node) -> QdqNode:
        zero_point = node.argument(2)
        kind: str | None = None
        if zero_point is not None:
            data_type = self.graph.data_type(zero_point)
            kind = self.type_of(zero_point) if data_type is None else type_name(data_type)
        elif node.operator == QUANTIZE:
            kind = type_name(node.integer("output_dtype", 0)) or _DEFAULT_TYPE
        elif node.argument(0) is not None:
            kind = self.type_of(node.argument(0))
        if node.operator == QUANTIZE and node.result is not None:
            self._types[id(node.result)] = kind
        return QdqNode(graph=self.graph, node=node, code_type=kind)

    def _type_behind(self, node: Node) -> str | None:
        if node.operator == "Cast":
            return type_name(node.integer("to", 0))
        return self.type_of(node.argument(0))

    def type_of(self, tensor: Tensor | None) -> str | None:
        """The type of integer codes, `int8`, ..., or of a constant; None where it cannot be told."""
        if tensor is None:
            return None
        if tensor.constant is not None:
            return type_name(tensor.constant.data_type)
        return self._types.get(id(tensor))

    def _layer(self, node: Node) -> WeightedLayer:
        constant = [self.graph.is_constant(node.argument(index)) for index in (0, 1)]
        index = 0 if node.operator == "MatMul" and constant == [True, False] else 1
        weight_tensor = node.argument(index)
        path: tuple[Node, ...] = ()
        if weight_tensor is not None and constant[index]:
            path = self.path_to_constant(weight_tensor)
            found = [self.at(each) for each in path]
            weight = next((each for each in found if each is not None and not each.is_quantizer), None)
        else:
            weight = self.dequantizer_of(weight_tensor)
        activation, moved = self._moved_dequantizer(node.argument(1 - index))
        return WeightedLayer(
            node=node,
            activation=activation,
            weight=weight,
            weight_index=index,
            has_constant_weight=constant[index],
            moved=moved,
            path=path,
        )

    def _moved_dequantizer(self, tensor: Tensor | None) -> tuple[QdqNode | None, tuple[Node, ...]]:
        """The DQ behind `tensor`, through operators that both engines pull it through, and those operators."""
        moved: list[Node] = []
        while tensor is not None:
            found = self.dequantizer_of(tensor)
            if found is not None:
                return found, tuple(moved)
            producer = self.graph.source(tensor).producer
            if producer is None or not MOVING.get(producer.operator):
                break
            moved.append(producer)
            tensor = producer.argument(0)
        return None, ()
