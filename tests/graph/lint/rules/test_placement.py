from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.graph.lint.graphs import (
    IN,
    OUT,
    WEIGHT,
    found,
    linted,
    model,
    nodes,
    optimised_operators,
    pair,
    weight,
    with_zero,
)

BRANCH = IN + WEIGHT + "[conv] c = Conv <pads = [1, 1, 1, 1]> (d, wd)"
SHORT = " [short] e = Conv <pads = [1, 1, 1, 1]> (d, wd)"
ADD = " [add] a = Add ({}, {}) r = Relu (a)" + pair("r", "y")


def residual(left: str, right: str, middle: str = "") -> list[str]:
    """Rules that concern the Add of a residual block of TensorRT's form."""
    graph = model(with_zero(BRANCH + middle + ADD.format(left, right), "i"))
    return [finding.rule for finding in linted(graph, "tensorrt").findings if finding.node == "add"]


def test_q_and_dq_between_convolution_and_add() -> None:
    assert residual("k", "d", pair("c", "k")) == ["qdq-between-conv-and-add"]
    assert residual("d", "k", pair("c", "k")) == ["qdq-between-conv-and-add"]
    assert residual("k", "m", pair("c", "k") + SHORT + pair("e", "m")) == ["qdq-between-conv-and-add"]
    bn = "norm = BatchNormalization (c, one, one, one, one)" + pair("norm", "k")
    assert residual("k", "d", bn) == ["qdq-between-conv-and-add"]


def test_what_it_says() -> None:
    graph = model(with_zero(BRANCH + pair("c", "k") + ADD.format("k", "d"), "i"))
    assert found(graph, "qdq-between-conv-and-add") == [("add", "q_k between it and its convolution")]


def test_the_form_that_tensorrt_wants() -> None:
    assert residual("c", "d") == []
    assert residual("c", "m", SHORT + pair("e", "m")) == []
    assert residual("norm", "d", "norm = BatchNormalization (c, one, one, one, one)") == []


def test_a_float_skip_beside_a_convolution_in_codes() -> None:
    assert residual("c", "x") == ["float-skip"]
    assert residual("s0", "c", "s0 = Sigmoid (x)") == ["float-skip"]
    graph = model(with_zero(BRANCH + ADD.format("c", "x"), "i"))
    assert found(graph, "float-skip") == [("add", "a float skip input, x")]


@pytest.mark.parametrize("norms", [1, 2])
def test_a_float_skip_beside_a_convolution_and_its_batchnorm(norms: int) -> None:
    middle = "".join(f" c{i + 1} = BatchNormalization (c{i}, one, one, one, one)" for i in range(norms))
    assert residual(f"c{norms}", "x", middle.replace("(c0,", "(c,")) == ["float-skip"]
    assert residual("x", f"c{norms}", middle.replace("(c0,", "(c,")) == ["float-skip"]
    assert residual(f"c{norms}", "d", middle.replace("(c0,", "(c,")) == []
    assert residual("norm", "x", "e = Conv (x, f) norm = BatchNormalization (e, one, one, one, one)") == []


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_a_float_skip_at_every_width(bits: int) -> None:
    """Codes of every width lie in int8."""
    high = 2 ** (bits - 1) - 1
    norm = "norm = BatchNormalization (c, one, one, one, one)"
    graph = model(with_zero(BRANCH + norm + ADD.format("norm", "x"), "i"))
    codes = next(tensor for tensor in graph.graph.initializer if tensor.name == "w")
    narrow = np.clip(onnx.numpy_helper.to_array(codes), -high - 1, high)
    codes.CopyFrom(onnx.numpy_helper.from_array(narrow, "w"))
    assert found(graph, "float-skip") == [("add", "a float skip input, x")]


def test_a_skip_whose_codes_are_moved_is_in_codes() -> None:
    assert residual("c", "m", "m = MaxPool <kernel_shape = [1, 1]> (d)") == []
    assert residual("c", "m", "t = Transpose (d) m = Transpose (t)") == []


def test_a_bias_is_no_residual() -> None:
    graph = model(with_zero(BRANCH + pair("c", "k") + "[add] a = Add (k, s)" + pair("a", "y"), "i"))
    assert not nodes(graph, "qdq-between-conv-and-add")


ELEMENTWISE = {
    "Add": "Add (d, *)",
    "Mul": "Mul (d, *)",
    "Concat": "Concat <axis = 1> (d, *)",
}


