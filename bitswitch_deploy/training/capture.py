"""From a torch module to the skeleton: an ONNX graph whose parameters are graph inputs.

The order of the steps is the point. Parameters become graph inputs *before* the graph is simplified, so constant
folding can remove shape arithmetic but can neither fold BatchNorm into a convolution nor rename, transpose or merge a
weight. What is left beside the parameters are the small constants of Reshape, Slice, Pad and the like.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch import nn

from bitswitch_deploy.errors import GraphError, UsageError
from bitswitch_deploy.graph.channel_axis import channel_axis_in
from bitswitch_deploy.master.spec import Operator, ValueSpec
from bitswitch_deploy.training.tracing import check_example

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SKELETON_OPSET = 21
SKELETON_IR_VERSION = 10
BATCH = "batch"
_INPUT, _OUTPUT = "input", "logits"

_WEIGHT_INPUT = 1  # Conv, ConvTranspose, Gemm and MatMul all read their weight at input 1
_OPERATORS: dict[str, Operator] = {"Conv": "Conv", "ConvTranspose": "ConvTranspose", "Gemm": "Gemm", "MatMul": "MatMul"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedLayer:
    """One node that computes with a weight.

    name: module path in the trainer. operator: the ONNX operator.
    weight: name of the graph input that carries the weight.
    transposed: the operator reads the module's 2-D weight as `weight.T`; the master stores it that way.
    channel_axis: axis of the stored weight that a per-channel scale runs along.
    """

    name: str
    operator: Operator
    weight: str
    transposed: bool
    channel_axis: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedNetwork:
    """The skeleton and what is in it; `parameters` are graph inputs beside `inputs`, weights of `layers` included."""

    model: onnx.ModelProto
    layers: tuple[CapturedLayer, ...]
    parameters: tuple[str, ...]
    inputs: tuple[ValueSpec, ...]
    outputs: tuple[ValueSpec, ...]


def capture_skeleton(
    model: nn.Module,
    example_input: tuple[torch.Tensor, ...],
) -> CapturedNetwork:
    """Capture a float network in evaluation mode, with the first axis of every input dynamic.

    The first input of the graph is `input` and its first output `logits`; further inputs are called as `forward` calls
    them, further outputs `output_1` and so on, by their place.

    Args:
        model: a plain float module; of a prepared one, its `float_skeleton`.
        example_input: one tensor for each input, [batch, ...].

    Raises:
        UsageError: the example is no tuple, a parameter is not float32 or has a name of these, or the module cannot be
            exported with a dynamic batch.
        GraphError: the captured graph does not pass the ONNX checker.
    """
    check_example(example_input)
    parameters = _float_parameters(model)
    _check_names(parameters, _arguments(model, len(example_input)))
    program = _export(model.eval(), example_input)
    graph_model = program.model
    _name_outputs(graph_model.graph)
    _merge_aliases(graph_model.graph, _first_names(model))
    _parameters_to_inputs(graph_model.graph, parameters)
    optimizer.optimize(graph_model, input_size_limit=1024, output_size_limit=4096)
    transposed = _absorb_transposed_weights(graph_model.graph, parameters)
    _drop_unused_parameters(graph_model.graph, parameters)
    _strip_metadata(graph_model)
    graph_model.ir_version = SKELETON_IR_VERSION
    proto = ir.to_proto(graph_model)
    del proto.graph.value_info[:]
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise GraphError(
            where=f"capture of {type(model).__name__}",
            got=f"the exported graph is not valid ONNX: {exc}",
            allowed="a graph that onnx.checker accepts",
            do="report the network; replace the module that the message names",
        ) from exc
    captured = _describe(proto, parameters, transposed)
    _check_batch(captured, type(model).__name__)
    return captured


def _float_parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    named = [*model.named_parameters(), *model.named_buffers()]
    floats = {name: tensor for name, tensor in named if tensor.is_floating_point()}
    for name, tensor in floats.items():
        if tensor.dtype != torch.float32:
            raise UsageError(
                where=f"parameter {name}", got=f"dtype {tensor.dtype}", allowed="float32", do="call model.float() first"
            )
    return floats


def _arguments(model: nn.Module, n_inputs: int) -> tuple[str, ...]:
    """What `forward` calls the inputs behind the first one."""
    arguments = list(inspect.signature(model.forward).parameters.values())[:n_inputs]
    starred = next((each.name for each in arguments if each.kind is inspect.Parameter.VAR_POSITIONAL), None)
    if starred is not None:
        raise UsageError(
            where=f"capture of {type(model).__name__}",
            got=f"forward(*{starred}): inputs without names",
            allowed="a forward with an argument for each input",
            do="write the arguments out",
        )
    return tuple(each.name for each in arguments[1:])


def _check_names(parameters: dict[str, torch.Tensor], further: tuple[str, ...]) -> None:
    """Parameters become inputs of the graph by their own names."""
    taken = (_INPUT, _OUTPUT, *further)
    for name in taken:
        if name in parameters:
            raise UsageError(
                where=f"parameter {name}",
                got="the name of an input or output of the graph",
                allowed=f"parameters and buffers that are not called {' or '.join(taken)}",
                do="rename it in the network",
            )


def _name_outputs(graph: ir.Graph) -> None:
    """Further outputs have the names of inner values, which change with the exporter."""
    for place, value in enumerate(graph.outputs):
        name = f"output_{place}" if place else _OUTPUT
        if value in graph.outputs[:place] or value.producer() is None:
            # an input that is handed out, or the same once more
            copy = ir.node("Identity", [value])
            copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
            graph.append(copy)
            graph.outputs[place] = value = copy.outputs[0]
        value.name = name


def _export(model: nn.Module, example_input: tuple[torch.Tensor, ...]) -> torch.onnx.ONNXProgram:
    # torch.export treats a batch of one as a constant
    example = tuple(torch.cat([x, x]) if x.shape[0] == 1 else x for x in example_input)
    batch = torch.export.Dim(BATCH, min=1)
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                model,
                example,
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=SKELETON_OPSET,
                dynamic_shapes=tuple({0: batch} for _ in example),
                input_names=[_INPUT],
                output_names=[_OUTPUT],
            )
    except (torch.onnx.OnnxExporterError, torch._dynamo.exc.TorchDynamoException) as exc:
        raise UsageError(
            where=f"capture of {type(model).__name__}",
            got=f"torch.onnx.export failed: {_root_cause(exc)}",
            allowed="a module that torch.export can trace with a dynamic first axis",
            do="mend what the message names: data-dependent branches and a hard-coded batch size are the usual causes",
        ) from exc
    if program is None:
        raise AssertionError("torch.onnx.export(dynamo=True) returns a program")
    return program


def _root_cause(exc: BaseException) -> str:
    """What went wrong first; the exporter's own message is advice to developers of the exporter."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return f"{type(exc).__name__}: {str(exc).strip()}"


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter prints progress and warns about packages that this project does not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_names(model: nn.Module) -> dict[str, str]:
    """For each further name of a parameter or buffer that has several, the first one, which everything else uses."""
    first: dict[int, str] = {}
    again: dict[str, str] = {}
    for named in (model.named_parameters, model.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            if first.setdefault(id(tensor), name) != name:
                again[name] = first[id(tensor)]
    return again


def _merge_aliases(graph: ir.Graph, first_names: dict[str, str]) -> None:
    """The exporter names a shared tensor by any of its names, or has it once for each of them."""
    for name in [name for name in graph.initializers if name in first_names]:
        value = graph.initializers.pop(name)
        kept = graph.initializers.get(first_names[name])
        if kept is not None:
            ir.convenience.replace_all_uses_with(value, kept)
        else:
            value.name = first_names[name]
            graph.initializers.add(value)


def _parameters_to_inputs(graph: ir.Graph, parameters: dict[str, torch.Tensor]) -> None:
    for name in [name for name in graph.initializers if name in parameters]:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)


