"""ChannelsLast: the same numbers, and no Transpose between the integer layers of a residual stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from bitswitch_deploy.lowering.lower import calibrated_tensors, lower
from bitswitch_deploy.target import Target
from tests.graph.masters import build, layer, per_channel
from tests.graph.running import operators, run
from tests.lowering.blocks import images, observed, residual_master
from tests.lowering.lowered import Applied, applied, canonical, fast_operators, is_untouched, profile

Array = np.ndarray[Any, np.dtype[Any]]

X86 = profile("x86-cpu")
WITHOUT = profile("x86-cpu", {"lowering": [name for name in X86.lowering if name != "ChannelsLast"]})
STREAM = """
net (float[n, 4, 6, 6] x, float[4, 4, 1, 1] "stem.weight", float[4, 4, 3, 3] "a.weight", NORM
     float[4, 4, 3, 3] "c.weight", float[4, 4, 1, 1] "z.weight") => (float[n, 4, h, w] y)
    <float low = {0}, float high = {6}> {
    stem = Conv (x, "stem.weight")
    BEGIN
    a = Conv <pads = [1, 1, 1, 1]> (s, "a.weight")
    sum1 = Add (a, s)
    first = Relu (sum1)
    c = Conv <pads = [1, 1, 1, 1]> (first, "c.weight")
    sum2 = Add (c, first)
    y = Conv (sum2, "z.weight")
}"""
BEGINNINGS = {
    "convolution": "s = Identity (stem)",
    "relu": "s = Relu (stem)",
    "clip": "s = Clip (stem, low, high)",
    "normalised": 'm = BatchNormalization (stem, "n.gamma", "n.beta", "n.mean", "n.var") s = Relu (m)',
    "max pool": "r = Relu (stem) s = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r)",
    "max pools": "r = Relu (stem) q = MaxPool <kernel_shape = [2, 2]> (r) s = MaxPool <kernel_shape = [2, 2]> (q)",
}


def stream(beginning: str, stem: str = "pinned") -> Any:
    norm = ", ".join(f'float[4] "n.{part}"' for part in ("gamma", "beta", "mean", "var")) + ","
    text = STREAM.replace("BEGIN", beginning).replace("NORM", norm if "n.gamma" in beginning else "")
    layers = [layer("stem", "Conv", per_channel(0), stem), *(layer(name, "Conv", per_channel(0)) for name in "acz")]
    return build(text, layers)


def both(
    beginning: str, bits: int, target: Target = X86, stem: str = "pinned"
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    graph = canonical(stream(beginning, stem), bits)
    ranges = observed(graph.model, calibrated_tensors(graph, target))
    after = lower(graph, target, ranges=ranges)
    return after.model, after.passes


def fast_run(model: onnx.ModelProto) -> Array:
    return run(model, images(), optimisation="all", session=dict(X86.engine.session))


@pytest.mark.parametrize("beginning", BEGINNINGS)
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_same_numbers(bits: int, beginning: str) -> None:
    """As without the pass: with optimisations off bit for bit."""
    after, passes = both(BEGINNINGS[beginning], bits)
    before, others = both(BEGINNINGS[beginning], bits, WITHOUT)
    assert passes == (*others[: passes.index("ChannelsLast")], "ChannelsLast", *others[passes.index("ChannelsLast") :])
    np.testing.assert_array_equal(run(after, images()), run(before, images()))
    np.testing.assert_allclose(fast_run(after), fast_run(before), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beginning", BEGINNINGS)
@pytest.mark.parametrize("bits", [8, 4])
def test_one_transpose_in_front_and_one_behind(bits: int, beginning: str) -> None:
    after, _ = both(BEGINNINGS[beginning], bits)
    before, _ = both(BEGINNINGS[beginning], bits, WITHOUT)
    found = fast_operators(after, X86)
    assert found["QLinearConv"] == 2
    assert found["QLinearAdd"] >= 2
    assert found["Transpose"] == 2
    assert found["Transpose"] <= fast_operators(before, X86)["Transpose"]
    assert found.get("NhwcMaxPool", 0) == beginning.count("max") + beginning.count("pools")
    assert "BitShift" not in found


def test_fewer_transposes_than_without() -> None:
    counts = [fast_operators(both(BEGINNINGS["relu"], 4, target)[0], X86)["Transpose"] for target in (X86, WITHOUT)]
    assert counts[0] < counts[1]


def test_form() -> None:
    after, _ = both(BEGINNINGS["relu"], 4)
    assert operators(after).count("Transpose") == 2
    names = [node.name for node in after.graph.node if node.op_type in ("Transpose", "Reshape")]
    assert names == ["s/Forth", "s/Keep", "s/Back"]
    # any batch size passes through the Reshape
    for count in (0, 1, 3):
        assert run(after, images(count)).shape[0] == count


# --- left alone ----------------------------------------------------------------------------------------------------


def alone(model: onnx.ModelProto) -> Applied:
    return applied("ChannelsLast", model, X86)


def test_a_stream_that_begins_behind_a_quantized_layer_is_left_alone() -> None:
    _, passes = both(BEGINNINGS["relu"], 4, stem="unsigned")
    assert "QuantizeResidual" in passes
    assert "ChannelsLast" not in passes


def test_what_no_add_reads_is_left_alone() -> None:
    """Without residual codes the layers read codes of float tensors, and no Add does."""
    before = canonical(residual_master(), 4).model
    assert is_untouched(alone(before), before)


def test_other_ranks_are_left_alone() -> None:
    text = """
    net (float[n, 4, 6] x, float[4, 4, 1] "stem.weight", float[4, 4, 1] "a.weight") => (float[n, 4, 6] y)
        <float t = {0.1}, uint8 z = {0}> {
        stem = Conv (x, "stem.weight")
        s = Relu (stem)
        q = QuantizeLinear (s, t, z)
        d = DequantizeLinear (q, t, z)
        a = Conv (d, "a.weight")
        y = Add (a, d)
    }"""
    before = canonical(build(text, (layer("stem", activation="pinned"), layer("a"))), 4).model
    assert is_untouched(alone(before), before)


def test_an_image_that_comes_from_elsewhere_is_left_alone() -> None:
    text = """
    net (float[n, 4, 6, 6] x, float[4, 4, 1, 1] "a.weight") => (float[n, 4, 6, 6] y) <float t = {0.1}, uint8 z = {0}> {
        s = SOURCE
        q = QuantizeLinear (s, t, z)
        d = DequantizeLinear (q, t, z)
        a = Conv (d, "a.weight")
        y = Add (a, d)
    }"""
    for source in ("Relu (x)", "Sigmoid (x)", "MaxPool <kernel_shape = [1, 1]> (x)"):
        before = canonical(build(text.replace("SOURCE", source), (layer("a"),)), 4).model
        assert is_untouched(alone(before), before)
