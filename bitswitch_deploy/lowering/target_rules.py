"""The last check of a lowered graph: nothing in it that the target misreads (platforms, section 7.4)."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.target import Target

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def check_target_rules(model: onnx.ModelProto, target: Target) -> None:
    """Refuse a graph that breaks a rule of its target: a type it misreads, or anything between a weight's
    DequantizeLinear and its node.

    Raises:
        GraphError: naming the first node that breaks a rule.
    """
    for where, got, allowed in _violations(model, target):
        raise GraphError(
            where=where, got=got, allowed=allowed, do=f"add or reorder passes in the profile of {target.name}"
        )


def _violations(model: onnx.ModelProto, target: Target) -> Iterator[tuple[str, str, str]]:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    forbidden = target.quantization.forbid_types
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero_point = constants[node.input[2]]
            dtype = onnx.TensorProto.DataType.Name(zero_point.data_type).lower()
            if dtype in forbidden:
                yield f"{node.op_type} {node.name}", f"type {dtype}", f"any type but {', '.join(forbidden)}"
            if dtype == "int32" and target.engine.name != "onnxruntime":
                yield (
                    f"{node.op_type} {node.name}",
                    "an int32 bias",
                    f"a float bias: {target.engine.name} does not parse this",
                )
        if node.op_type in _WEIGHTED and target.engine.name != "onnxruntime":
            yield from _weight_path(node, producers, constants)


def _weight_path(
    node: onnx.NodeProto, producers: dict[str, onnx.NodeProto], constants: dict[str, onnx.TensorProto]
) -> Iterator[tuple[str, str, str]]:
    """TensorRT wants exactly one DequantizeLinear between constant codes and a weighted node."""
    path, name = [], node.input[1]
    while name in producers:
        path.append(producers[name].op_type)
        name = producers[name].input[0]
    quantized = name in constants and "DequantizeLinear" in path
    if quantized and path not in (["DequantizeLinear"], ["DequantizeLinear", "QuantizeLinear"]):
        yield f"{node.op_type} {node.name}", f"weight through {' <- '.join(path)}", "codes, DequantizeLinear, node"
