from __future__ import annotations

import numpy as np
import onnx
import pytest

from bitswitch_deploy.errors import GraphError
from tests.graph.lint.graphs import CONV, IN, LAYER, OUT, WEIGHT, found, linted, model, nodes, pair, weight, with_zero
from tests.graph.running import initializer, needs_current_onnxruntime, run


def int8(body: str, constants: str = "", **options: object) -> onnx.ModelProto:
    return model(with_zero(body, "i"), constants=constants, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("value", "shown"), [("-0.5", "-0.5"), ("0", "0")])
def test_zero_and_negative_scales_of_activations(value: str, shown: str) -> None:
    graph = int8(pair("x", "d", "bad") + WEIGHT + LAYER + OUT, f"float bad = {{{value}}}")
    assert found(graph, "scale-not-positive") == [
        ("q_d", f"{shown} as a scale"),
        ("dq_d", f"{shown} as a scale"),
    ]


@pytest.mark.parametrize(("value", "shown"), [(np.inf, "inf"), (np.nan, "nan")])
def test_scales_that_are_no_numbers(value: float, shown: str) -> None:
    graph = int8(CONV)
    (scale,) = (tensor for tensor in graph.graph.initializer if tensor.name == "s2")
    scale.CopyFrom(onnx.numpy_helper.from_array(np.array(value, np.float32), "s2"))
    assert found(graph, "scale-not-positive")[0] == ("q_y", f"{shown} as a scale")


def test_a_negative_scale_that_is_computed_from_constants() -> None:
    graph = int8("k = Neg (s)" + pair("x", "d", "k") + WEIGHT + LAYER + OUT)
    assert nodes(graph, "scale-not-positive") == ["q_d", "dq_d"]


@pytest.mark.parametrize("word", ["scale", "zero-point"])
@pytest.mark.parametrize(
    ("data_type", "dims", "shown"),
    [
        (onnx.TensorProto.STRING, [1], "string [1]"),
        (onnx.TensorProto.COMPLEX64, [1], "complex64 [1]"),
        (onnx.TensorProto.INT8, [0], "int8 [0]"),
        (onnx.TensorProto.UNDEFINED, [], "type 0, which ONNX does not know []"),
        (99, [], "type 99, which ONNX does not know []"),
    ],
)
def test_constants_without_numbers(word: str, data_type: int, dims: list[int], shown: str) -> None:
    graph = int8(CONV)
    replaced = {"scale": "s2", "zero-point": "i"}[word]
    (constant,) = (tensor for tensor in graph.graph.initializer if tensor.name == replaced)
    constant.CopyFrom(onnx.TensorProto(name=replaced, data_type=data_type, dims=dims))
    if data_type == onnx.TensorProto.STRING:
        constant.string_data.append(b"abc")
    if data_type == onnx.TensorProto.COMPLEX64:
        constant.float_data.extend([1, 1])
    assert found(graph, "no-numbers")[-1] == ("dq_y", f"a {word} of {shown}")
    with pytest.raises(Exception, match="ONNXRuntimeError"):
        run(graph, np.zeros((1, 4, 8, 8), np.float32))


def test_some_channels_of_many() -> None:
    graph = int8(IN + weight(scale="bad") + LAYER + OUT, "float[4] bad = {-1, 0, -2, -3}")
    assert found(graph, "scale-not-positive") == [("dq_wd", "0 as a scale")]
    assert found(graph, "negative-weight-scale") == [("dq_wd", "-1, -2, -3 as a scale")]


def test_negative_scales_of_weights_are_no_matter_for_onnxruntime() -> None:
    graph = int8(IN + weight(scale="bad") + LAYER + OUT, "float[4] bad = {-1, 1, 2, 3}")
    assert not linted(graph, "onnxruntime").errors
    assert {finding.rule for finding in linted(graph, "tensorrt").errors} == {"negative-weight-scale"}


