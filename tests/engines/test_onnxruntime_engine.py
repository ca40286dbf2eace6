from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession
from bitswitch_deploy.engines.optimized_operators import optimized_nodes, optimized_operators
from bitswitch_deploy.errors import DataError, GraphError, UnavailableError, UsageError

TWO_OUTPUTS = """
<ir_version: 10, opset_import: ["" : 21]>
sums (float[N,2] a, int64[N] i) => (float[N,2] doubled, int64[N] next)
<int64 one = {1}>
{
    doubled = Add(a, a)
    next = Add(i, one)
}
"""


def _model(text: str) -> bytes:
    return onnx.parser.parse_model(text).SerializeToString()


def _session(model: bytes | Path, **settings: object) -> OnnxRuntimeSession:
    values: dict[str, Any] = {"optimisation": "all", "threads": 1, "session_options": {}} | settings
    return OnnxRuntimeSession(model, **values)


RELU = _model('<ir_version: 10, opset_import: ["" : 21]> g (float[2,N] x) => (float[2,N] y) { y = Relu(x) }')


def test_run_returns_the_first_output() -> None:
    x = np.array([[-1.0, 2.0, 3.0], [4.0, -5.0, 0.0]], np.float32)
    np.testing.assert_array_equal(_session(RELU).run(x), [[0, 2, 3], [4, 0, 0]])


def test_memory_that_runs_out_is_said() -> None:
    """The graph makes 2^60 numbers of one, whatever memory there is."""
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[1] x) => (float[n] y)
    { shape = Constant<value = int64[1] {1152921504606846976}>() y = Expand(x, shape) }"""
    with pytest.raises(UnavailableError, match=r"memory ran out in onnxruntime: .*\n.*\n  do: run fewer samples"):
        _session(_model(text), optimisation="off").run(np.ones(1, np.float32))


def test_run_leaves_further_outputs_out() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[1] x) => (float[1] first, float[1] second)
    { second = Neg(x) first = Identity(x) }"""
    np.testing.assert_array_equal(_session(_model(text)).run(np.ones(1, np.float32)), [1])


def test_run_all_names_every_output() -> None:
    outputs = _session(_model(TWO_OUTPUTS)).run_all(
        {"a": np.array([[1, 2]], np.float32), "i": np.array([41], np.int64)}
    )
    assert list(outputs) == ["doubled", "next"]
    np.testing.assert_array_equal(outputs["doubled"], [[2, 4]])
    np.testing.assert_array_equal(outputs["next"], [42])


def test_a_file_gives_the_same_as_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "relu.onnx").write_bytes(RELU)
    x = np.array([[-1.0], [1.0]], np.float32)
    np.testing.assert_array_equal(_session(tmp_path / "relu.onnx").run(x), _session(RELU).run(x))


def test_the_signature_is_that_of_the_graph() -> None:
    session = _session(_model(TWO_OUTPUTS))
    assert [(value.name, value.dtype, value.shape) for value in session.inputs] == [
        ("a", "float32", ("N", 2)),
        ("i", "int64", ("N",)),
    ]
    assert session.output_names == ("doubled", "next")


def test_threads_and_level_reach_the_vendor() -> None:
    options = _session(RELU, threads=3, optimisation="off")._session.get_session_options()
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 1
    assert options.use_deterministic_compute
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options = _session(RELU)._session.get_session_options()
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL


def test_only_the_cpu_provider_is_used() -> None:
    assert _session(RELU)._session.get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("entry", [{"": "1"}, {"k" * 1025: "1"}])
def test_a_session_entry_that_onnxruntime_refuses(entry: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"session entry '(.|\n)*do: correct engine\.session of the target"):
        _session(RELU, session_options=entry)


def test_session_options_reach_the_vendor(int4_matmul: bytes) -> None:
    # level 4 quantizes the activations of MatMulNBits at run time, level 1 computes in float32
    x = np.random.default_rng(3).standard_normal((2, 32)).astype(np.float32)
    exact = _session(int4_matmul, optimisation="off").run(x)
    key = "session.qdq_matmulnbits_accuracy_level"
    precise = _session(int4_matmul, session_options={key: "1"}).run(x)
    rough = _session(int4_matmul, session_options={key: "4"}).run(x)
    np.testing.assert_allclose(precise, exact, rtol=1e-5, atol=1e-5)
    assert np.abs(rough - exact).max() > 1e-4


