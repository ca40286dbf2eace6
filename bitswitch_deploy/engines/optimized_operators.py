"""What onnxruntime really runs after its optimisations."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from bitswitch_deploy.engines.onnxruntime_engine import save_optimized


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizedNode:
    """One node after optimisation, with the names of the tensors that it reads and writes."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


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
        )
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