def _absorb_transposed_weights(graph: ir.Graph, parameters: dict[str, torch.Tensor]) -> set[str]:
    """MatMul(x, Transpose(W)) becomes MatMul(x, W) with W stored transposed: nothing may stand between a weight
    and its node (TensorRT wants exactly one DequantizeLinear there). A weight with another reader is left alone.
    """
    absorbed: set[str] = set()
    for value in list(graph.inputs):
        uses = value.uses()
        if value.name not in parameters or not uses or value.shape is None or len(value.shape) != 2:
            continue
        nodes = [use.node for use in uses]
        if not all(node.op_type == "Transpose" and _feeds_only_matmul_weights(node) for node in nodes):
            continue
        for node in nodes:
            ir.convenience.replace_all_uses_with(node.outputs[0], value)
            graph.remove(node, safe=True)
        value.shape = ir.Shape([value.shape[1], value.shape[0]])
        absorbed.add(str(value.name))
    return absorbed


def _feeds_only_matmul_weights(transpose: ir.Node) -> bool:
    output = transpose.outputs[0]
    return not output.is_graph_output() and all(
        use.node.op_type == "MatMul" and use.idx == _WEIGHT_INPUT for use in output.uses()
    )


def _drop_unused_parameters(graph: ir.Graph, parameters: dict[str, torch.Tensor]) -> None:
    for value in [v for v in graph.inputs if v.name in parameters and not v.uses() and not v.is_graph_output()]:
        graph.inputs.remove(value)


