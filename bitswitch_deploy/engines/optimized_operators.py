"""What onnxruntime really runs after its optimisations."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx

from bitswitch_deploy.engines.onnxruntime_engine import save_optimized


def optimized_operators(model: bytes | Path, *, session_options: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    """Operator types that onnxruntime really runs after its optimisations, with counts, sorted by name.

    This is how one sees whether a convolution runs in integers (`QLinearConv`) or in float (`Conv`, `FusedConv`).

    Raises:
        GraphError: onnxruntime refuses the graph.
    """
    with tempfile.TemporaryDirectory(prefix="bitswitch-") as folder:
        dump = Path(folder) / "optimized.onnx"
        save_optimized(model, dump, session_options=session_options)
        optimized = onnx.load(str(dump), load_external_data=False)
    return tuple(sorted(Counter(_operators(optimized.graph.node)).items()))


def _operators(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield node.op_type
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _operators(graph.node)
