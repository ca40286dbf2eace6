"""Rules about Q and DQ as a pair, and about operators that are no Q/DQ form at all."""

from __future__ import annotations

from collections.abc import Iterator

from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph
from bitswitch_deploy.graph.lint.qdq_node import DOMAINS, ON_CODES
from bitswitch_deploy.graph.lint.rule import Breach, Rule

_INTEGER_OPERATORS = (
    "ConvInteger",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "DynamicQuantizeMatMul",
    "QAttention",
    "QGemm",
)


class QuantizerWithoutDequantizer(Rule):
    """Codes of a Q that no DQ turns back: read by something else, or an output.

    Engines fuse pairs; these codes are integers like any others, and both run the graph in float around them.
    """

    id = "q-without-dq"
    severity = "warning"
    engines = ("tensorrt", "onnxruntime")

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.quantizers:
            tensor = qdq.result
            if tensor is None:
                continue
            readers = graph.graph.readers(tensor)
            odd = [each for each in readers if not graph.at(each) and each.operator not in (*ON_CODES, *_CODE_READERS)]
            leaves = graph.graph.is_output(tensor)
            if odd or leaves:
                what = "leave the graph" if leaves else f"are read by {odd[0].operator} {odd[0].name}"
                do = "put a DQ behind it and let the readers take its result"
                yield Breach(node=qdq.node, got=f"its codes {what}", allowed="a DQ as the reader", do=do)


class DequantizerWithoutQuantizer(Rule):
    """A DQ of codes that are neither constant nor made by a Q: they come from outside or from another operator."""

    id = "dq-without-q"
    severity = "warning"
    engines = ("tensorrt", "onnxruntime")

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.dequantizers:
            if graph.is_weight(qdq) or qdq.data is None or graph.quantizer_of(qdq)[0] is not None:
                continue
            maker = graph.graph.source(qdq.data).producer
            if maker is not None and maker.operator.startswith(("QLinear", *_INTEGER_OPERATORS)):
                continue
            source = f"{maker.operator} {maker.name}" if maker else f"{qdq.data.name}, which no node makes"
            do = "put the Q into the graph too, so that engines see the pair"
            yield Breach(node=qdq.node, got=f"codes from {source}", allowed="codes of a Q, or a constant", do=do)


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
            if node.domain in DOMAINS and node.operator.startswith(("QLinear", *_INTEGER_OPERATORS)):
                do = "export in Q/DQ form (quant_format=QuantFormat.QDQ in onnxruntime), not optimised for one engine"
                yield Breach(node=node, got=node.operator, allowed="Q, float operator, DQ", do=do)


# They take codes as they are.
_CODE_READERS = ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QLinearAdd", "QGemm")
