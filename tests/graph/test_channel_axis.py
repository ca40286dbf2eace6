"""Output channels of a weight, as onnx's own shape inference sees them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from bitswitch_deploy.graph.channel_axis import along, channel_axis

# every dimension is another number, so the output tells which one it took
CASES = [
    ("Conv", {}, (1, 3, 9, 9), (5, 3, 2, 2), 1),
    ("ConvTranspose", {}, (1, 3, 9, 9), (3, 5, 2, 2), 1),
    ("Gemm", {}, (2, 3), (3, 5), 1),
    ("Gemm", {"transB": 0}, (2, 3), (3, 5), 1),
    ("Gemm", {"transB": 1}, (2, 3), (5, 3), 1),
    ("MatMul", {}, (2, 3), (3, 5), 1),
    ("MatMul", {}, (4, 2, 3), (4, 3, 5), 2),
]


@pytest.mark.parametrize(("operator", "attributes", "x", "weight", "output_axis"), CASES)
def test_the_axis_is_the_one_that_the_output_has(
    operator: str, attributes: dict[str, int], x: tuple[int, ...], weight: tuple[int, ...], output_axis: int
) -> None:
    inputs = [gs.Variable("x", np.float32, x), gs.Variable("w", np.float32, weight)]
    node = gs.Node(operator, "layer", attributes, inputs, [gs.Variable("y", np.float32)])
    graph = gs.Graph([node], inputs, list(node.outputs), opset=17)
    inferred = onnx.shape_inference.infer_shapes(gs.export_onnx(graph), strict_mode=True).graph.output[0]
    channels = inferred.type.tensor_type.shape.dim[output_axis].dim_value
    assert weight[channel_axis(node, len(weight))] == channels == 5


def test_along_broadcasts_over_the_other_axes() -> None:
    values = np.array([2, 3, 5], np.int32)
    products = np.ones((4, 3, 2), np.int32) * along(1, values, 3)
    assert products.dtype == np.int32
    for channel, value in enumerate(values):
        assert (products[:, channel] == value).all()
