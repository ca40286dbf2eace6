from __future__ import annotations

from typing import Any

import onnx
import pytest

from tests.graph.lint.graphs import CONV, IN, LAYER, OUT, WEIGHT, found, model, nodes, weight, with_zero

MATRIX: dict[str, Any] = {"x": "2, 4", "y": "a, b", "shape": (4, 4)}


def int8(body: str, **options: Any) -> onnx.ModelProto:
    return model(with_zero(body, "i"), **options)


def layer(axis: int, operator: str, *, first: bool = False) -> str:
    arguments = "wd, d" if first else "d, wd"
    return IN + weight(axis) + f"[layer] c = {operator} ({arguments})" + OUT


@pytest.mark.parametrize(
    ("operator", "right", "wrong"),
    [
        ("Conv", 0, 1),
        ("ConvTranspose", 1, 0),
        ("Gemm", 1, 0),
        ("Gemm <transB = 1>", 0, 1),
        ("MatMul", 1, 0),
        ("Conv", -4, -3),
    ],
)
def test_the_axis_of_output_channels(operator: str, right: int, wrong: int) -> None:
    options: dict[str, Any] = {} if "Conv" in operator else MATRIX
    assert not nodes(int8(layer(right, operator), **options), "weight-axis")
    assert found(int8(layer(wrong, operator), **options), "weight-axis") == [
        ("layer", f"a weight with scales along axis {wrong} (dq_wd)")
    ]


def test_a_matmul_with_the_weight_in_front_has_rows_as_channels() -> None:
    assert not nodes(int8(layer(0, "MatMul", first=True), **MATRIX), "weight-axis")
    assert nodes(int8(layer(1, "MatMul", first=True), **MATRIX), "weight-axis") == ["layer"]


def test_the_axis_that_is_not_written_is_1() -> None:
    body = IN + "wd = DequantizeLinear (w, sw, iw)" + LAYER + OUT
    assert nodes(int8(body), "weight-axis") == ["conv"]


def test_a_transpose_behind_the_dequantizer_is_followed() -> None:
    body = IN + "t = DequantizeLinear <axis = {}> (w, sw, iw) wd = Transpose <perm = [1, 2, 0, 3]> (t)" + LAYER + OUT
    assert not nodes(int8(body.format(1)), "weight-axis")
    assert nodes(int8(body.format(0)), "weight-axis") == ["conv"]
    body = IN + "t = DequantizeLinear <axis = {}> (w, sw, iw) wd = Transpose (t) c = MatMul (d, wd)" + OUT
    assert not nodes(int8(body.format(0), **MATRIX), "weight-axis")
    assert nodes(int8(body.format(1), **MATRIX), "weight-axis") == ["MatMul_4"]


@pytest.mark.parametrize("dequantize", ["(w, s1, i)", "<axis = 1> (w, onescale, i)"])
def test_one_scale_has_no_axis(dequantize: str) -> None:
    body = IN + f"wd = DequantizeLinear {dequantize}" + LAYER + OUT
    assert not nodes(int8(body, constants="float[1] onescale = {1}"), "weight-axis")


ON_CODES = {
    "DequantizeLinear <- Clip": "o = Clip (w, ilo, ihi)" + weight(codes="o"),
    "DequantizeLinear <- Identity": "o = Identity (w)" + weight(codes="o"),
    "DequantizeLinear <- Cast <- Mul <- Cast": "a = Cast <to = 6> (w) b2 = Mul (a, two) o = Cast <to = 3> (b2)"
    + weight(codes="o"),
}
DETOURS = {
    "Transpose <- DequantizeLinear": "o = DequantizeLinear (w, sw, iw) wd = Transpose <perm = [1, 0, 2, 3]> (o)",
    "Mul <- DequantizeLinear": "o = DequantizeLinear <axis = 0> (w, sw, iw) wd = Mul (s, o)",
    "Transpose <- DequantizeLinear <- QuantizeLinear": "k = QuantizeLinear <axis = 0> (f, sw, iw)"
    " o = DequantizeLinear <axis = 0> (k, sw, iw) wd = Transpose <perm = [0, 1, 3, 2]> (o)",
    "DequantizeLinear <- QuantizeLinear <- DequantizeLinear": "o = DequantizeLinear <axis = 0> (w, sw, iw)"
    " k = QuantizeLinear <axis = 0> (o, sw, iw)" + weight(codes="k"),
}
ONES = ", ".join(["1"] * 144)
DIRECT = {
    "codes": WEIGHT,
    "float, Q": "k = QuantizeLinear <axis = 0> (f, sw, iw)" + weight(codes="k"),
    "computed float, Q": "r = Relu (f) k = QuantizeLinear <axis = 0> (r, sw, iw)" + weight(codes="k"),
    "Identity behind": "o = DequantizeLinear <axis = 0> (w, sw, iw) wd = Identity (o)",
    "codes, copied scale": "k = Identity (sw)" + weight(scale="k"),
    "codes, half scale": "half = Cast <to = 10> (sw) k = Cast <to = 1> (half)" + weight(scale="k"),
    "codes, scale in codes": "k = DequantizeLinear (iw, s)" + weight(scale="k"),
    "codes, computed zero-point": "k = Identity (iw)" + weight(zero="k"),
    "computed float": "wd = Neg (f)",
    "float": "wd = Identity (f)",
    "Constant node": f"k = Constant <value = int8[4, 4, 3, 3] {{{ONES}}}> ()" + weight(codes="k"),
}


