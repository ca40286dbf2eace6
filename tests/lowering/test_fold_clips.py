"""FoldClips: the codes behind a float Clip and the codes that an integer Clip makes, around every tie and bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from bitswitch_deploy.graph.model_io import export_model, import_model
from bitswitch_deploy.graph.qdq import activation_patterns, refine_activation
from bitswitch_deploy.lowering.approximation import EXACT
from tests.graph.masters import build, layer, per_channel
from tests.graph.running import look, operators
from tests.lowering.critical_values import around, critical
from tests.lowering.lowered import INT8_CPU, Applied, applied, canonical, fast_operators, is_untouched, lowered, profile

Array = np.ndarray[Any, np.dtype[Any]]

X86, INT8 = profile("x86-cpu"), profile("arm64-cpu", INT8_CPU)
CLIP = "c = Clip (x, low, high)"


def text(clip: str = CLIP, *, low: float | str = 0.0, high: float | str = 6.0, more: str = "") -> str:
    return (
        'net (float[n, 1] x, float[1, 1] "a.weight") => (float[n, 1] y)'
        f" <float low = {{{low}}}, float high = {{{high}}}>"
        f' {{ {clip} {more} y = MatMul (c, "a.weight") }}'
    )


def before_of(
    source: str, bits: int, activation: str = "unsigned", *, scale: float = 0.1, container: str = "uint8"
) -> onnx.ModelProto:
    master = build(
        source,
        (layer("a", "MatMul", activation=activation),),
        widths=(bits,),
        tensors={"a.input.scale": [scale]},
        activation_container=container,
    )
    return canonical(master, bits).model


def codes(model: onnx.ModelProto, x: Array, optimisation: Any = "off", name: str = "a.input") -> Array:
    last = next(node.input[0] for node in model.graph.node if node.name == f"{name}/DequantizeLinear")
    return look(model, x, last, optimisation=optimisation)


def fold(model: onnx.ModelProto) -> Applied:
    return applied("FoldClips", model, X86, approximations=EXACT)


def float_clips(model: onnx.ModelProto) -> int:
    values = onnx.shape_inference.infer_shapes(model).graph.value_info
    types = {value.name: value.type.tensor_type.elem_type for value in (*values, *model.graph.output)}
    return sum(node.op_type == "Clip" and types[node.output[0]] == onnx.TensorProto.FLOAT for node in model.graph.node)


KINDS = [
    *((bits, "unsigned", "uint8") for bits in range(2, 9)),
    (8, "unsigned", "int8"),
    *((bits, "signed", "uint8") for bits in range(2, 9)),
]
# in steps of the scale: both ends, on ties, within the first step, beyond the codes, all on one side of them
BOUNDS = [(0, 60), (-1, 1), (-1.5, 2.5), (0.5, 1.5), (0.3, 0.3), (-1000, 1000), (-9, -3), (500, 600), (1, 1e30)]


@pytest.mark.parametrize("scale", [0.1, 1 / 3, 7.3e-9])
@pytest.mark.parametrize(("bits", "activation", "container"), KINDS)
def test_same_codes(bits: int, activation: str, container: str, scale: float) -> None:
    step = np.float32(scale)
    low = -int(2 ** (bits - 1)) if activation == "signed" else 0
    for ends in BOUNDS:
        bounds = (np.asarray(ends) * np.float64(step)).astype(np.float32)
        for first, last in (bounds, np.nextafter(bounds, np.float32(np.inf))):
            before = before_of(text(), bits, activation, scale=scale, container=container)
            for tensor in before.graph.initializer:
                if tensor.name in ("low", "high"):
                    value = first if tensor.name == "low" else last
                    tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(value), tensor.name))
            result = fold(before)
            assert (result.modified, result.changes) == (True, [])
            assert float_clips(result.model) == 0
            x = np.concatenate([critical(step, low, low + 2**bits - 1), around(bounds)[:, None]])
            expected = codes(before, x)
            np.testing.assert_array_equal(codes(result.model, x), expected, err_msg=f"{ends}")
            assert len(np.unique(expected)) > 1 or bits == 2 or ends in [(0.3, 0.3), (-9, -3), (500, 600)]


@pytest.mark.parametrize("target", [X86, INT8], ids=["uint8", "int8"])
@pytest.mark.parametrize(("bits", "activation"), [(b, kind) for b in (8, 6, 4, 2) for kind in ("unsigned", "signed")])
def test_same_numbers_in_the_whole_target(bits: int, activation: str, target: Any) -> None:
    """Also in the container that another pass moves them to, and optimised."""
    source = text(low=-0.25, high=0.85)
    master = build(
        source, (layer("a", "MatMul", activation=activation),), widths=(bits,), tensors={"a.input.scale": [0.1]}
    )
    before, after = lowered(master, bits, target, approximations=EXACT)
    assert after.exact
    assert after.passes[0] == "FoldClips"
    x = np.concatenate([critical(np.float32(0.1), -3, 9), around(np.asarray([-0.25, 0.85]))[:, None]])
    expected = look(before.model, x, "a.input.dequantized")
    for optimisation in ("off", "all"):
        found = look(after.model, x, "a.input.dequantized", optimisation=optimisation)
        np.testing.assert_array_equal(found, expected)


def limits(model: onnx.ModelProto, name: str = "a.input") -> list[int] | None:
    """Give the ends of the integer Clip."""
    node = next((node for node in model.graph.node if node.name == f"{name}/Clip"), None)
    if node is None:
        return None
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    return [int(onnx.numpy_helper.to_array(tensors[end])) for end in node.input[1:3]]


@pytest.mark.parametrize(
    ("clip", "low", "high", "bits", "activation", "expected"),
    [
        (CLIP, 0.0, 6.0, 8, "unsigned", [0, 60]),
        (CLIP, 0.0, 6.0, 4, "unsigned", [0, 15]),
        (CLIP, 0.0, 1.0, 4, "unsigned", [0, 10]),
        (CLIP, 0.0, 6.0, 8, "signed", [0, 60]),
        (CLIP, 0.0, 100.0, 8, "unsigned", None),
        (CLIP, "-inf", "inf", 8, "unsigned", None),
        (CLIP, "-inf", "inf", 4, "signed", [-8, 7]),
        (CLIP, "-inf", 0.3, 8, "signed", [-128, 3]),
        ("c = Clip (x, low)", 0.4, 0.0, 8, "unsigned", [4, 255]),
        ("c = Clip (x, , high)", 0.0, 0.4, 8, "unsigned", [0, 4]),
        ("c = Clip (x)", 0.0, 0.0, 8, "unsigned", None),
        (CLIP, 50.0, 60.0, 8, "unsigned", [255, 255]),
    ],
)
def test_ends_of_the_codes(
    clip: str, low: float, high: float, bits: int, activation: str, expected: list[int] | None
) -> None:
    before = before_of(text(clip, low=low, high=high), bits, activation)
    result = fold(before)
    assert result.modified
    assert limits(result.model) == expected
    x = critical(np.float32(0.1), -140, 270)
    np.testing.assert_array_equal(codes(result.model, x), codes(before, x))


TWO = """
net (float[n, 1] x, float[1, 1] "a.weight", float[1, 1] "b.weight") => (float[n, 1] y)
    <float low = {0.0}, float high = {1.0}> {
    c = Clip (x, low, high)
    a = MatMul (c, "a.weight")
    b = MatMul (c, "b.weight")
    y = Add (a, b)
}"""


def two_readers(**changes: Any) -> onnx.ModelProto:
    layers = (layer("a", "MatMul"), layer("b", "MatMul", activation="signed"))
    tensors = {"a.input.scale": [0.1] * 4, "b.input.scale": [0.03] * 4}
    return canonical(build(TWO, layers, tensors=tensors, **changes), 4, b=8).model


def test_each_reader_gets_a_clip_of_its_own() -> None:
    before = two_readers()
    result = fold(before)
    assert float_clips(result.model) == 0
    assert (limits(result.model, "a.input"), limits(result.model, "b.input")) == ([0, 10], [0, 33])
    x = np.concatenate([critical(np.float32(0.1), 0, 12), critical(np.float32(0.03), -2, 40)])
    for name in ("a.input", "b.input"):
        np.testing.assert_array_equal(codes(result.model, x, name=name), codes(before, x, name=name))


def test_clips_in_a_row() -> None:
    before = before_of(text("b = Clip (x, low) c = Clip (b, low, high)", high=0.35), 8)
    result = fold(before)
    assert float_clips(result.model) == 0
    x = critical(np.float32(0.1), -2, 12)
    np.testing.assert_array_equal(codes(result.model, x), codes(before, x))


def test_layer_runs_in_integers_with_relu6_behind_it() -> None:
    source = """
    net (float[n, 4, 5, 5] x, float[6, 4, 3, 3] "a.weight", float[6] "a.bias", float[6, 6, 1, 1] "z.weight")
        => (float[n, 6, 3, 3] y) <float low = {0.0}, float high = {6.0}> {
        a = Conv (x, "a.weight", "a.bias")
        c = Clip (a, low, high)
        y = Conv (c, "z.weight")
    }"""
    master = build(source, (layer("a", "Conv", per_channel(0)), layer("z", "Conv", per_channel(0))))
    without = profile("x86-cpu", {"lowering": [name for name in X86.lowering if name != "FoldClips"]})
    for bits in (4, 2):
        counts = []
        for target in (X86, without):
            model = lowered(master, bits, target)[1].model
            found = fast_operators(model, X86)
            counts.append(found.get("QLinearConv", 0))
        assert counts == [1, 0]


# --- left alone ----------------------------------------------------------------------------------------------------

LEFT_ALONE = {
    "a float node reads it": text(more="n = Neg (c)").replace("y = MatMul (c", "m = Add (c, n) y = MatMul (m"),
    "bounds are computed": text("t = Neg (high) c = Clip (x, t, high)"),
    "upper bound is computed": text("t = Neg (low) c = Clip (x, low, t)"),
    "crossed": text(low=3.0, high=1.0),
    "nobody quantizes it": text(more="r = Relu (c)").replace("MatMul (c", "MatMul (r"),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    before = before_of(LEFT_ALONE[case], 4)
    assert is_untouched(fold(before), before)


@pytest.mark.parametrize("bound", ["low", "high"])
def test_a_bound_that_is_no_number_is_left_alone(bound: str) -> None:
    """No master has one; a graph may."""
    before = before_of(text(), 4)
    constant = next(tensor for tensor in before.graph.initializer if tensor.name == bound)
    constant.CopyFrom(onnx.numpy_helper.from_array(np.array(np.nan, np.float32), bound))
    assert is_untouched(fold(before), before)


def test_also_read_by_a_float_node_beside_the_codes() -> None:
    before = before_of(text(), 4)
    neg = onnx.helper.make_node("Neg", ["c"], ["minus"])
    before.graph.node.append(neg)
    before.graph.output.append(onnx.helper.make_tensor_value_info("minus", onnx.TensorProto.FLOAT, ["n", 1]))
    assert not fold(before).modified


def test_a_graph_output_is_left_alone() -> None:
    before = before_of(text(), 4)
    before.graph.output.append(onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, ["n", 1]))
    result = fold(before)
    assert not result.modified
    assert float_clips(result.model) == 1


def test_shifted_codes_are_left_alone() -> None:
    graph = import_model(before_of(text(), 4))
    refine_activation(graph, activation_patterns(graph)[0], 2)
    shifted = export_model(graph, opset=21, ir_version=10)
    result = fold(shifted)
    assert not result.modified
    assert "BitShift" in operators(result.model)
