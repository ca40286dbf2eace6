"""Reading an ONNX file that nobody vouches for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.lint.linted_graph import LintedGraph
from bitswitch_deploy.graph.lint.stored_bytes import size_bytes
from bitswitch_deploy.graph.lint.subgraphs import subgraphs
from bitswitch_deploy.model_file import read_model_bytes

_DO = "export the model again, or copy it again with its data files beside it"


def read_graph(path: Path) -> LintedGraph:
    """The index of an ONNX file, see `read_model`.

    Raises:
        GraphError: the file cannot be read, is cut short or no ONNX; data are missing; or see LintedGraph.
    """
    return LintedGraph(read_model(path), where=str(path), folder=path.parent)


def read_model(path: Path) -> onnx.ModelProto:
    """The model in an ONNX file, compressed or not. External data stay on the disk, in files that must be long enough.

    Raises:
        GraphError: the file cannot be read, is cut short or no ONNX; data are missing.
    """
    try:
        model = onnx.load_model_from_string(read_model_bytes(path))
    except DecodeError as exc:
        raise _refusal(path, "no ONNX, or cut short: its protobuf does not parse", "an ONNX file") from exc
    if not model.HasField("graph") or not model.opset_import:
        raise _refusal(path, "no ONNX model: it has no graph or no opset", "an ONNX file")
    _check_external_data(model, path)
    return model


def _check_external_data(model: onnx.ModelProto, path: Path) -> None:
    """The same way to each file: inside the folder, present, and long enough for every tensor in it."""
    sizes: dict[str, int] = {}
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        where = f"{path}: {tensor.name}"
        try:
            info = onnx.external_data_helper.ExternalDataInfo(tensor)
            first, length = int(info.offset or 0), int(info.length or size_bytes(tensor) or 0)
        except (TypeError, ValueError) as exc:  # TypeError: keys that are no UTF-8
            raise _refusal(where, f"external data that cannot be read: {exc}", "a location, offset and length") from exc
        location = str(info.location)
        if location not in sizes:
            sizes[location] = _size(path, location, where)
        if first < 0 or length < 0 or first + length > sizes[location]:
            got = f"bytes {first} .. {first + length} of {location!r}, which has {sizes[location]}"
            raise _refusal(where, got, "data inside the file")


def _size(path: Path, location: str, where: str) -> int:
    folder = path.parent.resolve()
    file = (folder / location).resolve()
    if not location or not file.is_relative_to(folder):
        raise _refusal(where, f"external data in {location!r}", "a file in the folder of the model")
    try:
        return file.stat().st_size
    except OSError as exc:
        raise _refusal(where, f"external data in {location!r}: {exc.strerror}", "the data file beside it") from exc


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every constant of a graph and of its subgraphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
        for _, body in subgraphs(node):
            yield from _tensors(body)


def _refusal(where: Path | str, got: str, allowed: str) -> GraphError:
    return GraphError(where=str(where), got=got, allowed=allowed, do=_DO)