def _strip_metadata(model: ir.Model) -> None:
    """Stack traces and module paths of the exporting machine: neither reproducible nor anybody's business."""
    model.metadata_props.clear()
    model.producer_name, model.producer_version, model.doc_string = "bitswitch-deploy", None, None
    model.graph.name = "network"
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


def _check_batch(captured: CapturedNetwork, name: str) -> None:
    """torch.export accepts some networks that only work at the example's batch size; their outputs show it."""
    for value in (*captured.inputs, *captured.outputs):
        if not value.shape or not isinstance(value.shape[0], str):
            raise UsageError(
                where=f"capture of {name}: {value.name}",
                got=f"shape {list(value.shape)}",
                allowed="a first axis that takes any batch size",
                do="take batch sizes from x.shape[0], not from a number",
            )


def _describe(proto: onnx.ModelProto, parameters: dict[str, torch.Tensor], transposed: set[str]) -> CapturedNetwork:
    inputs = tuple(_value_spec(value) for value in proto.graph.input if value.name not in parameters)
    stored = tuple(value.name for value in proto.graph.input if value.name in parameters)
    layers: dict[str, CapturedLayer] = {}
    readers = _readers(proto.graph)
    for node in proto.graph.node:
        operator = _OPERATORS.get(node.op_type)
        if operator is None or node.input[_WEIGHT_INPUT] not in parameters:
            continue
        weight = node.input[_WEIGHT_INPUT]
        # what another operator or input reads, too, is no weight but a parameter like any other
        if readers[weight] != {(operator, _WEIGHT_INPUT)}:
            continue
        layers[weight] = CapturedLayer(
            name=weight.removesuffix(".weight"),
            operator=operator,
            weight=weight,
            transposed=weight in transposed,
            channel_axis=channel_axis_in(node),
        )
    return CapturedNetwork(
        model=proto,
        layers=tuple(layers.values()),
        parameters=stored,
        inputs=inputs,
        outputs=tuple(_value_spec(value) for value in proto.graph.output),
    )


def check_layers(captured: CapturedNetwork, quantized: Iterable[str]) -> None:
    """See that each quantized layer is in a captured network as one operator that reads its weight.

    Raises:
        GraphError: some are not.
    """
    lost = sorted(set(quantized) - {layer.name for layer in captured.layers})
    if lost:
        raise GraphError(
            where=f"layers {', '.join(lost)}",
            got="no Conv, ConvTranspose, Gemm or MatMul of the exported graph reads their weight directly",
            allowed="quantized layers that are exported as one of these operators, the same in all their calls",
            do="pin them",
        )


def _readers(graph: onnx.GraphProto) -> dict[str, set[tuple[str, int]]]:
    """Operator and input position of everything that reads a tensor, by its name."""
    readers: dict[str, set[tuple[str, int]]] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            readers.setdefault(name, set()).add((node.op_type, position))
    return readers


def _value_spec(value: onnx.ValueInfoProto) -> ValueSpec:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
    return ValueSpec(name=value.name, dtype=onnx.TensorProto.DataType.Name(tensor.elem_type).lower(), shape=shape)
