from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from tests.graph.lint.graphs import (
    IN,
    OUT,
    WEIGHT,
    model,
    nodes,
    optimised_operators,
    pair,
    weight,
    with_zero,
)
from tests.graph.running import needs_current_onnxruntime

pytestmark = needs_current_onnxruntime

MOVES = {
    "MaxPool": "MaxPool <kernel_shape = [2, 2]> (d)",
    "Transpose": "Transpose (d)",
    "Reshape": "Reshape (d, to)",
    "Slice": "Slice (d, b0, b1)",
    "Unsqueeze": "Unsqueeze (d, axis)",
    "Flatten": "Flatten (d)",
    "Resize": "Resize (d, , by)",
    "Split": "Split <num_outputs = 1> (d)",
    "DepthToSpace": "DepthToSpace <blocksize = 1> (d)",
}
CONSTANTS = (
    "int64[4] to = {1, 8, 4, 8}, int64[4] b0 = {0, 0, 0, 0}, int64[4] b1 = {1, 2, 4, 4}, int64[1] axis = {0},"
    "float[4] by = {1, 1, 2, 2}"
)
FAILS = ("MaxPool", "Transpose", "Reshape", "Slice", "Unsqueeze")


def loads(graph: onnx.ModelProto, folder: Path) -> bool:
    try:
        optimised_operators(graph, folder)
    except Fail as exc:
        assert "output_dtype INT8 does not match y_zero_point type UINT8" in str(exc)  # noqa: PT017 - the other branch counts too
        return False
    return True


@pytest.mark.parametrize("zero", ["i", "u"])
@pytest.mark.parametrize("opset", [20, 21])
@pytest.mark.parametrize("name", MOVES)
def test_what_does_not_load_is_named(name: str, opset: int, zero: str, tmp_path: Path) -> None:
    text = with_zero(IN + f"[move] m = {MOVES[name]} y = Relu (m)", zero)
    graph = model(text, opset=opset, constants=CONSTANTS)
    expected = ["move"] if name in FAILS and opset == 21 and zero == "i" else []
    assert nodes(graph, "int8-moved") == expected
    del graph.graph.output[0].type.tensor_type.shape.dim[:]
    graph.graph.output[0].type.tensor_type.ClearField("shape")
    assert loads(graph, tmp_path) == (not expected)


@pytest.mark.parametrize(
    ("tail", "fails"),
    [
        ("y = Conv (m, wd)", True),
        ("c = Conv (m, wd)" + OUT, True),
        (pair("m", "y", "s"), False),
        (pair("m", "k", "s") + "y = Conv (k, wd)", False),
        ("y = Relu (m)", True),
        ("", True),
    ],
)
def test_a_pair_behind_it_helps(tail: str, fails: bool, tmp_path: Path) -> None:
    move = f"[move] {'m' if tail else 'y'} = MaxPool <kernel_shape = [2, 2]> (d) "
    graph = model(with_zero(IN + WEIGHT + move + tail, "i"))
    assert nodes(graph, "int8-moved") == (["move"] if fails else [])
    assert loads(graph, tmp_path) == (not fails)


FLAT, TURN = "a = Reshape (m, flat)", "a = Transpose (m)"
MICROSOFT = "q = com.microsoft.QuantizeLinear (x, s, i) d = com.microsoft.DequantizeLinear (q, s, i)"

