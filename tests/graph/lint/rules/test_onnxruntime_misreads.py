"""Scales and biases that onnxruntime misreads: another result with optimisations than without, or none."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from tests.graph.lint.graphs import IN, found, model, nodes, pair, weight, with_zero
from tests.graph.lint.rules.test_onnxruntime_floats import CASES, MATRIX
from tests.graph.running import needs_current_onnxruntime

pytestmark = needs_current_onnxruntime

MISREAD = {
    "scales of another axis": "a weight with scales along axis 1 (dq_wd), read as those of output channels",
    "scales of another axis, int32 bias": "a weight with scales along axis 1 (dq_wd), read as those of output channels",
    "blocks": "a weight with scales in blocks of 2, read as those of output channels",
    "matmul, rows, float output": "a weight with scales along axis 0 (dq_wd), read as those of output channels",
    "matmul, blocks, float output": "a weight with scales in blocks of 2, read as those of output channels",
    "stack, float output": "several scales on 3 dimensions of a MatMul (dq_wd), read as those of output channels",
    "stack, bias, q": "several scales on 3 dimensions of a MatMul (dq_wd), read as those of output channels",
    "left, uint8 rows, float output": "several scales on the first input of a MatMul (dq_wd),"
    " read as those of output channels",
    "gemm, another axis": "a weight with scales along axis 1 (dq_wd), read as those of output channels",
    "gemm, another axis, float output": "a weight with scales along axis 1 (dq_wd), read as those of output channels",
}
READ = (
    "conv",
    "scales of another axis, float bias",
    "blocks, float bias",
    "matmul",
    "stack",
    "stack, one scale, bias",
    "left, uint8",
    "left, int8 rows, float output",
    "left, int8 columns, float output",
    "gemm",
    "gemm, blocks",
    "gemm, another axis, bias",
)


def both_results(graph: onnx.ModelProto) -> list[NDArray[np.float32] | None]:
    """What onnxruntime computes without and with optimisations; None where it fails."""
    dims = graph.graph.input[0].type.tensor_type.shape.dim
    x = np.random.default_rng(0).normal(size=[dim.dim_value or 1 for dim in dims]).astype(np.float32) * 3
    results: list[NDArray[np.float32] | None] = []
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level, options.log_severity_level = level, 4
        try:
            session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
            results.append(session.run(None, {"x": x})[0])
        except Fail:
            results.append(None)
    return results


def graph_of(name: str) -> onnx.ModelProto:
    text, options = CASES[name]
    changed: dict[str, Any] = dict(options)
    wide = text.replace("(c, s2,", "(c, wide,").replace("_codes, s2,", "_codes, wide,")  # nothing saturates
    changed["constants"] = ", ".join(filter(None, (options.get("constants"), "float wide = {5}")))
    return model(with_zero(wide, "u"), **changed)


@pytest.mark.parametrize("name", MISREAD)
def test_scales_that_are_misread(name: str) -> None:
    graph = graph_of(name)
    assert [got for _, got in found(graph, "misread-weight-scales")] == [MISREAD[name]]
    plain, optimised = both_results(graph)
    assert plain is not None
    assert optimised is None or np.abs(plain - optimised).max() > np.abs(plain).max() / 10


@pytest.mark.parametrize("name", READ)
def test_scales_that_are_read_as_written(name: str) -> None:
    graph = graph_of(name)
    assert not nodes(graph, "misread-weight-scales")
    plain, optimised = both_results(graph)
    assert plain is not None
    assert optimised is not None
    np.testing.assert_allclose(optimised, plain, atol=5)  # one code


@pytest.mark.parametrize("name", ["matmul, rows", "matmul, blocks"])
def test_scales_that_older_releases_misread(name: str) -> None:
    graph = graph_of(name)
    assert len(nodes(graph, "misread-weight-scales")) == 1
    assert len(nodes(graph, "scales-inside-the-sum")) == 1
    plain, optimised = both_results(graph)
    assert plain is not None
    assert optimised is not None
    np.testing.assert_array_equal(optimised, plain)


SCALE, ONE, SHIFT = "<axis = 0> (codes, far)", "(codes, s1)", "<axis = 0> (codes, sb, shift)"
FIT = "<axis = 0> (codes, sb)"
GEMM, PRODUCT, CONV = "c = Gemm (d, wd, bd)", "t = MatMul (d, wd) c = Add (t, bd)", "c = Conv (d, wd, bd)"
TINY = {"front": pair("x", "d", "tiny"), "made": weight(scale="tiny", zero="i")}
CONSTANTS = (
    "int32[4] codes = {-1000, 2000, 3000, -4000}, int32[4] shift = {4000, 400, -4000, 400},"
    "int32[4] many = {20000, -10000, 20000, -5000}, int32[4] huge = {20000000, 20000000, 30000000, -40000000},"
    "float[4] far = {0.05, 0.1, 0.05, 0.15}, float[4] near = {0.0050025, 0.010005, 0.0050025, 0.0150075},"
    "float[4] close = {0.00504, 0.01009, 0.00504, 0.01514}, float tiny = {0.001}, float two = {0.000002},"
    "float wide = {1}"
)
OTHER, SHIFTED = (
    "a bias at scale {}, activation * weight {} (dq_b)",
    "a bias in codes with a zero-point other than 0 (dq_b)",
)
BEHIND = (pair("c", "y", "wide", "um"), "y = Neg (c)")
# name: (layer with the bias bd, what makes the bias, more, what is said)
MISREAD_BIASES: dict[str, tuple[str, str, dict[str, str], str]] = {
    "gemm, another scale": (GEMM, SCALE, {}, OTHER.format(0.05, 0.005)),
    "gemm, one scale": (GEMM, ONE, {}, OTHER.format(0.1, 0.005)),
    "gemm, zero-point": (GEMM, SHIFT, {}, SHIFTED),
    "gemm, nearly the scale": (GEMM, "<axis = 0> (many, close)", {}, OTHER.format(0.00504, 0.005)),
    "matmul, another scale": (PRODUCT, SCALE, {}, OTHER.format(0.05, 0.005)),
    "matmul, zero-point": (PRODUCT, SHIFT, {}, SHIFTED),
    "rows, another scale": (PRODUCT, SCALE, {"x": "1, 2, 4", "y": "a, b, c"}, OTHER.format(0.05, 0.005)),
    "conv, scales within 1e-6": (CONV, "(huge, two)", TINY, OTHER.format("2e-06", "1e-06")),
}


def biased(layer: str, bias: str, *, behind: str, front: str = IN, made: str = "", **options: str) -> onnx.ModelProto:
    made = made or weight(int("Conv" not in layer))
    text = f"{front} {made} [dq_b] bd = DequantizeLinear {bias} [layer] {layer} {behind}"
    sizes = {} if "Conv" in layer else MATRIX
    return model(with_zero(text, "u"), constants=CONSTANTS, opset=20, **sizes | options)


@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("name", MISREAD_BIASES)
def test_biases_that_are_misread(name: str, behind: str) -> None:
    layer, bias, options, said = MISREAD_BIASES[name]
    graph = biased(layer, bias, behind=behind, **options)
    if "conv" in name and "wide" not in behind:
        assert not nodes(graph, "misread-bias")  # it stays float
        return
    assert [got for _, got in found(graph, "misread-bias")] == [said]
    plain, optimised = both_results(graph)
    assert plain is not None
    assert optimised is not None
    assert np.abs(plain - optimised).max() > np.abs(plain).max() / 200


@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize(
    ("layer", "bias", "options"),
    [
        (GEMM, FIT, {}),
        (GEMM, "<axis = 0> (codes, near)", {}),
        (PRODUCT, FIT, {}),
        (PRODUCT, FIT, {"x": "1, 2, 4", "y": "a, b, c"}),
        (PRODUCT, SCALE, {"x": "N, 2, 4", "y": "a, b, c"}),  # the Add is one of its own
        (CONV, FIT, {}),
        (CONV, SCALE, {}),  # stays float
        (CONV, SHIFT, {}),
        ("c = Gemm <alpha = 0.5> (d, wd, bd)", SCALE, {}),
        ("c = Gemm (x, wd, bd)", SCALE, {}),
    ],
)
def test_biases_that_are_read_as_written(layer: str, bias: str, options: dict[str, str], behind: str) -> None:
    graph = biased(layer, bias, behind=behind, **options)
    assert not nodes(graph, "misread-bias")
    plain, optimised = both_results(graph)
    assert plain is not None
    assert optimised is not None
    np.testing.assert_allclose(optimised, plain, rtol=0.01, atol=1.01 if "wide" in behind else 0.1)  # one code


@pytest.mark.parametrize("layer", [GEMM, PRODUCT])
def test_a_bias_of_zeros_is_the_same_at_any_scale(layer: str) -> None:
    graph = biased(layer, SCALE, behind=BEHIND[0] if isinstance(BEHIND, (list, tuple)) else next(iter(BEHIND.values())))
    (codes,) = [node.input[0] for node in graph.graph.node if node.name == "dq_b"]
    for tensor in graph.graph.initializer:
        if tensor.name == codes:
            shape = onnx.numpy_helper.to_array(tensor).shape
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(shape, np.int32), codes))
    assert not nodes(graph, "misread-bias")
