"""Constants that a graph has several times, once: zero-points and the ends of Clips, mostly.

Works on the finished model, as `share_weights` does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx


def merge_equal_constants(graph: onnx.GraphProto, *, reserved: Collection[str] = ()) -> None:
    """Let nodes of the graph that read equal initializers read one, in place.

    Integers of one value are named by it, such as `uint8.15` or `int32[384].0`, the rest like the first of them. Left
    alone: strings, constants in a file beside the graph, and those that an output or a subgraph refers to by name.

    Args:
        reserved: names that are not to be given although the graph has nothing of that name.
    """
    taken = {value.name for value in (*graph.input, *graph.output)} | set(_names_in_subgraphs(graph)) | {*reserved}
    groups: dict[tuple[int, tuple[int, ...], bytes], list[onnx.TensorProto]] = {}
    for tensor in graph.initializer:
        is_beside = tensor.data_location == onnx.TensorProto.EXTERNAL
        if not is_beside and tensor.data_type != onnx.TensorProto.STRING and tensor.name not in taken:
            content = onnx.numpy_helper.to_array(tensor).tobytes()
            groups.setdefault((tensor.data_type, tuple(tensor.dims), content), []).append(tensor)
    taken |= {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output}
    renamed: dict[str, str] = {}
    for tensors in groups.values():
        if len(tensors) > 1:
            wished = _name(tensors[0])
            name = tensors[0].name if wished in taken else wished
            renamed |= {tensor.name: name for tensor in tensors}
            tensors[0].name = name
    gone = {id(tensor) for tensors in groups.values() for tensor in tensors[1:]}
    for place in reversed(range(len(graph.initializer))):
        if id(graph.initializer[place]) in gone:
            del graph.initializer[place]
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in renamed:
                node.input[place] = renamed[name]


def _name(tensor: onnx.TensorProto) -> str:
    values = onnx.numpy_helper.to_array(tensor)
    if values.size == 0 or values.dtype.kind not in "iu" or np.any(values != values.flat[0]):
        return tensor.name
    shape = f"[{','.join(map(str, values.shape))}]" if values.shape else ""
    return f"{values.dtype.name}{shape}.{values.flat[0]}"


def _names_in_subgraphs(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from (name for each in inner.node for name in (*each.input, *each.output))
                yield from (tensor.name for tensor in inner.initializer)
                yield from (value.name for value in inner.output)
                yield from _names_in_subgraphs(inner)
