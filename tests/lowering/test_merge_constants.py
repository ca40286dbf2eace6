"""Equal constants of a graph become one, and the graph computes what it did."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from bitswitch_deploy.lowering.merge_constants import merge_equal_constants

TEXT = """<ir_version: 10, opset_import: ["" : 21]> g (uint8[2] x) => (uint8[2] y, uint8[2] z, float[2] s) {
    a = Clip (x, "a.low", "a.high") b = Clip (a, "b.low", "b.high") y = Min (b, "b.ends") z = Max (b, "a.ends")
    t = Cast <to = 1> (x) u = Mul (t, "a.scale") s = Mul (u, "b.scale") }"""
CONSTANTS = {
    "a.low": np.uint8(1), "a.high": np.uint8(9), "b.low": np.uint8(1), "b.high": np.uint8(8),
    "a.ends": np.array([3, 7], np.uint8), "b.ends": np.array([3, 7], np.uint8),
    "a.scale": np.float32(0.5), "b.scale": np.float32(0.5),
}  # fmt: skip


def model() -> onnx.ModelProto:
    parsed = onnx.parser.parse_model(TEXT)
    parsed.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in CONSTANTS.items()
    )
    return parsed


def outputs(of: onnx.ModelProto) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(of.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": np.array([0, 12], np.uint8)}))


def names(of: onnx.ModelProto) -> set[str]:
    return {tensor.name for tensor in of.graph.initializer}


def test_integers_are_named_by_their_value_and_the_rest_like_the_first() -> None:
    merged = model()
    merge_equal_constants(merged.graph)
    onnx.checker.check_model(merged, full_check=True)
    assert names(merged) == {"uint8.1", "a.high", "b.high", "a.ends", "a.scale"}
    assert list(merged.graph.node[1].input) == ["a", "uint8.1", "b.high"]
    for found, expected in zip(outputs(merged), outputs(model()), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_shape_and_type_tell_constants_apart() -> None:
    parsed = model()
    for name, value in (
        ("c", np.zeros(3, np.int32)),
        ("d", np.zeros((3, 1), np.int32)),
        ("e", np.zeros(3, np.float32)),
    ):
        parsed.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    merge_equal_constants(parsed.graph)
    assert {"c", "d", "e"} <= names(parsed)


def test_a_name_that_is_reserved_is_not_given() -> None:
    parsed = model()
    merge_equal_constants(parsed.graph, reserved=["uint8.1"])
    assert "a.low" in names(parsed)
    assert "uint8.1" not in names(parsed)


def test_strings_stay_as_they_are() -> None:
    parsed = model()
    for word in ("one", "two", "one"):
        words = np.array([word], dtype=object)
        parsed.graph.initializer.append(onnx.numpy_helper.from_array(words, f"s{len(parsed.graph.initializer)}"))
    merge_equal_constants(parsed.graph)
    assert {"s8", "s9", "s10"} <= names(parsed)


def test_a_name_that_is_taken_is_not_given() -> None:
    parsed = model()
    parsed.graph.node[0].output[0] = parsed.graph.node[1].input[0] = "uint8.1"
    merge_equal_constants(parsed.graph)
    onnx.checker.check_model(parsed, full_check=True)
    assert "a.low" in names(parsed)
    assert "uint8.1" not in names(parsed)


@pytest.mark.parametrize(
    "text",
    [
        'inner () => (uint8 v) { "uint8.1" = Constant <value = uint8 {7}> () v = Identity (z) }',
        'inner () => (uint8 v) <uint8 "uint8.1" = {7}> { v = Identity (z) }',
    ],
    ids=["node", "initializer"],
)
def test_a_name_of_a_subgraph_is_not_given(text: str) -> None:
    parsed = model()
    inner = onnx.parser.parse_graph(text)
    parsed.graph.node.append(onnx.helper.make_node("If", ["q"], ["w"], then_branch=inner, else_branch=inner))
    merge_equal_constants(parsed.graph)
    assert "a.low" in names(parsed)
    assert "uint8.1" not in names(parsed)


@pytest.mark.parametrize("place", ["output", "subgraph", "file"])
def test_constants_that_others_refer_to_by_name_stay(place: str) -> None:
    parsed = model()
    kept = next(tensor for tensor in parsed.graph.initializer if tensor.name == "b.low")
    if place == "output":
        parsed.graph.output.append(onnx.helper.make_tensor_value_info("b.low", onnx.TensorProto.UINT8, []))
    elif place == "file":
        kept.data_location = onnx.TensorProto.EXTERNAL
    else:
        inner = onnx.parser.parse_graph('inner () => (uint8 v) { v = Identity ("b.low") }')
        branch = onnx.helper.make_node("If", ["q"], ["w"], then_branch=inner, else_branch=inner)
        parsed.graph.node.append(branch)
    merge_equal_constants(parsed.graph)
    assert {"a.low", "b.low"} <= names(parsed)
