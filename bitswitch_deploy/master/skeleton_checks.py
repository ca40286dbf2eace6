"""Is the skeleton a plain ONNX graph, and does it agree with the spec?

A skeleton comes from a file that somebody handed in. It may hold nothing that reaches outside (external data) and
nothing that this release cannot give a meaning to (custom operators, local functions).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import onnx
from google.protobuf.message import DecodeError, Message

from bitswitch_deploy.errors import MasterError
from bitswitch_deploy.master.container import Array, raw_bytes
from bitswitch_deploy.master.spec import MEND_WRITER, LayerSpec, MasterSpec, ValueSpec
from bitswitch_deploy.records import is_plain_text, shown

# Weights are stored outside; what is left of the largest networks is a few megabytes. Parsed, a hostile skeleton
# takes up to seventy times its size (1.15 GB measured).
MAX_SKELETON_BYTES = 16 * 2**20
# Protobuf messages: nodes, attributes, constants, dimensions. A node takes about six, so some 80,000 nodes.
MAX_SKELETON_PARTS = 500_000

_PLAIN_DOMAINS = ("", "ai.onnx")
# No network of numbers needs them, and shape inference of onnx 1.23 ends the process on RegexFullMatch of numbers
# (the only crash in a million mutated graphs).
_TEXT_OPERATORS = frozenset({"RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"})
# The canonical graph is what all else is compared with, so it gives the same output each time.
_RANDOM_OPERATORS = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_REFUSED_OPERATORS = _TEXT_OPERATORS | _RANDOM_OPERATORS
# The graph library behind the passes drops these attributes.
_REFUSED_ATTRIBUTES = ("sparse_tensor", "sparse_tensors", "tp", "type_protos")
_ELEMENT_TYPES = {number: name.lower() for name, number in onnx.TensorProto.DataType.items()}

Shape = tuple[int, ...]


def parse_skeleton(stored: Array | None, source: str) -> onnx.ModelProto:
    """Read the model from its bytes, uint8 [n].

    Raises:
        MasterError: no such tensor, another dtype or shape, too large, not an ONNX model.
    """
    where = f"{source}: tensor skeleton"
    if stored is None:
        _refuse(where, "missing", "the serialized ONNX model, uint8 [n]")
    if stored.dtype.name != "uint8" or stored.ndim != 1:
        _refuse(where, f"{stored.dtype.name} of shape {list(stored.shape)}", "uint8 of shape [n]")
    if stored.size > MAX_SKELETON_BYTES:
        _refuse(where, f"{stored.size} bytes", f"{MAX_SKELETON_BYTES} bytes; large constants belong in parameters")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(bytes(raw_bytes(stored)))
    except DecodeError as exc:
        _refuse(where, f"not a serialized ONNX model ({exc})", "onnx.ModelProto.SerializeToString()", cause=exc)
    return model


def check_skeleton(model: onnx.ModelProto, spec: MasterSpec, source: str) -> Mapping[str, Shape]:
    """Check the model, also against the spec, and return the shape of each of its parameters, by name.

    Raises:
        MasterError: the first thing found that is not allowed.
    """
    where = f"{source}: skeleton"
    _check_text(model, where)
    _check_contents(model, where)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as exc:
        # ValueError: onnx 1.23 raises it for element types that it does not know
        _refuse(where, f"the ONNX checker says: {exc}", "a model that passes onnx.checker", cause=exc)
    shapes = _check_signature(model.graph, spec, where)
    _check_readers(model.graph, spec.layers, where)
    return shapes


def _check_text(model: onnx.ModelProto, where: str) -> None:
    """Refuse strings that are not plain UTF-8 text; protobuf does not look when it parses."""
    count = 1
    messages: list[Message] = [model]
    while messages:
        try:
            present = messages.pop().ListFields()
        except UnicodeDecodeError as exc:  # protobuf 7 returns bytes instead, older releases raise
            _refuse(where, f"text that is not UTF-8 ({exc})", "UTF-8 text without control characters", cause=exc)
        for field, value in present:
            values: Any = [value] if isinstance(value, str | bytes | Message) else value
            if field.type == field.TYPE_MESSAGE:
                count += len(values)
                if count > MAX_SKELETON_PARTS:
                    _refuse(where, f"more than {MAX_SKELETON_PARTS} parts", "a network of at most that many")
                messages.extend(values)
            elif field.type == field.TYPE_STRING:
                wrong = [text for text in values if isinstance(text, bytes) or not is_plain_text(text)]
                if wrong:
                    _refuse(where, f"the text {shown(wrong[0])}", "UTF-8 text without control characters")


def _check_contents(model: onnx.ModelProto, where: str) -> None:
    """No local functions, custom domains, operators or attributes as listed above or external data, at any depth."""
    if model.functions or model.training_info:
        _refuse(where, "local functions or training information", "neither; inline functions first")
    domains = [entry.domain for entry in model.opset_import]
    if len(domains) != 1 or domains[0] not in _PLAIN_DOMAINS:
        _refuse(where, f"operator sets {shown(domains)}", "one operator set, the standard one")
    version, newest = model.opset_import[0].version, onnx.defs.onnx_opset_version()
    if not 1 <= version <= newest:  # the checker takes any
        _refuse(where, f"operator set {version}", f"1..{newest}, which the installed onnx knows")
    for graph in _graphs(model.graph):
        for node in graph.node:
            if node.domain not in _PLAIN_DOMAINS or node.op_type in _REFUSED_OPERATORS:
                got = f"operator {shown(node.op_type)} of domain {shown(node.domain)}"
                _refuse(where, got, "standard operators on numbers, nothing random")
        for tensor in _constants(graph):
            if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
                _refuse(where, f"constant {shown(tensor.name)} lies in another file", "constants inside the model")
        for node in graph.node:
            for attribute in node.attribute:
                if any(field.name in _REFUSED_ATTRIBUTES for field, _ in attribute.ListFields()):
                    got = f"attribute {shown(attribute.name)} of operator {shown(node.op_type)}"
                    _refuse(where, got, "no attributes that are sparse tensors or types")


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield the graph and all graphs in attributes of its nodes; protobuf limits their depth to 100 when it parses."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _graphs(inner)


def _constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    sparse = list(graph.sparse_initializer)
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
    for tensor in sparse:
        yield tensor.values
        yield tensor.indices


def _check_signature(graph: onnx.GraphProto, spec: MasterSpec, where: str) -> dict[str, Shape]:
    """Graph inputs are the inputs of the spec, in order, and the parameters; outputs are those of the spec.

    A parameter becomes a constant or goes through a quantizer, so that none is an output itself.
    """
    names = [layer.weight for layer in spec.layers] + [*spec.switchable, *spec.parameters]
    inputs = {value.name: value for value in graph.input}
    shapes = {}
    for name in names:
        if name not in inputs:
            _refuse(where, f"no graph input {shown(name)}", "every parameter of the spec as a graph input")
        shapes[name] = _parameter_shape(inputs.pop(name), where)
    constants = {tensor.name for tensor in graph.initializer} & {value.name for value in graph.input}
    if constants:
        _refuse(where, f"data for the graph inputs {shown(sorted(constants))}", "graph inputs without data")
    _check_values(list(inputs.values()), spec.inputs, f"{where}: graph inputs that are no parameters")
    _check_values(list(graph.output), spec.outputs, f"{where}: graph outputs")
    for value in graph.output:
        if value.name in shapes:
            got = f"the parameter {shown(value.name)}"
            _refuse(f"{where}: graph outputs", got, "results of nodes")
    return shapes


def _parameter_shape(value: onnx.ValueInfoProto, where: str) -> Shape:
    dtype, shape = _signature(value)
    if dtype != "float" or not all(isinstance(dim, int) and dim >= 1 for dim in shape):
        got = f"{dtype} of shape {shown(list(shape))}"
        _refuse(f"{where}: parameter {shown(value.name)}", got, "float of a fixed shape without zeros")
    return tuple(int(dim) for dim in shape)


def _check_values(found: list[onnx.ValueInfoProto], wanted: tuple[ValueSpec, ...], where: str) -> None:
    got = [(value.name, *_signature(value)) for value in found]
    allowed = [(value.name, value.dtype, value.shape) for value in wanted]
    if got != allowed:
        _refuse(where, shown(got), f"as in the spec: {shown(allowed)}")


def _signature(value: onnx.ValueInfoProto) -> tuple[str, tuple[int | str, ...]]:
    """Element type and shape; "" for what is no tensor with a shape, and for a dimension without size and name."""
    if not value.type.tensor_type.HasField("shape"):
        return "", ()
    tensor = value.type.tensor_type
    dims = (dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim)
    return _ELEMENT_TYPES.get(tensor.elem_type, ""), tuple(dims)


def _check_readers(graph: onnx.GraphProto, layers: tuple[LayerSpec, ...], where: str) -> None:
    """A weight is read as input 1 by nodes of its operator, and by nothing else."""
    readers: dict[str, set[tuple[str, int]]] = {layer.weight: set() for layer in layers}
    for inner in _graphs(graph):
        for node in inner.node:
            for position, name in enumerate(node.input):
                if name in readers:
                    readers[name].add((node.op_type, position))
    for layer in layers:
        found = readers[layer.weight]
        if found != {(layer.operator, 1)}:
            listed = ", ".join(f"input {position} of {operator}" for operator, position in sorted(found))
            got = f"the weight {layer.weight} is read as {listed or 'nothing'}"
            _refuse(f"{where}: layer {layer.name}", got, f"input 1 of {layer.operator}")


def _refuse(where: str, got: str, allowed: str, *, cause: Exception | None = None) -> NoReturn:
    raise MasterError(where=where, got=got, allowed=allowed, do=MEND_WRITER) from cause
