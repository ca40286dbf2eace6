"""Small Q/DQ graphs for the engines, and a target whose engines are built on the device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from bitswitch_deploy.target import Target


def _text(activation: str, zero_point: int, batch: str, tail: str) -> str:
    return f"""
    <ir_version: 10, opset_import: ["" : 21]>
    tiny (float[{batch},3,8,8] x) => (float[{batch},4,6,6] y)
    <float x_scale = {{0.05}}, {activation} x_zero = {{{zero_point}}}, float[4] w_scale = {{0.1, 0.2, 0.1, 0.3}},
     int8[4] w_zero = {{0, 0, 0, 0}}>
    {{
        w = DequantizeLinear<axis = 0>(w_codes, w_scale, w_zero)
        [activation_q] x_codes = QuantizeLinear(x, x_scale, x_zero)
        [activation_dq] x_float = DequantizeLinear(x_codes, x_scale, x_zero)
        {tail}
    }}
    """


@pytest.fixture
def qdq_conv() -> Callable[..., bytes]:
    """Serialized graph of one quantized convolution, float[batch,3,8,8] -> float[batch,4,6,6]."""

    def build(*, activation: str = "int8", zero_point: int = 0, batch: str = "1", requantize: bool = False) -> bytes:
        tail = "[conv] y = Conv(x_float, w)"
        if requantize:
            tail = """[conv] c = Conv(x_float, w)
            c_codes = QuantizeLinear(c, x_scale, x_zero)
            y = DequantizeLinear(c_codes, x_scale, x_zero)"""
        model = onnx.parser.parse_model(_text(activation, zero_point, batch, tail))
        codes = np.random.default_rng(7).integers(-8, 8, (4, 3, 3, 3)).astype(np.int8)
        model.graph.initializer.append(onnx.numpy_helper.from_array(codes, "w_codes"))
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString()

    return build


@pytest.fixture
def int4_matmul() -> bytes:
    """Serialized weight-only MatMul, int4 blocks of 16: float[2,32] -> float[2,16]."""
    helper, proto = onnx.helper, onnx.TensorProto
    codes = np.random.default_rng(11).integers(-8, 8, (32, 16))
    scales = np.linspace(0.01, 0.03, 32, dtype=np.float32).reshape(2, 16)
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["w"], name="dq", axis=0, block_size=16),
            helper.make_node("MatMul", ["x", "w"], ["y"], name="matmul"),
        ],
        "weight_only",
        [helper.make_tensor_value_info("x", proto.FLOAT, [2, 32])],
        [helper.make_tensor_value_info("y", proto.FLOAT, [2, 16])],
        [
            helper.make_tensor("codes", proto.INT4, [32, 16], codes.ravel()),
            onnx.numpy_helper.from_array(scales, "scales"),
            helper.make_tensor("zeros", proto.INT4, [2, 16], [0] * 32),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _target(**changes: object) -> Target:
    mapping = {
        "schema": "bitswitch-target/1",
        "name": "jetson-test",
        "title": "Test board",
        "family": "jetson",
        "arch": "aarch64",
        "detect": {"compatible": ["tegra234"]},
        "stacks": [
            {"name": "6.2", "engine_version": "10.3.0", "opset": 21, "ir_version": 10, "python": "3.10",
             "typing": "weak", "default": True}
        ],
        "quantization": {
            "activation": {"dtype": "int8", "zero_point": 0},
            "weight_containers": dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), "int8"),
            "residual": "skip_input",
            "min_agreement": 99.5,
        },
        "lowering": [],
        "engine": {"name": "tensorrt", "build": "on_device", "builder_flags_legacy": ["INT8", "FP16"]},
        "measure": {"min_warmup_s": 10, "min_seconds": 30},
        "limits": {"max_workspace_mb": 1024},
    }  # fmt: skip
    return Target.from_mapping(mapping | changes, source="test.yaml")


@pytest.fixture
def target_with() -> Callable[..., Target]:
    """A Jetson-like target, with some of its top-level keys changed."""
    return _target
