"""Short names for what is added to a finished graph, where every byte of a name counts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import onnx


def unused_names(graph: onnx.GraphProto, stem: str) -> Iterator[str]:
    """`stem.0`, `stem.1` and so on without end, those left out that the graph has now."""
    taken = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    taken |= {name for node in graph.node for name in node.output}
    return (name for number in itertools.count() if (name := f"{stem}.{number}") not in taken)
