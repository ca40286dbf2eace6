"""Times of runs and of operators, from onnxruntime itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession
from bitswitch_deploy.engines.onnxruntime_profile import read_profile
from bitswitch_deploy.engines.optimized_operators import count_operators, graph_nodes
from bitswitch_deploy.errors import DataError, InputFileError

CHAIN = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[N,64] x) => (float[N,64] y)
{
    [first] a = MatMul(x, w)
    [second] b = Softmax(a)
    [third] y = MatMul(b, w)
}
"""
BRANCH = """
<ir_version: 10, opset_import: ["" : 21]>
g (bool c, float[N] x) => (float[N] y)
{
    [choice] y = If(c) <
        then_branch = yes () => (float[N] t) { [inner] t0 = Erf(x) [inner2] t = Sin(t0) },
        else_branch = no () => (float[N] e) { [other] e = Cos(x) }
    >
}
"""


def model(text: str) -> bytes:
    parsed = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    parsed.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return parsed.SerializeToString()


def open_session(text: str, profile_to: Path | None = None) -> OnnxRuntimeSession:
    return OnnxRuntimeSession(model(text), optimisation="all", threads=1, session_options={}, profile_to=profile_to)


X = {"x": np.ones((4, 64), np.float32)}


def test_every_run_has_a_time() -> None:
    times = open_session(CHAIN).time_runs(X, 20)
    assert times.shape == (20,)
    assert (times > 0).all()


def test_feeds_are_checked_before_they_are_timed() -> None:
    with pytest.raises(DataError, match="float64"):
        open_session(CHAIN).time_runs({"x": np.ones((4, 64))}, 1)


def test_a_profile_has_the_nodes_of_every_run_in_their_order(tmp_path: Path) -> None:
    session = open_session(CHAIN, tmp_path / "p")
    session.time_runs(X, 3)
    runs = read_profile(session.end_profile())
    assert [[(node.name, node.operator) for node in run] for run in runs] == [
        [("first", "MatMul"), ("second", "Softmax"), ("third", "MatMul")]
    ] * 3
    starts = [node.start_us for run in runs for node in run]
    assert starts == sorted(starts)


def test_nodes_of_a_branch_are_part_of_the_node_around_them(tmp_path: Path) -> None:
    session = open_session(BRANCH, tmp_path / "p")
    session.time_runs({"c": np.asarray(True), "x": np.ones(4, np.float32)}, 2)
    runs = read_profile(session.end_profile())
    assert [[node.operator for node in run] for run in runs] == [["If"]] * 2


@pytest.mark.parametrize(
    "content",
    ["", "[1]", json.dumps([{"cat": "Node", "name": "a_kernel_time"}]), json.dumps({"a": 1}), "\x80"],
)
def test_what_is_no_profile_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputFileError, match="not readable as a profile"):
        read_profile(path)


def test_nodes_of_a_graph_include_those_of_branches() -> None:
    nodes = graph_nodes(onnx.parser.parse_model(BRANCH).graph)
    assert [node.name for node in nodes] == ["choice", "inner", "inner2", "other"]
    assert (nodes[1].inputs, nodes[1].outputs) == (("x",), ("t0",))
    assert count_operators(nodes) == (("Cos", 1), ("Erf", 1), ("If", 1), ("Sin", 1))
