"""The float network behind a master, against the skeleton with hand-made weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from bitswitch_deploy.engines.reference import ReferenceSession
from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph import large_tensors
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.graph.external_data import runnable
from bitswitch_deploy.graph.float_reference import float_graph
from bitswitch_deploy.master import Master
from bitswitch_deploy.tensors import PER_TENSOR, Granularity, WidthAssignment
from tests.graph.masters import build, layer, per_block, per_channel
from tests.graph.running import initializer, operators, run

Array = np.ndarray[Any, np.dtype[Any]]

TEXT = """
net (float[n, 4, 5, 5] x, float[4, 4, 3, 3] "stem.weight", float[6, 4, 3, 3] "conv.weight", float[6] "conv.bias",
     float[6] "bn.gamma", float[6] "bn.beta", float[6] "bn.mean", float[6] "bn.var", float[4, 6, 1, 1] "tensor.weight",
     float[10, 64] "dense.weight") => (float[n, 10] y) {
    stem = Conv <pads: ints = [1, 1, 1, 1]> (x, "stem.weight")
    r0 = Relu (stem)
    conv = Conv (r0, "conv.weight", "conv.bias")
    normal = BatchNormalization (conv, "bn.gamma", "bn.beta", "bn.mean", "bn.var")
    r1 = Relu (normal)
    up = Conv <pads: ints = [1, 0, 0, 1]> (r1, "tensor.weight")
    flat = Flatten (up)
    y = Gemm <transB: int = 1> (flat, "dense.weight")
}"""
LAYERS = (
    layer("stem", activation="pinned"),
    layer("conv", granularity=per_channel(0)),
    layer("tensor", granularity=PER_TENSOR),
    layer("dense", "Gemm", per_block(1, 24), "signed"),
)
SWITCHABLE = ("bn.gamma", "bn.beta", "bn.mean", "bn.var")


@pytest.fixture(scope="module")
def master() -> Master:
    return build(TEXT, LAYERS, switchable=SWITCHABLE)


def test_no_quantizer_is_left_and_names_are_those_of_the_canonical_graph(master: Master) -> None:
    model = float_graph(master).model
    canonical = canonical_graph(master, WidthAssignment(default=8)).model
    quantizers = ("QuantizeLinear", "Clip", "DequantizeLinear")
    assert operators(model) == [each for each in operators(canonical) if each not in quantizers]
    names = {node.name for node in canonical.graph.node if node.op_type not in quantizers}
    assert {node.name for node in model.graph.node} == names
    assert [value.name for value in model.graph.input] == ["x"]


def test_weights_are_codes_times_scale_and_the_rest_is_of_the_highest_width(master: Master) -> None:
    model, tensors = float_graph(master).model, master.tensors
    codes = {name: np.asarray(tensors[f"{name}.weight"], np.float64) for name in ("conv", "tensor", "dense")}
    scales = {name: np.asarray(tensors[f"{name}.weight.scale"], np.float64) for name in codes}
    expected = {
        "conv": codes["conv"] * scales["conv"][:, None, None, None],
        "tensor": codes["tensor"] * scales["tensor"],
        "dense": codes["dense"] * np.repeat(scales["dense"], 24, axis=1)[:, :64],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(initializer(model, f"{name}.weight"), values.astype(np.float32))
    np.testing.assert_array_equal(initializer(model, "stem.weight"), tensors["stem.weight"])
    for name in SWITCHABLE:
        np.testing.assert_array_equal(initializer(model, name), np.asarray(tensors[name])[0])


def test_it_is_near_the_highest_width(master: Master) -> None:
    """With inputs inside the clipping ranges, 8-bit codes leave a small error; more would be another network."""
    x = np.random.default_rng(5).normal(0, 0.1, (8, 4, 5, 5)).astype(np.float32)
    reference = run(float_graph(master).model, x)
    eight, two = (run(canonical_graph(master, WidthAssignment(default=bits)).model, x) for bits in (8, 2))
    error = np.linalg.norm(eight - reference) / np.linalg.norm(reference)
    assert 0 < error < 0.05
    assert np.linalg.norm(two - reference) / np.linalg.norm(reference) > 3 * error


def test_a_large_network_is_the_same_and_not_held(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    small = float_graph(master)
    monkeypatch.setattr(large_tensors, "EMBEDDED_LIMIT_BYTES", 0)
    large = float_graph(master)
    assert not small.large
    assert set(large.large) == {"dense.weight"}
    x = np.random.default_rng(5).normal(0, 1, (2, 4, 5, 5)).astype(np.float32)
    with runnable(large.model, large.large) as source:
        np.testing.assert_array_equal(ReferenceSession(source).run(x), run(small.model, x))


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(0), per_channel(1), per_block(0, 8), per_block(1, 8)])
def test_weights_that_come_in_pieces_are_the_same(granularity: Granularity, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'net (float[n, 48] x, float[48, 40] "a.weight") => (float[n, 40] y) { y = MatMul (x, "a.weight") }'
    master = build(text, (layer("a", "MatMul", granularity),))
    monkeypatch.setattr(large_tensors, "EMBEDDED_LIMIT_BYTES", 0)
    monkeypatch.setattr("bitswitch_deploy.graph.float_reference._CHUNK", 100)
    (tensor,) = float_graph(master).large.values()
    pieces = list(tensor.chunks())
    assert (len(pieces) == 1) == (granularity == per_block(0, 8))
    np.testing.assert_array_equal(np.concatenate(pieces), tensor.load())


def test_the_same_master_gives_the_same_bytes(master: Master) -> None:
    first, second = (float_graph(master).model.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_another_opset_is_refused(master: Master) -> None:
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(master.skeleton)
    skeleton.opset_import[0].version = 20
    changed = Master(spec=master.spec, tensors=master.tensors, skeleton=skeleton, sha256=master.sha256)
    with pytest.raises(GraphError, match="opset 20"):
        float_graph(changed)
