"""`bitswitch-deploy lint` on real files."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from tests.conftest import Run
from tests.graph.lint.graphs import CONV, IN, LAYER, WEIGHT, model, with_zero


def saved(text: str, folder: Path) -> Path:
    path = folder / "net.onnx"
    onnx.save(model(text), path)
    return path


def test_errors_exit_with_1(run: Run, tmp_path: Path) -> None:
    outcome = run("lint", saved(with_zero(CONV, "u"), tmp_path))
    assert outcome.code == 1
    assert " ".join(outcome.out.split()).startswith(f"{tmp_path}/net.onnx: 2 errors")
    assert "error: uint8-codes  (tensorrt)" in outcome.out


def test_an_error_of_the_other_engine_does_not_count(run: Run, tmp_path: Path) -> None:
    path = saved(with_zero(CONV, "u"), tmp_path)
    assert run("lint", path, "--engine", "tensorrt").code == 1
    outcome = run("lint", path, "--engine", "onnxruntime")
    assert outcome.code == 0
    assert "nothing found" in " ".join(outcome.out.split())


def test_warnings_exit_with_0(run: Run, tmp_path: Path) -> None:
    outcome = run("lint", saved(with_zero(IN + WEIGHT + LAYER + "y = Relu (c)", "i"), tmp_path))
    assert outcome.code == 0
    assert "warning: float-output  (onnxruntime)" in outcome.out


def test_json(run: Run, tmp_path: Path) -> None:
    path = saved(with_zero(CONV, "u"), tmp_path)
    outcome = run("lint", path, "--engine", "tensorrt", "--json")
    document = json.loads(outcome.out)
    assert outcome.code == 1
    findings = document.pop("findings")
    assert document == {
        "schema": "bitswitch-lint/1",
        "graph": str(path),
        "engines": ["tensorrt"],
        "opset": 21,
        "nodes": 6,
        "quantizers": 2,
        "dequantizers": 3,
        "weighted": 1,
        "quantized_weights": 1,
    }
    assert findings[0] == {
        "rule": "uint8-codes",
        "severity": "error",
        "engines": ["tensorrt"],
        "operator": "QuantizeLinear",
        "node": "q_d",
        "got": "uint8 codes, read as int8: the upper half of the range is lost",
        "allowed": "int8 codes",
        "do": "quantize symmetrically to int8, zero-point 0; up to 7 bits fit after a float Clip in front of Q",
    }


@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_a_bad_file_exits_with_3(run: Run, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    outcome = run("lint", path)
    assert outcome.code == 3
    assert outcome.err.startswith(f"error: {path}: ")
    assert "Traceback" not in outcome.err
    assert json.loads(run("lint", path, "--json").out)["kind"] == "GraphError"


def test_an_unknown_engine_exits_with_2(run: Run, tmp_path: Path) -> None:
    assert run("lint", tmp_path / "net.onnx", "--engine", "openvino").code == 2


@pytest.mark.parametrize("target", ["x86-cpu", "jetson-orin-nano", "jetson-xavier-nx", "rtx"])
def test_what_we_export_has_no_error_on_its_engine(run: Run, tmp_path: Path, target: str) -> None:
    assert run("export", "--target", target, "--bits", "8,2", "--output", tmp_path / "p").code == 0
    engine = "onnxruntime" if target == "x86-cpu" else "tensorrt"
    graphs = sorted((tmp_path / "p").glob("*-w*.onnx"))
    assert len(graphs) == 2
    for graph in graphs:
        outcome = run("lint", graph, "--engine", engine, "--json")
        findings = json.loads(outcome.out)["findings"]
        assert outcome.code == 0, findings
        # a width may keep its residual branches in float on onnxruntime; the export says so too
        known = {"float-output", "partly-quantized-onnxruntime"} if engine == "onnxruntime" else set()
        assert {finding["rule"] for finding in findings} <= known