# name: (nodes in front of and behind a MaxPool `move` that makes m of d, whether onnxruntime fails)
ROUND_THE_MOVE = {
    "flat, Q": (IN, FLAT + pair("a", "y", "s"), False),
    "flat, Q of another scale": (IN, FLAT + pair("a", "y", "s2"), False),
    "flat, Q of uint8": (IN, FLAT + pair("a", "y", "s", "u"), False),
    "flat, copy, Q": (IN, FLAT + "e = Identity (a)" + pair("e", "y", "s"), False),
    "turned, flat, Q": (IN, TURN + "e = Reshape (a, flat)" + pair("e", "y", "s"), False),
    "flat, relu": (IN, FLAT + "y = Relu (a)", True),
    "flat, relu, Q": (IN, FLAT + "r = Relu (a)" + pair("r", "y", "s"), True),
    "flat, two Q": (IN, FLAT + pair("a", "k", "s") + pair("a", "v", "s2") + "y = Add (k, v)", True),
    "flat, Q and relu": (IN, FLAT + pair("a", "k", "s") + "r = Relu (a) y = Add (k, r)", True),
    "turned, Q per channel": (IN, TURN + pair("a", "y", "sw", "iw"), True),
    "flat, Q of a computed scale": (IN, FLAT + "k = ReduceMax <keepdims = 0> (x)" + pair("a", "y", "k"), True),
    "Flatten, Q": (IN, "a = Flatten (m)" + pair("a", "y", "s"), True),
    "Q and relu": (IN, pair("m", "k", "s") + "r = Relu (m) y = Add (k, r)", False),
    "read twice by one": (IN, "y = Concat <axis = 0> (m, m)", False),
    "read by two": (IN, "k = Relu (m) v = Neg (m) y = Add (k, v)", False),
    "read by two, one of them flat": (
        IN,
        "k = Relu (m)" + FLAT + "v = Relu (a) e = Reshape (k, flat) y = Add (e, v)",
        True,
    ),
    "Q per channel in front": (pair("x", "d", "sw", "iw"), "y = Relu (m)", False),
    "Q of a computed scale in front": ("k = ReduceMax <keepdims = 0> (x)" + pair("x", "d", "k"), "y = Relu (m)", False),
    "Q of a folded scale in front": ("k = Mul (s, s2)" + pair("x", "d", "k"), "y = Relu (m)", True),
    "com.microsoft": (MICROSOFT, "y = Relu (m)", False),
}


@pytest.mark.parametrize("name", ROUND_THE_MOVE)
def test_what_stands_around_a_move(name: str, tmp_path: Path) -> None:
    front, tail, fails = ROUND_THE_MOVE[name]
    text = front + "[move] m = MaxPool <kernel_shape = [2, 2]> (d) " + tail
    graph = model(with_zero(text, "i"), constants="int64[2] flat = {1, -1}")
    graph.graph.output[0].type.tensor_type.ClearField("shape")
    assert nodes(graph, "int8-moved") == (["move"] if fails else [])
    assert loads(graph, tmp_path) == (not fails)


def test_a_move_in_a_branch_with_constants_from_outside(tmp_path: Path) -> None:
    graph = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        net (float[2, 4] x, bool c) => (float[a, b] y) <float s = {1}, int8 i = {0}> {
            q = QuantizeLinear (x, s, i) d = DequantizeLinear (q, s, i)
            y = If (c) <
                then_branch = one () => (float[e, f] r) { m = Transpose (d) r = Relu (m) },
                else_branch = two () => (float[g, h] o) { o = Relu (d) }
            >
        }"""
    )
    assert not nodes(graph, "int8-moved")
    assert loads(graph, tmp_path)


def test_codes_that_are_moved_between_q_and_dq(tmp_path: Path) -> None:
    graph = model(pair("x", "d", "s", "i", on_codes="Transpose <perm = [0, 1, 2, 3]> (*)") + "y = Relu (d)")
    assert not nodes(graph, "int8-moved")
    assert not nodes(graph, "requantized-move")
    assert loads(graph, tmp_path)


@pytest.mark.parametrize(("x", "fails"), [("1, 2, 4", True), ("2, 4", False), ("N, 2, 4", False)])
@pytest.mark.parametrize("tail", ["y = Add (c, bias)", "a = Add (c, bias)" + pair("a", "y")])
def test_the_reshape_of_a_matmul_and_its_bias(x: str, fails: bool, tail: str, tmp_path: Path) -> None:
    rank: dict[str, Any] = {"x": x, "y": ", ".join("abc"[: x.count(",") + 1]), "shape": (4, 4)}
    graph = model(with_zero(IN + weight(1) + "[product] c = MatMul (d, wd)" + tail, "i"), **rank)
    assert nodes(graph, "int8-moved") == (["product"] if fails else [])
    assert loads(graph, tmp_path) == (not fails)
