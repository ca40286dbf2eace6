"""Large tensors in a file beside the graph, as ONNX external data: written layer by layer, never held together."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx

from bitswitch_deploy.graph.large_tensors import LargeTensor
from bitswitch_deploy.master.container import raw_bytes

# Runtimes map the file: tensors begin at the pages of most systems.
_ALIGNMENT_BYTES = 4096


def data_name(graph_name: str) -> str:
    """Name of the data file that belongs to a graph file in the same folder."""
    return f"{graph_name}.data"


def refer_to_data(model: onnx.ModelProto, large: Mapping[str, LargeTensor], *, location: str) -> None:
    """Write into the model where in the file `location` each large tensor will stand; `data_chunks` has this order."""
    offset = 0
    for entry in model.graph.initializer:
        if entry.name in large:
            size_bytes = large[entry.name].size_bytes
            point_to(entry, location=location, offset=offset, size_bytes=size_bytes)
            offset += size_bytes + _padding(size_bytes)


def point_to(entry: onnx.TensorProto, *, location: str, offset: int, size_bytes: int) -> None:
    """Let an initializer have its data in `location`, a file beside the graph, from byte `offset` on."""
    entry.data_location = onnx.TensorProto.EXTERNAL
    del entry.external_data[:]
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(size_bytes))):
        entry.external_data.add(key=key, value=value)


def data_chunks(model: onnx.ModelProto, large: Mapping[str, LargeTensor]) -> Iterator[bytes | memoryview]:
    """The content of the data file, a few megabytes or one layer at a time."""
    for entry in model.graph.initializer:
        if entry.name in large:
            tensor = large[entry.name]
            yield from map(raw_bytes, tensor.chunks())
            yield bytes(_padding(tensor.size_bytes))


def _padding(size_bytes: int) -> int:
    return -size_bytes % _ALIGNMENT_BYTES


@contextmanager
def runnable(model: onnx.ModelProto, large: Mapping[str, LargeTensor]) -> Iterator[bytes | Path]:
    """What a runtime loads: the serialized model, or where it has large tensors a file in a temporary folder."""
    if not large:
        yield model.SerializeToString()
        return
    with tempfile.TemporaryDirectory(prefix="bitswitch-") as folder:
        path = Path(folder, "graph.onnx")
        refer_to_data(model, large, location=data_name(path.name))
        with path.with_name(data_name(path.name)).open("wb") as file:
            file.writelines(data_chunks(model, large))
        path.write_bytes(model.SerializeToString())
        yield path
