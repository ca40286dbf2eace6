"""Where the output channels are in the weight of a Conv, ConvTranspose, Gemm or MatMul."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.generic)


def channel_axis(layer: gs.Node, rank: int = 2) -> int:
    """Axis of the output channels in the weight of a layer, as the operator reads it. rank: of a MatMul's weight."""
    return channel_axis_of(layer.op, trans_b=bool(layer.attrs.get("transB", 0)), rank=rank)


def channel_axis_in(node: onnx.NodeProto, rank: int = 2) -> int:
    """The same of a node of a skeleton, or of any ONNX file."""
    trans_b = any(each.name == "transB" and each.i for each in node.attribute)
    return channel_axis_of(node.op_type, trans_b=trans_b, rank=rank)


def channel_axis_of(operator: str, *, trans_b: bool, rank: int = 2) -> int:
    """The same by operator.

    trans_b: attribute transB, which Gemm has.
    rank: of a MatMul's weight, whose channels are last. A vector makes one channel and has no axis for it: the answer
    is the only one that it has.
    """
    if operator == "MatMul":
        return rank - 1
    return 0 if operator == "Conv" or (operator == "Gemm" and trans_b) else 1


def along(axis: int, values: NDArray[Number], rank: int) -> NDArray[Number]:
    """`values` [channels] in a shape that broadcasts along `axis` of a tensor of `rank` axes."""
    return values.reshape(tuple(-1 if index == axis else 1 for index in range(rank)))
