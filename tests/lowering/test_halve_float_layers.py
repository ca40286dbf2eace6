"""HalveFloatLayers: which layers compute in float16, and that a strongly typed engine builds from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from bitswitch_deploy.engines.tensorrt_config import BuildSettings
from bitswitch_deploy.engines.tensorrt_engine import build_engine
from bitswitch_deploy.lowering.approximation import EXACT, EXPORTED, Approximation
from bitswitch_deploy.lowering.lower import lower
from bitswitch_deploy.master import Master
from tests.graph.masters import build, layer, per_channel
from tests.graph.running import initializer, operators, run
from tests.lowering.lowered import applied, canonical, is_untouched, profile

Array = np.ndarray[Any, np.dtype[Any]]

STRONG, WEAK = profile("rtx"), profile("jetson-agx-orin")
TEXT = """
net (float[n, 3, 8, 8] x, float[8, 3, 3, 3] "stem.weight", float[8] "stem.bias", float[8, 8, 3, 3] "conv.weight",
     float[10, 128] "last.weight") => (float[n, 10] y) {
    stem = Conv (x, "stem.weight", "stem.bias")
    r0 = Relu (stem)
    conv = Conv (r0, "conv.weight")
    r1 = Relu (conv)
    flat = Flatten (r1)
    y = Gemm <transB: int = 1> (flat, "last.weight")
}"""
LAYERS = (
    layer("stem", activation="pinned"),
    layer("conv", granularity=per_channel(0)),
    layer("last", "Gemm", activation="pinned"),
)


@pytest.fixture(scope="module")
def master() -> Master:
    return build(TEXT, LAYERS, activation_container="int8")


def test_float_layers_are_halved_and_quantized_ones_are_not(master: Master) -> None:
    model = canonical(master, 8).model
    result = applied("HalveFloatLayers", model, STRONG, approximations=EXPORTED)
    assert result.modified
    kinds = {node.name: node.op_type for node in result.model.graph.node if node.op_type in ("Conv", "Gemm")}
    assert list(kinds.values()) == ["Conv", "Conv", "Gemm"]
    assert {
        tensor.name for tensor in result.model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16
    } == {
        "stem.weight.half",
        "stem.bias.half",
        "last.weight.half",
    }
    assert initializer(result.model, "conv.weight").dtype == np.int8
    assert operators(result.model).count("Cast") == 4
    (change,) = result.changes
    first, _, last = kinds
    assert (change.what, change.exact) == (f"compute in float16: {first}, {last}", False)
    x = np.random.default_rng(3).normal(0, 1, (4, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(result.model, x), run(model, x), rtol=0.05, atol=0.05)


def test_a_product_of_two_activations_is_halved() -> None:
    text = """
    net (float[n, 4] x, float[4, 4] "a.weight") => (float[n, n] y) {
        a = MatMul (x, "a.weight")
        t = Transpose (x)
        y = MatMul (a, t)
    }"""
    master = build(text, (layer("a", "MatMul"),))
    result = applied("HalveFloatLayers", canonical(master, 8).model, STRONG, approximations=EXPORTED)
    products = [node for node in result.model.graph.node if node.op_type == "MatMul"]
    assert [node.output[0].endswith(".half") for node in products] == [False, True]


@pytest.mark.parametrize(("scale", "halved"), [(2**-10, True), (2**-20, False)])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_layer_of_which_only_the_weight_is_in_codes_is_halved(bits: int, scale: float, halved: bool) -> None:
    """With scales in float16, where these are exact enough; else it stays as it is, as nothing may come between."""
    text = 'net (float[n, 64] x, float[64, 6] "a.weight") => (float[n, 6] y) { y = MatMul (x, "a.weight") }'
    scales = np.full(6, scale * 2.0 ** (bits - 8), np.float32)
    master = build(text, (layer("a", "MatMul", per_channel(1), "none"),), tensors={"a.weight.scale": scales})
    model = canonical(master, bits).model
    result = lower(canonical(master, bits), STRONG, ranges={}, approximations=EXPORTED)
    (dequantize,) = [node for node in result.model.graph.node if node.op_type == "DequantizeLinear"]
    assert dequantize.input[1] == ("a.weight.scale.half" if halved else "a.weight.scale")
    assert operators(result.model).count("Cast") == (2 if halved else 0)
    x = np.random.default_rng(3).normal(0, 1, (4, 64)).astype(np.float32)
    expected = run(model, x)
    np.testing.assert_allclose(run(result.model, x), expected, rtol=0.01, atol=0.002 * np.abs(expected).max())


@pytest.mark.parametrize(("target", "allowed"), [(WEAK, EXPORTED), (STRONG, EXACT)])
def test_it_is_left_to_the_builder_or_to_the_user(
    master: Master, target: Any, allowed: frozenset[Approximation]
) -> None:
    model = canonical(master, 4).model
    result = applied("HalveFloatLayers", model, target, approximations=allowed)
    assert not result.modified
    assert not result.changes
    assert is_untouched(result, model)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("node", ["Gemm <transB: int = 1>", "MatMul"])
def test_an_engine_reads_float16_where_only_the_weight_is_in_codes(bits: int, node: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    operator: Any = node.partition(" ")[0]
    text = f"""net (float[16, 64] x, float[64, 64] "a.weight", float[64, 64] "b.weight") => (float[16, 64] y) {{
        a = {node} (x, "a.weight") r = Relu (a) y = {operator} (r, "b.weight")
    }}"""
    granularity = per_channel(1 if operator == "MatMul" else 0)
    layers = (layer("a", operator, granularity, "none"), layer("b", operator, activation="pinned"))
    lowered = lower(canonical(build(text, layers), bits), STRONG, ranges={}, approximations=EXPORTED)
    settings = BuildSettings(compute_capabilities=("SM89",))
    found = build_engine(lowered.model.SerializeToString(), module="tensorrt_rtx", settings=settings).layers
    assert [each.inputs for each in found if {"int8", "int4"} & set(each.weights)] == [("fp16",)]


@pytest.mark.parametrize("bits", [8, 2])
def test_a_strongly_typed_engine_builds(master: Master, bits: int) -> None:
    pytest.importorskip("tensorrt_rtx")
    lowered = lower(canonical(master, bits), STRONG, ranges={}, approximations=EXPORTED)
    assert "HalveFloatLayers" in lowered.passes
    assert not lowered.exact
    frozen = onnx.ModelProto()
    frozen.CopyFrom(lowered.model)
    frozen.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    settings = BuildSettings(compute_capabilities=("SM89",))
    assert build_engine(frozen.SerializeToString(), module="tensorrt_rtx", settings=settings).typing == "strong"
