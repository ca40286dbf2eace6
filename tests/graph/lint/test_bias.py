"""Biases: what is said of those that onnxruntime refuses, and which float ones it rounds."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.graph.lint.graphs import found, model, nodes, optimised_operators, with_zero
from tests.graph.lint.rules.test_onnxruntime_floats import BIAS, CASES
from tests.graph.running import needs_current_onnxruntime


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("bias of 8 bits", "a bias in int8 codes"),
        ("matmul, bias of 8 bits", "a bias in int8 codes"),
        ("bias of another scale", "a bias at scale 0.0052, activation * weight 0.005"),
        ("bias of one scale", "a bias at scale 0.1, activation * weight 0.005"),
        ("bias of a zero-point", "a bias in codes with a zero-point other than 0"),
        ("bias of a scale that is computed", "a bias in codes with a scale that is computed at run time"),
        ("bias of a zero-point that is computed", "a bias in codes with a zero-point that is computed at run time"),
        ("blocks, int32 bias", "a bias with 4 scales beside 72 of its weight"),
    ],
)
def test_biases_in_codes_that_are_refused(name: str, got: str) -> None:
    text, options = CASES[name]
    ((_, said),) = found(model(with_zero(text, "u"), **options), "no-integer-kernel")
    assert said.rpartition(" (")[0] == got


@needs_current_onnxruntime
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("rows, float bias")])
def test_the_bias_of_rows_is_rounded_only_where_it_is_said(name: str, tmp_path: Path) -> None:
    text, options = CASES[name]
    graph = model(with_zero(text.replace(BIAS, ""), "u"), **options)
    optimised_operators(graph, tmp_path)
    optimised = onnx.load(tmp_path / "optimised.onnx").graph
    types = {constant.data_type for constant in optimised.initializer}
    assert bool(nodes(graph, "float-bias")) == (onnx.TensorProto.INT32 in types)
