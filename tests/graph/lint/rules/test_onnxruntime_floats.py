"""The rules about layers that stay float, against the graphs that onnxruntime really runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.graph.lint.rules.onnxruntime_floats import FLOAT_RULES
from tests.graph.lint.graphs import (
    CONV,
    IN,
    LAYER,
    OUT,
    WEIGHT,
    found,
    model,
    nodes,
    optimised_operators,
    pair,
    weight,
    with_zero,
)
from tests.graph.running import needs_current_onnxruntime, run, watched

FLOAT_OPERATORS = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
MATRIX: dict[str, Any] = {"x": "2, 4", "y": "a, b", "shape": (4, 4)}
ROWS: dict[str, Any] = {"x": "1, 2, 4", "y": "a, b, c", "shape": (4, 4)}
BIAS = " bd = DequantizeLinear <axis = 0> (b, sb, iz) "
WITH_BIAS: dict[str, Any] = {"constants": "int32[4] iz = {0, 0, 0, 0}"}
BLOCKS = "wd = DequantizeLinear <axis = 1, block_size = 2> (w, s72, z72)"
WITH_BLOCKS: dict[str, Any] = {
    "constants": f"float[4, 2, 3, 3] s72 = {{{', '.join(['0.1', '0.2'] * 36)}}},"
    f"int8[4, 2, 3, 3] z72 = {{{', '.join(['0'] * 72)}}}"
}
ROW_BLOCKS = "wd = DequantizeLinear <axis = 0, block_size = 2> (w, s8, z8)"
WITH_ROW_BLOCKS: dict[str, Any] = {
    "constants": "float[2, 4] s8 = {1, 2, 3, 4, 5, 6, 7, 8}, int8[2, 4] z8 = {0, 0, 0, 0, 0, 0, 0, 0}"
}
ONE_SCALE = weight(scale="s1", zero="i")
ODD_BIAS: dict[str, Any] = {
    "constants": "float[4] near = {0.00504, 0.01009, 0.00504, 0.01514},"
    "float[4] far = {0.0052, 0.0104, 0.0052, 0.0156},"
    "int32[4] shift = {0, 0, 0, 1}, float tiny = {0.001}, float[4] other = {2e-6, 2e-6, 5e-7, 2e-6},"
    "int8[4] b8 = {1, 2, 3, 4}, int8 i0 = {0}"
}
BIAS_8 = " bd = DequantizeLinear (b8, s, i0) "
MATMUL = IN + weight(1) + " [layer] c = MatMul (d, wd) "
GEMM = IN + WEIGHT + " [layer] c = Gemm <transB = 1> (d, wd) "
ROUND = " [conv] c = Conv <pads = [1, 1, 1, 1]> (d, wd) "  # gives the shape that it takes


ZERO_INT32: dict[str, Any] = {"constants": "int32 b0 = {0}"}


LEFT: dict[str, Any] = {"x": "4, 2", "y": "a, b", "shape": (4, 4)}
LEFT_UINT8 = weight(scale="s1", zero="um", codes="wu")
LEFT_ROWS = weight(zero="rows", codes="wu")
WITH_UINT8_ROWS = {"constants": "uint8[4] rows = {128, 128, 128, 128}"}
STACK: dict[str, Any] = {"x": "2, 4, 4", "y": "a, b, c", "shape": (2, 4, 4), "opset": 20}
COMPUTED = "sum = ReduceMax <keepdims = 0> (x, axes) "
WITH_CHANNELS: dict[str, Any] = {"constants": "int64[3] axes = {0, 2, 3}"}
WITH_COLUMNS: dict[str, Any] = {"constants": "int64[1] axes = {0}"}
OTHER_TYPES = {"fp8": "e = Cast <to = 17> (lo) ", "uint4": "e = Cast <to = 21> (u) ", "int4": "e = Cast <to = 22> (i) "}
FP8 = OTHER_TYPES["fp8"]
FP8_WEIGHT = "k8 = QuantizeLinear (f, s1, e) wd = DequantizeLinear (k8, s1, e) "


def conv(tail: str, layer: str = LAYER, *, made: str = WEIGHT, front: str = IN) -> str:
    return front + made + layer + tail


def through(*operators: str) -> str:
    """Operators between the convolution and its Q, `Relu (*)`."""
    text, tensor = "", "c"
    for index, operator in enumerate(operators):
        text += f" o{index} = {operator.replace('*', tensor)} "
        tensor = f"o{index}"
    return conv(text + pair(tensor, "y"))


# name: (text, options of the graph)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "conv": (CONV, {}),
    "depthwise": (conv(OUT, "c = Conv <group = 4> (d, wd)"), {"shape": (4, 1, 3, 3)}),
    "two convolutions": (IN + WEIGHT + "a = Conv (d, wd)" + pair("a", "ad") + "c = Conv (ad, wd)" + OUT, {}),
    # what stands between a convolution and its Q
    "relu": (through("Relu (*)"), {}),
    "relu, relu": (through("Relu (*)", "Relu (*)"), {}),
    "clip inside the codes": (through("Clip (*, lo, hi)"), {}),
    "clip around unsigned codes": (through("Clip (*, lo, top)"), {"constants": "float top = {20}"}),
    "clip around the codes": (
        through("Clip (*, low, top)"),
        {"constants": "float top = {20}, float low = {-20}"},
    ),
    "clip without bounds": (through("Clip (*)"), {}),
    "relu and clip inside": (through("Relu (*)", "Clip (*, lo, hi)"), {}),
    "transpose": (through("Transpose <perm = [0, 2, 3, 1]> (*)"), {}),
    "maxpool": (through("MaxPool <kernel_shape = [2, 2]> (*)"), {}),
    "relu, maxpool": (through("Relu (*)", "MaxPool <kernel_shape = [2, 2]> (*)"), {}),
    "maxpool, relu": (through("MaxPool <kernel_shape = [2, 2]> (*)", "Relu (*)"), {}),
    "reshape": (through("Reshape (*, to)"), {"constants": "int64[2] to = {1, -1}", "y": "a, b"}),
    "slice": (through("Slice (*, b0, b1)"), {"constants": "int64[4] b0 = {0,0,0,0}, int64[4] b1 = {1,2,4,4}"}),
    "flatten": (through("Flatten (*)"), {"y": "a, b"}),
    "resize": (through("Resize (*, , by)"), {"constants": "float[4] by = {1, 1, 2, 2}"}),
    "batchnorm": (through("BatchNormalization (*, one, one, one, one)"), {}),
    "mul": (through("Mul (*, s)"), {}),
    "identity": (through("Identity (*)"), {}),
    # who reads its result
    "float output": (conv(" y = Relu (c)"), {}),
    "graph output": (conv("", "[conv] y = Conv (d, wd)"), {}),
    "q and another reader": (conv(pair("c", "k") + "y = Add (k, c)"), {}),
    "two scales": (conv(pair("c", "k") + pair("c", "v", "s") + "y = Add (k, v)"), {}),
    "two equal q": (conv(pair("c", "k") + pair("c", "v") + "y = Add (k, v)"), {}),
    "result read twice": (conv(pair("c", "k") + "y = Add (k, k)"), {}),
    "input read twice": (conv(pair("c", "k") + "y = Add (k, d)", ROUND), {}),
    "moved result read twice": (conv("t = Transpose (c)" + pair("t", "k") + "y = Add (k, k)"), {}),
    "sixteen bits behind": (conv(pair("c", "y", zero="uh")), {}),
    "clip on codes behind": (conv(pair("c", "y", zero="u", on_codes="Clip (*, ulo, uhi)")), {}),
    "clip on int8 codes behind": (conv(pair("c", "y", zero="i", on_codes="Clip (*, ilo, ihi)")), {}),
    # what it reads
    "clip on codes in front": (conv(OUT, front=pair("x", "d", "s", "u", on_codes="Clip (*, ulo, uhi)")), {}),
    "clip on int8 codes in front": (conv(OUT, front=pair("x", "d", "s", "i", on_codes="Clip (*, ilo, ihi)")), {}),
    "moved input": (
        conv(OUT, "m = MaxPool <kernel_shape = [2, 2]> (d) [conv] c = Conv (m, wd)"),
        {"opset": 17},
    ),
    "float input": (conv(OUT, "[conv] c = Conv (x, wd)", front=""), {}),
    "relu in front": (conv(OUT, "r = Relu (d) [conv] c = Conv (r, wd)"), {}),
    "zero-point by a cast in front": (conv(OUT, front="z = Cast <to = 2> (b0)" + pair("x", "d", "s", "z")), ZERO_INT32),
    "zero-point by a cast, float output": (
        conv("y = Relu (c)", front="z = Cast <to = 2> (b0)" + pair("x", "d", "s", "z")),
        ZERO_INT32,
    ),
    "sixteen bits in front by a cast": (
        conv(OUT, front="z = Cast <to = 5> (b0)" + pair("x", "d", "s", "z")),
        ZERO_INT32,
    ),
    "sixteen bits in front": (conv(OUT, front=pair("x", "d", "s", "h")), {}),
    "per-channel input": (conv(OUT, front=pair("x", "d", "sw", "iw")), {}),
    # types without a kernel
    "fp8": (conv(OUT, front=FP8 + pair("x", "d", "s", "e"), made=FP8_WEIGHT), {}),
    "fp8 everywhere": (conv(pair("c", "y", zero="e"), front=FP8 + pair("x", "d", "s", "e"), made=FP8_WEIGHT), {}),
    "fp8 weight": (conv(OUT, front=FP8 + IN, made=FP8_WEIGHT), {}),
    **{
        f"{name} {place}": (text, options)
        for name, zero in OTHER_TYPES.items()
        for place, text, options in (
            ("in front", conv(OUT, front=zero + pair("x", "d", "s", "e")), {}),
            ("behind", conv(pair("c", "y", zero="e"), front=zero + IN), {}),
            ("in front of a matmul", zero + MATMUL.replace(IN, pair("x", "d", "s", "e")) + OUT, MATRIX),
            ("behind a matmul", zero + MATMUL + pair("c", "y", zero="e"), MATRIX),
            ("behind a gemm", zero + GEMM + pair("c", "y", zero="e"), MATRIX),
        )
    },
    # its weight and bias
    "int4 weight": (conv(OUT, made=weight(zero="in", codes="n")), {}),
    "uint8 weight": (conv(OUT, made=weight(scale="s1", zero="um", codes="wu")), {}),
    "one scale": (conv(OUT, made=ONE_SCALE), {}),
    "float weight, q, dq": (
        conv(OUT, made="wq = QuantizeLinear <axis = 0> (f, sw, iw)" + weight(codes="wq")),
        {},
    ),
    "clipped weight": (conv(OUT, made="wc = Clip (w, ilo, ihi)" + weight(codes="wc")), {}),
    "float bias": (conv(OUT, "c = Conv (d, wd, bias)"), {}),
    "float bias, handed out": (conv(OUT, "c = Conv (d, wd, bias)"), {"outputs": "float[e, f, g, h] c"}),
    "float bias, relu, handed out": (
        conv("r = Relu (c)" + pair("r", "y"), "c = Conv (d, wd, bias)"),
        {"outputs": "float[e, f, g, h] r"},
    ),
    "float bias, copy handed out": (
        conv(OUT + "h = Identity (c)", "c = Conv (d, wd, bias)"),
        {"outputs": "float[e, f, g, h] h"},
    ),
    "computed bias": (conv(OUT, "c = Conv (d, wd, sum)", front=COMPUTED + IN), WITH_CHANNELS),
    "computed bias, scales of another axis": (
        conv(OUT, "c = Conv (d, wd, sum)", front=COMPUTED + IN, made=weight(1)),
        WITH_CHANNELS,
    ),
    "gemm, computed bias": (COMPUTED + IN + WEIGHT + "c = Gemm <transB = 1> (d, wd, sum)" + OUT, MATRIX | WITH_COLUMNS),
    "bias computed from a constant": (conv(OUT, "k = Neg (bias) c = Conv (d, wd, k)"), {}),
    "int32 bias": (conv(OUT, BIAS + "c = Conv (d, wd, bd)"), WITH_BIAS),
    **{
        f"bias of {what}": (conv(OUT, f" {made} c = Conv (d, wd, bd)"), ODD_BIAS)
        for what, made in {
            "8 bits": BIAS_8,
            "nearly the right scale": "bd = DequantizeLinear <axis = 0> (b, near)",
            "another scale": "bd = DequantizeLinear <axis = 0> (b, far)",
            "one scale": "bd = DequantizeLinear (b, s1)",
            "a zero-point": "bd = DequantizeLinear <axis = 0> (b, sb, shift)",
            "a folded scale": "k = Mul (s, sw) bd = DequantizeLinear <axis = 0> (b, k)",
            "a scale that is computed": "m = ReduceMax <keepdims = 0> (x) k = Mul (m, sw)"
            " bd = DequantizeLinear <axis = 0> (b, k)",
            "a zero-point that is computed": "m = ReduceMax <keepdims = 0> (x) k = Cast <to = 6> (m)"
            " bd = DequantizeLinear <axis = 0> (b, sb, k)",
            "a copy of what a DQ makes": "k = DequantizeLinear <axis = 0> (b, sb) bd = Identity (k)",
            "what is made of a DQ": "k = DequantizeLinear <axis = 0> (b, sb) bd = Neg (k)",
        }.items()
    },
    "bias of a scale, input at one that is computed": (
        conv(OUT, BIAS + "c = Conv (d, wd, bd)", front="k = ReduceMax <keepdims = 0> (x)" + pair("x", "d", "k")),
        WITH_BIAS,
    ),
    "bias of a tiny scale": (
        conv(
            OUT,
            "bd = DequantizeLinear <axis = 0> (b, other) c = Conv (d, wd, bd)",
            made=weight(scale="tiny", zero="i"),
            front=pair("x", "d", "tiny"),
        ),
        ODD_BIAS,
    ),
    "blocks, int32 bias": (
        conv(OUT, "bd = DequantizeLinear <axis = 0> (b, sb) c = Conv (d, wd, bd)", made=BLOCKS),
        WITH_BLOCKS,
    ),
    "deconvolution": (conv(OUT, "c = ConvTranspose (d, wd)", made=ONE_SCALE), {}),
    "scales of another axis": (conv(OUT, made=weight(1)), {}),
    "scales of another axis, float bias": (conv(OUT, "c = Conv (d, wd, bias)", made=weight(1)), {}),
    "scales of another axis, int32 bias": (conv(OUT, BIAS + "c = Conv (d, wd, bd)", made=weight(1)), WITH_BIAS),
    "blocks": (conv(OUT, made=BLOCKS), WITH_BLOCKS),
    "blocks, float bias": (conv(OUT, "c = Conv (d, wd, bias)", made=BLOCKS), WITH_BLOCKS),
    # MatMul
    "matmul": (MATMUL + OUT, MATRIX),
    "matmul, float output": (IN + weight(1) + "y = MatMul (d, wd)", MATRIX),
    "matmul, relu": (MATMUL + "r = Relu (c)" + pair("r", "y"), MATRIX),
    "matmul, relu, float": (MATMUL + "y = Relu (c)", MATRIX),
    "matmul, q and reader": (MATMUL + pair("c", "k") + "y = Add (k, c)", MATRIX),
    "matmul, result read twice": (MATMUL + pair("c", "k") + "y = Add (k, k)", MATRIX),
    "matmul, int4": (IN + weight(1, zero="in", codes="n") + "c = MatMul (d, wd)" + OUT, MATRIX),
    "matmul, bias": (MATMUL + "y = Add (c, bias)", MATRIX),
    "matmul, bias, q": (MATMUL + "a = Add (c, bias)" + pair("a", "y"), MATRIX),
    "matmul, bias, relu, q": (MATMUL + "a = Add (c, bias) r = Relu (a)" + pair("r", "y"), MATRIX),
    "matmul, int32 bias": (MATMUL + BIAS + "y = Add (c, bd)", MATRIX | WITH_BIAS),
    "matmul, bias of 8 bits": (MATMUL + BIAS_8 + "y = Add (c, bd)", MATRIX | ODD_BIAS),
    "matmul, bias of 8 bits, q": (MATMUL + BIAS_8 + "a = Add (c, bd)" + pair("a", "y"), MATRIX | ODD_BIAS),
    "matmul, float bias, com.microsoft": (
        (MATMUL + "y = Add (c, bias)").replace("= Q", "= com.microsoft.Q").replace("= D", "= com.microsoft.D"),
        MATRIX,
    ),
    **{
        f"rows, {kind} bias, {behind}": (MATMUL + BIAS + f"a = Add (c, {name})" + tail, ROWS | WITH_BIAS | more)
        for kind, name in (("float", "bias"), ("int32", "bd"))
        for behind, tail, more in (
            ("q", pair("a", "y"), {"opset": 20}),
            ("relu, q", "r = Relu (a)" + pair("r", "y"), {"opset": 20}),
            ("clip, q", "r = Clip (a, lo, hi)" + pair("r", "y"), {"opset": 20}),
            ("relu, one reader", "r = Relu (a) y = Neg (r)", {"opset": 20}),
            ("q and another", pair("a", "k") + "y = Add (a, k)", {"opset": 20}),
            ("result read twice", pair("a", "k") + "y = Add (k, k)", {"opset": 20}),
            ("input read twice", pair("a", "k") + "y = Add (k, d)", {"opset": 20}),
            ("q, handed out", pair("a", "y"), {"opset": 20, "outputs": "float[e, f, g] a"}),
            ("relu, q, handed out", "r = Relu (a)" + pair("r", "y"), {"opset": 20, "outputs": "float[e, f, g] r"}),
            ("open, relu, q", "r = Relu (a)" + pair("r", "y"), {"opset": 20, "x": "N, 2, 4"}),
        )
    },
    "rows, bias": (MATMUL + "y = Add (c, bias)", ROWS | {"opset": 17}),
    "open rows, bias": (MATMUL + "y = Add (c, bias)", ROWS | {"x": "N, 2, 4"}),
    "rows, input read twice": (MATMUL + "y = Add (c, d)", ROWS),
    "an activation with itself": (IN + "c = MatMul (d, d)" + OUT, {}),
    "two activations": (IN + pair("x", "e") + "c = MatMul (d, e)" + OUT, {}),
    "matmul, rows": (IN + weight(0) + "c = MatMul (d, wd)" + OUT, MATRIX),
    "matmul, rows, float output": (IN + weight(0) + "y = MatMul (d, wd)", MATRIX),
    "matmul, blocks": (IN + ROW_BLOCKS + "c = MatMul (d, wd)" + OUT, MATRIX | WITH_ROW_BLOCKS),
    "matmul, blocks, float output": (IN + ROW_BLOCKS + "y = MatMul (d, wd)", MATRIX | WITH_ROW_BLOCKS),
    # MatMul of a constant on the left, and of a stack of matrices
    "left, uint8": (IN + LEFT_UINT8 + "c = MatMul (wd, d)" + OUT, LEFT),
    "left, uint8, float output": (IN + LEFT_UINT8 + "y = MatMul (wd, d)", LEFT),
    "left, uint8, input read twice": (IN + LEFT_UINT8 + "c = MatMul (wd, d) z = Relu (d)" + OUT, LEFT),
    "left, uint8 rows": (IN + LEFT_ROWS + "c = MatMul (wd, d)" + OUT, LEFT | WITH_UINT8_ROWS),
    "left, uint8 rows, float output": (IN + LEFT_ROWS + "y = MatMul (wd, d)", LEFT | WITH_UINT8_ROWS),
    "left, int8": (IN + ONE_SCALE + "c = MatMul (wd, d)" + OUT, LEFT),
    "left, int8 rows": (IN + weight(0) + "c = MatMul (wd, d)" + OUT, LEFT),
    "left, int8 rows, float output": (IN + weight(0) + "y = MatMul (wd, d)", LEFT),
    "left, int8 columns, float output": (IN + weight(1) + "y = MatMul (wd, d)", LEFT),
    "stack": (IN + weight(2) + "c = MatMul (d, wd)" + OUT, STACK),
    "stack, float output": (IN + weight(2) + "y = MatMul (d, wd)", STACK),
    "stack, bias, q": (IN + weight(2) + "c = MatMul (d, wd) a = Add (c, bias)" + pair("a", "y"), STACK),
    "stack, rows": (IN + weight(1) + "c = MatMul (d, wd)" + OUT, STACK),
    "stack, one scale": (IN + ONE_SCALE + "c = MatMul (d, wd)" + OUT, STACK),
    "stack, one scale, bias": (IN + ONE_SCALE + "c = MatMul (d, wd) y = Add (c, bias)", STACK),
    # Gemm
    "gemm, another axis": (IN + weight(1) + "c = Gemm <transB = 1> (d, wd)" + OUT, MATRIX),
    "gemm, another axis, bias": (IN + weight(1) + "c = Gemm <transB = 1> (d, wd, bias)" + OUT, MATRIX),
    "gemm, another axis, float output": (IN + weight(1) + "y = Gemm <transB = 1> (d, wd)", MATRIX),
    "gemm, blocks": (IN + ROW_BLOCKS + "c = Gemm (d, wd)" + OUT, MATRIX | WITH_ROW_BLOCKS),
    "gemm, blocks, bias": (IN + ROW_BLOCKS + "c = Gemm (d, wd, bias)" + OUT, MATRIX | WITH_ROW_BLOCKS),
    "gemm": (GEMM + OUT, MATRIX),
    "gemm, float output": (IN + WEIGHT + "y = Gemm <transB = 1> (d, wd)", MATRIX),
    "gemm, relu": (GEMM + "r = Relu (c)" + pair("r", "y"), MATRIX),
    "gemm, clip": (GEMM + "r = Clip (c, lo, hi)" + pair("r", "y"), MATRIX),
    "gemm, float clip": (GEMM + "y = Clip (c, lo, hi)", MATRIX),
    "gemm, q and reader": (GEMM + pair("c", "k") + "y = Add (k, c)", MATRIX),
    "gemm, result read twice": (GEMM + pair("c", "k") + "y = Add (k, k)", MATRIX),
    "gemm, input read twice": (GEMM + "y = Add (c, d)", MATRIX),
    "gemm, input read twice, q": (GEMM + pair("c", "k") + "y = Add (k, d)", MATRIX),
    "matmul, weight on the left": (weight(0) + "y = MatMul (wd, x)", MATRIX | {"x": "4, 2"}),
    "gemm, weight only": (WEIGHT + "y = Gemm <transB = 1> (x, wd)", MATRIX),
    "gemm, bias": (IN + WEIGHT + "c = Gemm <transB = 1> (d, wd, bias)" + OUT, MATRIX),
    "gemm, bias, float output": (IN + WEIGHT + "y = Gemm <transB = 1> (d, wd, bias)", MATRIX),
    "gemm, bias, handed out": (
        IN + WEIGHT + "c = Gemm <transB = 1> (d, wd, bias)" + OUT,
        MATRIX | {"outputs": "float[e, f] c"},
    ),
    "gemm, bias, relu, handed out": (
        IN + WEIGHT + "c = Gemm <transB = 1> (d, wd, bias) r = Relu (c)" + pair("r", "y"),
        MATRIX | {"outputs": "float[e, f] r"},
    ),
    "gemm, copy handed out": (
        GEMM + "copied = Identity (c)" + pair("copied", "y"),
        MATRIX | {"outputs": "float[e, f] copied"},
    ),
    "gemm, copy handed out beside q": (
        GEMM + "copied = Identity (c)" + OUT,
        MATRIX | {"outputs": "float[e, f] copied"},
    ),
    "matmul, bias, handed out": (MATMUL + "a = Add (c, bias)" + pair("a", "y"), MATRIX | {"outputs": "float[e, f] a"}),
    "gemm, int32 bias, float output": (
        IN + WEIGHT + BIAS + "y = Gemm <transB = 1> (d, wd, bd)",
        MATRIX | WITH_BIAS,
    ),
    "gemm, bias of 8 bits": (IN + WEIGHT + BIAS_8 + "c = Gemm <transB = 1> (d, wd, bd)" + OUT, MATRIX | ODD_BIAS),
    "gemm, bias of 8 bits, float output": (
        IN + WEIGHT + BIAS_8 + "y = Gemm <transB = 1> (d, wd, bd)",
        MATRIX | ODD_BIAS,
    ),
    "gemm, bias of what is made of a DQ": (
        IN
        + WEIGHT
        + "k = DequantizeLinear <axis = 0> (b, sb) minus = Neg (k) c = Gemm <transB = 1> (d, wd, minus)"
        + OUT,
        MATRIX,
    ),
    "gemm, alpha": (IN + WEIGHT + "y = Gemm <transB = 1, alpha = 0.5> (d, wd)", MATRIX),
    "matmul, relu, one reader": (MATMUL + "r = Relu (c) y = Mul (r, s1)", MATRIX),
    "matmul, relu, one reader twice": (MATMUL + "r = Relu (c) y = Mul (r, r)", MATRIX),
    "matmul, relu, two readers": (MATMUL + "r = Relu (c) t = Neg (r) y = Mul (r, t)", MATRIX),
    "matmul, relu, relu": (MATMUL + "r = Relu (c) y = Relu (r)", MATRIX),
    "matmul, relu, q and another": (MATMUL + "r = Relu (c)" + pair("r", "k") + "y = Add (k, r)", MATRIX),
    "matmul, clip, one reader": (MATMUL + "r = Clip (c, lo, hi) y = Neg (r)", MATRIX),
    "matmul, sigmoid, one reader": (MATMUL + "r = Sigmoid (c) y = Neg (r)", MATRIX),
    "matmul, transpose, relu": (MATMUL + "t = Transpose (c) r = Relu (t) y = Neg (r)", MATRIX),
    "rows, relu, one reader": (MATMUL + "r = Relu (c) y = Neg (r)", ROWS),
    "gemm, relu, one reader": (GEMM + "r = Relu (c) y = Neg (r)", MATRIX),
    "gemm, alpha, bias": (
        IN + WEIGHT + BIAS + "y = Gemm <transB = 1, alpha = 0.5> (d, wd, bd)",
        MATRIX | WITH_BIAS,
    ),
    "gemm, beta, bias": (
        IN + WEIGHT + BIAS + "y = Gemm <transB = 1, beta = 0.5> (d, wd, bd)",
        MATRIX | WITH_BIAS,
    ),
}


@needs_current_onnxruntime
@pytest.mark.parametrize("zero_point", ["u", "i", "im"])
@pytest.mark.parametrize("name", CASES)
def test_a_layer_stays_float_exactly_where_a_rule_says_so(name: str, zero_point: str, tmp_path: Path) -> None:
    text, options = CASES[name]
    graph = model(with_zero(text, zero_point), **options)
    layers = {node for rule in FLOAT_RULES for node in nodes(graph, rule.id)}
    ran = optimised_operators(graph, tmp_path)
    assert len(layers) == sum(ran[operator] for operator in FLOAT_OPERATORS), (layers, ran)


# rule: (name of a case, its zero-point, what is said)
SAID = {
    "float-input": ("float input", "u", "a weight in codes, float input x"),
    "float-output": ("q and another reader", "u", "its result is read by 2 nodes that are not all Q"),
    "unabsorbed-activation": ("relu", "i", "Relu Relu_4 in front of q_y"),
    "int8-fan-out": ("result read twice", "i", "int8 codes of q_k with several readers"),
    "narrow-weight": ("int4 weight", "u", "a weight of type int4 with an activation in codes"),
    "sixteen-bit-codes": ("sixteen bits in front", "u", "int16 codes (dq_d)"),
    "per-channel-input": ("per-channel input", "u", "scales for each channel in dq_d"),
    "scales-inside-the-sum": (
        "scales of another axis, float bias",
        "u",
        "a weight with scales along axis 1 (dq_wd)",
    ),
    "no-kernel-for-codes": ("uint4 behind", "u", "uint4 codes (q_y)"),
    "no-integer-kernel": ("gemm, alpha, bias", "u", "alpha 0.5, beta 1"),
    "float-bias-of-gemm": ("gemm, bias, float output", "u", "a float bias and a float output"),
    "float-bias": ("float bias", "u", "a float bias, which becomes int32 when the graph is loaded"),
}


@pytest.mark.parametrize("rule", SAID)
def test_what_is_said(rule: str) -> None:
    name, zero, got = SAID[rule]
    text, options = CASES[name]
    assert [said for _, said in found(model(with_zero(text, zero), **options), rule)] == [got]


@pytest.mark.parametrize(
    "name",
    [
        "int32 bias",
        "computed bias",
        "gemm, computed bias",
        "float bias, copy handed out",
        "gemm, bias, float output",
        "matmul, bias",
        "float output",
    ],
)
def test_a_bias_is_rounded_only_where_a_float_one_stands_in_an_integer_layer(name: str) -> None:
    text, options = CASES[name]
    assert not nodes(model(with_zero(text, "u"), **options), "float-bias")


@needs_current_onnxruntime
@pytest.mark.parametrize(("name", "result"), [("float bias, handed out", "c"), ("float bias, relu, handed out", "r")])
def test_a_bias_is_rounded_although_the_result_is_handed_out_beside_its_q(name: str, result: str) -> None:
    text, options = CASES[name]
    constants = "float[4] odd = {0.1026, 0.2071, 0.3022, 0.4064}"
    graph = model(with_zero(text.replace("wd, bias", "wd, odd"), "u"), constants=constants, **options)
    assert len(nodes(graph, "float-bias")) == 1
    x = np.random.default_rng(2).normal(size=(1, 4, 8, 8)).astype(np.float32)
    handed_out = watched(graph, (result, "y"))
    rounded, exact = (run(handed_out, x, optimisation=each) for each in ("all", "off"))
    assert np.abs(rounded - exact).max() > 1e-3


@needs_current_onnxruntime
@pytest.mark.parametrize("zero", ["u", "i"])
@pytest.mark.parametrize("handed_out", ["d_codes", "y_codes"])
@pytest.mark.parametrize("text", [CONV, GEMM + OUT, MATMUL + OUT])
def test_codes_that_are_handed_out(text: str, handed_out: str, zero: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {} if text == CONV else MATRIX
    outputs = f"{'int8' if zero == 'i' else 'uint8'}[{'e, f, g, h' if text == CONV else 'e, f'}] {handed_out}"
    graph = model(with_zero(text, zero), outputs=outputs, **options)
    floats = sum(optimised_operators(graph, tmp_path)[operator] for operator in FLOAT_OPERATORS)
    assert len(nodes(graph, "int8-fan-out")) == floats == (zero == "i")


@needs_current_onnxruntime
@pytest.mark.parametrize(
    ("bounds", "scale", "absorbed"),
    [
        # in float64 the highest code is above these bounds
        *(((0, high), high / 255, True) for high in (1, 4, 6, 15, 17)),
        ((0, 6), 6.01 / 255, True),
        ((0, 6), 6.02 / 255, False),
        ((0.01, 6), 6 / 255, True),
        ((0.02, 6), 6 / 255, False),
        ((-1, 6), 6 / 255, True),
    ],
)
def test_a_clip_at_the_highest_code(bounds: tuple[float, float], scale: float, absorbed: bool, tmp_path: Path) -> None:
    text = with_zero(through("Clip (*, low, top)").replace("s2", "step"), "u")
    low, high = map(float, bounds)
    graph = model(text, constants=f"float low = {{{low}}}, float top = {{{high}}}, float step = {{{scale!r}}}")
    assert bool(nodes(graph, "unabsorbed-activation")) == (not absorbed)
    assert sum(optimised_operators(graph, tmp_path)[operator] for operator in FLOAT_OPERATORS) == (not absorbed)


def test_a_relu_in_front_of_a_zero_point_that_holds_nothing() -> None:
    graph = model(with_zero(conv("r = Relu (c)" + pair("r", "y", "s2", "none")), "u"), constants="uint8[0] none = {}")
    assert len(nodes(graph, "no-numbers")) == 2


def test_other_reasons_for_no_integer_kernel() -> None:
    said = [
        found(model(with_zero(CASES[name][0], "u"), **CASES[name][1]), "no-integer-kernel")[0][1]
        for name in ("deconvolution", "computed bias", "bias of what is made of a DQ", "left, int8")
    ]
    computed = "a bias that is computed at run time"
    assert said == ["a transposed convolution", computed, computed, "int8 codes as the first input"]


def test_reasons_for_a_float_output() -> None:
    said = {}
    for name in ("float output", "graph output", "two scales", "batchnorm"):
        text, options = CASES[name]
        said[name] = found(model(with_zero(text, "u"), **options), "float-output")[0][1]
    assert said == {
        "float output": "its result is an output of the graph",
        "graph output": "its result is an output of the graph",
        "two scales": "its result is read by 2 different Q",
        "batchnorm": "its result is read by BatchNormalization BatchNormalization_4",
    }
