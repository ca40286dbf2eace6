"""The rules about layers that stay float, against the graphs that onnxruntime really runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.graph.lint.graphs import CONV, IN, OUT, WEIGHT, found, linted, model, nodes, optimised_operators

# Rules that say that a layer runs in float.
FLOAT_RULES = (
    "float-input",
    "float-output",
    "unabsorbed-activation",
    "int8-fan-out",
    "narrow-weight",
    "sixteen-bit-codes",
    "half-scale",
    "per-channel-input",
    "no-integer-kernel",
    "float-bias-of-gemm",
)
FLOAT_OPERATORS = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
MATRIX: dict[str, Any] = {"x": "2, 4", "y": "a, b", "weight": (4, 4)}
ROWS: dict[str, Any] = {"x": "1, 2, 4", "y": "a, b, c", "weight": (4, 4)}
COLUMNS = "[dqw] wd = DequantizeLinear <axis = 1> (w, sw, iw) "
BIAS = "bd = DequantizeLinear <axis = 0> (b, sb, iz) "
IZ = "int32[4] iz = {0, 0, 0, 0}"
FAN = " k = DequantizeLinear (p, s2, {0}) y = Add (k, k)"
SHIFTED = IN.replace("DequantizeLinear (q", 'Clip (q, ulo, uhi) t = BitShift <direction = "LEFT"> (e, two) d = Dequant')


def conv(tail: str, layer: str = "[conv] c = Conv (d, wd)", weight: str = WEIGHT, front: str = IN) -> str:
    return front + weight + layer + tail


def through(operator: str) -> str:
    """An operator between the convolution and its Q."""
    return conv(f" o = {operator}" + OUT.replace("(c,", "(o,"))


# name: (text, options of the graph)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "conv": (CONV, {}),
    "relu": (through("Relu (c)"), {}),
    "relu, relu": (through("Relu (c) oo = Relu (o)").replace("(o, s2", "(oo, s2"), {}),
    "clip inside the codes": (through("Clip (c, lo, hi)"), {}),
    "clip around the codes": (through("Clip (c, lo, high)"), {"constants": "float high = {20}"}),
    "clip around int8": (through("Clip (c, low, high)"), {"constants": "float high = {20}, float low = {-20}"}),
    "clip without bounds": (through("Clip (c)"), {}),
    "relu and clip inside": (through("Relu (c) oo = Clip (o, lo, hi)").replace("(o, s2", "(oo, s2"), {}),
    "transpose": (through("Transpose <perm = [0, 2, 3, 1]> (c)"), {}),
    "maxpool": (through("MaxPool <kernel_shape = [2, 2]> (c)"), {}),
    "relu, maxpool": (through("Relu (c) oo = MaxPool <kernel_shape = [2, 2]> (o)").replace("(o, s2", "(oo, s2"), {}),
    "reshape": (through("Reshape (c, sh)"), {"constants": "int64[2] sh = {1, -1}", "y": "a, b"}),
    "slice": (through("Slice (c, b0, b1)"), {"constants": "int64[4] b0 = {0,0,0,0}, int64[4] b1 = {1,2,4,4}"}),
    "flatten": (through("Flatten (c)"), {"y": "a, b"}),
    "resize": (through("Resize (c, , rs)"), {"constants": "float[4] rs = {1, 1, 2, 2}"}),
    "batchnorm": (through("BatchNormalization (c, one, one, one, one)"), {}),
    "mul": (through("Mul (c, s)"), {}),
    "identity": (through("Identity (c)"), {}),
    "float output": (conv(" y = Relu (c)"), {}),
    "graph output": (conv("", "[conv] y = Conv (d, wd)"), {}),
    "q and another reader": (conv(OUT.replace("y =", "k =") + " y = Add (k, c)"), {}),
    "two scales": (conv(OUT.replace("y =", "k =") + " z = QuantizeLinear (c, s, {0}) v = DequantizeLinear (z, s, {0}) y = Add (k, v)"), {}),
    "two equal q": (conv(OUT.replace("y =", "k =") + " z = QuantizeLinear (c, s2, {0}) v = DequantizeLinear (z, s2, {0}) y = Add (k, v)"), {}),
    "codes read twice": (conv(OUT.replace("y =", "m =") + " k = DequantizeLinear (p, s2, {0}) y = Add (k, m)"), {}),
    "input read twice": (conv(OUT.replace("y =", "k =") + " y = Add (k, d)", "[conv] c = Conv <pads = [1,1,1,1]> (d, wd)"), {}),
    "moved codes read twice": (through("Transpose (c)").replace("y = De", "k = De") + " y = Add (k, k)", {}),
    "clip on codes behind": (conv(" p = QuantizeLinear (c, s2, u) o = Clip (p, ulo, uhi) y = DequantizeLinear (o, s2, u)"), {}),
    "clip on int8 codes behind": (conv(" p = QuantizeLinear (c, s2, i) o = Clip (p, ilo, ihi) y = DequantizeLinear (o, s2, i)"), {}),
    "clip on codes in front": ("q = QuantizeLinear (x, s, u) o = Clip (q, ulo, uhi) d = DequantizeLinear (o, s, u) " + WEIGHT + "c = Conv (d, wd)" + OUT, {}),
    "clip on int8 codes in front": ("q = QuantizeLinear (x, s, i) o = Clip (q, ilo, ihi) d = DequantizeLinear (o, s, i) " + WEIGHT + "c = Conv (d, wd)" + OUT, {}),
    "moved input": (IN + WEIGHT + "e = MaxPool <kernel_shape = [2, 2]> (d) [conv] c = Conv (e, wd)" + OUT, {"opset": 17}),
    "float input": (WEIGHT + "[conv] c = Conv (x, wd)" + OUT, {}),
    "relu in front": (IN + WEIGHT + "e = Relu (d) [conv] c = Conv (e, wd)" + OUT, {}),
    "int4 weight": (conv(OUT, weight="wd = DequantizeLinear <axis = 0> (n, sw, in) "), {}),
    "uint8 weight": (conv(OUT, weight="wd = DequantizeLinear (wu, s1, um) "), {}),
    "one scale": (conv(OUT, weight="wd = DequantizeLinear (w, s1, i) "), {}),
    "float, q, dq weight": (conv(OUT, weight="wq = QuantizeLinear <axis = 0> (f, sw, iw) wd = DequantizeLinear <axis = 0> (wq, sw, iw) "), {}),
    "clipped weight": (conv(OUT, weight="wc = Clip (w, ilo, ihi) wd = DequantizeLinear <axis = 0> (wc, sw, iw) "), {}),
    "depthwise": (conv(OUT, "[conv] c = Conv <group = 4> (d, wd)"), {"weight": (4, 1, 3, 3)}),
    "float bias": (conv(OUT, "[conv] c = Conv (d, wd, bias)"), {}),
    "int32 bias": (conv(OUT, BIAS + "[conv] c = Conv (d, wd, bd)"), {"constants": IZ}),
    "deconvolution": (conv(OUT, "[conv] c = ConvTranspose (d, wd)", weight="wd = DequantizeLinear (w, s1, i) "), {}),
    "per-channel input": ("q = QuantizeLinear <axis = 1> (x, sw, iw) d = DequantizeLinear <axis = 1> (q, sw, iw) " + WEIGHT + "c = Conv (d, wd)" + OUT, {}),
    "two convolutions": (IN + WEIGHT + "a = Conv (d, wd) aq = QuantizeLinear (a, s2, {0}) ad = DequantizeLinear (aq, s2, {0}) c = Conv (ad, wd)" + OUT, {}),
    "matmul": (IN + COLUMNS + "c = MatMul (d, wd)" + OUT, MATRIX),
    "matmul, float output": (IN + COLUMNS + "y = MatMul (d, wd)", MATRIX),
    "matmul, relu": (IN + COLUMNS + "e = MatMul (d, wd) c = Relu (e)" + OUT, MATRIX),
    "matmul, relu, float": (IN + COLUMNS + "e = MatMul (d, wd) y = Relu (e)", MATRIX),
    "matmul, q and reader": (IN + COLUMNS + "c = MatMul (d, wd)" + OUT.replace("y =", "k =") + " y = Add (k, c)", MATRIX),
    "matmul, codes read twice": (IN + COLUMNS + "c = MatMul (d, wd)" + OUT.replace("y =", "k =") + " y = Add (k, k)", MATRIX),
    "matmul, bias": (IN + COLUMNS + "c = MatMul (d, wd) y = Add (c, bias)", MATRIX),
    "matmul, bias, q": (IN + COLUMNS + "e = MatMul (d, wd) c = Add (e, bias)" + OUT, MATRIX),
    "matmul, int32 bias": (IN + COLUMNS + BIAS + "c = MatMul (d, wd) y = Add (c, bd)", {**MATRIX, "constants": IZ}),
    "matmul, bias, relu, q": (IN + COLUMNS + "e = MatMul (d, wd) g = Add (e, bias) c = Relu (g)" + OUT, MATRIX),
    "rows, bias": (IN + COLUMNS + "c = MatMul (d, wd) y = Add (c, bias)", {**ROWS, "opset": 17}),
    "open rows, bias": (IN + COLUMNS + "c = MatMul (d, wd) y = Add (c, bias)", {**ROWS, "x": "N, 2, 4"}),
    "rows, input read twice": (IN + COLUMNS + "c = MatMul (d, wd) y = Add (c, d)", ROWS),
    "two activations": (IN + "c = MatMul (d, d)" + OUT, {}),
    "two activations of their own": (IN + "q3 = QuantizeLinear (x, s2, {0}) d3 = DequantizeLinear (q3, s2, {0}) c = MatMul (d, d3)" + OUT, {}),
    "matmul, int4": (IN + "wd = DequantizeLinear <axis = 1> (n, sw, in) c = MatMul (d, wd)" + OUT, MATRIX),
    "gemm": (IN + WEIGHT + "c = Gemm <transB = 1> (d, wd)" + OUT, MATRIX),
    "gemm, float output": (IN + WEIGHT + "y = Gemm <transB = 1> (d, wd)", MATRIX),
    "gemm, bias, float output": (IN + WEIGHT + "y = Gemm <transB = 1> (d, wd, bias)", MATRIX),
    "gemm, bias": (IN + WEIGHT + "c = Gemm <transB = 1> (d, wd, bias)" + OUT, MATRIX),
    "gemm, int32 bias, float output": (IN + WEIGHT + BIAS + "y = Gemm <transB = 1> (d, wd, bd)", {**MATRIX, "constants": IZ}),
    "gemm, relu": (IN + WEIGHT + BIAS + "e = Gemm <transB = 1> (d, wd, bd) c = Relu (e)" + OUT, {**MATRIX, "constants": IZ}),
    "gemm, clip": (IN + WEIGHT + "e = Gemm <transB = 1> (d, wd) c = Clip (e, lo, hi)" + OUT, MATRIX),
    "gemm, float clip": (IN + WEIGHT + "e = Gemm <transB = 1> (d, wd) y = Clip (e, lo, hi)", MATRIX),
    "gemm, q and reader": (IN + WEIGHT + "c = Gemm <transB = 1> (d, wd)" + OUT.replace("y =", "k =") + " y = Add (k, c)", MATRIX),
    "gemm, codes read twice": (IN + WEIGHT + "c = Gemm <transB = 1> (d, wd)" + OUT.replace("y =", "k =") + " y = Add (k, k)", MATRIX),
    "gemm, input read twice": (IN + WEIGHT + "c = Gemm <transB = 1> (d, wd) y = Add (c, d)", MATRIX),
    "gemm, input read twice, q": (IN + WEIGHT + "c = Gemm <transB = 1> (d, wd)" + OUT.replace("y =", "k =") + " y = Add (k, d)", MATRIX),
    "gemm, alpha": (IN + WEIGHT + "y = Gemm <transB = 1, alpha = 0.5> (d, wd)", MATRIX),
    "gemm, alpha, bias": (IN + WEIGHT + BIAS + "y = Gemm <transB = 1, alpha = 0.5> (d, wd, bd)", {**MATRIX, "constants": IZ}),
    "gemm, beta, bias": (IN + WEIGHT + BIAS + "y = Gemm <transB = 1, beta = 0.5> (d, wd, bd)", {**MATRIX, "constants": IZ}),
    "gemm, weight only": (WEIGHT + "y = Gemm <transB = 1> (x, wd)", MATRIX),
}  # fmt: skip


@pytest.mark.parametrize("zero_point", ["u", "i", "im"])
@pytest.mark.parametrize("name", CASES)
def test_a_layer_stays_float_exactly_where_a_rule_says_so(name: str, zero_point: str, tmp_path: Path) -> None:
    text, options = CASES[name]
    graph = model(text.replace("{0}", zero_point), **options)
    layers = {node for rule in FLOAT_RULES for node in nodes(graph, rule)}
    ran = optimised_operators(graph, tmp_path)
    assert len(layers) == sum(ran[operator] for operator in FLOAT_OPERATORS), (layers, ran)
