"""Newer operators written in older ones. Source: the function bodies in the ONNX operator reference."""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

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


def decompose_hard_swish(graph: gs.Graph, node: gs.Node) -> None:
    """HardSwish: x * HardSigmoid(x) with alpha 1/6 and beta 1/2."""
    x = node.inputs[0]
    chain = _Chain(node.name)
    chain.add("Mul", x, chain.add("HardSigmoid", x, alpha=1 / 6, beta=0.5))
    replace_node(graph, node, chain.nodes)


def decompose_layer_norm(graph: gs.Graph, node: gs.Node) -> None:
    """(x - mean) / sqrt(mean of squares + eps) * scale + bias over the axes from `axis` on.

    Raises:
        GraphError: the axis is not the last one or the optional outputs are used; only that form is captured.
    """
    if node.attrs.get("axis", -1) != -1 or len(node.outputs) > 1:
        raise GraphError(
            where=f"LayerNormalization {node.name}",
            got=f"axis {node.attrs.get('axis')} with {len(node.outputs)} outputs",
            allowed="the last axis and one output below opset 17",
            do="choose a stack with opset 17 or newer",
        )
    chain = _Chain(node.name)
    # axes as attribute: the form of every opset below 18, and this runs below 17 only
    mean = chain.add("ReduceMean", node.inputs[0], axes=[-1], keepdims=1)
    centred = chain.add("Sub", node.inputs[0], mean)
    variance = chain.add("ReduceMean", chain.add("Mul", centred, centred), axes=[-1], keepdims=1)
    deviation = chain.add("Sqrt", chain.add("Add", variance, float(node.attrs.get("epsilon", 1e-5))))
    normalized = chain.add("Mul", chain.add("Div", centred, deviation), node.inputs[1])
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        chain.add("Add", normalized, node.inputs[2])
    replace_node(graph, node, chain.nodes)
