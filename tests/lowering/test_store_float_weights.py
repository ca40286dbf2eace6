"""StoreFloatWeights: quantizing the stored floats gives back every code, for scales of every size."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.tensors import PER_TENSOR, Granularity
from tests.graph.masters import build, layer, per_block, per_channel
from tests.graph.running import initializer, look, run
from tests.lowering.lowered import applied, canonical, lowered, profile

Array = np.ndarray[Any, np.dtype[Any]]

XAVIER = profile("jetson-xavier-nx")
ALL_CODES = np.arange(-128, 128, dtype=np.int8)
SMALLEST, LARGEST = float(np.finfo(np.float32).smallest_normal), float(np.finfo(np.float32).max) / 256


def network(rows: int, columns: int) -> str:
    return (
        f'net (float[n, {rows}] x, float[{rows}, {columns}] "a.weight") => (float[n, {columns}] y)'
        ' { y = MatMul (x, "a.weight") }'
    )


def stored(codes: Array, scale: Any, granularity: Granularity, bits: int = 8) -> tuple[onnx.ModelProto, Any]:
    master = build(
        network(*codes.shape),
        (layer("a", "MatMul", granularity, "none"),),
        tensors={"a.weight": codes, "a.weight.scale": scale},
    )
    before = canonical(master, bits).model
    return before, applied("StoreFloatWeights", before, XAVIER)


def scales(count: int) -> Array:
    """Give random scales from the smallest to the largest that a master may have, and both ends."""
    exponents = np.random.default_rng(8).uniform(np.log2(SMALLEST), np.log2(LARGEST), count - 4)
    ends = [SMALLEST, np.nextafter(np.float32(SMALLEST), np.float32(1)), LARGEST, 1.0]
    return np.concatenate([ends, np.clip(np.exp2(exponents), SMALLEST, LARGEST)]).astype(np.float32)


def test_all_codes_times_many_scales_come_back() -> None:
    codes = np.repeat(ALL_CODES[:, None], 1000, axis=1)
    before, result = stored(codes, scales(1000), per_channel(1))
    x = np.ones((1, 256), np.float32)
    np.testing.assert_array_equal(look(result.model, x, "a.weight.codes"), codes)
    found, expected = (look(model, x, "a.weight.dequantized") for model in (result.model, before))
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
    floats = initializer(result.model, "a.weight")
    assert floats.dtype == np.float32
    assert np.isfinite(floats).all()


@pytest.mark.parametrize("scale", [SMALLEST, 0.1, 3.0, LARGEST])
@pytest.mark.parametrize("bits", [8, 2])
def test_scale_per_tensor(bits: int, scale: float) -> None:
    codes = ALL_CODES.reshape(16, 16)
    before, result = stored(codes, scale, PER_TENSOR, bits)
    x = np.ones((1, 16), np.float32)
    np.testing.assert_array_equal(look(result.model, x, "a.weight.codes"), initializer(before, "a.weight"))
    assert [node.op_type for node in result.model.graph.node] == ["QuantizeLinear", "DequantizeLinear", "MatMul"]


def test_scale_along_the_first_axis() -> None:
    codes = ALL_CODES.reshape(16, 16)
    _, result = stored(codes, scales(16), per_channel(0))
    x = np.ones((1, 16), np.float32)
    np.testing.assert_array_equal(look(result.model, x, "a.weight.codes"), codes)
    assert {attribute.i for node in result.model.graph.node[:2] for attribute in node.attribute} == {0}


def test_what_it_says() -> None:
    _, result = stored(ALL_CODES.reshape(16, 16), 0.1, PER_TENSOR)
    assert result.modified
    assert [(change.where, change.what, change.exact) for change in result.changes] == [
        ("weights", "stored as float32 for this TensorRT, four times the bytes", True)
    ]


def test_scale_per_block_has_no_form_at_these_opsets() -> None:
    master = build(network(4, 4), (layer("a", "MatMul", per_block(0, 2), "none"),))
    before = canonical(master, 8).model
    result = applied("StoreFloatWeights", before, XAVIER)
    assert (result.modified, result.changes) == (False, [])
    with pytest.raises(GraphError, match=r"DequantizeLinear a.weight/DequantizeLinear: block_size=2"):
        lowered(master, 8, XAVIER)


def test_weight_of_several_nodes_is_stored_once() -> None:
    text = network(4, 4).replace("y = MatMul (x,", 'm = MatMul (x, "a.weight") y = MatMul (m,')
    before, after = lowered(build(text, (layer("a", "MatMul", activation="none"),)), 4, XAVIER)
    assert [node.op_type for node in after.model.graph.node].count("QuantizeLinear") == 1
    x = np.eye(4, dtype=np.float32)
    np.testing.assert_array_equal(run(after.model, x), run(before.model, x))


def test_flipped_signs_are_stored_as_products(capfd: pytest.CaptureFixture[str]) -> None:
    norms = ", ".join(f'float[6] "n.{part}"' for part in ("gamma", "beta", "mean", "var"))
    conv = (
        f'net (float[n, 4, 5, 5] x, float[6, 4, 2, 2] "a.weight", {norms}) => (float[n, 6, 4, 4] y)'
        ' { a = Conv (x, "a.weight") y = BatchNormalization (a, "n.gamma", "n.beta", "n.mean", "n.var") }'
    )
    master = build(conv, (layer("a"),), tensors={"n.gamma": [1, -1, 2, -2, 3, -3]})
    passes = ["FoldBatchNorm", "ClampActivations", "StoreFloatWeights", "SetOpset"]
    before, after = lowered(master, 4, profile("jetson-xavier-nx", {"lowering": passes}))
    assert capfd.readouterr() == ("", "")  # onnx-graphsurgeon prints what it finds odd
    signs = np.array([1, -1, 1, -1, 1, -1]).reshape(6, 1, 1, 1)
    x = np.random.default_rng(0).normal(1, 1, (5, 4, 5, 5)).astype(np.float32)
    codes = initializer(before.model, "a.weight")
    np.testing.assert_array_equal(look(after.model, x, "a.weight.codes"), codes * signs)
    np.testing.assert_allclose(run(after.model, x), run(before.model, x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["jetson-orin-nano", "jetson-thor", "rtx", "x86-cpu"])
def test_stacks_that_read_integers_are_left_alone(name: str) -> None:
    master = build(network(4, 4), (layer("a", "MatMul", activation="none"),))
    result = applied("StoreFloatWeights", canonical(master, 8).model, profile(name))
    assert (result.modified, result.changes) == (False, [])


def test_network_without_quantized_weights() -> None:
    master = build(network(4, 4), (layer("a", "MatMul", activation="pinned"),))
    result = applied("StoreFloatWeights", canonical(master, 8).model, XAVIER)
    assert (result.modified, result.changes) == (False, [])
