"""What onnxruntime makes of a graph file, in a form that two files can be compared in."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime


def optimised(path: Path) -> tuple[str, Counter[str]]:
    """Hash of all that the outputs of the optimised graph depend on, names left out; and its operators, counted.

    Operators, attributes and the bytes of every constant are in the hash, the order of independent nodes is not.
    Attributes at their default count as left out: where a graph calls functions onnxruntime writes them down.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    # external data stay where the graph says, so the dump lies beside it
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".onnx") as dump:
        options.optimized_model_filepath = dump.name
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        model = onnx.load(dump.name)
    return _Form(model.graph).of_outputs(), Counter(node.op_type for node in model.graph.node)


class _Form:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._hashes = {"": "left out"}
        self._hashes |= {value.name: f"input {index}" for index, value in enumerate(graph.input)}
        for tensor in graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            self._hashes[tensor.name] = _hash(tensor.data_type, list(tensor.dims), array.tobytes())
        self._maker = {name: node for node in graph.node for name in node.output if name}

    def of_outputs(self) -> str:
        return _hash(*(self._of(value.name) for value in self._graph.output))

    def _of(self, name: str) -> str:
        if name not in self._hashes:
            node = self._maker[name]
            attributes = sorted(
                each.SerializeToString(deterministic=True) for each in node.attribute if not _is_default(node, each)
            )
            inputs = [self._of(each) for each in node.input]
            kind = (node.domain, node.op_type, *attributes, *inputs)
            for index, output in enumerate(node.output):
                self._hashes[output] = _hash(index, *kind)
        return self._hashes[name]


# of an operator that onnx does not know
_ZERO_BY_DEFAULT = ("MatMulNBits", "weight_prepacked")


def _is_default(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> bool:
    if (node.op_type, attribute.name) == _ZERO_BY_DEFAULT:
        return attribute.i == 0
    if not onnx.defs.has(node.op_type, node.domain):
        return False
    known = onnx.defs.get_schema(node.op_type, node.domain).attributes.get(attribute.name)
    return known is not None and known.default_value == attribute


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
