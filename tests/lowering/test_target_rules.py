"""Each rule of a target, broken once."""

from __future__ import annotations

from typing import Any

import onnx.parser
import pytest

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.lowering.target_rules import check_target_rules
from tests.lowering.lowered import profile

X86, RTX, NANO = profile("x86-cpu"), profile("rtx"), profile("jetson-orin-nano")
CONSTANTS = "float s = {0.5}, uint8 u = {0}, int8 i = {0}, int8 minus = {-128}, int32 b = {0}, int4 n = {0},"


def check(body: str, target: Any, *, opset: int | None = None, constants: str = CONSTANTS) -> None:
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : {opset or target.stack.opset}]> net (float[2, 2] x) => (float[2, 2] y)'
        f" <{constants} int8[2, 2] w = {{1, 2, 3, 4}}, float[2, 2] f = {{1, 2, 3, 4}}, int32 two = {{2}}> {{ {body} }}"
    )
    check_target_rules(model, target)


def refused(body: str, target: Any, message: str, **options: Any) -> None:
    with pytest.raises(GraphError, match=message):
        check(body, target, **options)


ACTIVATION = "q = QuantizeLinear (x, s, {0}) y = DequantizeLinear (q, s, {0})"


def test_types_that_the_target_forbids() -> None:
    for target in (RTX, NANO):
        refused(
            ACTIVATION.format("u"),
            target,
            r"QuantizeLinear QuantizeLinear_0: type uint8\n  allowed: any type but uint8, uint4, int2",
        )
        check(ACTIVATION.format("i"), target)
    check(ACTIVATION.format("u"), X86)


def test_types_of_one_profile_only() -> None:
    body = "d = DequantizeLinear (n, s, n) y = Add (x, d)"
    check(body, RTX)
    strict = profile("rtx", {"quantization.forbid_types": ["int4"], "quantization.weight_containers.MatMul": "int8"})
    refused(body, strict, "DequantizeLinear DequantizeLinear_0: type int4")


def test_int32_bias() -> None:
    body = "d = DequantizeLinear (b, s, b) y = Add (x, d)"
    refused(body, RTX, r"DequantizeLinear_0: int32 codes\n  allowed: a float bias\n  do: .*profile of rtx")
    refused(body, NANO, "int32 codes")
    check(body, X86)


def test_zero_points_for_tensorrt() -> None:
    refused(ACTIVATION.format("minus"), RTX, r"QuantizeLinear_0: zero-point -128\n  allowed: zero-point 0\n")
    check(ACTIVATION.format("minus"), X86)


def test_zero_point_as_raw_data() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> net (float[2] x) => (float[2] y) <float s = {0.5}>'
        " { q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }"
    )
    for raw, broken in ((b"\x00", False), (b"\x80", True)):
        del model.graph.initializer[1:]
        model.graph.initializer.append(onnx.helper.make_tensor("z", onnx.TensorProto.INT8, [], raw, raw=True))
        if broken:
            with pytest.raises(GraphError, match="zero-point -128"):
                check_target_rules(model, RTX)
        else:
            check_target_rules(model, RTX)


def test_opset_of_the_stack() -> None:
    refused(ACTIVATION.format("i"), NANO, r"graph: opset 21\n  allowed: opset 17 of stack 6\.2", opset=21)
    refused(ACTIVATION.format("u"), X86, r"graph: opset 20\n  allowed: opset 21 of stack ort-1\.23", opset=20)


WEIGHTS = {
    "codes": "d = DequantizeLinear (w, s, i) y = MatMul (x, d)",
    "float": "y = MatMul (x, f)",
    "computed float": "g = Neg (f) y = MatMul (x, g)",
    "float, Q, DQ": "q = QuantizeLinear (f, s, i) d = DequantizeLinear (q, s, i) y = MatMul (x, d)",
}
FACTORS = """
    wide = Cast <to: int = 6> (w) product = Mul (wide, two) narrow = Cast <to: int = 3> (product)
    d = DequantizeLinear (narrow, s, i) y = MatMul (x, d)"""
BROKEN = {
    "DequantizeLinear <- Cast <- Mul <- Cast": FACTORS,
    "Transpose <- DequantizeLinear": "d = DequantizeLinear (w, s, i) t = Transpose (d) y = MatMul (x, t)",
    "DequantizeLinear <- QuantizeLinear <- DequantizeLinear <- QuantizeLinear": """
        q = QuantizeLinear (f, s, i) d = DequantizeLinear (q, s, i)
        r = QuantizeLinear (d, s, i) e = DequantizeLinear (r, s, i) y = MatMul (x, e)""",
    "Add <- DequantizeLinear": "d = DequantizeLinear (w, s, i) a = Add (f, d) y = MatMul (x, a)",
}


@pytest.mark.parametrize("body", WEIGHTS.values(), ids=WEIGHTS)
def test_paths_of_weights_that_tensorrt_reads(body: str) -> None:
    check(body, RTX)


