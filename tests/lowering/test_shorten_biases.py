"""Biases take fewer bytes in the file and are the same to whoever runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bitswitch_deploy.lowering.shorten_biases import shorten_biases
from tests.graph.optimised import optimised

CHANNELS = 64
TEXT = """<ir_version: 10, opset_import: ["" : 21]> g (uint8[1, 3, 4, 4] x) => (uint8[1, 64, 4, 4] y) {
    data = DequantizeLinear (x, "x.scale", "x.zero")
    weight = DequantizeLinear <axis = 0> ("w", "w.scale", "w.zero")
    bias = DequantizeLinear <axis = 0> ("b", "b.scale")
    conv = Conv (data, weight, bias) y = QuantizeLinear (conv, "y.scale", "y.zero") }"""
GEMM = """<ir_version: 10, opset_import: ["" : 21]> g (uint8[2, 3] x) => (float[2, 64] y) {
    data = DequantizeLinear (x, "x.scale") weight = DequantizeLinear WEIGHT
    bias = DequantizeLinear <axis = 0> ("b", "b.scale") y = Gemm <transB = 1> (data, weight BIAS) }"""
RANDOM = np.random.default_rng(7)
SCALES = RANDOM.uniform(0.001, 0.01, CHANNELS).astype(np.float32)
STEP = np.float32(0.037)
CONSTANTS: dict[str, Any] = {
    "x.scale": STEP, "x.zero": np.uint8(0), "y.scale": np.float32(0.05), "y.zero": np.uint8(128),
    "w": RANDOM.integers(-128, 128, (CHANNELS, 3, 1, 1), np.int8), "w.scale": SCALES, "w.zero": np.zeros(64, np.int8),
    "b": RANDOM.integers(-(2**15), 2**15, CHANNELS, np.int32), "b.scale": STEP * SCALES,
}  # fmt: skip
CONSTANTS["b"][:2] = -(2**15), 2**15 - 1


def model(constants: Mapping[str, Any] = CONSTANTS, text: str = TEXT) -> onnx.ModelProto:
    parsed = onnx.parser.parse_model(text)
    parsed.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    return parsed


def shortened(of: onnx.ModelProto, least_bytes: int = 256) -> set[str]:
    """Names of constants that are computed now; everything else is as it was."""
    before = {tensor.name for tensor in of.graph.initializer}
    shorten_biases(of.graph, least_bytes=least_bytes)
    onnx.checker.check_model(of, full_check=True)
    return before - {tensor.name for tensor in of.graph.initializer}


def test_codes_and_scales_are_computed_and_onnxruntime_makes_the_same_graph_of_both(tmp_path: Path) -> None:
    own, short = tmp_path / "own.onnx", tmp_path / "short.onnx"
    own.write_bytes(model().SerializeToString())
    changed = model()
    assert shortened(changed) == {"b", "b.scale"}
    assert changed.ByteSize() <= model().ByteSize() - 6 * CHANNELS + 150
    short.write_bytes(changed.SerializeToString())
    assert optimised(short) == optimised(own)


@pytest.mark.parametrize("code", [2**15, -(2**15) - 1, 2**30])
def test_codes_that_do_not_fit_stay(code: int) -> None:
    codes = CONSTANTS["b"].copy()
    codes[-1] = code
    assert shortened(model(CONSTANTS | {"b": codes})) == {"b.scale"}


def test_a_scale_that_is_not_the_product_stays() -> None:
    scales = CONSTANTS["b.scale"].copy()
    scales[-1] = np.nextafter(scales[-1], np.float32(1))
    assert shortened(model(CONSTANTS | {"b.scale": scales})) == {"b"}


def test_one_scale_for_all_channels_of_each_channels_product_stays() -> None:
    same = np.full(CHANNELS, SCALES[0])
    whole = {"w.scale": SCALES[0], "w.zero": np.int8(0), "b.scale": STEP * same}
    assert shortened(model(CONSTANTS | whole)) == {"b"}
    assert shortened(model(CONSTANTS | {"b.scale": STEP * SCALES[0]}), least_bytes=0) == {"b"}


def test_what_is_small_stays() -> None:
    assert shortened(model(), least_bytes=257) == set()


@pytest.mark.parametrize(("name", "left"), [("b", set()), ("b.scale", {"b"}), ("w.scale", {"b"}), ("x.scale", {"b"})])
def test_what_the_graph_does_not_hold_is_not_looked_at(name: str, left: set[str]) -> None:
    changed = model()
    tensor = next(each for each in changed.graph.initializer if each.name == name)
    tensor.ClearField("raw_data")
    shorten_biases(changed.graph, least_bytes=256)
    assert {"b", "b.scale"} - {each.name for each in changed.graph.initializer} == left


def test_names_that_are_there_already_are_not_given() -> None:
    changed = model(CONSTANTS | {"int16.0": np.int8(1)}, TEXT.replace(" }", ' two = Cast <to = 6> ("int16.0") }'))
    shorten_biases(changed.graph, least_bytes=256)
    assert [each.name for each in changed.graph.initializer if each.data_type == onnx.TensorProto.INT16] == ["int16.1"]
    onnx.checker.check_model(changed, full_check=True)


def test_what_a_caller_can_give_stays() -> None:
    text = TEXT.replace(" x)", " x, int32[64] b, float[64] w.scale)".replace("w.scale", '"w.scale"'))
    assert shortened(model(text=text)) == set()


def test_scales_of_blocks_are_no_scales_of_channels() -> None:
    """Their product with the scale of the data has the bytes of the bias's scale and another shape."""
    text = GEMM.replace("WEIGHT", '<axis = 1, block_size = 3> ("w", "w.scale")').replace("BIAS", ", bias")
    blocks = {"w": CONSTANTS["w"].reshape(64, 3), "w.scale": SCALES[:, None]}
    constants = {name: CONSTANTS[name] for name in ("x.scale", "b", "b.scale")} | blocks
    assert shortened(model(constants, text)) == {"b"}


