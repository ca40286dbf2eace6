"""Rules about Q and DQ as a pair, and about operators that are no Q/DQ form at all."""

from __future__ import annotations

from collections.abc import Iterator

from bitswitch_deploy.graph.lint.linted_graph import Node, Tensor
from bitswitch_deploy.graph.lint.operators import STANDARD_DOMAINS, type_name
from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph
from bitswitch_deploy.graph.lint.qdq_node import DOMAINS, ON_CODES
from bitswitch_deploy.graph.lint.rule import Breach, Rule
from bitswitch_deploy.graph.lint.subgraphs import subgraphs

_INTEGER_OPERATORS = (
    "QLinear",
    "ConvInteger",
    "DynamicQuantize",
    "GatherBlockQuantized",
    "MatMulBnb4",
    "MatMulFpQ4",
    "MatMulInteger",
    "MatMulNBits",
    "QAttention",
    "QEmbedLayerNormalization",
    "QGemm",
    "QMoE",
    "QOrdered",
)
_FLOATS = ("float", "float16", "bfloat16", "double")
# They ask for nothing but a shape.
_SHAPES = ("Shape", "Size")


class QuantizerWithoutDequantizer(Rule):
    """Codes of a Q that no DQ turns back: read by something else, or an output.

    Engines fuse pairs; these codes are integers like any others, and both run the graph in float around them. Operators
    on the codes are passed over, up to the first that is none. Those that compute with codes (QLinearConv) take them.
    """

    id = "q-without-dq"
    severity = "warning"
    engines = ("tensorrt", "onnxruntime")

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.quantizers:
            end = None if qdq.result is None else _odd_end(graph, qdq.result)
            if end is not None:
                do = "put a DQ behind it and let the readers take its result"
                yield Breach(node=qdq.node, got=f"its codes {end}", allowed="a DQ as the reader", do=do)


class DequantizerWithoutQuantizer(Rule):
    """A DQ of codes that are neither constant nor made by a Q: they come from outside or from another operator.

    A table of codes that a Gather looks up in front of the DQ is constant enough.
    """

    id = "dq-without-q"
    severity = "warning"
    engines = ("tensorrt", "onnxruntime")

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.dequantizers:
            quantizer, between = graph.quantizer_of(qdq)
            origin = between[-1].argument(0) if between else qdq.data
            if quantizer is not None or origin is None or graph.graph.is_constant(origin):
                continue
            maker = graph.graph.source(origin).producer
            if maker is not None and maker.operator.startswith(_INTEGER_OPERATORS):
                continue
            source = f"{maker.operator} {maker.name}" if maker else f"{origin.name}, which no node makes"
            do = "put the Q into the graph too, so that engines see the pair"
            yield Breach(node=qdq.node, got=f"codes from {source}", allowed="codes of a Q, or a constant", do=do)


class ConstantCodes(Rule):
    """A constant in int8 that something other than a DQ reads: TensorRT does not build it.

    Cases: a table that a Gather looks up, a Pad, Concat, Where, Max, ... with a constant, a Cast to float. Fine are the
    bounds of a Clip and the zero-points of Q. What stands in front of the DQ of a weight is WeightPath's.
    """

    id = "constant-codes"
    severity = "error"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        of_weights = {id(node) for layer in graph.layers for node in layer.path}
        for node in graph.graph.nodes:
            if id(node) in of_weights or not _needs_dequantized(graph, node):
                continue
            constants = [each for each in node.inputs if each is not None and _is_int8_constant(graph, each)]
            if constants:
                do = "put the DQ directly behind the constant, and let this operator work on floats"
                got = f"{constants[0].name}, a constant in int8"
                yield Breach(node=node, got=got, allowed="a DQ as the only reader of such a constant", do=do)


class Dangling(Rule):
    """A Q or DQ whose result nobody reads."""

    id = "dangling"
    severity = "warning"
    engines = ("tensorrt", "onnxruntime")

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.nodes:
            tensor = qdq.result
            if tensor is None or not (graph.graph.readers(tensor) or graph.graph.is_output(tensor)):
                do = "remove it; left over from an edit, it hides that something else lost its quantization"
                yield Breach(node=qdq.node, got="a result that nobody reads", allowed="a reader", do=do)


class IntegerOperator(Rule):
    """QLinearConv, ConvInteger, MatMulNBits and other operators that compute with codes themselves.

    TensorRT imports Q and DQ around float operators, and none of these.
    """

    id = "integer-operator"
    severity = "error"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for node in graph.graph.nodes:
            if node.domain in DOMAINS and node.operator.startswith(_INTEGER_OPERATORS):
                do = "export in Q/DQ form (quant_format=QuantFormat.QDQ in onnxruntime), not optimised for one engine"
                yield Breach(node=node, got=node.operator, allowed="Q, float operator, DQ", do=do)


def _odd_end(graph: QdqGraph, codes: Tensor) -> str | None:
    """Where codes go that reach no DQ; None where all of them do, or are read by an operator that takes codes."""
    waiting = [codes]
    for tensor in waiting:  # grows while it is read
        if graph.graph.is_output(tensor):
            return "leave the graph"
        for reader in graph.graph.readers(tensor):
            if _moves_codes(reader):
                waiting += [reader.result] if reader.result is not None and reader.result not in waiting else []
            elif not graph.at(reader) and not reader.operator.startswith((*_INTEGER_OPERATORS, *_SHAPES)):
                return f"are read by {reader.operator} {reader.name}"
    return None


def _moves_codes(node: Node) -> bool:
    to_float = node.operator == "Cast" and type_name(node.integer("to", 0)) in _FLOATS
    return node.operator in ON_CODES and not to_float


def _needs_dequantized(graph: QdqGraph, node: Node) -> bool:
    """Whether TensorRT refuses a constant in int8 as an input of this operator."""
    if node.operator == "Cast":
        return not _moves_codes(node)
    known = ("Clip", "Identity", *_SHAPES)
    is_known = node.operator in known or node.operator.startswith(_INTEGER_OPERATORS)
    is_plain = node.domain in STANDARD_DOMAINS and next(subgraphs(node.proto), None) is None
    return is_plain and not is_known and not graph.at(node)


def _is_int8_constant(graph: QdqGraph, tensor: Tensor) -> bool:
    constant = graph.graph.source(tensor).constant
    return constant is not None and type_name(constant.data_type) == "int8"
