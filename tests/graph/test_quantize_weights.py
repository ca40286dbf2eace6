"""Weights become the derived codes behind a DequantizeLinear: what the node looks like for each granularity."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from bitswitch_deploy.graph.model_io import import_model
from bitswitch_deploy.graph.plan import plan_canonical
from bitswitch_deploy.graph.quantize_weights import QuantizeWeights
from bitswitch_deploy.master import Master
from bitswitch_deploy.tensors import PER_TENSOR, Granularity, WidthAssignment
from tests.graph.masters import build, layer, per_block, per_channel

TEXT = """
net (float[n, 4] x, float[4, 3] "a.weight") => (float[n, 3] y) {
    first = MatMul (x, "a.weight")
    twice = Add (x, x)
    second = MatMul (twice, "a.weight")
    y = Add (first, second)
}"""
CODES = [[-128, 127, 1], [2, -2, 3], [-3, 8, 24], [40, -8, -24]]


def quantized(granularity: Granularity, scale: Any, bits: int = 4) -> gs.Graph:
    master = build(TEXT, (layer("a", "MatMul", granularity),), tensors={"a.weight": CODES, "a.weight.scale": scale})
    graph = import_model(master.skeleton)
    assert QuantizeWeights(master, plan_canonical(master, WidthAssignment(default=bits))).apply(graph)
    return graph


# by hand: / 16, half up, clipped to -8..7
DERIVED = [[-8, 7, 0], [0, 0, 0], [0, 1, 2], [3, 0, -1]]


@pytest.mark.parametrize(
    ("granularity", "scale", "attributes"),
    [
        (PER_TENSOR, 0.5, {}),
        (per_channel(1), [0.5, 0.25, 1], {"axis": 1}),
        (per_block(0, 2), [[0.5, 0.25, 1], [2, 4, 8]], {"axis": 0, "block_size": 2}),
    ],
)
def test_granularities(granularity: Granularity, scale: Any, attributes: dict[str, int]) -> None:
    graph = quantized(granularity, scale)
    dequantize = graph.nodes[0]
    assert (dequantize.op, dequantize.name, dequantize.attrs) == (
        "DequantizeLinear",
        "a.weight/DequantizeLinear",
        attributes,
    )
    codes, scales, zero_point = dequantize.inputs
    assert codes.name == "a.weight"
    assert codes.values.dtype == np.int8
    np.testing.assert_array_equal(codes.values, DERIVED)
    np.testing.assert_array_equal(scales.values, np.asarray(scale, np.float32) * 16)
    assert zero_point.values.dtype == np.int8
    assert zero_point.values.shape == np.shape(scale)
    assert not zero_point.values.any()


def test_the_master_s_own_width() -> None:
    codes, scale, _ = quantized(PER_TENSOR, 0.5, bits=8).nodes[0].inputs
    np.testing.assert_array_equal(codes.values, CODES)
    assert scale.values == np.float32(0.5)


def test_all_nodes_read_the_one_weight() -> None:
    graph = quantized(PER_TENSOR, 0.5)
    readers = [node for node in graph.nodes if node.op == "MatMul"]
    assert [node.inputs[1] is graph.nodes[0].outputs[0] for node in readers] == [True, True]
    assert [tensor.name for tensor in graph.inputs] == ["x"]


def test_no_quantized_weight() -> None:
    pinned: Master = build(TEXT, (layer("a", "MatMul", activation="pinned"),))
    graph = import_model(pinned.skeleton)
    assert not QuantizeWeights(pinned, plan_canonical(pinned, WidthAssignment(default=4))).apply(graph)
    assert [tensor.name for tensor in graph.inputs] == ["x", "a.weight"]
