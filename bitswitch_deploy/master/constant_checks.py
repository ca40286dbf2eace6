"""Does a skeleton compute numbers, and the same ones each time? What decides that is in its constants."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from typing import NoReturn

import numpy as np
import onnx

from bitswitch_deploy.errors import MasterError
from bitswitch_deploy.master.container import Array
from bitswitch_deploy.master.spec import MEND_WRITER
from bitswitch_deploy.records import shown

_EPSILON = 1e-5  # of ONNX, where a BatchNormalization names none
_VARIANCE, _TRAINING_MODE = 4, 2  # inputs of BatchNormalization and Dropout


def check_constants(tensors: Mapping[str, Array], graph: onnx.GraphProto, source: str) -> None:
    """Check constants and what nodes make of them, in branches and loops, too.

    No constant holds NaN (infinities are masks). Each BatchNormalization has a root to divide by: onnxruntime makes NaN
    of a negative one in silence. No Dropout drops anything.

    Args:
        tensors: those of the master. graph: one that the ONNX checker accepts.

    Raises:
        MasterError: the first constant or node of which this is not true.
    """
    _check_graph(graph, ChainMap(dict(tensors)), source)


def _check_graph(graph: onnx.GraphProto, outside: ChainMap[str, Array], source: str) -> None:
    known = outside.new_child(dict(_constants(graph, f"{source}: skeleton")))
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            _check_variance(node, known, source)
        if node.op_type == "Dropout":
            _check_dropout(node, known, source)
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                _check_graph(inner, known, source)


def _constants(graph: onnx.GraphProto, where: str) -> Iterator[tuple[str, Array]]:
    """Name and values of each initializer and each tensor of a Constant."""
    named = [(tensor.name, tensor) for tensor in graph.initializer]
    for node in graph.node:
        if node.op_type == "Constant":
            named += [(node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value"]
    for name, tensor in named:
        try:
            values = onnx.numpy_helper.to_array(tensor)
        except ValueError as exc:  # more data than the shape has room for, which the checker accepts
            _refuse(f"{where}: constant {shown(name)}", str(exc), "as many values as its shape has", cause=exc)
        if values.dtype.kind == "f" and np.isnan(values).any():
            _refuse(f"{where}: constant {shown(name)}", "a value that is NaN", "numbers")
        yield name, values


def _check_variance(node: onnx.NodeProto, known: Mapping[str, Array], source: str) -> None:
    name = node.input[_VARIANCE]
    epsilon = next((each.f for each in node.attribute if each.name == "epsilon"), _EPSILON)
    if name in known and known[name].size and known[name].min() <= np.float32(-epsilon):
        _refuse(f"{source}: tensor {name}", f"a running variance of {known[name].min():g}", f"above {-epsilon:g}")


def _check_dropout(node: onnx.NodeProto, known: Mapping[str, Array], source: str) -> None:
    switch = node.input[_TRAINING_MODE] if len(node.input) > _TRAINING_MODE else ""
    if switch and (switch not in known or known[switch].any()):
        got = f"Dropout {shown(node.name)} in training mode, or in one that the graph decides"
        _refuse(f"{source}: skeleton", got, "a network as it computes after training")


def _refuse(where: str, got: str, allowed: str, *, cause: Exception | None = None) -> NoReturn:
    raise MasterError(where=where, got=got, allowed=allowed, do=MEND_WRITER) from cause
