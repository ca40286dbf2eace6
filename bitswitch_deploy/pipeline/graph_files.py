"""Graphs as files of a package: self-contained, or with a data file beside them where the network is large."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from bitswitch_deploy.graph.external_data import data_chunks, data_name, refer_to_data
from bitswitch_deploy.graph.float_reference import float_graph
from bitswitch_deploy.graph.large_tensors import LargeTensor
from bitswitch_deploy.graph.model_io import check_file
from bitswitch_deploy.lowering.lower import lower_reference
from bitswitch_deploy.master import Master, master_name
from bitswitch_deploy.package.writer import PackageWriter
from bitswitch_deploy.target import Target

GraphRole = Literal["graph", "reference"]
# Label, and part of the file name, of the float network that every width is compared with.
REFERENCE = "fp16"

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_ELLIPSIS = re.compile(r"\.{2,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFile:
    """One graph of a package: label of its widths, path in the package, bytes with a data file of its own.

    role: `graph` computes a width, `reference` is the float network that they are compared with.
    is_large: its weights are not in the graph, and too many to be loaded on this host without being asked to.
    """

    label: str
    path: str
    size_bytes: int
    role: GraphRole = "graph"
    is_large: bool = False


def graph_stem(master: Path) -> str:
    """What the files of a package are called: the name of its master, in letters, digits and . _ - only.

    They are paths of the manifest and words of shell scripts, and a master may be called anything.
    """
    stem = _ELLIPSIS.sub(".", _UNSAFE.sub("-", master_name(master))).strip(".-")
    return stem or "network"


def write_graph(
    writer: PackageWriter, model: onnx.ModelProto, large: Mapping[str, LargeTensor], file: GraphFile
) -> GraphFile:
    """Write `model` to the path of `file`, its large tensors beside it; return `file` with what it became.

    Raises:
        GraphError: the checker refuses the file.
        OutputError: the disk is full or does not accept it.
    """
    size_bytes = 0
    if large:
        refer_to_data(model, large, location=data_name(file.path))
        # the data of the reference is no width's: nothing but its engine reads it
        role: Literal["weights", "reference"] = "weights" if file.role == "graph" else "reference"
        data = writer.stream(data_name(file.path), data_chunks(model, large), role=role, label=file.label)
        size_bytes += data.size_bytes
    entry = writer.write(file.path, model.SerializeToString(deterministic=True), role=file.role, label=file.label)
    if large:
        check_file(writer.folder / file.path)
    return GraphFile(
        label=file.label,
        path=file.path,
        size_bytes=size_bytes + entry.size_bytes,
        role=file.role,
        is_large=bool(large),
    )


def write_reference(writer: PackageWriter, master: Master, name: str, target: Target) -> GraphFile:
    """Write the float network of a master in float16, as `NAME-fp16.onnx`.

    It is part of the package because a device may have nothing but trtexec to build its engine with.

    Raises:
        GraphError: the target's opset lacks an operator.
        OutputError: as `write_graph`.
    """
    reference = lower_reference(float_graph(master), target)
    file = GraphFile(label=REFERENCE, path=f"{name}-{REFERENCE}.onnx", size_bytes=0, role="reference")
    return write_graph(writer, reference.model, reference.large, file)
