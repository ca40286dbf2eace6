"""QuantizeLinear and DequantizeLinear nodes of foreign graphs, read with every freedom that ONNX gives them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitswitch_deploy.graph.lint.linted_graph import LintedGraph, Node, Tensor
from bitswitch_deploy.graph.lint.operators import QUANTIZE

# com.microsoft holds the same operators for types that older opsets lack; quantizers of onnxruntime write them.
DOMAINS = ("", "ai.onnx", "com.microsoft")
EIGHT_BIT = ("int8", "uint8")

# Operators that move codes about and leave their values: (name, whether onnxruntime pulls Q and DQ through it).
MOVING = {
    "MaxPool": True,
    "Reshape": True,
    "Slice": True,
    "Squeeze": True,
    "Transpose": True,
    "Unsqueeze": True,
    "DepthToSpace": False,
    "Expand": False,
    "Flatten": False,
    "Gather": False,
    "Resize": False,
    "SpaceToDepth": False,
    "Split": False,
    "Tile": False,
}
# What may stand between Q and DQ on the codes themselves.
ON_CODES = ("BitShift", "Cast", "Clip", "Concat", "Identity", "Max", "Min", "Mul", "Pad", *MOVING)


@dataclass(eq=False, frozen=True, kw_only=True)
class QdqNode:
    """One Q or DQ. data, scale, zero_point: its arguments, None where the file leaves them out.

    code_type: `int8`, `uint4`, ... as ONNX reads it, None where it cannot be told.
    """

    graph: LintedGraph
    node: Node
    code_type: str | None

    @property
    def is_quantizer(self) -> bool:
        """QuantizeLinear; else DequantizeLinear."""
        return self.node.operator == QUANTIZE

    @property
    def data(self) -> Tensor | None:
        """What is quantized or dequantized."""
        return self.node.argument(0)

    @property
    def scale(self) -> Tensor | None:
        """The scale tensor."""
        return self.node.argument(1)

    @property
    def zero_point(self) -> Tensor | None:
        """The zero-point tensor."""
        return self.node.argument(2)

    @property
    def result(self) -> Tensor | None:
        """The tensor that the node makes."""
        return self.node.result

    @cached_property
    def scale_values(self) -> NDArray[Any] | None:
        """Scales, () or [channels] or the shape of blocks; None where they are computed."""
        return self.graph.values(self.scale)

    @cached_property
    def zero_values(self) -> NDArray[Any] | None:
        """Zero-points like the scales; None where they are computed or left out."""
        return self.graph.values(self.zero_point)

    @property
    def axis(self) -> int:
        """The axis as written, 1 where it is not; it may be negative, and says nothing when the scale is a scalar."""
        return self.node.integer("axis", 1)

    @property
    def block_size(self) -> int:
        """Elements that share a scale along the axis, 0 where scales are not per block."""
        return self.node.integer("block_size", 0)

    @property
    def is_per_tensor(self) -> bool:
        """One scale for everything, or a scale that is computed and of which nothing is known."""
        return self.scale_values is None or (self.scale_values.size <= 1 and not self.block_size)

    def same_grid(self, other: QdqNode) -> bool:
        """Whether both use the same type, scale and zero-point, as far as they are known."""
        if self.code_type != other.code_type:
            return False
        pairs = ((self.scale_values, other.scale_values), (_zeros(self), _zeros(other)))
        return all(_equal(one, another) for one, another in pairs)


def _zeros(qdq: QdqNode) -> NDArray[Any] | None:
    return np.zeros(1) if qdq.zero_point is None else qdq.zero_values


def _equal(one: NDArray[Any] | None, another: NDArray[Any] | None) -> bool:
    if one is None or another is None:
        return True
    if one.size == another.size:
        return bool(np.array_equal(one.ravel(), another.ravel()))
    return bool(np.all(one.ravel()[:1] == another) and np.all(one == another.ravel()[:1]))
