"""The errors about TensorRT, against what TensorRT for RTX parses and builds, which needs no GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.graph.lint.graphs import CONV, IN, LAYER, OUT, WEIGHT, linted, model, pair, rtx_refusal, weight, with_zero

pytest.importorskip("tensorrt_rtx")

PROTO = onnx.TensorProto
BIAS = " bd = DequantizeLinear <axis = 0> (b, sb, iz) c = Conv (d, wd, bd)"
MATRIX: dict[str, Any] = {"x": "2, 4", "y": "a, b", "shape": (4, 4)}
ONES = ", ".join(["1"] * 72)

BAD = IN + weight(scale="bad") + LAYER + OUT
BLOCKED = IN + "wd = DequantizeLinear <axis = 1, block_size = 2> (w, s72, z72)" + LAYER + OUT
QLINEAR = "c = QLinearConv (q, s, i, w, s1, i, s2, i) y = DequantizeLinear (c, s2, i)"
NARROW = weight(1, "s1", "n0", codes="n") + "y = MatMul (x, wd)"

REST = WEIGHT + LAYER + OUT

# name: (the only rule that it breaks, text, options)
REFUSED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "negative scale": ("negative-weight-scale", BAD, {"constants": "float[4] bad = {-1, 1, 1, 1}"}),
    "zero scale": ("scale-not-positive", BAD, {"constants": "float[4] bad = {0, 1, 1, 1}"}),
    "scale of another length": (
        "scale-shape",
        IN + weight(scale="s3", zero="i3") + LAYER + OUT,
        {"constants": "float[3] s3 = {1, 1, 1}, int8[3] i3 = {0, 0, 0}"},
    ),
    "zero-point of another shape": ("scale-shape", IN + weight(zero="i") + LAYER + OUT, {}),
    "uint8": ("uint8-codes", with_zero(CONV, "u"), {}),
    "uint8 by output_dtype": (
        "uint8-codes",
        "q = QuantizeLinear <output_dtype = 2> (x, s) d = DequantizeLinear (q, s)" + WEIGHT + LAYER + OUT,
        {},
    ),
    "uint8 weight": ("uint8-codes", IN + "wd = DequantizeLinear (wu, s1)" + LAYER + OUT, {}),
    "uint8 by a cast": (
        "uint8-codes",
        "number = Constant <value = int32 {0}> () z = Cast <to = 2> (number)" + pair("x", "d", "s", "z") + REST,
        {"opset": 13},
    ),
    "zero-point by a cast": (
        "nonzero-zero-point",
        "number = Constant <value = int32 {5}> () z = Cast <to = 3> (number)" + pair("x", "d", "s", "z") + REST,
        {"opset": 13},
    ),
    "zero-point": ("nonzero-zero-point", with_zero(CONV, "im"), {}),
    "16 bits": ("type-unknown-to-tensorrt", pair("x", "d", "s", "h") + WEIGHT + LAYER + OUT, {}),
    "int32 bias": ("int32-bias", IN + WEIGHT + BIAS + OUT, {"constants": "int32[4] iz = {0, 0, 0, 0}"}),
    "half scale beside a float input": (
        "scale-type",
        IN + "half = Cast <to = 10> (sw) " + weight(scale="half") + LAYER + OUT,
        {},
    ),
    "clip on a weight": ("weight-path", IN + "o = Clip (w, ilo, ihi)" + weight(codes="o") + LAYER + OUT, {}),
    "identity on a weight": ("weight-path", IN + "o = Identity (w)" + weight(codes="o") + LAYER + OUT, {}),
    **{
        f"constant codes in {operator.split()[0]}": (
            "constant-codes",
            f"q = QuantizeLinear (x, s, i) k = {operator} y = DequantizeLinear (k, s, i)",
            {"constants": f"int64[8] ends = {{{', '.join('1' * 8)}}}", "shape": (1, 4, 8, 8)},
        )
        for operator in ("Max (q, w)", "Concat <axis = 1> (q, w)", "Pad (q, ends, i)", "Min (q, i)")
    },
    "constant codes, cast": ("constant-codes", "k = Cast <to = 1> (w) y = Mul (x, k)", {"shape": (1, 4, 8, 8)}),
    "constant codes, moved": (
        "constant-codes",
        "k = Transpose (w) d = DequantizeLinear (k, s, i) y = Mul (x, d)",
        {"shape": (8, 8, 4, 1)},
    ),
    "blocks": (
        "blocked-conv-weight",
        BLOCKED,
        {"constants": f"float[4, 2, 3, 3] s72 = {{{ONES}}}, int8[4, 2, 3, 3] z72 = {{{ONES.replace('1', '0')}}}"},
    ),
    "4 bits beside 8": (
        "narrow-conv-weight",
        IN + weight(zero="in", codes="n") + LAYER + OUT,
        {"shape": (4, 4, 2, 2)},
    ),
    "odd rows of 4 bits": (
        "odd-int4-row",
        NARROW,
        MATRIX | {"x": "2, 3", "shape": (3, 3), "constants": "int4 n0 = {0}"},
    ),
    "QLinearConv": ("integer-operator", "q = QuantizeLinear (x, s, i)" + QLINEAR, {}),
}

MICROSOFT = "q = com.microsoft.QuantizeLinear (x, s, i) d = com.microsoft.DequantizeLinear (q, s, i)"
DTYPE = "q = QuantizeLinear <output_dtype = 3> (x, s) d = DequantizeLinear (q, s)"
ACCEPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "conv": (CONV, {}),
    "relu": (IN + WEIGHT + LAYER + "r = Relu (c)" + pair("r", "y"), {}),
    "float weight, q, dq": (IN + "k = QuantizeLinear <axis = 0> (f, sw, iw)" + weight(codes="k") + LAYER + OUT, {}),
    "zero-points left out behind Q": (IN + "wd = DequantizeLinear <axis = 0> (w, sw)" + LAYER + OUT, {}),
    "zero-point by a cast": (
        "number = Constant <value = int32 {0}> () z = Cast <to = 3> (number)" + pair("x", "d", "s", "z") + REST,
        {"opset": 13},
    ),
    "scale from constants": ("k = Mul (s, s2)" + pair("x", "d", "k") + WEIGHT + LAYER + OUT, {}),
    "copied scale": (IN + "k = Identity (sw)" + weight(scale="k") + LAYER + OUT, {}),
    "half scale": (IN + "half = Cast <to = 10> (sw) k = Cast <to = 1> (half)" + weight(scale="k") + LAYER + OUT, {}),
    "constants of a Clip on codes": (pair("x", "y", "s", on_codes="Clip (*, ilo, ihi)"), {}),
    "copied and cast zero-points": (
        "k = Identity (i) o = Cast <to = 6> (i) e = Cast <to = 3> (o)"
        + pair("x", "d", "s", "k")
        + pair("d", "y", "s", "e"),
        {},
    ),
    "shape of constant codes": ("k = Shape (w) y = Reshape (x, k)", {"shape": (1, 4, 4, 16)}),
    "codes beside each other": (
        "q = QuantizeLinear (x, s, i) k = Concat <axis = 1> (q, q) y = DequantizeLinear (k, s, i)",
        {},
    ),
    "output_dtype": (DTYPE + WEIGHT + LAYER + OUT, {}),
    "com.microsoft": (MICROSOFT + WEIGHT + LAYER + OUT, {}),
    "residual": (IN + WEIGHT + "c = Conv <pads = [1, 1, 1, 1]> (d, wd) a = Add (c, d)" + pair("a", "y"), {}),
    "4 bits, weight only": (weight(1, zero="in", codes="n") + "y = MatMul (x, wd)", MATRIX),
    "old opset": (CONV, {"opset": 13}),
    "transposed weight": (
        IN + "o = DequantizeLinear (w, sw, iw) wd = Transpose <perm = [1, 0, 2, 3]> (o)" + LAYER + OUT,
        {},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_an_error_of_one_rule(name: str) -> None:
    rule, text, options = REFUSED[name]
    graph = model(with_zero(text, "i"), **options)
    assert {finding.rule for finding in linted(graph, "tensorrt").errors} == {rule}
    assert rtx_refusal(graph)


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_builds_has_no_error(name: str) -> None:
    text, options = ACCEPTED[name]
    graph = model(with_zero(text, "i"), **options)
    assert not linted(graph, "tensorrt").errors
    assert rtx_refusal(graph) is None


def test_scales_that_are_codes_themselves() -> None:
    """NVFP4: weights in float4e2m1, their scales in float8e4m3fn."""
    text = """k = DequantizeLinear (eights, s) wd = DequantizeLinear <axis = 0, block_size = 16> (fours, k)
        y = MatMul (x, wd)"""
    graph = model(text, opset=23, x="2, 32", y="a, b")
    for name, kind, shape in (("eights", PROTO.FLOAT8E4M3FN, (2, 16)), ("fours", PROTO.FLOAT4E2M1, (32, 16))):
        graph.graph.initializer.append(onnx.helper.make_tensor(name, kind, shape, [1.0] * (shape[0] * shape[1])))
    assert not linted(graph, "tensorrt").findings
    assert rtx_refusal(graph, gpu="SM120") is None


TYPES = {"i8": PROTO.INT8, "i4": PROTO.INT4, "f8": PROTO.FLOAT8E4M3FN, "f4": PROTO.FLOAT4E2M1}
NARROW_CONV, OPERANDS = "narrow-conv-weight", "operand-types"

# operator, types of activation (none: float) and weight, whether each output channel has a scale, the rule it breaks
OPERAND_TYPES = [
    ("Conv", "i8", "i8", True, ""),
    ("Conv", "f8", "f8", False, ""),
    ("Conv", "f8", "f8", True, ""),
    ("Conv", "", "i4", True, ""),
    ("Conv", "i8", "i4", True, NARROW_CONV),
    ("Conv", "i4", "i4", False, NARROW_CONV),
    ("Conv", "f8", "f4", False, NARROW_CONV),
    ("Conv", "i4", "i8", True, OPERANDS),
    ("Conv", "i8", "f8", True, OPERANDS),
    ("Conv", "f8", "i8", False, OPERANDS),
    ("ConvTranspose", "i8", "i4", True, ""),
    ("ConvTranspose", "i8", "f8", False, ""),
    ("MatMul", "f8", "f8", True, ""),
    ("MatMul", "i4", "i4", False, ""),
    ("MatMul", "i8", "i4", True, ""),
    ("MatMul", "i4", "i8", True, ""),
    ("MatMul", "i8", "i4", False, OPERANDS),
    ("MatMul", "i4", "i8", False, OPERANDS),
    ("MatMul", "i8", "f8", True, OPERANDS),
    ("MatMul", "f4", "i4", True, OPERANDS),
    ("Gemm", "i8", "i4", True, ""),
    ("Gemm", "i8", "i4", False, OPERANDS),
    ("Gemm", "f8", "i4", True, OPERANDS),
]


@pytest.mark.parametrize(("operator", "activation", "kind", "per_channel", "rule"), OPERAND_TYPES)
def test_types_that_are_multiplied(operator: str, activation: str, kind: str, per_channel: bool, rule: str) -> None:
    is_conv = "Conv" in operator
    axis = 0 if operator == "Conv" else 1
    front = IN.replace("ZERO", "za") if activation else "d = Identity (x)"
    text = front + weight(axis, "scale", "zw", codes="k") + f"c = {operator} (d, wd) y = Relu (c)"
    sides: dict[str, Any] = {"x": "1, 32, 8, 8"} if is_conv else {"x": "4, 32", "y": "a, b"}
    graph = model(text, opset=23, **sides)
    size, shape = ([32] if per_channel else []), ([32, 32, 2, 2] if is_conv else [32, 32])
    constants = [("za", TYPES.get(activation, PROTO.INT8), [], 0), ("zw", TYPES[kind], size, 0)]
    for name, data_type, dims, value in (*constants, ("k", TYPES[kind], shape, 1), ("scale", PROTO.FLOAT, size, 0.1)):
        values = [value] * int(np.prod(dims, dtype=int))
        graph.graph.initializer.append(onnx.helper.make_tensor(name, data_type, dims, values))
    assert {finding.rule for finding in linted(graph, "tensorrt").errors} == ({rule} if rule else set())
    assert bool(rtx_refusal(graph, gpu="SM120")) == bool(rule)