@pytest.mark.parametrize("path", ON_CODES)
def test_operators_on_the_codes_of_a_weight(path: str) -> None:
    graph = int8(IN + ON_CODES[path] + LAYER + OUT, constants="int32 two = {2}")
    assert found(graph, "weight-path") == [("conv", f"a weight through {path}")]
    assert not nodes(graph, "weight-detour")


@pytest.mark.parametrize("path", DETOURS)
def test_operators_behind_the_dequantizer_of_a_weight(path: str) -> None:
    graph = int8(IN + DETOURS[path] + LAYER + OUT)
    assert found(graph, "weight-detour") == [("conv", f"a weight through {path}")]
    assert not nodes(graph, "weight-path")


@pytest.mark.parametrize("name", DIRECT)
def test_direct_ways_of_a_weight(name: str) -> None:
    graph = int8(IN + DIRECT[name] + LAYER + OUT)
    for rule in ("weight-path", "weight-detour"):
        assert not nodes(graph, rule)


def test_activations_are_not_weights() -> None:
    body = IN + "t = Transpose (d) [product] c = MatMul (d, t)" + OUT
    for rule in ("weight-path", "weight-detour", "float-weight", "weight-axis"):
        assert not nodes(int8(body), rule)


def test_a_float_weight_beside_codes() -> None:
    graph = int8(IN + "[conv] c = Conv (d, f)" + OUT)
    assert found(graph, "float-weight") == [("conv", "activation in codes (dq_d), weight in float")]
    assert not nodes(int8(CONV), "float-weight")
    assert not nodes(int8("y = Conv (x, f)"), "float-weight")


def test_a_convolution_with_4_bits_and_codes() -> None:
    body = weight(zero="in", codes="n") + "[layer] c = Conv (d, wd)" + OUT
    graph = int8(IN + body)
    assert found(graph, "narrow-conv-weight") == [("layer", "int8 activation with a weight of type int4")]
    for other in (body.replace("(d,", "(x,"), IN + body.replace("Conv", "ConvTranspose"), CONV):
        assert not nodes(int8(other), "narrow-conv-weight")


def test_codes_of_two_types_in_front_of_a_layer() -> None:
    body = weight(scale="s1", zero="n0", codes="n") + "[product] c = MatMul (d, wd)" + OUT
    graph = int8(IN + body, constants="int4 n0 = {0}", **MATRIX)
    assert found(graph, "operand-types") == [("product", "int8 codes times int4 codes")]
    for other in (IN + weight(1, zero="in", codes="n") + "c = MatMul (d, wd)" + OUT, body.replace("(d,", "(x,")):
        assert not nodes(int8(other, constants="int4 n0 = {0}", **MATRIX), "operand-types")


def test_blocks_in_a_convolution() -> None:
    numbers = ", ".join(["1"] * 72)
    constants = f"float[4, 2, 3, 3] sb2 = {{{numbers}}}, int8[4, 2, 3, 3] zb2 = {{{numbers}}}"
    body = IN + "wd = DequantizeLinear <axis = 1, block_size = 2> (w, sb2, zb2)" + LAYER + OUT
    graph = int8(body, constants=constants)
    assert found(graph, "blocked-conv-weight") == [("conv", "a weight with scales in blocks of 2")]
    assert not nodes(graph, "weight-axis")
    assert not nodes(int8(CONV), "blocked-conv-weight")


def test_blocks_in_a_product_of_codes() -> None:
    constants = "float[1, 4] sb4 = {1, 1, 1, 1}, int8[1, 4] zb4 = {0, 0, 0, 0}"
    blocks = "wd = DequantizeLinear <axis = 0, block_size = 4> (w, sb4, zb4)"
    graph = int8(IN + blocks + "[product] c = MatMul (d, wd)" + OUT, constants=constants, **MATRIX)
    assert found(graph, "blocked-product") == [("product", "int8 activation, weight scales in blocks of 4")]
    for other in (blocks + "c = MatMul (x, wd)" + OUT, IN + weight(1) + "c = MatMul (d, wd)" + OUT):
        assert not nodes(int8(other, constants=constants, **MATRIX), "blocked-product")


def test_a_matmul_whose_activation_is_rounded() -> None:
    graph = int8(weight(1) + "[product] y = MatMul (x, wd)", **MATRIX)
    assert found(graph, "rounded-activation") == [
        ("product", "float activation, int8 weight: the activation is rounded to int8")
    ]
    assert not nodes(int8(layer(1, "MatMul"), **MATRIX), "rounded-activation")
    assert not nodes(int8("y = MatMul (x, f)", **MATRIX), "rounded-activation")
