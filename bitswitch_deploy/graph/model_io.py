"""Between onnx.ModelProto and the graph that passes rewrite."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.large_tensors import LargeConstant, LargeTensor
from bitswitch_deploy.graph.qdq import redirect_readers
from bitswitch_deploy.model_file import SUFFIX, is_compressed, read_model_bytes

PRODUCER = "bitswitch-deploy"

# It prints to stdout, where the results stand. What its warnings are about is refused: see `_check_names` here and the
# checks of skeletons.
G_LOGGER.severity = G_LOGGER.ERROR

_NEWER_OPSET = "choose a target or stack with a newer opset, or replace the operator that the message names"
# where the opset is always the same one
MEND_NETWORK = "replace what the message names in the network, and write the master again"


def import_model(model: onnx.ModelProto, large: Mapping[str, LargeTensor] | None = None) -> gs.Graph:
    """The editable form of a model. Names of tensors are kept; nodes have the names of `node_names`.

    large: the tensors that the model only marks.
    """
    graph = gs.import_onnx(model)
    marks = graph.tensors() if large else {}
    for name, tensor in (large or {}).items():
        redirect_readers(graph, marks[name], LargeConstant(name, tensor))
    for node, name in zip(graph.nodes, node_names(model), strict=True):
        node.name = name
    return graph


def node_names(model: onnx.ModelProto) -> list[str]:
    """A name for each node of the model [nodes]: its own, or a new one where it has none or shares it with another."""
    names: dict[str, None] = {}
    for index, node in enumerate(model.graph.node):
        name = node.name if node.name and node.name not in names else f"{node.op_type}_{index}"
        while name in names:
            name += "_"
        names[name] = None
    return list(names)


def export_model(graph: gs.Graph, *, opset: int, ir_version: int, do: str = _NEWER_OPSET) -> onnx.ModelProto:
    """The model of a graph: dead nodes removed, sorted, without anything that changes from run to run.

    do: what the reader of the error may do.

    Raises:
        GraphError: the result is not valid ONNX at this opset, or two of its tensors have one name.
    """
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    _check_names(graph)
    domains = sorted({node.domain for node in graph.nodes if node.domain})
    imports = [onnx.helper.make_opsetid("", opset), *(onnx.helper.make_opsetid(domain, 1) for domain in domains)]
    model: onnx.ModelProto = gs.export_onnx(graph, do_type_check=True, opset_imports=imports, ir_version=ir_version)
    model.ir_version = ir_version
    model.producer_name, model.producer_version = PRODUCER, ""
    del model.graph.value_info[:]
    check_model(model, where=graph.name or "graph", do=do)
    return model


def _check_names(graph: gs.Graph) -> None:
    """Of two tensors with one name graphsurgeon writes either: a reader of the other would compute something else."""
    found: dict[str, gs.Tensor] = {}
    ports = (tensor for node in graph.nodes for tensor in (*node.inputs, *node.outputs))
    for tensor in (*graph.inputs, *ports):
        if not tensor.is_empty() and found.setdefault(tensor.name, tensor) is not tensor:
            raise GraphError(
                where=graph.name or "graph",
                got=f"two tensors named {tensor.name!r}, one of them made by a pass",
                allowed="names that no pass takes, such as <weight>.scale and <layer>.input.scale",
                do="rename the tensor of the network, and write the master again",
            )


def check_model(model: onnx.ModelProto, *, where: str, do: str = _NEWER_OPSET) -> None:
    """Run the ONNX checker with shape inference.

    do: what the reader of the error may do.

    Raises:
        GraphError: the checker refuses the model.
    """
    opset = model.opset_import[0].version if model.opset_import else None
    _check(_without_marks(model), where=where, valid=f"valid ONNX at opset {opset}", do=do)


def check_file(path: Path) -> None:
    """Run the ONNX checker with shape inference on a file, whose external data must be where the file says.

    Raises:
        GraphError: the checker refuses the file, or cannot be told its name.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as exc:
        where = str(path).encode("utf-8", "backslashreplace").decode()
        allowed, do = "a path that the checker can be told", "rename the file or its folders"
        raise GraphError(where=where, got="a path that is not UTF-8", allowed=allowed, do=do) from exc
    with _unpacked(path) as plain:
        _check(str(plain), where=str(path), valid="valid ONNX", do=_NEWER_OPSET)


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """A file that is not compressed, in the same folder: the checker looks for external data beside files only."""
    if not is_compressed(path):
        yield path
        return
    plain = path.with_name(f".{path.name}.{os.getpid()}{SUFFIX}")
    try:
        plain.write_bytes(read_model_bytes(path))
        yield plain
    finally:
        plain.unlink(missing_ok=True)


def _check(model: onnx.ModelProto | str, *, where: str, valid: str, do: str) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise GraphError(
            where=where,
            got=f"not {valid}: {exc}",
            allowed="a graph that onnx.checker accepts",
            do=do,
        ) from exc


def _without_marks(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with inputs in place of large tensors: the checker would look for data that is in no file yet."""
    if not any(_is_mark(entry) for entry in model.graph.initializer):
        return model
    checked = onnx.ModelProto()
    checked.CopyFrom(model)
    del checked.graph.initializer[:]
    for entry in model.graph.initializer:
        if _is_mark(entry):
            value = onnx.helper.make_tensor_value_info(entry.name, entry.data_type, list(entry.dims))
            checked.graph.input.append(value)
        else:
            checked.graph.initializer.append(entry)
    return checked


def _is_mark(entry: onnx.TensorProto) -> bool:
    return bool(entry.data_location == onnx.TensorProto.EXTERNAL)
