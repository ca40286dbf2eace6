"""What onnxruntime really runs after its optimisations."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from bitswitch_deploy.engines.onnxruntime_engine import save_optimized

# What a layer multiplies: codes, floats, or floats with narrow weights that are widened on the way.
Arithmetic = Literal["integer", "float", "weight-only"]

_INTEGER = frozenset(
    (
        *("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat"),
        *("DynamicQuantizeMatMul", "QAttention", "DynamicQuantizeLSTM"),
    )
)
_FLOAT = frozenset(
    (
        *("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"),
        *("Attention", "MultiHeadAttention", "LSTM", "GRU", "RNN"),
    )
)
# Its inputs are floats; at this accuracy_level they are rounded to 8-bit codes first (ContribOperators.md).
_WEIGHT_ONLY, _ROUNDS_INPUTS = "MatMulNBits", 4


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizedNode:
    """One node after optimisation, with the names of the tensors that it reads and writes.

    accuracy_level: the attribute of MatMulNBits, 0 where there is none.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    accuracy_level: int = 0

    @property
    def arithmetic(self) -> Arithmetic | None:
        """Of a convolution, product or recurrent layer; None for other operators."""
        return arithmetic_of(self.operator, accuracy_level=self.accuracy_level)


def arithmetic_of(operator: str, *, accuracy_level: int = 0) -> Arithmetic | None:
    """What an operator of onnxruntime multiplies; None where it is no layer."""
    if operator == _WEIGHT_ONLY:
        return "integer" if accuracy_level == _ROUNDS_INPUTS else "weight-only"
    if operator in _INTEGER:
        return "integer"
    return "float" if operator in _FLOAT else None


def optimized_nodes(model: bytes | Path, *, session_options: Mapping[str, str]) -> tuple[OptimizedNode, ...]:
    """The nodes that onnxruntime really runs after its optimisations, those of inner graphs behind their own node.

    Raises:
        GraphError: onnxruntime refuses the graph.
    """
    with tempfile.TemporaryDirectory(prefix="bitswitch-") as folder:
        dump = Path(folder) / "optimized.onnx"
        save_optimized(model, dump, session_options=session_options)
        optimized = onnx.load(str(dump), load_external_data=False)
    return graph_nodes(optimized.graph)


def graph_nodes(graph: onnx.GraphProto) -> tuple[OptimizedNode, ...]:
    """The nodes of any graph in this form."""
    return tuple(_nodes(graph))


def optimized_operators(model: bytes | Path, *, session_options: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    """Operator types that onnxruntime really runs after its optimisations, with counts, sorted by name.

    This is how one sees whether a convolution runs in integers (`QLinearConv`) or in float (`Conv`, `FusedConv`).

    Raises:
        GraphError: onnxruntime refuses the graph.
    """
    return count_operators(optimized_nodes(model, session_options=session_options))


def count_operators(nodes: Iterable[OptimizedNode]) -> tuple[tuple[str, int], ...]:
    """Operator types with counts, sorted by name."""
    return tuple(sorted(Counter(node.operator for node in nodes).items()))


def _nodes(graph: onnx.GraphProto) -> Iterator[OptimizedNode]:
    for node in graph.node:
        yield OptimizedNode(
            name=node.name,
            operator=node.op_type,
            inputs=tuple(node.input),
            outputs=tuple(node.output),
            accuracy_level=next((each.i for each in node.attribute if each.name == "accuracy_level"), 0),
        )
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
