"""Newer operators written in older ones. Source: the function bodies in the ONNX operator reference."""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.lowering.lowering_pass import replace_node


class _Chain:
    """Builds a run of nodes whose intermediate tensors are named after the node that they replace."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.nodes: list[gs.Node] = []

    def add(self, op: str, *inputs: gs.Tensor | float, **attrs: object) -> gs.Tensor:
        tensors = [self._scalar(value) if isinstance(value, float) else value for value in inputs]
        label = f"{self._name}/{len(self.nodes)}.{op}"
        output = gs.Variable(label, dtype=np.float32)
        self.nodes.append(gs.Node(op=op, name=label, attrs=attrs, inputs=tensors, outputs=[output]))
        return output

    def constant(self, label: str, values: NDArray[np.float32] | NDArray[np.int64]) -> gs.Tensor:
        return gs.Constant(f"{self._name}/{label}", values)

    def _scalar(self, value: float) -> gs.Tensor:
        return gs.Constant(f"{self._name}/{len(self.nodes)}.{value}", np.asarray(value, np.float32))


def decompose_gelu(graph: gs.Graph, node: gs.Node) -> None:
    """Gelu: x / 2 * (1 + erf(x / sqrt 2)), or the tanh form x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))."""
    x = node.inputs[0]
    chain = _Chain(node.name)
    if node.attrs.get("approximate", "none") == "tanh":
        cube = chain.add("Mul", chain.add("Mul", chain.add("Mul", x, x), x), 0.044715)
        inner = chain.add("Tanh", chain.add("Mul", chain.add("Add", x, cube), math.sqrt(2 / math.pi)))
    else:
        inner = chain.add("Erf", chain.add("Mul", x, math.sqrt(0.5)))
    chain.add("Mul", chain.add("Mul", x, 0.5), chain.add("Add", inner, 1.0))
    replace_node(graph, node, chain.nodes)


def decompose_hard_swish(graph: gs.Graph, node: gs.Node) -> gs.Tensor:
    """HardSwish: x * HardSigmoid(x) with alpha 1/6 and beta 1/2. Returns HardSigmoid(x)."""
    x = node.inputs[0]
    chain = _Chain(node.name)
    gate = chain.add("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    chain.add("Mul", x, gate)
    replace_node(graph, node, chain.nodes)
    return gate


def decompose_mish(graph: gs.Graph, node: gs.Node) -> None:
    """Mish: x * tanh(softplus(x))."""
    x = node.inputs[0]
    chain = _Chain(node.name)
    chain.add("Mul", x, chain.add("Tanh", chain.add("Softplus", x)))
    replace_node(graph, node, chain.nodes)


def decompose_group_norm(graph: gs.Graph, node: gs.Node) -> None:
    """InstanceNormalization of each group as one row, then scale and bias of each channel.

    Opset 18 has an operator of this name that reads one scale per group, so it is no way out.

    Raises:
        GraphError: the scale is not a constant.
    """
    x, scale, bias = node.inputs
    if not isinstance(scale, gs.Constant):
        raise GraphError(
            where=f"GroupNormalization {node.name}",
            got="a computed scale",
            allowed="a constant scale below opset 21",
            do="choose a stack with opset 21 or newer",
        )
    chain = _Chain(node.name)
    groups, channels = int(node.attrs["num_groups"]), int(scale.shape[0])
    as_rows = chain.constant("as_rows", np.asarray([0, groups, -1], np.int64))
    as_channels = chain.constant("as_channels", np.asarray([0, channels, -1], np.int64))
    as_column = chain.constant("as_column", np.asarray([channels, 1], np.int64))
    ones, zeros = (chain.constant(f"all_{k}", np.full(groups, k, np.float32)) for k in (1, 0))
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    normalized = chain.add("InstanceNormalization", chain.add("Reshape", x, as_rows), ones, zeros, epsilon=epsilon)
    rows = chain.add("Mul", chain.add("Reshape", normalized, as_channels), chain.add("Reshape", scale, as_column))
    shifted = chain.add("Add", rows, chain.add("Reshape", bias, as_column))
    chain.add("Reshape", shifted, chain.add("Shape", x))
    replace_node(graph, node, chain.nodes)


def decompose_layer_norm(graph: gs.Graph, node: gs.Node) -> None:
    """(x - mean) / sqrt(mean of squares + eps) * scale + bias over the axes from `axis` on.

    Raises:
        GraphError: the axis is counted from the front or the optional outputs are used; neither is captured.
    """
    axis = node.attrs.get("axis", -1)
    if axis >= 0 or len(node.outputs) > 1:
        raise GraphError(
            where=f"LayerNormalization {node.name}",
            got=f"axis {axis} with {len(node.outputs)} outputs",
            allowed="an axis counted from the end and one output below opset 17",
            do="choose a stack with opset 17 or newer",
        )
    chain = _Chain(node.name)
    # axes as attribute: the form of every opset below 18, and this runs below 17 only
    axes = list(range(axis, 0))
    mean = chain.add("ReduceMean", node.inputs[0], axes=axes, keepdims=1)
    centred = chain.add("Sub", node.inputs[0], mean)
    variance = chain.add("ReduceMean", chain.add("Mul", centred, centred), axes=axes, keepdims=1)
    deviation = chain.add("Sqrt", chain.add("Add", variance, float(node.attrs.get("epsilon", 1e-5))))
    normalized = chain.add("Mul", chain.add("Div", centred, deviation), node.inputs[1])
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        chain.add("Add", normalized, node.inputs[2])
    replace_node(graph, node, chain.nodes)
