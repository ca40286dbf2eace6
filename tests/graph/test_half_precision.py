"""float16 graphs, computed by onnx's reference evaluator, whose float16 is NumPy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import pytest

from bitswitch_deploy.engines.reference import ReferenceSession
from bitswitch_deploy.graph import large_tensors
from bitswitch_deploy.graph.external_data import runnable
from bitswitch_deploy.graph.float_reference import FloatGraph, float_graph
from bitswitch_deploy.graph.half_precision import half_precision, rounded
from tests.graph.masters import build, layer
from tests.graph.running import initializer, operators, run

Array = np.ndarray[Any, np.dtype[Any]]


def halved(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]>\n' + text)
    return half_precision(FloatGraph(model=model)).model


def evaluated(model: onnx.ModelProto, **feeds: Array) -> Array:
    return np.asarray(onnx.reference.ReferenceEvaluator(model).run(None, feeds)[0])  # type: ignore[index]


def types(model: onnx.ModelProto) -> dict[str, str]:
    inferred = onnx.shape_inference.infer_shapes(model)
    name = onnx.TensorProto.DataType.Name
    return {value.name: name(value.type.tensor_type.elem_type) for value in inferred.graph.value_info}


def test_the_whole_network_computes_in_half_between_two_casts() -> None:
    model = halved("""
    net (float[2, 3] x) => (float[2, 2] y) <float[3, 2] w = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6}, float[2] b = {1, 2}> {
        m = MatMul (x, w)
        a = Add (m, b)
        y = Relu (a)
    }""")
    assert operators(model) == ["Cast", "MatMul", "Add", "Relu", "Cast"]
    assert set(types(model).values()) == {"FLOAT16"}
    assert initializer(model, "w.half").dtype == np.float16
    x = np.random.default_rng(1).normal(0, 1, (2, 3)).astype(np.float32)
    w = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], np.float16)
    expected = np.maximum(x.astype(np.float16) @ w + np.array([1, 2], np.float16), 0)
    np.testing.assert_array_equal(evaluated(model, x=x), expected.astype(np.float32))


def test_what_has_no_half_form_stays_and_gets_casts() -> None:
    """Scales of Resize are float32 by its schema; Cast and the quantizers decide their types themselves."""
    model = halved("""
    net (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) <float[4] scales = {1, 1, 2, 2}, float s = {0.5}, int8 z = {0}> {
        r = Relu (x)
        big = Resize <mode: string = "nearest"> (r, , scales)
        q = QuantizeLinear (big, s, z)
        d = DequantizeLinear (q, s, z)
        y = Neg (d)
    }""")
    assert operators(model) == [
        "Cast", "Relu", "Resize", "Cast", "QuantizeLinear", "DequantizeLinear", "Cast", "Neg", "Cast"
    ]  # fmt: skip
    assert initializer(model, "scales").dtype == np.float32
    assert initializer(model, "s").dtype == np.float32
    x = np.array([[[[1.2, 2], [-3, 4]]]], np.float32)
    expected = -np.repeat(np.repeat(np.array([[1.0, 2], [0, 4]], np.float32), 2, 0), 2, 1)
    np.testing.assert_array_equal(evaluated(model, x=x)[0, 0], expected)


def test_types_go_on_where_shape_inference_ends() -> None:
    text = """
    net (float[1, 2, 3] x) => (float[1, 2] y) <float[2] gain = {1, 2}, float[2] shift = {0, 1}, int64[1] axes = {2},
        float[2, 2] w = {1, 2, 3, 4}, float[2] b = {1, 2}> {
        n = GroupNormalization <num_groups = 1> (x, gain, shift)
        t = Transpose <perm = [0, 1, 2]> (n)
        m = ReduceMean <keepdims = 0> (t, axes)
        y = Gemm (m, w, b)
    }"""
    model = halved(text)
    onnx.checker.check_model(model, full_check=True)
    assert operators(model) == ["Cast", "GroupNormalization", "Transpose", "ReduceMean", "Gemm", "Cast"]
    plain = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]>\n' + text)
    x = np.random.default_rng(2).normal(0, 1, (1, 2, 3)).astype(np.float32)
    np.testing.assert_allclose(evaluated(model, x=x), evaluated(plain, x=x), rtol=5e-3)


@pytest.mark.parametrize(
    "place",
    [
        "p = Neg (r)",
        """p = If (c) <
            then_branch = d () => (float[2] s) { s = Neg (r) },
            else_branch = e () => (float[2] t) { t = Abs (x) }
        >""",
    ],
    ids=["branch", "branch of a branch"],
)
def test_a_branch_reads_float32(place: str) -> None:
    text = """
    net (bool c, float[2] x) => (float[2] y) {
        r = Relu (x)
        y = If (c) <
            then_branch = a () => (float[2] p) { PLACE },
            else_branch = b () => (float[2] q) { q = Abs (x) }
        >
    }"""
    model = halved(text.replace("PLACE", place))
    assert operators(model) == ["Cast", "Relu", "Cast", "If"]
    x = np.array([-1, 1.5], np.float32)
    np.testing.assert_array_equal(evaluated(model, x=x, c=np.array(True)), [0, -1.5])


@pytest.mark.parametrize("number", [16, 17], ids=["bfloat16", "float8e4m3fn"])
def test_types_that_numpy_lacks_stay(number: int) -> None:
    model = halved(f"""net (float[2] x) => (float[2] y) {{
        narrow = Cast <to: int = {number}> (x)
        wide = Cast <to: int = 1> (narrow)
        y = Relu (wide)
    }}""")
    assert operators(model) == ["Cast", "Cast", "Cast", "Relu", "Cast"]
    assert "FLOAT16" not in {types(model)[name] for name in ("narrow", "wide")}


def test_integers_stay() -> None:
    model = halved("net (int64[2] i) => (int64[2] y) { y = Abs (i) }")
    assert operators(model) == ["Abs"]


def test_a_tensor_that_is_output_and_read_on_is_both() -> None:
    model = halved("net (float[2] x) => (float[2] r, float[2] y) { r = Relu (x)\n y = Neg (r) }")
    first, second = onnx.reference.ReferenceEvaluator(model).run(None, {"x": np.array([-1, 2], np.float32)})
    np.testing.assert_array_equal(first, [0, 2])
    np.testing.assert_array_equal(second, [0, -2])


def test_numbers_are_rounded_and_stay_finite() -> None:
    values = np.array([1 / 3, 65519.9, 65520, -1e38, 1e-8, np.nan], np.float32)
    expected = np.array([np.float16(1 / 3), 65504, 65504, -65504, 0, np.nan], np.float16)
    np.testing.assert_array_equal(rounded(values), expected)
    scalar = rounded(np.asarray(0.7, np.float32))
    assert isinstance(scalar, np.ndarray)
    assert scalar.shape == ()
    assert scalar.dtype == np.float16


def test_the_reference_of_a_master(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
    net (float[n, 2, 6, 6] x, float[8, 2, 3, 3] "conv.weight", float[8, 128] "last.weight") => (float[n, 8] y) {
        c = Conv (x, "conv.weight")
        r = Relu (c)
        f = Flatten (r)
        y = Gemm <transB: int = 1> (f, "last.weight")
    }"""
    master = build(text, (layer("conv"), layer("last", "Gemm", activation="pinned")))
    exact, small = float_graph(master), half_precision(float_graph(master))
    assert [each.type.tensor_type.elem_type for each in (*small.model.graph.input, *small.model.graph.output)] == [1, 1]
    x = np.random.default_rng(2).normal(0, 1, (3, 2, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(run(small.model, x), run(exact.model, x), rtol=0.02, atol=0.02)
    monkeypatch.setattr(large_tensors, "EMBEDDED_LIMIT_BYTES", 0)
    large = half_precision(float_graph(master))
    assert {name: tensor.size_bytes for name, tensor in large.large.items()} == {"last.weight.half": 2 * 8 * 128}
    with runnable(large.model, large.large) as source:
        np.testing.assert_array_equal(ReferenceSession(source).run(x), run(small.model, x))