def test_two_sessions_give_the_same_bits(qdq_conv: Callable[..., bytes]) -> None:
    x = np.random.default_rng(5).standard_normal((1, 3, 8, 8)).astype(np.float32)
    results = [_session(qdq_conv(activation="uint8", requantize=True), threads=2).run(x) for _ in range(2)]
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 3), np.float64), r"input 'x': float64\n  allowed: float32"),
        (np.zeros((3, 3), np.float32), r"input 'x': shape \[3, 3\]\n  allowed: shape \[2, 'N'\]"),
        (np.zeros((2,), np.float32), r"input 'x': shape \[2\]"),
    ],
)
def test_an_array_that_does_not_fit_is_refused(x: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _session(RELU).run(x)


def test_feeds_must_name_each_input_once() -> None:
    session = _session(_model(TWO_OUTPUTS))
    a = np.zeros((1, 2), np.float32)
    with pytest.raises(UsageError, match="values for 'a'\n  allowed: exactly 'a', 'i'"):
        session.run_all({"a": a})
    with pytest.raises(UsageError, match="values for 'a', 'i', 'j'"):
        session.run_all({"a": a, "i": np.zeros(1, np.int64), "j": a})
    with pytest.raises(UsageError, match="2 inputs: a, i"):
        session.run(a)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"threads": 0}, "threads: 0"), ({"optimisation": "some"}, "optimisation: 'some'\n  allowed: all or off")],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _session(RELU, **settings)


def test_a_damaged_graph_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(GraphError, match=r"graph in memory: onnxruntime .* refuses it") as caught:
        _session(b"not a graph")
    assert caught.value.__cause__ is not None
    with pytest.raises(GraphError, match=r"nothing\.onnx: onnxruntime .* refuses it"):
        _session(tmp_path / "nothing.onnx")
    assert capfd.readouterr().err == ""


def test_an_unknown_operator_is_refused() -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[1] x) => (float[1] y) { y = Nothing(x) }'
    with pytest.raises(GraphError, match=r"refuses it: .*Nothing"):
        _session(_model(text))


def test_an_input_without_numpy_type_is_refused() -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (string[1] x) => (string[1] y) { y = Identity(x) }'
    with pytest.raises(GraphError, match=r"input 'x': tensor\(string\)\n  allowed: tensor\(float\)"):
        _session(_model(text))


def test_a_failure_while_running_is_translated() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (int64[1] i) => (float[1] y) <float[2] table = {1, 2}>
    { y = Gather(table, i) }"""
    session = _session(_model(text))
    np.testing.assert_array_equal(session.run(np.array([1])), [2])
    with pytest.raises(GraphError, match=r"failed while running: .*out of"):
        session.run(np.array([9]))


def test_optimized_operators_show_integer_convolutions(qdq_conv: Callable[..., bytes], tmp_path: Path) -> None:
    integer = dict(optimized_operators(qdq_conv(activation="uint8", requantize=True), session_options={}))
    assert (integer["QuantizeLinear"], integer["QLinearConv"], integer["DequantizeLinear"]) == (1, 1, 1)
    assert "Conv" not in integer
    # without a Q behind it the convolution stays in float; the weights are folded
    path = tmp_path / "float.onnx"
    path.write_bytes(qdq_conv(activation="uint8"))
    operators = dict(optimized_operators(path, session_options={}))
    assert operators["Conv"] == 1
    assert "QLinearConv" not in operators


@pytest.mark.parametrize(("level", "arithmetic"), [("1", "weight-only"), ("4", "integer")])
def test_a_product_with_narrow_weights_says_what_becomes_of_its_inputs(
    int4_matmul: bytes, level: str, arithmetic: str
) -> None:
    nodes = optimized_nodes(int4_matmul, session_options={"session.qdq_matmulnbits_accuracy_level": level})
    assert [(node.operator, node.arithmetic) for node in nodes] == [("MatMulNBits", arithmetic)]


def test_optimized_operators_are_sorted_and_look_into_branches() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (bool c, float[1] x) => (float[1] y) {
        y = If(c) <
            then_branch = a () => (float[1] p) { p = Tanh(x) },
            else_branch = b () => (float[1] q) { q = Cos(x) }
        >
    }"""
    assert optimized_operators(_model(text), session_options={}) == (("Cos", 1), ("If", 1), ("Tanh", 1))


def test_optimized_operators_refuse_a_damaged_graph() -> None:
    with pytest.raises(GraphError, match="refuses it"):
        optimized_operators(b"not a graph", session_options={})


@pytest.mark.parametrize("body", ["y = MatMul(x, w)", "y = Add(x, w)"])
def test_values_handed_in_for_external_tensors_are_copied(body: str) -> None:
    """The caller may reuse its memory as soon as the session is there; onnxruntime says so, and this holds it to it."""
    text = f'<ir_version: 10, opset_import: ["" : 21]> g (float[64,64] x) => (float[64,64] y) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[64, 64])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="nowhere")
    model.graph.initializer.append(tensor)
    values = np.eye(64, dtype=np.float32)
    session = OnnxRuntimeSession(
        model.SerializeToString(), optimisation="all", threads=1, session_options={}, initializers={"w": values}
    )
    x = np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)
    before = session.run(x)
    values[...] = np.nan
    np.testing.assert_array_equal(session.run(x), before)
    assert np.isfinite(before).all()


def test_nothing_is_kept_for_the_maker_of_onnxruntime(tmp_path: Path) -> None:
    """Unless the user says so, in the variable that onnxruntime reads."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ORT_", "XDG_"))}
    program = "import os, bitswitch_deploy.runtime; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for given, wanted in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        home = tmp_path / wanted
        home.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**environment, **given, "HOME": str(home)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == wanted
        assert wanted == "0" or not list(home.rglob("*onnxruntime*"))