@pytest.mark.parametrize("value", ["-1", "2"])
def test_scales_of_activations_are_no_weights(value: str) -> None:
    graph = int8(pair("x", "d", "bad") + WEIGHT + LAYER + OUT, f"float bad = {{{value}}}")
    assert not found(graph, "negative-weight-scale")


def test_a_scale_in_a_constant_node_behind_an_identity() -> None:
    front = "k = Constant <value_float = -1.0> () m = Identity (k)"
    assert nodes(int8(front + pair("x", "d", "m") + WEIGHT + LAYER + OUT), "scale-not-positive") == ["q_d", "dq_d"]


def test_good_scales() -> None:
    for rule in (
        "scale-not-positive",
        "negative-weight-scale",
        "tiny-scale",
        "scale-shape",
        "scale-not-constant",
        "half-scale",
    ):
        assert not found(int8(CONV), rule)


def test_scales_below_the_normal_numbers() -> None:
    graph = int8(IN + weight(scale="bad") + LAYER + OUT, "float[4] bad = {1e-39, 1e-37, 1, 1}")
    ((node, got),) = found(graph, "tiny-scale")
    assert node == "dq_wd"
    assert got.startswith("1e-39")


def test_the_normal_numbers_of_float16_end_earlier() -> None:
    graph = int8(CONV, opset=19)
    halve(graph, "s2", 1e-5)
    assert nodes(graph, "tiny-scale") == ["q_y", "dq_y"]
    halve(graph, "s2", 1e-4)
    assert not nodes(graph, "tiny-scale")


def halve(graph: onnx.ModelProto, name: str, value: float, size: tuple[int, ...] = ()) -> None:
    (scale,) = (tensor for tensor in graph.graph.initializer if tensor.name == name)
    scale.CopyFrom(onnx.numpy_helper.from_array(np.full(size, value, np.float16), name))


def test_half_scales_leave_the_layer_in_float() -> None:
    graph = int8(CONV, opset=19)
    halve(graph, "s", 0.05)
    assert found(graph, "half-scale") == [("conv", "float16 scales")]


# (scales in float16, whether the network is as well, opset, nodes that are named)
SCALE_TYPES = [
    ((), False, 21, []),
    (("s", "s2", "sw"), True, 21, []),
    (("s", "s2", "sw"), True, 23, []),
    (("s", "s2", "sw"), False, 21, ["q_d", "dq_y"]),
    (("s",), False, 19, ["q_d", "conv", "q_y"]),
    (("s",), False, 21, ["q_d", "conv", "q_y"]),
    (("s",), False, 23, ["conv"]),
    (("s", "s2"), True, 21, ["conv"]),
    (("sw",), False, 21, ["conv"]),
    (("sw",), False, 23, ["conv"]),
    (("s", "sw"), False, 23, []),
    (("s2",), False, 21, ["q_y", "dq_y"]),
    (("s2",), False, 23, ["dq_y"]),
]


@needs_current_onnxruntime
@pytest.mark.parametrize(("halved", "is_half", "opset", "named"), SCALE_TYPES)
def test_scales_of_another_type(halved: tuple[str, ...], is_half: bool, opset: int, named: list[str]) -> None:
    graph = int8(CONV, opset=opset)
    for name in halved:
        halve(graph, name, float(initializer(graph, name).ravel()[0]), size=initializer(graph, name).shape)
    if is_half:
        for value in (*graph.graph.input, *graph.graph.output):
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    assert nodes(graph, "scale-type") == named
    dtype = np.float16 if is_half else np.float32
    if named:
        with pytest.raises(GraphError, match="Type Error"):
            run(graph, np.zeros((1, 4, 8, 8), dtype))
    else:
        run(graph, np.zeros((1, 4, 8, 8), dtype))


def test_what_is_said_of_scales_of_another_type() -> None:
    graph = int8(CONV, opset=21)
    halve(graph, "s", 0.05)
    assert found(graph, "scale-type") == [
        ("q_d", "a float16 scale, a float tensor"),
        ("conv", "inputs in float16, float"),
        ("q_y", "a float scale, a float16 tensor"),
    ]
    graph = int8(CONV, opset=23)
    halve(graph, "s2", 0.05)
    assert found(graph, "scale-type") == [("dq_y", "a float16 scale, a float result")]
    graph.graph.node[-1].attribute.append(onnx.helper.make_attribute("output_dtype", onnx.TensorProto.FLOAT))
    assert not nodes(graph, "scale-type")


