"""Files of onnxruntime, ModelOpt and Brevitas, made with their own packages, against what the engines do with them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from bitswitch_deploy.graph.lint.lint import lint
from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph
from bitswitch_deploy.graph.lint.reading import read_graph
from bitswitch_deploy.graph.lint.rules.onnxruntime_floats import FLOAT_RULES
from tests.graph.lint.graphs import optimised_operators, rtx_refusal
from tests.graph.lint.peers import SHAPE, float_network, samples
from tests.graph.lint.rules.test_onnxruntime_floats import FLOAT_OPERATORS
from tests.graph.running import needs_current_onnxruntime

pytestmark = needs_current_onnxruntime
ROOT = Path(__file__).parents[3]


class _Samples(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self._left = iter({"x": x.reshape(SHAPE)} for x in samples(4))

    def get_next(self) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]] | None:
        return next(self._left, None)


@pytest.fixture(scope="module")
def float_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("float")
    onnx.save(float_network(), folder / "float.onnx")
    quant_pre_process(str(folder / "float.onnx"), str(folder / "prepared.onnx"))
    return folder / "prepared.onnx"


def rules_of(path: Path, engine: str) -> set[str]:
    return {finding.rule for finding in lint(read_graph(path)).findings if engine in finding.engines}


def errors_of(path: Path) -> set[str]:
    return {finding.rule for finding in lint(read_graph(path), engines=("tensorrt",)).errors}


def check_against_engines(path: Path, folder: Path) -> None:
    """Float layers as onnxruntime runs them, and errors exactly where TensorRT for RTX refuses."""
    graph = read_graph(path)
    findings = lint(graph).findings
    float_rules = [rule.id for rule in FLOAT_RULES]
    named = {finding.node for finding in findings if finding.rule in float_rules}
    never = {layer.node.name for layer in QdqGraph(graph).layers if layer.activation is None and layer.weight is None}
    model = onnx.load(path)
    ran = optimised_operators(model, folder)
    assert len(named | never) == sum(ran[operator] for operator in FLOAT_OPERATORS), (named, never, ran)
    if importlib.util.find_spec("tensorrt_rtx"):
        assert bool(errors_of(path)) == (rtx_refusal(model) is not None)


INT8 = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8}
UINT8 = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
SYMMETRIC = {"ActivationSymmetric": True, "WeightSymmetric": True}

# name: (arguments of quantize_static, rules of TensorRT that are broken, those of onnxruntime)
STATIC: dict[str, tuple[dict[str, Any], set[str], set[str]]] = {
    "uint8, int8 per channel": (
        UINT8 | {"per_channel": True},
        {"uint8-codes", "nonzero-zero-point", "int32-bias", "qdq-between-conv-and-add", "unequal-concat-scales"},
        set(),
    ),
    "uint8, uint8": (
        {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8},
        {"uint8-codes", "nonzero-zero-point", "int32-bias", "qdq-between-conv-and-add", "unequal-concat-scales"},
        set(),
    ),
    "int8": (
        INT8,
        {"nonzero-zero-point", "int32-bias", "qdq-between-conv-and-add", "unequal-concat-scales"},
        {"int8-fan-out"},
    ),
    "int8, symmetric, for TensorRT": (
        INT8 | {"per_channel": True, "extra_options": SYMMETRIC | {"QuantizeBias": False}},
        {"qdq-between-conv-and-add", "unequal-concat-scales"},
        {"int8-fan-out", "float-bias"},
    ),
    "uint16": (
        {"activation_type": QuantType.QUInt16, "weight_type": QuantType.QInt8},
        {
            "type-unknown-to-tensorrt",
            "nonzero-zero-point",
            "int32-bias",
            "qdq-between-conv-and-add",
            "unequal-concat-scales",
        },
        {"sixteen-bit-codes"},
    ),
    "int4 weights": (
        {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt4},
        {
            "uint8-codes",
            "nonzero-zero-point",
            "int32-bias",
            "odd-int4-row",
            "narrow-conv-weight",
            "qdq-between-conv-and-add",
            "unequal-concat-scales",
        },
        {"narrow-weight"},
    ),
    "QOperator": ({"quant_format": QuantFormat.QOperator}, {"integer-operator", "nonzero-zero-point"}, set()),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", STATIC)
def test_onnxruntime_quantize_static(name: str, float_file: Path, tmp_path: Path) -> None:
    arguments, tensorrt, onnxruntime = STATIC[name]
    path = tmp_path / "net.onnx"
    quantize_static(str(float_file), str(path), _Samples(), **({"quant_format": QuantFormat.QDQ} | arguments))
    assert rules_of(path, "tensorrt") == tensorrt
    assert rules_of(path, "onnxruntime") == onnxruntime
    check_against_engines(path, tmp_path)


# kind: (packages that it needs, rules of TensorRT that are broken, those of onnxruntime)
PEERS: dict[str, tuple[tuple[str, ...], set[str], set[str]]] = {
    "modelopt-onnx": (
        ("modelopt", "onnxslim", "polygraphy", "onnxconverter_common", "lief", "cppimport"),
        {"float-weight"},
        {"float-weight", "float-output", "unabsorbed-activation", "half-scale", "float-bias"},
    ),
    "modelopt-torch": (
        ("modelopt", "torch", "requests", "huggingface_hub"),
        {"partly-quantized"},
        {"partly-quantized", "unabsorbed-activation", "float-bias", "float-bias-of-gemm"},
    ),
    "modelopt-torch-linear": (
        ("modelopt", "torch", "requests", "huggingface_hub"),
        {"weight-detour"},
        {"float-bias-of-gemm"},
    ),
    "brevitas-8": (
        ("brevitas", "torch", "onnxoptimizer"),
        {"uint8-codes", "int32-bias", "weight-path", "partly-quantized"},
        {"partly-quantized", "float-input"},
    ),
    "brevitas-4": (
        ("brevitas", "torch", "onnxoptimizer"),
        {"uint8-codes", "int32-bias", "weight-path", "partly-quantized", "operator-on-codes"},
        {"partly-quantized", "float-input"},
    ),
}


@pytest.mark.parametrize("kind", PEERS)
def test_files_of_peers(kind: str, float_file: Path, tmp_path: Path) -> None:
    packages, tensorrt, onnxruntime = PEERS[kind]
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (pip install 'bitswitch-deploy[peers]')")
    path = tmp_path / "net.onnx"
    command = [sys.executable, "-m", "tests.graph.lint.peers", kind, str(float_file), str(path)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-2000:]
    assert rules_of(path, "tensorrt") == tensorrt
    assert rules_of(path, "onnxruntime") == onnxruntime
    check_against_engines(path, tmp_path)
