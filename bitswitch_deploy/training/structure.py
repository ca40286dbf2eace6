"""What graphs compute, whatever their values are called: to tell apart networks that have the same parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import onnx

_ONLY_IN_TRAINING = {("BatchNormalization", "momentum")}
_SHOWN = 200


def difference(got: onnx.GraphProto, wanted: onnx.GraphProto) -> tuple[str, str] | None:
    """The first node of each of two captured graphs that the other one does not compute; None: they do the same.

    Parameters and inputs are compared by name, all other values by how they are computed from them. Sizes of inputs and
    the order of nodes do not count, nor does what acts in training only.
    """
    mine, theirs = _digests(got), _digests(wanted)
    if [mine[value.name] for value in got.output] == [theirs[value.name] for value in wanted.output]:
        return None
    return _first_beside(got, mine, theirs), _first_beside(wanted, theirs, mine)


def _first_beside(graph: onnx.GraphProto, digests: dict[str, bytes], others: dict[str, bytes]) -> str:
    known = set(others.values())
    for node in graph.node:
        if digests[node.output[0]] not in known:
            text = str(onnx.helper.printable_node(node))
            return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return f"outputs {', '.join(value.name for value in graph.output)}"


def _digests(graph: onnx.GraphProto) -> dict[str, bytes]:
    """For each value a digest of the operators, attributes, constants and parameters that it is computed by."""
    known = {"": b""}  # an optional input that is left out
    known |= {value.name: value.name.encode() for value in graph.input}
    for tensor in graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        known[tensor.name] = hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).digest()
    for node in graph.node:
        digest = hashlib.sha256(repr(list(_parts(node, known))).encode()).digest()
        known |= {name: digest + bytes([place]) for place, name in enumerate(node.output)}
    return known


def _parts(node: onnx.NodeProto, known: dict[str, bytes]) -> Iterator[str | bytes]:
    yield from (node.domain, node.op_type)
    yield from (known[name] for name in node.input)
    for attribute in sorted(node.attribute, key=lambda each: each.name):
        if (node.op_type, attribute.name) not in _ONLY_IN_TRAINING:
            yield attribute.SerializeToString(deterministic=True)
