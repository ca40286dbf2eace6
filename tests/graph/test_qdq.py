"""Patterns that are recognised, and look-alikes that are not."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx.parser
import onnx_graphsurgeon as gs
import pytest

from bitswitch_deploy.graph.model_io import export_model, import_model
from bitswitch_deploy.graph.qdq import (
    ActivationCodes,
    activation_patterns,
    is_known,
    limit_codes,
    match_activation,
    match_weight,
    multiply_codes,
    producer_of,
    redirect_readers,
    refine_activation,
    sole_reader,
)
from tests.graph.running import look

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
ACTIVATION = """
net (float[n] x) => (float[n] y) <float s = {0.5}, int8 z = {-3}, int8 low = {-10}, int8 high = {20}, uint8 u = {7}> {
    q = QuantizeLinear (x, s, z)
    c = Clip (q, low, high)
    d = DequantizeLinear (c, s, z)
    r = Relu (d)
    q2 = QuantizeLinear (r, s, u)
    y = DequantizeLinear (q2, s, u)
}"""
WEIGHT = """
net (float[n, 2] x) => (float[n, 3] y)
<int8[2, 3] w = {1, -2, 3, -4, 5, -6}, float[3] s = {0.5, 1, 2}, int8[3] z = {0, 0, 0}> {
    d = DequantizeLinear <axis: int = 1> (w, s, z)
    y = MatMul (x, d)
}"""


def graph(text: str) -> gs.Graph:
    return import_model(onnx.parser.parse_model(HEADER + text))


def node(graph: gs.Graph, op: str) -> gs.Node:
    return next(each for each in graph.nodes if each.op == op)


def test_activations_with_and_without_clip() -> None:
    first, second = activation_patterns(graph(ACTIVATION))
    assert first.codes == ActivationCodes(scale=np.float32(0.5), zero_point=-3, container=np.int8, low=-10, high=20)
    assert (first.source.name, first.result.name) == ("x", "d")
    assert first.clip is not None
    assert second.codes == ActivationCodes(scale=np.float32(0.5), zero_point=7, container=np.uint8, low=0, high=255)
    assert (second.source.name, second.result.name, second.clip) == ("r", "y", None)


def test_a_dequantized_constant_is_no_activation() -> None:
    assert match_activation(node(graph(WEIGHT), "DequantizeLinear")) is None
    assert activation_patterns(graph(WEIGHT)) == []


@pytest.mark.parametrize("between", ["Relu (d)", "Identity (d)"])
def test_codes_that_other_nodes_make_are_no_activation(between: str) -> None:
    text = """
    net (float[n] x) => (float[n] y) <float s = {0.5}, uint8 z = {0}> {
        d = Cast <to: int = 2> (x)
        q = BETWEEN
        y = DequantizeLinear (q, s, z)
    }""".replace("BETWEEN", between)
    assert activation_patterns(graph(text)) == []


@pytest.mark.parametrize(
    ("q", "middle", "d"),
    [
        ("s, z16", "q", "s, z16"),
        ("s3, z3", "q", "s3, z3"),
        ("s, z", "q", "s2, z"),
        ("s, z", "q", "s, other"),
        ("s, z", "q", "s, zi"),
        ("s", "q", "s, z"),
        ("s, z", "q", "s"),
        ("s, z", "Clip (q, z)", "s, z"),
        ("s, z", 'Clip (q, "", high)', "s, z"),
        ("s, z", "Clip (q, computed, high)", "s, z"),
        ("s, z", 'BitShift <direction = "LEFT"> (q, z)', "s2, z"),
        ("s, z", 'BitShift <direction = "LEFT"> (q, computed)', "s, z"),
    ],
)
def test_quantizers_of_another_form_are_no_activations(q: str, middle: str, d: str) -> None:
    text = f"""
    net (float[3] x) => (float[3] y)
        <float s = {{0.5}}, float s2 = {{0.25}}, float[3] s3 = {{1, 2, 3}}, uint8[3] z3 = {{0, 0, 0}}, uint8 z = {{0}},
         uint8 high = {{9}}, uint8 other = {{1}}, int8 zi = {{0}}, uint16 z16 = {{3000}}> {{
        computed = Identity (z)
        q = QuantizeLinear <axis = 0> (x, {q})
        c = {middle if " " in middle else f"Identity ({middle})"}
        y = DequantizeLinear <axis = 0> ({"c" if " " in middle else middle}, {d})
    }}"""
    changed = graph(text)
    assert match_activation(node(changed, "DequantizeLinear")) is None
    assert activation_patterns(changed) == []


@pytest.mark.parametrize(
    ("step", "length"), [("Identity ({0})", 2000), ("Add ({0}, {0})", 200)], ids=["a long chain", "2^200 ways"]
)
@pytest.mark.parametrize(("start", "known"), [("k", True), ("c", True), ("x", False), ("r", False)])
def test_what_is_known_before_the_graph_runs(start: str, known: bool, step: str, length: int) -> None:
    names = [start, *(f"t{index}" for index in range(length)), "y"]
    chain = "\n".join(f"{after} = {step.format(before)}" for before, after in pairwise(names))
    text = f"""net (float[1] x) => (float[1] y) <float[1] k = {{1}}> {{
        c = Constant <value_floats: floats = [1.0]> ()
        r = RandomNormal <shape: ints = [1]> ()
        {chain}
    }}"""
    (output,) = graph(text).outputs
    assert is_known(output) == known


@pytest.mark.parametrize(
    ("container", "low", "high", "needed"),
    [
        (np.uint8, 0, 255, False),
        (np.uint8, 0, 254, True),
        (np.uint8, 1, 255, True),
        (np.int8, -128, 127, False),
        (np.int8, -128, 126, True),
        (np.int8, -127, 127, True),
    ],
)
def test_when_saturation_is_enough(
    container: type[np.uint8] | type[np.int8], low: int, high: int, needed: bool
) -> None:
    codes = ActivationCodes(scale=np.float32(1), zero_point=0, container=container, low=low, high=high)
    assert codes.needs_clip is needed


SHIFTED = """
net (float[n] x) => (float[n] y) <float s = {0.5}, uint8 z = {0}, uint8 high = {15}> {
    q = QuantizeLinear (x, s, z)
    c = Clip (q, z, high)
    y = DequantizeLinear (c, s, z)
}"""


def test_shifted_codes_have_the_same_values() -> None:
    before, after = graph(SHIFTED), graph(SHIFTED)
    (pattern,) = activation_patterns(after)
    refine_activation(after, pattern, 3)
    (found,) = activation_patterns(after)
    assert (pattern.shift, found.shift) == (0, 3)
    assert found.codes == pattern.codes
    assert found.clip is pattern.clip
    models = [export_model(each, opset=21, ir_version=10) for each in (before, after)]
    x = np.linspace(-2, 12, 100, dtype=np.float32)
    np.testing.assert_array_equal(look(models[1], x, "c.shifted"), look(models[0], x, "c") * 8)
    np.testing.assert_array_equal(look(models[1], x, "y"), look(models[0], x, "y"))


def test_weight() -> None:
    weight = match_weight(node(graph(WEIGHT), "MatMul").inputs[1])
    assert weight is not None
    assert (weight.codes.name, weight.scale.name, weight.factors, weight.is_blocked) == ("w", "s", None, False)
    np.testing.assert_array_equal(weight.products(), [[1, -2, 3], [-4, 5, -6]])


def test_blocked_weight() -> None:
    text = WEIGHT.replace("axis: int = 1", "axis: int = 0, block_size: int = 2").replace("[3] ", "[1, 3] ")
    weight = match_weight(node(graph(text), "MatMul").inputs[1])
    assert weight is not None
    assert weight.is_blocked


@pytest.mark.parametrize("replacement", ["Identity (w2)", "Neg (w2)"])
def test_other_tensors_are_no_weight(replacement: str) -> None:
    text = WEIGHT.replace("y = MatMul (x, d)", f"w2 = Relu (d) e = {replacement} y = MatMul (x, e)")
    assert match_weight(node(graph(text), "MatMul").inputs[1]) is None
    assert match_weight(node(graph(text), "MatMul").inputs[0]) is None


def test_cast_without_product_is_no_weight() -> None:
    text = WEIGHT.replace("d = Deq", "f = Cast <to: int = 1> (w) w2 = Cast <to: int = 3> (f) d = Deq").replace(
        "(w, s", "(w2, s"
    )
    assert match_weight(node(graph(text), "MatMul").inputs[1]) is None


def test_multiplied_codes_are_recognised_and_computed() -> None:
    changed = graph(WEIGHT)
    weight = match_weight(node(changed, "MatMul").inputs[1])
    assert weight is not None
    multiply_codes(changed, weight, np.array([[1, -1, 2]], np.int32))
    model = export_model(changed, opset=21, ir_version=10)
    np.testing.assert_array_equal(look(model, np.ones((1, 2), np.float32), "w.multiplied"), [[1, 2, 6], [-4, -5, -12]])
    again = match_weight(node(changed, "MatMul").inputs[1])
    assert again is not None
    assert again.codes is weight.codes
    np.testing.assert_array_equal(again.products(), [[1, 2, 6], [-4, -5, -12]])


def test_factors_multiply() -> None:
    changed = graph(WEIGHT)
    for factors in ([[1, -1, 2]], [[-1, -1, 4]]):
        weight = match_weight(node(changed, "MatMul").inputs[1])
        assert weight is not None
        multiply_codes(changed, weight, np.array(factors, np.int32))
    assert [each.op for each in changed.nodes].count("Mul") == 1
    model = export_model(changed, opset=21, ir_version=10)
    found = look(model, np.ones((1, 2), np.float32), "w.multiplied")
    np.testing.assert_array_equal(found, [[-1, -2, 24], [4, 5, -48]])


READERS = """
net (float[n] x) => (float[n] y, float[n] b) {
    a = Relu (x)
    b = Neg (a)
    c = Add (a, a)
    d = Exp (b)
    e = Exp (c)
    y = Add (d, e)
}"""


def test_sole_reader() -> None:
    tensors = graph(READERS).tensors()
    whole = graph(READERS)
    tensors = whole.tensors()
    reader = sole_reader(whole, tensors["x"])
    assert reader is not None
    assert reader.op == "Relu"
    assert sole_reader(whole, tensors["a"]) is None  # two readers
    assert sole_reader(whole, tensors["b"]) is None  # a graph output as well
    assert sole_reader(whole, tensors["y"]) is None  # none


def test_producer() -> None:
    tensors = graph(READERS).tensors()
    assert producer_of(tensors["x"]) is None
    producer = producer_of(tensors["d"])
    assert producer is not None
    assert producer.op == "Exp"


def test_redirected_readers() -> None:
    whole = graph(READERS)
    tensors = whole.tensors()
    redirect_readers(whole, tensors["a"], tensors["x"], keep=[node(whole, "Neg")])
    assert [tensor.name for tensor in node(whole, "Add").inputs] == ["x", "x"]
    assert [tensor.name for tensor in node(whole, "Neg").inputs] == ["a"]
    redirect_readers(whole, tensors["b"], tensors["x"])
    assert [output.name for output in whole.outputs] == ["y", "b"]
    assert [tensor.name for tensor in node(whole, "Exp").inputs] == ["x"]


LIMITED = """
net (float[n] x) => (float[n] y) <float s = {0.5}, int8 z = {-3}, int8 low = {-10}, int8 high = {20}> {
    q = QuantizeLinear (x, s, z)
    CLIP
    y = DequantizeLinear (LAST, s, z)
}"""
CLIPPED, UNCLIPPED = (
    LIMITED.replace("CLIP", lines).replace("LAST", last)
    for lines, last in (("c = Clip (q, low, high)", "c"), ("", "q"))
)


@pytest.mark.parametrize("text", [CLIPPED, UNCLIPPED], ids=["with clip", "without"])
@pytest.mark.parametrize(
    "limits", [(-5, 5), (-128, 127), (-128, 5), (-5, 127), (-300, 300), (7, 7), (100, 120), (-120, -100)]
)
def test_codes_are_limited_within_their_limits(text: str, limits: tuple[int, int]) -> None:
    changed = graph(text)
    (pattern,) = activation_patterns(changed)
    limit_codes(changed, pattern, low=limits[0], high=limits[1])
    (found,) = activation_patterns(changed)
    ends = [min(max(limit, pattern.codes.low), pattern.codes.high) for limit in limits]
    assert [found.codes.low, found.codes.high] == ends
    assert (found.clip is None) is (text is UNCLIPPED and ends == [-128, 127])
    x = np.arange(-100, 100, dtype=np.float32) * np.float32(0.5)
    values = look(export_model(changed, opset=21, ir_version=10), x, "y")
    np.testing.assert_array_equal(values, (np.clip(np.rint(x / 0.5) - 3, ends[0], ends[1]) + 3) * 0.5)


def test_limited_twice() -> None:
    changed = graph(UNCLIPPED)
    for low, high in ((-5, 50), (-50, 5)):
        (pattern,) = activation_patterns(changed)
        limit_codes(changed, pattern, low=low, high=high)
    (found,) = activation_patterns(changed)
    assert (found.codes.low, found.codes.high) == (-5, 5)
    assert [each.op for each in changed.nodes].count("Clip") == 1


def test_limits_of_another_pattern_stay() -> None:
    changed = graph(ACTIVATION)
    first, second = activation_patterns(changed)
    limit_codes(changed, second, low=10, high=20)
    found = activation_patterns(changed)
    assert found[0].codes == first.codes
    assert (found[1].codes.low, found[1].codes.high) == (10, 20)