def test_microsofts_operators_take_one_type_at_any_opset() -> None:
    body = "[q] q = com.microsoft.QuantizeLinear (x, s, i) d = com.microsoft.DequantizeLinear (q, s, i) y = Neg (d)"
    graph = int8(body, opset=23)
    assert not nodes(graph, "scale-type")
    halve(graph, "s", 0.05)
    assert nodes(graph, "scale-type") == ["q"]


def test_a_scale_that_is_computed_at_run_time() -> None:
    front = "m = ReduceMax <keepdims = 0> (x) k = Mul (m, s2)"
    graph = int8(front + pair("x", "d", "k") + WEIGHT + LAYER + OUT)
    assert found(graph, "scale-not-constant") == [
        ("q_d", "its scale is computed at run time"),
        ("dq_d", "its scale is computed at run time"),
    ]


def test_a_scale_that_is_computed_from_constants() -> None:
    assert not found(int8("k = Mul (s, s2)" + pair("x", "d", "k") + WEIGHT + LAYER + OUT), "scale-not-constant")


def test_a_zero_point_that_is_computed_at_run_time() -> None:
    body = "m = ReduceMax <keepdims = 0> (x) k = Cast <to = 3> (m)" + pair("x", "d", "s", "k") + WEIGHT + LAYER + OUT
    assert found(int8(body), "scale-not-constant")[0] == ("q_d", "its zero-point is computed at run time")


THREE = "float[3] three = {0.1, 0.2, 0.3}, int8[3] zero3 = {0, 0, 0}"
BLOCKED = "scale of shape [2, 4] for blocks of 2 along axis 0 of [4, 4, 3, 3]"
BLOCKS = "float[2, 4] two = {1,1,1,1,1,1,1,1}, int8[2, 4] zero2 = {0,0,0,0,0,0,0,0}"


@pytest.mark.parametrize(
    ("dequantize", "got"),
    [
        ("<axis = 0> (w, three, zero3)", "scale of shape [3] for axis 0 of [4, 4, 3, 3]"),
        ("(w, three, zero3)", "scale of shape [3] for axis 1 of [4, 4, 3, 3]"),
        ("<axis = 4> (w, sw, iw)", "axis 4 of a tensor of shape [4, 4, 3, 3]"),
        ("<axis = -5> (w, sw, iw)", "axis -5 of a tensor of shape [4, 4, 3, 3]"),
        ("<axis = 0> (w, sw, i)", "scale of shape [4], zero-point of shape []"),
        ("<axis = 0, block_size = 2> (w, two, zero2)", BLOCKED),
    ],
)  # fmt: skip
def test_scales_that_do_not_fit(dequantize: str, got: str) -> None:
    body = IN + f"[dq_wd] wd = DequantizeLinear {dequantize}" + LAYER + OUT
    assert found(int8(body, f"{THREE}, {BLOCKS}"), "scale-shape") == [("dq_wd", got)]


@pytest.mark.parametrize(
    "dequantize",
    ["<axis = -4> (w, sw, iw)", "<axis = 2> (w, three, zero3)", "<axis = 9> (w, s1, i)", "(w, onescale, i)"],
)
def test_scales_that_fit(dequantize: str) -> None:
    body = IN + f"wd = DequantizeLinear {dequantize}" + LAYER + OUT
    assert not found(int8(body, f"{THREE}, float[1] onescale = {{1}}"), "scale-shape")


def test_blocks_that_fit() -> None:
    body = "[dq_wd] wd = DequantizeLinear <axis = 0, block_size = 3> (w, two, zero2) y = MatMul (x, wd)"
    assert not found(int8(body, BLOCKS, x="2, 4", y="a, b", shape=(4, 4)), "scale-shape")
