"""Scales that onnxruntime misreads: it gives another result with optimisations than without, or fails in the run."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from tests.graph.lint.graphs import found, model, nodes, with_zero
from tests.graph.lint.rules.test_onnxruntime_floats import CASES
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
    x = np.random.default_rng(0).normal(size=[dim.dim_value for dim in dims]).astype(np.float32) * 3
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