def test_int32_codes_that_are_no_bias_keep_their_scale() -> None:
    """Those of a weight, beside data of scale 1: its scale is the product of both, of which one is itself."""
    text = (
        GEMM.replace("WEIGHT", '<axis = 0> ("b", "b.scale")')
        .replace(" BIAS", "")
        .replace('bias = DequantizeLinear <axis = 0> ("b", "b.scale") ', "")
    )
    codes = RANDOM.integers(-100, 100, (CHANNELS, 3), np.int32)
    assert shortened(model({"x.scale": np.float32(1), "b": codes, "b.scale": SCALES}, text)) == {"b"}


@pytest.mark.parametrize(
    ("more", "left"),
    [
        ('two = Identity ("b")', {"b.scale"}),
        ('two = Identity ("b.scale")', {"b"}),
        ("two = Identity (bias)", {"b"}),
        ("two = Conv (data, weight, bias)", {"b"}),
        ("two = Conv (data, weight)", {"b", "b.scale"}),
    ],
)
def test_what_something_else_reads_stays(more: str, left: set[str]) -> None:
    kind = "int32[64]" if '"b"' in more else "float[1, 64, 4, 4]" if "Conv" in more else "float[64]"
    text = TEXT.replace("y) {", f"y, {kind} two) {{").replace(" }", f" {more} }}")
    assert shortened(model(text=text)) == left


@pytest.mark.parametrize(
    "conv",
    [
        "plain = Identity (data) conv = Conv (plain, weight, bias)",
        "plain = Conv (data, weight) rows = Unsqueeze (bias, axes) conv = Add (plain, rows)",
    ],
)
def test_a_bias_of_something_else_than_a_layer_of_codes_keeps_its_scale(conv: str) -> None:
    text = TEXT.replace("conv = Conv (data, weight, bias)", conv)
    axes = {"axes": np.array([1, 2])} if "axes" in conv else {}
    assert shortened(model(CONSTANTS | axes, text)) == {"b"}