@pytest.mark.parametrize("path", BROKEN)
def test_paths_of_weights_that_it_does_not_read(path: str) -> None:
    message = rf"MatMul_\d: a weight through {path}\n  allowed: .*\n  do: .*profile of rtx"
    refused(BROKEN[path], RTX, message)
    check(BROKEN[path], X86)


@pytest.mark.parametrize("operator", ["Gemm", "MatMul"])
def test_a_product_of_data_is_no_weight_even_when_a_constant_comes_first(operator: str) -> None:
    """As with a position embedding in front of attention."""
    body = f"""
        p = Add (f, x)
        q = QuantizeLinear (p, s, i) c = DequantizeLinear (q, s, i) t = Transpose (c)
        y = {operator} (p, t)"""
    check(body, RTX)


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose", "Gemm", "MatMul"])
def test_every_operator_with_a_weight(operator: str) -> None:
    rank = 4 if "Conv" in operator else 2
    shape = ", ".join(["2"] * rank)
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> net (float[{shape}] x) => (float[a, b{", c, d" * (rank == 4)}] y)'
        f" <float s = {{0.5}}, int8 i = {{0}}, int8[{shape}] w = {{{', '.join(['1'] * 2**rank)}}}>"
        f" {{ d = DequantizeLinear (w, s, i) t = Neg (d) y = {operator} (x, t) }}"
    )
    with pytest.raises(GraphError, match=f"^{operator} {operator}_2: a weight through Neg <- DequantizeLinear"):
        check_target_rules(model, RTX)


def test_nodes_without_inputs() -> None:
    check("c = Constant <value_float: float = 1.0> () d = Neg (c) e = Add (x, d) y = MatMul (e, e)", RTX)


def test_the_first_violation_is_named() -> None:
    body = "[first] q = QuantizeLinear (x, s, u) [second] y = DequantizeLinear (q, s, u)"
    refused(body, RTX, "^QuantizeLinear first: type uint8")


def test_errors_of_the_linter_are_refused_on_their_engine() -> None:
    body = (
        "d = DequantizeLinear <axis = {}> (w, rows, zeros) q = QuantizeLinear (x, s, {z})"
        " e = DequantizeLinear (q, s, {z}) y = MatMul (e, d)"
    )
    constants = f"{CONSTANTS} float[2] rows = {{1, 2}}, int8[2] zeros = {{0, 0}},"
    for target, zero in ((RTX, "i"), (X86, "u")):
        check(body.format(1, z=zero), target, constants=constants)
        refused(
            body.format(0, z=zero), target, "MatMul MatMul_3: a weight with scales along axis 0", constants=constants
        )


IMAGES = "q = QuantizeLinear (x, s, u) d = DequantizeLinear (q, s, u) "
OUT = " p = QuantizeLinear (r, s, u) y = DequantizeLinear (p, s, u)"
BETWEEN_CODES = {
    "gemm": "r = Gemm (d, f)" + OUT,
    "relu": "c = Gemm (d, f) r = Relu (c)" + OUT,
    "matmul and add": "c = MatMul (d, f) r = Add (c, row)" + OUT,
    "moved": "t = Transpose (d) r = Gemm (t, f)" + OUT,
    "folded weight": "g = Neg (f) r = Gemm (d, g)" + OUT,
    "batchnorm": "c = Gemm (d, f) m = BatchNormalization (c, row, row, row, row) r = Relu (m)" + OUT,
}
NOT_BETWEEN_CODES = {
    "float input": "r = Gemm (x, f)" + OUT,
    "float output": "y = Gemm (d, f)",
    "sigmoid": "c = Gemm (d, f) r = Sigmoid (c)" + OUT,
    "two readers": "c = Gemm (d, f) r = Add (c, c) k = Add (r, c) p = QuantizeLinear (k, s, u)"
    " y = DequantizeLinear (p, s, u)",
    "matmul": "r = MatMul (d, f)" + OUT,
    "weight in codes": "g = DequantizeLinear (w, s, i) r = Gemm (d, g)" + OUT,
}
ROW = f"{CONSTANTS} float[2] row = {{1, 2}},"


@pytest.mark.parametrize("case", BETWEEN_CODES)
def test_a_float_weight_that_onnxruntime_rounds(case: str) -> None:
    message = r"a float weight between codes, which becomes int8\n  allowed: .*, or a float input\n  do: .*x86-cpu"
    refused(IMAGES + BETWEEN_CODES[case], X86, message, constants=ROW)
    signed = (IMAGES + BETWEEN_CODES[case]).replace("s, u)", "s, i)")
    check(signed, RTX, constants=ROW)


@pytest.mark.parametrize("case", NOT_BETWEEN_CODES)
def test_float_weights_that_it_leaves_alone(case: str) -> None:
    check(IMAGES + NOT_BETWEEN_CODES[case], X86, constants=ROW)


def test_what_is_slow_only_is_left_alone() -> None:
    check("q = QuantizeLinear (x, s, i) d = DequantizeLinear (q, s, i) y = Add (x, d)", RTX)
