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