@pytest.mark.parametrize("zero", ["u", "i"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_one_input_in_codes_and_one_in_float(name: str, zero: str, tmp_path: Path) -> None:
    text = IN + f"[op] c = {ELEMENTWISE[name].replace('*', 'x')}" + OUT
    graph = model(with_zero(text, zero))
    assert found(graph, "partly-quantized") == [("op", "float input x beside one in codes")]
    assert optimised_operators(graph, tmp_path)[name] == 1
    both = model(with_zero(text.replace("x)", "e)").replace("[op]", pair("x", "e") + "[op]"), zero))
    assert not nodes(both, "partly-quantized")
    assert optimised_operators(both, tmp_path)[f"QLinear{name}"] == 1


@pytest.mark.parametrize("name", ["AveragePool", "GlobalAveragePool", "Add"])
def test_codes_in_front_and_float_behind(name: str, tmp_path: Path) -> None:
    arguments = {"AveragePool": "<kernel_shape = [2, 2]> (d)", "GlobalAveragePool": "(d)", "Add": "(d, d)"}[name]
    text = with_zero(IN, "u") + f"[op] {{}} = {name} {arguments}"
    graph = model(text.format("y"))
    assert found(graph, "partly-quantized") == [("op", "inputs in codes, output in float")]
    assert optimised_operators(graph, tmp_path)[name] == 1
    for behind in (OUT, "r = Relu (c)" + pair("r", "y")):
        assert not nodes(model(text.format("c") + with_zero(behind, "u")), "partly-quantized")


@pytest.mark.parametrize("tail", ["y = Relu (a)", pair("a", "y")])
@pytest.mark.parametrize("bias", ["(c, bd)", "(bd, c)"])
def test_the_add_of_a_bias_in_codes_belongs_to_its_matmul(bias: str, tail: str, tmp_path: Path) -> None:
    made = weight(1) + " bd = DequantizeLinear <axis = 0> (b, sb) c = MatMul (d, wd) "
    graph = model(with_zero(IN + made + f"[add] a = Add {bias}" + tail, "u"), x="2, 4", y="a, b", shape=(4, 4))
    assert not nodes(graph, "partly-quantized")
    assert optimised_operators(graph, tmp_path)["QGemm"] == 1
    other = model(with_zero(IN + made + "[add] a = Add (c, d)" + tail, "u"), x="2, 4", y="a, b", shape=(4, 4))
    assert nodes(other, "partly-quantized") == ["add"]


def test_operators_between_floats_are_left_alone() -> None:
    graph = model("a = Add (x, x) c = GlobalAveragePool (a) y = Sigmoid (c)")
    assert not linted(graph).findings


@pytest.mark.parametrize("name", ["LeakyRelu", "Sigmoid", "Softmax"])
def test_operators_that_only_onnxruntime_has_in_integers(name: str, tmp_path: Path) -> None:
    graph = model(with_zero(IN + f"[op] y = {name} (d)", "u"))
    assert nodes(graph, "partly-quantized-onnxruntime") == ["op"]
    assert not nodes(graph, "partly-quantized")
    assert optimised_operators(graph, tmp_path)[name] == 1
    assert not nodes(model(with_zero(IN + f"c = {name} (d)" + OUT, "u")), "partly-quantized-onnxruntime")


def test_the_add_of_a_convolution_is_onnxruntimes_affair() -> None:
    graph = model(with_zero(BRANCH + ADD.format("c", "d"), "u"))
    assert found(graph, "partly-quantized-onnxruntime") == [("add", "float input c beside one in codes")]
    assert not nodes(graph, "partly-quantized")


CONCAT = "[concat] c = Concat <axis = 1> (d, e)"


def test_unequal_scales_around_a_concat() -> None:
    graph = model(with_zero(IN + pair("x", "e") + CONCAT + pair("c", "y", "s"), "i"))
    assert found(graph, "unequal-concat-scales") == [("concat", "scales 0.05, 0.07 around it")]
    graph = model(with_zero(IN + pair("x", "e", "s") + CONCAT + OUT, "i"))
    assert found(graph, "unequal-concat-scales") == [("concat", "scales 0.05, 0.07 around it")]


def test_equal_scales_around_a_concat() -> None:
    body = IN + pair("x", "e", "same") + CONCAT + pair("c", "y", "s")
    assert not nodes(model(with_zero(body, "i"), constants="float[1] same = {0.05}"), "unequal-concat-scales")
    body = IN + pair("x", "e", "s") + CONCAT + "y = Relu (c)"
    assert not nodes(model(with_zero(body, "i")), "unequal-concat-scales")


def test_equal_scales_of_several_types() -> None:
    graph = model(pair("x", "d", "s", "i") + pair("x", "e", "s", "u") + CONCAT + "y = Relu (c)")
    assert nodes(graph, "unequal-concat-scales") == ["concat"]


@pytest.mark.parametrize("operator", ["MaxPool <kernel_shape = [2, 2]> (d)", "Transpose (d)", "Flatten (d)"])
def test_other_scales_behind_an_operator_that_moves(operator: str) -> None:
    rank = "a, b" if "Flatten" in operator else "a, b, c, d"
    graph = model(with_zero(IN + f"[move] c = {operator}" + OUT, "i"), y=rank)
    assert found(graph, "requantized-move") == [("move", "other scales in front (dq_d) than behind (q_y)")]
    same = model(with_zero(IN + f"[move] c = {operator}" + pair("c", "y", "s"), "i"), y=rank)
    assert not nodes(same, "requantized-move")


def test_a_requantized_move_runs_in_float(tmp_path: Path) -> None:
    text = IN + "[move] c = MaxPool <kernel_shape = [2, 2]> (d)"
    assert optimised_operators(model(with_zero(text + OUT, "u")), tmp_path)["DequantizeLinear"] == 2
    assert optimised_operators(model(with_zero(text + pair("c", "y", "s"), "u")), tmp_path)["DequantizeLinear"] == 1


@pytest.mark.parametrize(
    "operator",
    ["Clip (*, ilo, ihi)", "Min (*, ihi)", 'BitShift <direction = "LEFT"> (*, uhi)', "Pad (*, border)"],
)
def test_operators_on_codes(operator: str) -> None:
    border = "int64[8] border = {0, 0, 1, 1, 0, 0, 1, 1}"
    graph = model(pair("x", "y", "s", "u" if "Bit" in operator else "i", on_codes=operator), constants=border)
    assert found(graph, "operator-on-codes") == [("dq_y", f"{operator.split()[0]} between it and q_y")]


def test_moving_codes_is_no_operator_on_them() -> None:
    assert not nodes(model(pair("x", "y", "s", "i", on_codes="Transpose (*)")), "operator-on-codes")
    assert not nodes(model(pair("x", "y", "s", "i")), "operator-on-codes")
    # of constants: that is weight-path
    assert not nodes(
        model("o = Clip (w, ilo, ihi) wd = DequantizeLinear (o, s, i) y = Conv (x, wd)"), "operator-on-codes"
    )
