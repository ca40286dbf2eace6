"""The last check of a lowered graph: nothing in it that the target misreads (platforms, section 7.4)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.target import Target

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def check_target_rules(model: onnx.ModelProto, target: Target) -> None:
    """Refuse a graph that breaks a rule of its target: another opset, a type or zero-point that it misreads, or
    anything between a weight's DequantizeLinear and its node.

    Raises:
        GraphError: naming the first node that breaks a rule.
    """
    for where, got, allowed in _violations(model, target):
        raise GraphError(
            where=where, got=got, allowed=allowed, do=f"add or reorder passes in the profile of {target.name}"
        )


def _violations(model: onnx.ModelProto, target: Target) -> Iterator[tuple[str, str, str]]:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = _constant_paths(model.graph)
    forbidden = target.quantization.forbid_types
    opset = model.opset_import[0].version
    if opset != target.stack.opset:
        yield "graph", f"opset {opset}", f"opset {target.stack.opset} of stack {target.stack.name} (pass SetOpset)"
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
            elif target.engine.name != "onnxruntime" and np.any(onnx.numpy_helper.to_array(zero_point)):
                yield f"{node.op_type} {node.name}", "a zero-point", f"zero-point 0: {target.engine.name} has no other"
        if node.op_type in _WEIGHTED and target.engine.name != "onnxruntime" and node.input[1] in weights:
            yield from _weight_path(node, weights[node.input[1]])


def _constant_paths(graph: onnx.GraphProto) -> dict[str, tuple[str, ...]]:
    """For each tensor that depends on nothing but constants: the operators that make it, the last one first."""
    paths: dict[str, tuple[str, ...]] = {tensor.name: () for tensor in graph.initializer}
    for node in graph.node:
        inputs = [name for name in node.input if name]
        if inputs and all(name in paths for name in inputs):
            path = (node.op_type, *max((paths[name] for name in inputs), key=len))
            paths |= dict.fromkeys(node.output, path)
    return paths


def _weight_path(node: onnx.NodeProto, path: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """TensorRT wants exactly one DequantizeLinear between constant codes and a weighted node."""
    if "DequantizeLinear" in path and path not in (("DequantizeLinear",), ("DequantizeLinear", "QuantizeLinear")):
        yield f"{node.op_type} {node.name}", f"weight through {' <- '.join(path)}", "codes, DequantizeLinear, node"
